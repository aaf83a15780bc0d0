"""Weights cast to the format that layers compute in, each output channel times a factor of its own."""

from collections.abc import Callable

import torch
from torch import Tensor

from maskperf.ops.kernels.selection import is_available, load

Casts = Callable[[], list[Tensor]]


def weight_casts(
    parameters: list[Tensor], factors: list[Tensor | None], dtype: torch.dtype, *, kernels: bool = True
) -> Casts:
    """Returns a function whose every call returns the parameters as they then are: times factors, in `dtype`.

    A parameter's factors are one for each entry of its first axis; None: all are 1. Products are float32, and so are
    the gradients that the backward adds to those of the parameters. What a call returned before may change with the
    next call. `kernels` allows the Triton kernels where the device has them.
    """
    if parameters and kernels and is_available(parameters[0].device):
        return load("casts").WeightCasts(parameters, factors, dtype)

    def cast() -> list[Tensor]:
        return [
            (parameter if scale is None else parameter * scale.view(-1, *[1] * (parameter.ndim - 1))).to(dtype)
            for parameter, scale in zip(parameters, factors, strict=True)
        ]

    return cast
