"""Layers that compute in bfloat16: casts of their weights, products with the rectifier inside or a float32 result.

Inputs and weights are bfloat16; every product is summed in float32. Gradients of results are rounded to bfloat16, as
those of any other layer are. No backward here needs atomics, so all give the same bits every time.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import BFloat16, Float, Float32, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    has_kernels = bool(parameters) and uses_kernels(parameters[0].device)
    return (load("products").WeightCasts if has_kernels else PlainCasts)(parameters, factors, dtype)


class PlainCasts:
    """The casts by PyTorch's operators, two for each parameter: the plain form."""

    def __init__(self, parameters: list[Tensor], factors: list[Tensor | None], dtype: torch.dtype):
        self.parameters = parameters
        self.after_gradients: Callable[[], None] | None = None  # never called: autograd adds the gradients later
        self._factors, self._dtype = factors, dtype

    def __call__(self) -> list[Tensor]:
        return [
            (parameter if scale is None else parameter * scale.view(-1, *[1] * (parameter.ndim - 1))).to(self._dtype)
            for parameter, scale in zip(self.parameters, self._factors, strict=True)
        ]


def linear_relu(
    rows: BFloat16[Tensor, "n inputs"],
    weight: BFloat16[Tensor, "outputs inputs"],
    bias: BFloat16[Tensor, " outputs"],
    *,
    has_rectified_gradient: bool = False,
) -> BFloat16[Tensor, "n outputs"]:
    """Return relu(rows @ weight.t() + bias), without a pass of its own for bias and rectifier where a GPU can.

    `has_rectified_gradient`: the gradient that comes back is 0 already wherever the result is.
    """
    return _LinearRelu.apply(rows, weight, bias, has_rectified_gradient)


class _LinearRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, has_rectified_gradient: bool) -> Tensor:
        result = torch._addmm_activation(bias, rows, weight.t())
        ctx.save_for_backward(rows, weight, None if has_rectified_gradient else result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, result = ctx.saved_tensors
        if result is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, result, 0)
        of_bias = gradient.sum(0) if ctx.needs_input_grad[2] else None
        return *_factor_gradients(ctx, gradient, rows, weight), of_bias, None


def _factor_gradients(ctx: Any, gradient: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the two factors of rows @ weight.t(), where needed."""
    needs_rows, needs_weight = ctx.needs_input_grad[:2]
    return gradient @ weight if needs_rows else None, gradient.t() @ rows if needs_weight else None


def float32_linear(
    rows: BFloat16[Tensor, "n inputs"], weight: BFloat16[Tensor, "outputs inputs"], bias: Float32[Tensor, " outputs"]
) -> Float32[Tensor, "n outputs"]:
    """Return rows @ weight.t() + bias in float32."""
    return _Float32Product.apply(rows, weight).add_(bias)


def _product(first: Tensor, second: Tensor) -> Float32[Tensor, "n m"]:
    if first.is_cuda:
        return torch.mm(first, second, out_dtype=torch.float32)
    return first.float() @ second.float()  # the same numbers: products of bfloat16 are exact in float32


class _Float32Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        return _factor_gradients(ctx, gradient.to(rows.dtype), rows, weight)


def own_class_logits(
    rectified: BFloat16[Tensor, "rois pixels channels"],
    weight: BFloat16[Tensor, "classes channels"],
    bias: Float32[Tensor, " classes"],
    labels: Int[Tensor, " rois"],
) -> Float32[Tensor, "rois pixels"]:
    """Return each pixel's logit of its RoI's class alone. `rectified` is the output of a rectifier.

    The gradient that flows back is 0 wherever `rectified` is: the rectifier's own rule, so that it need not be
    applied again.
    """
    return _OwnClassLogits.apply(rectified, weight, bias, labels)


class _OwnClassLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rectified: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        chosen = weight.index_select(0, labels)
        ctx.save_for_backward(rectified, chosen, labels)
        ctx.uses_kernels, ctx.num_classes = uses_kernels(rectified.device), len(weight)
        offsets = bias.index_select(0, labels)
        if ctx.uses_kernels:
            return load("products").own_class_logits(rectified, chosen, offsets)
        return (rectified.float() @ chosen.float()[..., None])[..., 0] + offsets[:, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rectified, chosen, labels = ctx.saved_tensors
        if ctx.uses_kernels:
            of_rows, of_weights = load("products").own_class_gradients(rectified, chosen, gradient)
        else:
            of_weights = (gradient[:, None, :] @ rectified.float())[:, 0]
            of_rows = (gradient[..., None] * chosen.float()[:, None, :]).to(rectified.dtype)
            of_rows = of_rows.masked_fill(rectified == 0, 0.0)
        is_class = (torch.arange(ctx.num_classes, device=labels.device)[:, None] == labels).float()
        return of_rows, (is_class @ of_weights).to(chosen.dtype), is_class @ gradient.sum(1), None


def own_class(values: Float[Tensor, "images rois classes *rest"], labels: Int[Tensor, "images rois"]) -> Tensor:
    """Return each RoI's values of its own class (images, rois, *rest)."""
    index = labels.view(*labels.shape, 1, *[1] * (values.ndim - 3)).expand(-1, -1, 1, *values.shape[3:])
    return values.gather(2, index).squeeze(2)
