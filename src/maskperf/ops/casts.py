"""Weights cast to the format that layers compute in, each output channel times a factor of its own."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from maskperf.ops.kernels.selection import load, uses_kernels


@runtime_checkable
class Casts(Protocol):
    """Some parameters, and how they are cast. What a call returned before may change with the next call."""

    parameters: list[Tensor]
    # Called by each backward once it has added to the parameters' gradients, where casts do that themselves.
    after_gradients: Callable[[], None] | None

    def __call__(self) -> list[Tensor]: ...


def weight_casts(parameters: list[Tensor], factors: list[Tensor | None], dtype: torch.dtype) -> Casts:
    """Return a function whose every call returns the parameters as they then are: times factors, in `dtype`.

    A parameter's factors are one for each entry of its first axis; None: all are 1. Products are float32, and so are
    the gradients that the backward adds to those of the parameters.
    """
    if parameters and uses_kernels(parameters[0].device):
        return load("casts").WeightCasts(parameters, factors, dtype)
    return PlainCasts(parameters, factors, dtype)


class PlainCasts:
    """The casts by PyTorch's operators, two for each parameter: the kernels' plain twin."""

    def __init__(self, parameters: list[Tensor], factors: list[Tensor | None], dtype: torch.dtype):
        self.parameters = parameters
        self.after_gradients: Callable[[], None] | None = None  # never called: autograd adds the gradients later
        self._factors, self._dtype = factors, dtype

    def __call__(self) -> list[Tensor]:
        return [
            (parameter if scale is None else parameter * scale.view(-1, *[1] * (parameter.ndim - 1))).to(self._dtype)
            for parameter, scale in zip(self.parameters, self._factors, strict=True)
        ]
