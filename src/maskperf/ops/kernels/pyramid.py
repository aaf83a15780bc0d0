"""Feature pyramids as the kernels take them.

A pyramid is a tuple of levels, and a level is a tuple (pointer to rows of channels, height, width, 1 / stride). The
sizes are floats because Triton would compile a new kernel for every pattern of integers; float32 holds them exactly.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_SIDE = 8  # cells; gradients of maps are written tile by tile
TILE = tl.constexpr(TILE_SIDE)


def pyramid_argument(maps: list[Tensor], strides: tuple[int, ...]) -> tuple[tuple, ...]:
    """Return the levels as the kernels take them; the maps must be channels-last, the strides powers of two."""
    return tuple(
        (level, float(level.shape[2]), float(level.shape[3]), 1.0 / stride)
        for level, stride in zip(maps, strides, strict=True)
    )


def channels_last(level: Tensor) -> Tensor:
    return level.contiguous(memory_format=torch.channels_last)


def empty_maps(shapes: list[torch.Size], like: Tensor) -> list[Tensor]:
    """Return room for a pyramid of these shapes, channels-last."""
    return [
        torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last) for shape in shapes
    ]


def count_tiles(shapes: list[torch.Size]) -> int:
    """Return how many tiles the maps of all images and levels have."""
    return sum(shape[0] * -(-shape[2] // TILE_SIDE) * -(-shape[3] // TILE_SIDE) for shape in shapes)


@triton.jit
@no_type_check
def level_of(pyramid, number):
    """Return rows, height, width and scale of a level; the first for a number that no level has."""
    rows, scale = pyramid[0][0], pyramid[0][3]
    height, width = tl.cast(pyramid[0][1], tl.float32), tl.cast(pyramid[0][2], tl.float32)
    for other in tl.static_range(1, len(pyramid)):
        is_other = number == other
        rows = tl.where(is_other, pyramid[other][0], rows)
        height = tl.where(is_other, pyramid[other][1], height)
        width = tl.where(is_other, pyramid[other][2], width)
        scale = tl.where(is_other, pyramid[other][3], scale)
    return rows, height, width, scale


@triton.jit
@no_type_check
def tile_place(pyramid, tile, images):
    """Return level, image and the first row and column of a tile; tiles run over level, image, row, column."""
    level, image, top, left = 0, 0, 0, 0
    first_tile = 0
    for number in tl.static_range(len(pyramid)):
        across = tl.cdiv(tl.cast(pyramid[number][2], tl.int32), TILE)
        down = tl.cdiv(tl.cast(pyramid[number][1], tl.int32), TILE)
        place = tile - first_tile
        is_here = (place >= 0) & (place < images * down * across)
        level = tl.where(is_here, number, level)
        image = tl.where(is_here, place // (down * across), image)
        top = tl.where(is_here, place // across % down * TILE, top)
        left = tl.where(is_here, place % across * TILE, left)
        first_tile += images * down * across
    return level, image, top, left
