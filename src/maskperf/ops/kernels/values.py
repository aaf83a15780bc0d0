"""What the kernels share: boxes and their overlaps, and floats as integers in the same order.

Overlaps have the order of operations of ops/boxes.py, so ties stay ties. Their kernels are launched with
enable_fp_fusion=False: a rounding left out would break a tie.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

NOT_A_NUMBER = tl.constexpr(0x7FC00000)


def jit(function: Callable | None = None, **options: Any) -> Any:
    """Return a kernel or one of its functions, without the type checks that the tests put around all functions."""
    return triton.jit(inspect.unwrap(function), **options) if function else functools.partial(jit, **options)


@jit
def load_box(box, mask=None):
    """Return x1, y1, x2, y2 of the boxes at the given pointers, 0 where masked."""
    other: tl.constexpr = None if mask is None else 0.0
    x1, y1 = tl.load(box, mask=mask, other=other), tl.load(box + 1, mask=mask, other=other)
    return x1, y1, tl.load(box + 2, mask=mask, other=other), tl.load(box + 3, mask=mask, other=other)


@jit
def corners(box, is_real):
    """Return x1, y1, x2, y2 and the area of the boxes at the given pointers."""
    x1, y1, x2, y2 = load_box(box, is_real)
    return x1, y1, x2, y2, (x2 - x1 + 1.0) * (y2 - y1 + 1.0)


@jit
def overlap(first, second):
    """Return intersection over union of boxes given by what `corners` returns, of shapes that fit together."""
    width = tl.minimum(first[2], second[2]) - tl.maximum(first[0], second[0]) + 1.0
    height = tl.minimum(first[3], second[3]) - tl.maximum(first[1], second[1]) + 1.0
    intersection = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    return tl.div_rn(intersection, first[4] + second[4] - intersection)


@jit
def ordered(values):
    """Return int32 in the order of float32 values; NaN is above all numbers."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(values == values, bits ^ ((bits >> 31) & 0x7FFFFFFF), NOT_A_NUMBER)


@jit
def value_of(order):
    """Return the values of which `ordered` made these integers."""
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
