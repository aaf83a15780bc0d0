"""Where RoIAlign samples, for the kernels of both directions: the same numbers as ops/roi_align_samples.py.

Not yet run on a GPU.
"""

from typing import no_type_check

import triton
import triton.language as tl

MIN_POSITION = tl.constexpr(-1.0)  # a sample further out weighs nothing


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
