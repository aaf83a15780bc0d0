"""Where the tests of the kernels run."""

import os

import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"


def stored_as(dtype: torch.dtype, exact: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers as a kernel stores them in this type: the interpreter cuts off what a GPU rounds."""
    if dtype == torch.bfloat16 and IS_INTERPRETED:
        exact = (exact.contiguous().view(torch.int32) & -(1 << 16)).view(torch.float32)
    return exact.to(dtype)
