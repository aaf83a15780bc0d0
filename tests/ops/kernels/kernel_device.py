"""Where the tests of the kernels run, and what they have in common."""

import os
from collections.abc import Callable

import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stored_as(dtype: torch.dtype, exact: torch.Tensor) -> torch.Tensor:
    """Return float32 values as a kernel stores them in this type: the interpreter cuts off what a GPU rounds."""
    if dtype == torch.bfloat16 and IS_INTERPRETED:
        exact = (exact.contiguous().view(torch.int32) & -(1 << 16)).view(torch.float32)
    return exact.to(dtype)


def both_ways(kernel: Callable, reference: Callable, features: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Return the result and the gradients of all maps: of the kernel, and of the reference on the CPU in float32."""
    found = []
    for function, device, dtype in ((kernel, DEVICE, features[0].dtype), (reference, "cpu", torch.float32)):
        maps = [level.detach().to(device, dtype).requires_grad_() for level in features]
        result = function(maps)
        slope = torch.randn(result.shape, generator=seeded(99)).to(features[0].dtype)
        gradients = torch.autograd.grad(result, maps, slope.to(device, dtype))
        assert {tensor.dtype for tensor in (result, *gradients)} == {dtype}
        found.append([tensor.detach().cpu() for tensor in (result, *gradients)])
    return found


def fill_freed_memory(features: list[torch.Tensor]) -> None:
    """Fill memory that is likely to be used next with NaN."""
    filled = [torch.full_like(level, float("nan")) for level in features]
    del filled
