"""RoIAlign over the feature pyramid as Triton kernels, float32 or bfloat16 maps, sums in float32.

Twin: ops/roi_align.py. The backward pass is a gather: each tile of 8 x 8 cells first gets the list of the RoIs that
meet it, in their order, then sums what it gets and is written once. A list has room for all RoIs of the image, so its
address is known without counting and nothing waits for the device. No atomics: the same bits every time.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskperf.ops.kernels.pyramid import (
    TILE,
    channels_last,
    count_tiles,
    empty_maps,
    level_of,
    pyramid_argument,
    tile_place,
)
from maskperf.ops.roi_align import assign_levels, image_of_row

MAX_CHANNELS = 256  # of one program, forward
MAX_CHANNELS_BACKWARD = 128
MIN_POSITION = tl.constexpr(-1.0)  # a sample further out weighs nothing
ROIS_AT_A_TIME = tl.constexpr(128)


def pyramid_roi_align(
    features: list[Tensor],
    boxes: Float32[Tensor, "images rois 4"],
    *,
    size: int,
    strides: tuple[int, ...],
    image_offsets: Int[Tensor, " images_plus_1"] | None = None,
    most_of_image: int = 0,
) -> Float[Tensor, "images_rois channels size size"]:
    """Return each box's pooled map, channels-last, from the level of the pyramid that fits its size.

    Differentiable in the features, not in the boxes. Maps that are not channels-last are copied first.
    `image_offsets`: see ops/roi_align.py; then no image may have more than `most_of_image` boxes.
    """
    images, rois = boxes.shape[:2]
    if image_offsets is None:
        image_offsets, most_of_image = torch.arange(images + 1, device=boxes.device) * rois, rois
    rows = boxes.detach().flatten(0, 1).contiguous()
    return _PyramidRoiAlign.apply(rows, image_offsets, size, strides, most_of_image, *features)


class _PyramidRoiAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        boxes: Tensor,
        image_offsets: Tensor,
        size: int,
        strides: tuple[int, ...],
        most: int,
        *features: Tensor,
    ) -> Tensor:
        levels = assign_levels(boxes, len(strides))
        ctx.save_for_backward(boxes, image_offsets, levels)
        ctx.most_of_image, ctx.strides, ctx.shapes = most, strides, [level.shape for level in features]
        channels = features[0].shape[1]
        pooled = features[0].new_empty(len(boxes), size, size, channels)
        if pooled.numel() > 0:
            maps = [channels_last(level) for level in features]
            grid = (len(boxes), size, triton.cdiv(channels, MAX_CHANNELS))
            _pool_row[grid](
                pooled,
                pyramid_argument(maps, strides),
                boxes,
                levels,
                image_of_row(image_offsets, len(boxes)),
                size,
                channels,
                enable_fp_fusion=False,  # the positions must not be rounded otherwise than the twin's
            )
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps = pyramid_gradient(
            gradient, *ctx.saved_tensors, shapes=ctx.shapes, strides=ctx.strides, most_of_image=ctx.most_of_image
        )
        return None, None, None, None, None, *maps


def pyramid_gradient(
    gradient: Tensor,
    boxes: Tensor,
    image_offsets: Tensor,
    levels: Tensor,
    *,
    shapes: list[torch.Size],
    strides: tuple[int, ...],
    most_of_image: int,
) -> list[Tensor]:
    """Return the gradient of each level, channels-last, from that of all pooled maps."""
    maps = empty_maps(shapes, gradient)
    images, (channels, size) = shapes[0][0], gradient.shape[1:3]
    num_tiles = count_tiles(shapes)
    if num_tiles == 0:
        return maps
    bins = gradient.permute(0, 2, 3, 1).contiguous()
    lists = torch.empty(num_tiles, most_of_image + 1, dtype=torch.int32, device=boxes.device)
    firsts = image_offsets.contiguous()
    pyramid = pyramid_argument(maps, strides)
    _list_rois[(num_tiles,)](lists, pyramid, boxes, levels, firsts, images, most_of_image, size, enable_fp_fusion=False)
    grid = (num_tiles, triton.cdiv(channels, MAX_CHANNELS_BACKWARD))
    _gather_tile[grid](lists, pyramid, bins, boxes, images, most_of_image, size, channels, enable_fp_fusion=False)
    return maps


@triton.jit
@no_type_check
def scaled_sides(box, scale, SIZE: tl.constexpr, mask=None):
    """Return x and y of the corner, then the length of a bin on each axis, for boxes at the given pointers."""
    x1 = tl.load(box, mask=mask) * scale
    y1 = tl.load(box + 1, mask=mask) * scale
    x2 = tl.load(box + 2, mask=mask) * scale
    y2 = tl.load(box + 3, mask=mask) * scale
    x_step = tl.div_rn(tl.maximum(x2 - x1, 1.0), SIZE * 1.0)
    y_step = tl.div_rn(tl.maximum(y2 - y1, 1.0), SIZE * 1.0)
    return x1, y1, x_step, y_step


@triton.jit
@no_type_check
def sample_position(start, step, sample):
    """Return the coordinate of a sample; there are two per bin."""
    return start + (sample * 0.5 + 0.25) * step


@triton.jit
@no_type_check
def neighbours(start, step, sample, length):
    """Return the two cells a sample lies between, as float32, and the part each has in its bin."""
    position = sample_position(start, step, sample)
    weight = tl.where((position >= MIN_POSITION) & (position <= length), 0.5, 0.0)  # of two samples in a bin
    position = tl.minimum(tl.maximum(position, 0.0), length - 1.0)
    low = tl.floor(position)
    share = position - low
    return low, tl.minimum(low + 1.0, length - 1.0), (1.0 - share) * weight, share * weight


@triton.jit
@no_type_check
def cells_of_bin(start, step, number, length):
    """Return the four cells that make up a bin on one axis, as float32, and the part of each."""
    first, second, first_part, second_part = neighbours(start, step, number * 2, length)
    third, fourth, third_part, fourth_part = neighbours(start, step, number * 2 + 1, length)
    return (first, second, third, fourth), (first_part, second_part, third_part, fourth_part)


@triton.jit
@no_type_check
def _pool_row(pooled, pyramid, boxes, levels, image_of_roi, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """One program: one row of bins of one RoI, and up to 256 channels."""
    BINS: tl.constexpr = triton.next_power_of_2(SIZE)
    BLOCK: tl.constexpr = 256 if CHANNELS >= 256 else triton.next_power_of_2(CHANNELS)
    roi = tl.program_id(0).to(tl.int64)
    bin_row = tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, BINS)
    is_real = (column < SIZE)[:, None] & (channel < CHANNELS)[None, :]
    rows, height, width, scale = level_of(pyramid, tl.load(levels + roi))
    x1, y1, x_step, y_step = scaled_sides(boxes + roi * 4, scale, SIZE)
    rows += tl.load(image_of_roi + roi).to(tl.int64) * height.to(tl.int64) * width.to(tl.int64) * CHANNELS
    total = tl.zeros([BINS, BLOCK], tl.float32)
    y_cells, y_parts = cells_of_bin(y1, y_step, bin_row, height)
    x_cells, x_parts = cells_of_bin(x1, x_step, column, width)
    for y in tl.static_range(4):
        row = rows + y_cells[y].to(tl.int32) * width.to(tl.int32) * CHANNELS
        for x in tl.static_range(4):
            place = x_cells[x].to(tl.int32) * CHANNELS
            value = tl.load(row + (place[:, None] + channel[None, :]), mask=is_real, other=0.0)
            total = tl.fma((x_parts[x] * y_parts[y])[:, None], value.to(tl.float32), total)
    place = ((roi * SIZE + bin_row) * SIZE + column) * CHANNELS
    tl.store(pooled + place[:, None] + channel[None, :], total.to(pooled.dtype.element_ty), mask=is_real)


@triton.jit
@no_type_check
def _meets(start, step, length, first_cell, SIZE: tl.constexpr):
    """Return whether samples of a box may touch one of the tile's cells on this axis."""
    first, _, _, _ = neighbours(start, step, 0, length)
    _, last, _, _ = neighbours(start, step, 2 * SIZE - 1, length)
    is_on_map = (sample_position(start, step, 0) <= length) & (sample_position(start, step, 2 * SIZE - 1) >= -1.0)
    return is_on_map & (last >= first_cell) & (first < first_cell + TILE)


