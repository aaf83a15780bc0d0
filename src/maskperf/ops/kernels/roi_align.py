"""RoIAlign over the feature pyramid as Triton kernels, float32 or bfloat16 maps, sums in float32.

Reference: ops/roi_align.py. The backward is a gather: each tile of 8 x 8 cells first gets the list of the RoIs that
meet it, in their order, then sums what it gets and is written once. A list has room for all RoIs of the image, so its
address is known without counting and nothing waits for the device. No atomics: the same bits every time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskperf.ops.kernels.pyramid import TILE, empty_maps, level_of, locate, pyramid_argument, store_tile, tile_cells
from maskperf.ops.kernels.values import jit, load_box
from maskperf.ops.roi_align import assign_levels, image_of_row

MAX_CHANNELS, MAX_CHANNELS_BACKWARD = tl.constexpr(256), tl.constexpr(128)  # of one program
MIN_POSITION = tl.constexpr(-1.0)  # a sample further out weighs nothing
ROIS_AT_A_TIME = tl.constexpr(128)
EXACT = {"enable_fp_fusion": False}  # the positions must not be rounded otherwise than the reference's


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
    def forward(ctx: Any, boxes: Tensor, offsets: Tensor, size: int, strides: Any, most: int, *maps: Tensor) -> Tensor:
        levels = assign_levels(boxes, len(strides))
        ctx.save_for_backward(boxes, levels, offsets)
        ctx.most_of_image, ctx.strides, ctx.shapes = most, strides, [level.shape for level in maps]
        channels = maps[0].shape[1]
        pooled = maps[0].new_empty(len(boxes), size, size, channels)
        if pooled.numel() > 0:
            rois = (boxes, levels, image_of_row(offsets, len(boxes)))
            grid = (len(boxes), size, triton.cdiv(channels, MAX_CHANNELS.value))
            _pool_row[grid](pooled, pyramid_argument(maps, strides), rois, size, channels, **EXACT)
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        boxes, levels, offsets = ctx.saved_tensors
        images, most, (channels, size) = ctx.shapes[0][0], ctx.most_of_image, gradient.shape[1:3]
        maps, tiles = empty_maps(ctx.shapes, gradient)
        if tiles > 0:
            pyramid = pyramid_argument(maps, ctx.strides)
            lists = torch.empty(tiles, most + 1, dtype=torch.int32, device=boxes.device)
            _list_rois[(tiles,)](lists, pyramid, (boxes, levels, offsets.contiguous()), images, most, size, **EXACT)
            bins = gradient.permute(0, 2, 3, 1).contiguous()
            grid = (tiles, triton.cdiv(channels, MAX_CHANNELS_BACKWARD.value))
            _gather_tile[grid](lists, pyramid, bins, boxes, images, most, size, channels, **EXACT)
        return None, None, None, None, None, *maps


@jit
def scaled_sides(box, scale, SIZE: tl.constexpr, mask=None):
    """Return x and y of the corner, then the length of a bin on each axis, for boxes at the given pointers."""
    x1, y1, x2, y2 = load_box(box, mask)
    x1, y1, x2, y2 = x1 * scale, y1 * scale, x2 * scale, y2 * scale
    x_step = tl.div_rn(tl.maximum(x2 - x1, 1.0), SIZE * 1.0)
    y_step = tl.div_rn(tl.maximum(y2 - y1, 1.0), SIZE * 1.0)
    return x1, y1, x_step, y_step


@jit
def sample_position(start, step, sample):
    """Return the coordinate of a sample; there are two per bin."""
    return start + (sample * 0.5 + 0.25) * step


@jit
def neighbours(start, step, sample, length):
    """Return the two cells a sample lies between, as float32, and the part each has in its bin."""
    position = sample_position(start, step, sample)
    weight = tl.where((position >= MIN_POSITION) & (position <= length), 0.5, 0.0)  # of two samples in a bin
    position = tl.minimum(tl.maximum(position, 0.0), length - 1.0)
    low = tl.floor(position)
    share = position - low
    return low, tl.minimum(low + 1.0, length - 1.0), (1.0 - share) * weight, share * weight


@jit
def cells_of_bin(start, step, number, length):
    """Return the four cells that make up a bin on one axis, as float32, and the part of each."""
    first, second, first_part, second_part = neighbours(start, step, number * 2, length)
    third, fourth, third_part, fourth_part = neighbours(start, step, number * 2 + 1, length)
    return (first, second, third, fourth), (first_part, second_part, third_part, fourth_part)


@jit
def _pool_row(pooled, pyramid, rois, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """One program: one row of bins of one RoI, and up to 256 channels."""
    BINS: tl.constexpr = triton.next_power_of_2(SIZE)
    BLOCK: tl.constexpr = min(MAX_CHANNELS, triton.next_power_of_2(CHANNELS))
    roi = tl.program_id(0).to(tl.int64)
    bin_row = tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, BINS)
    is_real = (column < SIZE)[:, None] & (channel < CHANNELS)[None, :]
    rows, height, width, scale = level_of(pyramid, tl.load(rois[1] + roi))
    x1, y1, x_step, y_step = scaled_sides(rois[0] + roi * 4, scale, SIZE)
    rows += tl.load(rois[2] + roi).to(tl.int64) * height.to(tl.int64) * width.to(tl.int64) * CHANNELS
    total = tl.zeros([BINS, BLOCK], tl.float32)
    y_cells, y_parts = cells_of_bin(y1, y_step, bin_row, height)
    x_cells, x_parts = cells_of_bin(x1, x_step, column, width)
    for y in tl.static_range(4):
        row = rows + y_cells[y].to(tl.int32) * width.to(tl.int32) * CHANNELS
        for x in tl.static_range(4):
            offset = x_cells[x].to(tl.int32) * CHANNELS
            value = tl.load(row + (offset[:, None] + channel[None, :]), mask=is_real, other=0.0)
            total = tl.fma((x_parts[x] * y_parts[y])[:, None], value.to(tl.float32), total)
    offset = ((roi * SIZE + bin_row) * SIZE + column) * CHANNELS
    tl.store(pooled + offset[:, None] + channel[None, :], total.to(pooled.dtype.element_ty), mask=is_real)


@jit
def _meets(start, step, length, first_cell, SIZE: tl.constexpr):
    """Return whether samples of a box may touch one of the tile's cells on this axis."""
    first, _, _, _ = neighbours(start, step, 0, length)
    _, last, _, _ = neighbours(start, step, 2 * SIZE - 1, length)
    is_on_map = (sample_position(start, step, 0) <= length) & (sample_position(start, step, 2 * SIZE - 1) >= -1.0)
    return is_on_map & (last >= first_cell) & (first < first_cell + TILE)


