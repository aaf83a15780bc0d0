"""Feature pyramids as the kernels take them.

A pyramid is a tuple of levels, and a level is a tuple (pointer to rows of channels, height, width, 1 / stride). The
sizes are floats because Triton would compile a new kernel for every pattern of integers; float32 holds them exactly.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from maskperf.ops.kernels.values import jit

TILE_SIDE = 8  # cells; gradients of maps are written tile by tile
TILE = tl.constexpr(TILE_SIDE)


def pyramid_argument(maps: Sequence[Tensor], strides: tuple[int, ...]) -> tuple[tuple, ...]:
    """Return the levels as the kernels take them, copied if not channels-last; strides are powers of two."""
    levels = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    return tuple(
        (level, float(level.shape[2]), float(level.shape[3]), 1.0 / stride)
        for level, stride in zip(levels, strides, strict=True)
    )


def empty_maps(shapes: list[torch.Size], like: Tensor) -> tuple[list[Tensor], int]:
    """Return uninitialized maps of these shapes, channels-last, and the number of tiles of all of them."""
    options: dict[str, Any] = {"dtype": like.dtype, "device": like.device, "memory_format": torch.channels_last}
    tiles = sum(shape[0] * -(-shape[2] // TILE_SIDE) * -(-shape[3] // TILE_SIDE) for shape in shapes)
    return [torch.empty(shape, **options) for shape in shapes], tiles


@jit
def level_of(pyramid, index):
    """Return rows, height, width and scale of a level; the first for an index that no level has."""
    rows, scale = pyramid[0][0], pyramid[0][3]
    height, width = tl.cast(pyramid[0][1], tl.float32), tl.cast(pyramid[0][2], tl.float32)
    for other in tl.static_range(1, len(pyramid)):
        is_other = index == other
        rows = tl.where(is_other, pyramid[other][0], rows)
        height = tl.where(is_other, pyramid[other][1], height)
        width = tl.where(is_other, pyramid[other][2], width)
        scale = tl.where(is_other, pyramid[other][3], scale)
    return rows, height, width, scale


@jit
def locate(pyramid, index, images, SIDE: tl.constexpr):
    """Return level, image, and first row and column of squares of cells, which run over level, image, row, column.

    Single cells (a side of 1) are of one image. For a negative index: a cell that is next to none of a map.
    """
    level, image, first = index * 0, index * 0, 0
    row, column = index * 0 - (2 if SIDE == 1 else 0), index * 0 - (2 if SIDE == 1 else 0)
    for number in tl.static_range(len(pyramid)):
        across = tl.cdiv(tl.cast(pyramid[number][2], tl.int32), SIDE)
        down = tl.cdiv(tl.cast(pyramid[number][1], tl.int32), SIDE)
        offset = index - first
        is_here = (offset >= 0) & (offset < images * down * across)
        level = tl.where(is_here, number, level)
        image = tl.where(is_here, offset // (down * across), image)
        row_of_all = offset // across
        row = tl.where(is_here, (row_of_all if SIDE == 1 else row_of_all % down) * SIDE, row)
        column = tl.where(is_here, offset % across * SIDE, column)
        first += images * down * across
    return level, image, row, column


@jit
def tile_cells(top, left):
    """Return row and column of each cell of a tile."""
    cell = tl.arange(0, TILE * TILE)
    return top + cell // TILE, left + cell % TILE


@jit
def store_tile(level, values, image, y, x, channel, CHANNELS: tl.constexpr):
    """Write the values [cells, channels] of a tile of an image; cells outside of the map are left out."""
    height, width = level[1].to(tl.int32), level[2].to(tl.int32)
    is_cell = (y < height) & (x < width)
    rows = level[0] + image.to(tl.int64) * level[1].to(tl.int64) * level[2].to(tl.int64) * CHANNELS
    offset = (y * width + x) * CHANNELS
    mask = is_cell[:, None] & (channel < CHANNELS)[None, :]
    tl.store(rows + offset[:, None] + channel[None, :], values.to(rows.dtype.element_ty), mask=mask)
