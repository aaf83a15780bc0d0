"""The backward pass of RoIAlign as a gather: each tile of 8 x 8 cells sums what it gets, and is written once.

No atomics: the same bits every time. Every tile first gets the list of the RoIs that meet it, in their order. A list
has room for all RoIs of the image, so its place is known without counting and nothing waits for the device.
Not yet run on a GPU.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskperf.ops.kernels.pyramid import TILE, count_tiles, empty_maps, level_of, pyramid_argument, tile_place
from maskperf.ops.kernels.roi_align_places import cells_of_bin, neighbours, sample_position, scaled_sides

ROIS_AT_A_TIME = tl.constexpr(128)
MAX_CHANNELS = 128  # of one program


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
    grid = (num_tiles, triton.cdiv(channels, MAX_CHANNELS))
    _gather_tile[grid](lists, pyramid, bins, boxes, images, most_of_image, size, channels, enable_fp_fusion=False)
    return maps


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
