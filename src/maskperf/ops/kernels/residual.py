"""The sum of two gradients before a rectifier, as one Triton kernel.

Twin: ops/fused_convolution.py.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS_AT_A_TIME = 2048  # of one program


def add_rectified(first: Tensor, second: Tensor, x: Tensor) -> Tensor:
    """Return first + second where x is above 0, else 0, in the memory of `first`. All are channels-last."""
    second, x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (second, x))
    first = first.contiguous(memory_format=torch.channels_last)
    count = first.numel()
    if count:
        _add_rectified[(triton.cdiv(count, NUMBERS_AT_A_TIME),)](first, second, x, count, NUMBERS_AT_A_TIME)
    return first


@triton.jit
@no_type_check
def _add_rectified(first, second, x, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    total = tl.load(first + place, mask=mask).to(tl.float32) + tl.load(second + place, mask=mask).to(tl.float32)
    # Not "x > 0": where x is not a number the gradient passes, as PyTorch lets it pass.
    total = tl.where(tl.load(x + place, mask=mask).to(tl.float32) <= 0.0, 0.0, total)
    tl.store(first + place, total.to(first.dtype.element_ty), mask=mask)