@triton.jit(do_not_specialize=["images", "most_of_image"])
@no_type_check
def _list_rois(lists, pyramid, boxes, levels, firsts, images, most_of_image, SIZE: tl.constexpr):
    """One program: the list of one tile. Its first entry is how many there are."""
    tile = tl.program_id(0)
    level, image, top, left = tile_place(pyramid, tile, images)
    _, height, width, scale = level_of(pyramid, level)
    entries = lists + tile.to(tl.int64) * (most_of_image + 1)
    first, rois = tl.load(firsts + image), tl.load(firsts + image + 1) - tl.load(firsts + image)
    count = 0
    for start in range(0, rois, ROIS_AT_A_TIME):
        roi = start + tl.arange(0, ROIS_AT_A_TIME)
        is_real = roi < rois
        place = first + roi
        meets = is_real & (tl.load(levels + place, mask=is_real, other=-1) == level)
        x1, y1, x_step, y_step = scaled_sides(boxes + place * 4, scale, SIZE, is_real)
        meets = meets & _meets(x1, x_step, width, left, SIZE) & _meets(y1, y_step, height, top, SIZE)
        number = count + tl.cumsum(meets.to(tl.int32), axis=0)
        tl.store(entries + number, place.to(tl.int32), mask=meets)
        count += tl.sum(meets.to(tl.int32), axis=0)
    tl.store(entries, count)