@jit(do_not_specialize=["images", "most_of_image"])
def _list_rois(lists, pyramid, rois, images, most_of_image, SIZE: tl.constexpr):
    """One program: the list of one tile. Its first entry is the length."""
    tile = tl.program_id(0)
    level, image, top, left = locate(pyramid, tile, images, TILE)
    _, height, width, scale = level_of(pyramid, level)
    entries = lists + tile.to(tl.int64) * (most_of_image + 1)
    first, end = tl.load(rois[2] + image), tl.load(rois[2] + image + 1)
    count = 0
    for start in range(first, end, ROIS_AT_A_TIME):
        roi = start + tl.arange(0, ROIS_AT_A_TIME)
        is_real = roi < end
        meets = is_real & (tl.load(rois[1] + roi, mask=is_real, other=-1) == level)
        x1, y1, x_step, y_step = scaled_sides(rois[0] + roi * 4, scale, SIZE, is_real)
        meets = meets & _meets(x1, x_step, width, left, SIZE) & _meets(y1, y_step, height, top, SIZE)
        number = count + tl.cumsum(meets.to(tl.int32), axis=0)
        tl.store(entries + number, roi.to(tl.int32), mask=meets)
        count += tl.sum(meets.to(tl.int32), axis=0)
    tl.store(entries, count)


@jit
def _weight_on_cell(cell, start, step, bin_number, length):
    """Return how much of a bin comes from a cell, on one axis; 0 where the bin is elsewhere."""
    cells, parts = cells_of_bin(start, step, bin_number, length)
    total = tl.where(cells[0] == cell, parts[0], 0.0)
    for other in tl.static_range(1, 4):
        total += tl.where(cells[other] == cell, parts[other], 0.0)
    return total


@jit
def _bins_on_tile(start, step, length, first_cell, SIZE: tl.constexpr, BINS: tl.constexpr):
    """Return the first and the last bin of a box that may touch the tile on this axis."""
    number = tl.arange(0, BINS)
    low, _, _, _ = neighbours(start, step, number * 2, length)
    _, high, _, _ = neighbours(start, step, number * 2 + 1, length)
    meets = (number < SIZE) & (high >= first_cell) & (low < first_cell + TILE)
    return tl.min(tl.where(meets, number, BINS), axis=0), tl.max(tl.where(meets, number, -1), axis=0)


@jit
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


@jit(do_not_specialize=["images", "most_of_image"])
def _gather_tile(lists, pyramid, bins, boxes, images, most_of_image, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """One program: one tile of one level of one image, and up to 128 channels. A matrix product needs 16 of each."""
    BLOCK: tl.constexpr = min(MAX_CHANNELS_BACKWARD, max(16, triton.next_power_of_2(CHANNELS)))
    BINS: tl.constexpr = max(16, triton.next_power_of_2(SIZE))  # of a row
    tile = tl.program_id(0)
    level, image, top, left = locate(pyramid, tile, images, TILE)
    _, height, width, scale = level_of(pyramid, level)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = tile_cells(top, left)
    column = tl.arange(0, BINS)
    is_bin = (column < SIZE)[:, None] & (channel < CHANNELS)[None, :]
    entries = lists + tile.to(tl.int64) * (most_of_image + 1)
    total = tl.zeros([TILE * TILE, BLOCK], tl.float32)
    for entry in range(1, tl.load(entries) + 1):
        roi = tl.load(entries + entry).to(tl.int64)
        own_bins = bins + roi * (SIZE * SIZE * CHANNELS)
        x1, y1, x_step, y_step = scaled_sides(boxes + roi * 4, scale, SIZE)
        x_weights = _weight_on_cell(x[:, None], x1, x_step, column[None, :], width)
        x_weights = tl.where((column < SIZE)[None, :], x_weights, 0.0)
        first_row, last_row = _bins_on_tile(y1, y_step, height, top, SIZE, BINS)
        for row in range(first_row, last_row + 1):
            y_weight = _weight_on_cell(y, y1, y_step, row, height)
            offset = (row * SIZE + column) * CHANNELS
            value = tl.load(own_bins + (offset[:, None] + channel[None, :]), mask=is_bin, other=0.0).to(tl.float32)
            total = _add_product(y_weight[:, None] * x_weights, value, total, bins.dtype.element_ty == tl.float32)
    store_tile(level_of(pyramid, level), total, image, y, x, channel, CHANNELS)
