"""Where RoIAlign samples, for the kernels of both directions: the same numbers as ops/roi_align_samples.py.

A pyramid is a tuple of levels, and a level is a tuple (pointer to rows of channels, height, width, 1 / stride). The
sizes are floats because Triton would compile a new kernel for every pattern of integers; float32 holds them exactly.
Not yet run on a GPU.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

MIN_POSITION = tl.constexpr(-1.0)  # a sample further out weighs nothing


def pyramid_argument(maps: list[Tensor], strides: tuple[int, ...]) -> tuple[tuple, ...]:
    """Returns the levels as the kernels take them; the maps must be channels-last, the strides powers of two."""
    return tuple(
        (level, float(level.shape[2]), float(level.shape[3]), 1.0 / stride)
        for level, stride in zip(maps, strides, strict=True)
    )


def channels_last(level: Tensor) -> Tensor:
    return level.contiguous(memory_format=torch.channels_last)


@triton.jit
@no_type_check
def level_of(pyramid, number):
    """Returns rows, height, width and scale of a level; the first for a number that no level has."""
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
def scaled_sides(box, scale, SIZE: tl.constexpr, mask=None):
    """Returns x and y of the corner, then the length of a bin on each axis, for boxes at the given pointers."""
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
    """Returns the coordinate of a sample; there are two per bin."""
    return start + (sample * 0.5 + 0.25) * step


@triton.jit
@no_type_check
def neighbours(start, step, sample, length):
    """Returns the two cells a sample lies between, as float32, and the part each has in its bin."""
    position = sample_position(start, step, sample)
    weight = tl.where((position >= MIN_POSITION) & (position <= length), 0.5, 0.0)  # of two samples in a bin
    position = tl.minimum(tl.maximum(position, 0.0), length - 1.0)
    low = tl.floor(position)
    share = position - low
    return low, tl.minimum(low + 1.0, length - 1.0), (1.0 - share) * weight, share * weight


@triton.jit
@no_type_check
def cells_of_bin(start, step, number, length):
    """Returns the four cells that make up a bin on one axis, as float32, and the part of each."""
    first, second, first_part, second_part = neighbours(start, step, number * 2, length)
    third, fourth, third_part, fourth_part = neighbours(start, step, number * 2 + 1, length)
    return (first, second, third, fourth), (first_part, second_part, third_part, fourth_part)
