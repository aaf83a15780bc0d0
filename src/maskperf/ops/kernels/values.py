"""Overlaps of boxes, and floats as whole numbers in the same order, for the kernels that need them.

Overlaps have the order of operations of ops/boxes.py, so ties stay ties. Their kernels are started with
enable_fp_fusion=False: a rounding left out would break a tie.
"""

from typing import no_type_check

import triton
import triton.language as tl

NOT_A_NUMBER = tl.constexpr(0x7FC00000)


@triton.jit
@no_type_check
def corners(box, is_real):
    """Return x1, y1, x2, y2 and the area of the boxes at the given pointers."""
    x1 = tl.load(box, mask=is_real, other=0.0)
    y1 = tl.load(box + 1, mask=is_real, other=0.0)
    x2 = tl.load(box + 2, mask=is_real, other=0.0)
    y2 = tl.load(box + 3, mask=is_real, other=0.0)
    return x1, y1, x2, y2, (x2 - x1 + 1.0) * (y2 - y1 + 1.0)


@triton.jit
@no_type_check
def overlap(first, second):
    """Return intersection over union of boxes given by what `corners` returns, of shapes that fit together."""
    width = tl.minimum(first[2], second[2]) - tl.maximum(first[0], second[0]) + 1.0
    height = tl.minimum(first[3], second[3]) - tl.maximum(first[1], second[1]) + 1.0
    intersection = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    return tl.div_rn(intersection, first[4] + second[4] - intersection)


@triton.jit
@no_type_check
def ordered(values):
    """Return whole numbers of 32 bits in the order of float32 values; what is no number is above all that are."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(values == values, bits ^ ((bits >> 31) & 0x7FFFFFFF), NOT_A_NUMBER)


@triton.jit
@no_type_check
def value_of(order):
    """Return the values of which `ordered` made these numbers."""
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
