"""Overlap of boxes, for the kernels that need it: the order of operations of ops/boxes.py, so ties stay ties.

The kernels are started with enable_fp_fusion=False: a rounding left out would break a tie.
"""

from typing import no_type_check

import triton
import triton.language as tl


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
