"""The 3x3 cells around chosen cells of a pyramid as Triton kernels, in both directions; sums in float32.

Twin: model/patches.py. The backward pass writes the gradient of the whole pyramid once, tile by tile, and every cell
adds up what it gets in the order of the places: the same bits every time.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
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

CELLS_OF_PATCH = 9
CELLS = tl.constexpr(CELLS_OF_PATCH)
PLACES_AT_A_TIME = tl.constexpr(256)
MAX_CHANNELS = 128  # of one program


def cell_patches(
    features: list[Tensor], cells: Int64[Tensor, "images samples"]
) -> Float[Tensor, "images samples nine channels"]:
    """Return the nine cells around each cell, row by row, with zeros outside of its map.

    Cells are counted over all levels of an image. Maps that are not channels-last are copied first.
    """
    return _CellPatches.apply(cells.contiguous(), *features)


class _CellPatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cells: Tensor, *features: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        ctx.shapes = [level.shape for level in features]
        channels = features[0].shape[1]
        patches = features[0].new_empty(*cells.shape, CELLS_OF_PATCH, channels)
        if patches.numel() > 0:
            maps = [channels_last(level) for level in features]
            grid = (cells.numel(), triton.cdiv(channels, MAX_CHANNELS))
            _take[grid](patches, _argument(maps), cells, cells.shape[1], channels)
        return patches

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (cells,) = ctx.saved_tensors
        images, places, _, channels = gradient.shape
        maps = empty_maps(ctx.shapes, gradient)
        grid = (count_tiles(ctx.shapes), triton.cdiv(channels, MAX_CHANNELS))
        if grid[0] * grid[1] > 0:
            _add_up_tile[grid](_argument(maps), gradient.contiguous(), cells, images, places, channels, num_warps=8)
        return None, *maps


def _argument(maps: list[Tensor]) -> tuple[tuple, ...]:
    return pyramid_argument(maps, (1,) * len(maps))  # cells are counted, not measured in pixels


@triton.jit
@no_type_check
def _places_of(pyramid, cells):
    """Return level, row and column of cells; for a number below 0, a place that no cell of a map is next to."""
    level, row, column = cells * 0, cells * 0 - 2, cells * 0 - 2
    first_cell = 0
    for number in tl.static_range(len(pyramid)):
        width = tl.cast(pyramid[number][2], tl.int32)
        count = tl.cast(pyramid[number][1], tl.int32) * width
        place = cells - first_cell
        is_here = (place >= 0) & (place < count)
        level = tl.where(is_here, number, level)
        row = tl.where(is_here, place // width, row)
        column = tl.where(is_here, place % width, column)
        first_cell += count
    return level, row, column


@triton.jit(do_not_specialize=["places_per_image"])
@no_type_check
def _take(patches, pyramid, cells, places_per_image, CHANNELS: tl.constexpr):
    """One program: one patch, and up to 128 channels."""
    BLOCK: tl.constexpr = 128 if CHANNELS >= 128 else triton.next_power_of_2(CHANNELS)
    place = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    level, row, column = _places_of(pyramid, tl.load(cells + place).to(tl.int32))
    rows, height, width, _ = level_of(pyramid, level)
    height, width = height.to(tl.int32), width.to(tl.int32)
    rows += (place // places_per_image) * height * width * CHANNELS
    number = tl.arange(0, 16)
    y, x = row + number // 3 - 1, column + number % 3 - 1
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    is_real = (number < CELLS)[:, None] & (channel < CHANNELS)[None, :]
    cell = (y * width + x) * CHANNELS
    value = tl.load(rows + (cell[:, None] + channel[None, :]), mask=is_real & inside[:, None], other=0.0)
    patch = patches + place * (CELLS * CHANNELS)
    tl.store(patch + (number[:, None] * CHANNELS + channel[None, :]), value, mask=is_real)


@triton.jit(do_not_specialize=["images", "places_per_image"])
@no_type_check
def _add_up_tile(pyramid, gradient, cells, images, places_per_image, CHANNELS: tl.constexpr):
    """One program: one tile of one level of one image, and up to 128 channels."""
    BLOCK: tl.constexpr = 128 if CHANNELS >= 128 else triton.next_power_of_2(CHANNELS)
    level, image, top, left = tile_place(pyramid, tl.program_id(0), images)
    rows, height, width, _ = level_of(pyramid, level)
    height, width = height.to(tl.int32), width.to(tl.int32)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = (channel < CHANNELS)[None, :]
    number = tl.arange(0, TILE * TILE)
    y, x = top + number // TILE, left + number % TILE
    first_place = image.to(tl.int64) * places_per_image
    total = tl.zeros([TILE * TILE, BLOCK], tl.float32)
    for start in range(0, places_per_image, PLACES_AT_A_TIME):
        place = start + tl.arange(0, PLACES_AT_A_TIME)
        own = tl.load(cells + first_place + place, mask=place < places_per_image, other=-1).to(tl.int32)
        of_level, row, column = _places_of(pyramid, own)
        is_near = (of_level == level) & (row >= top - 1) & (row <= top + TILE)
        is_near = is_near & (column >= left - 1) & (column <= left + TILE)
        coming = tl.min(tl.where(is_near, place, places_per_image), axis=0)
        while coming < places_per_image:
            level_here, row_here, column_here = _places_of(pyramid, tl.load(cells + first_place + coming).to(tl.int32))
            down, across = y - row_here + 1, x - column_here + 1
            is_part = (down >= 0) & (down < 3) & (across >= 0) & (across < 3)
            part = ((first_place + coming) * CELLS + down * 3 + across) * CHANNELS
            is_real = is_part[:, None] & is_channel
            total += tl.load(gradient + part[:, None] + channel[None, :], mask=is_real, other=0.0).to(tl.float32)
            coming = tl.min(tl.where(is_near & (place > coming), place, places_per_image), axis=0)
    is_cell = (y < height) & (x < width)
    rows += image.to(tl.int64) * height * width * CHANNELS
    cell = (y * width + x) * CHANNELS
    value = total.to(rows.dtype.element_ty)
    tl.store(rows + (cell[:, None] + channel[None, :]), value, mask=is_cell[:, None] & is_channel)