@triton.jit
@no_type_check
def _weight_on_cell(cell, start, step, bin_number, length):
    """Return how much of a bin comes from a cell, on one axis; 0 where the bin is elsewhere."""
    cells, parts = cells_of_bin(start, step, bin_number, length)
    total = tl.where(cells[0] == cell, parts[0], 0.0)
    for other in tl.static_range(1, 4):
        total += tl.where(cells[other] == cell, parts[other], 0.0)
    return total


@triton.jit
@no_type_check
def _bins_on_tile(start, step, length, first_cell, SIZE: tl.constexpr, BINS: tl.constexpr):
    """Return the first and the last bin of a box that may touch the tile on this axis."""
    number = tl.arange(0, BINS)
    low, _, _, _ = neighbours(start, step, number * 2, length)
    _, high, _, _ = neighbours(start, step, number * 2 + 1, length)
    meets = (number < SIZE) & (high >= first_cell) & (low < first_cell + TILE)
    return tl.min(tl.where(meets, number, BINS), axis=0), tl.max(tl.where(meets, number, -1), axis=0)


@triton.jit
@no_type_check
def _add_product(weights, values, total, IS_EXACT: tl.constexpr):
    """Return total + weights @ values.

    Values that came as bfloat16 go through the matrix units: these round to 11 bits, so a weight goes in as two parts
    of 8 bits, and only its last 8 bits are lost.
    """
    if IS_EXACT:
        return tl.dot(weights, values, total, input_precision="ieee")
    high = weights.to(tl.bfloat16).to(tl.float32)
    low = (weights - high).to(tl.bfloat16).to(tl.float32)
    total = tl.dot(high, values, total, input_precision="tf32")
    return tl.dot(low, values, total, input_precision="tf32")


@triton.jit(do_not_specialize=["images", "most_of_image"])
@no_type_check
def _gather_tile(lists, pyramid, bins, boxes, images, most_of_image, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """One program: one tile of one level of one image, and up to 128 channels."""
    BLOCK: tl.constexpr = 128 if CHANNELS >= 128 else max(16, triton.next_power_of_2(CHANNELS))
    BINS: tl.constexpr = max(16, triton.next_power_of_2(SIZE))  # of a row; a matrix product needs 16
    tile = tl.program_id(0)
    level, image, top, left = tile_place(pyramid, tile, images)
    rows, height, width, scale = level_of(pyramid, level)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    cell = tl.arange(0, TILE * TILE)
    cell_y, cell_x = top + cell // TILE, left + cell % TILE
    column = tl.arange(0, BINS)
    is_bin = (column < SIZE)[:, None] & (channel < CHANNELS)[None, :]
    entries = lists + tile.to(tl.int64) * (most_of_image + 1)
    total = tl.zeros([TILE * TILE, BLOCK], tl.float32)
    for entry in range(1, tl.load(entries) + 1):
        roi = tl.load(entries + entry).to(tl.int64)
        own_bins = bins + roi * (SIZE * SIZE * CHANNELS)
        x1, y1, x_step, y_step = scaled_sides(boxes + roi * 4, scale, SIZE)
        x_weights = _weight_on_cell(cell_x[:, None], x1, x_step, column[None, :], width)
        x_weights = tl.where((column < SIZE)[None, :], x_weights, 0.0)
        first_row, last_row = _bins_on_tile(y1, y_step, height, top, SIZE, BINS)
        for row in range(first_row, last_row + 1):
            y_weight = _weight_on_cell(cell_y, y1, y_step, row, height)
            place = (row * SIZE + column) * CHANNELS
            value = tl.load(own_bins + (place[:, None] + channel[None, :]), mask=is_bin, other=0.0).to(tl.float32)
            total = _add_product(y_weight[:, None] * x_weights, value, total, bins.dtype.element_ty == tl.float32)
    is_cell = (cell_y < height.to(tl.int32)) & (cell_x < width.to(tl.int32))
    rows += image.to(tl.int64) * height.to(tl.int64) * width.to(tl.int64) * CHANNELS
    place = (cell_y * width.to(tl.int32) + cell_x) * CHANNELS
    is_real = is_cell[:, None] & (channel < CHANNELS)[None, :]
    tl.store(rows + place[:, None] + channel[None, :], total.to(rows.dtype.element_ty), mask=is_real)
