"""Floats as whole numbers in the same order, for maxima and digits."""

from typing import no_type_check

import triton
import triton.language as tl

NOT_A_NUMBER = tl.constexpr(0x7FC00000)


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
