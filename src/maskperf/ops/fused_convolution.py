"""Convolution, bias, sum and rectifier in one cuDNN call, with backward passes that know the rectifiers.

For bfloat16 on a GPU, where passes of their own over the maps would take as long as the convolutions. On a CPU the
same functions are made of PyTorch's plain ones.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskperf.ops.kernels.selection import load, uses_kernels

GROUPS, NO_GAPS = 1, (1, 1)
FUSED_CHANNELS = 8  # cuDNN's joined kernels read so many bfloat16 numbers at a time


class Filters(NamedTuple):
    """Weight and bias of a convolution."""

    weight: Float[Tensor, "outputs inputs k k"]
    bias: Float[Tensor, " outputs"]


@functools.cache
def missing_fusion(device: torch.device) -> str:
    """Return why cuDNN cannot join a convolution with what follows on this device; empty where it can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    zeros = functools.partial(torch.zeros, dtype=torch.bfloat16, device=device)
    try:
        for kernel in (1, 3):
            x = zeros(1, 64, 8, 8).contiguous(memory_format=torch.channels_last)
            weight = zeros(64, 64, kernel, kernel).contiguous(memory_format=torch.channels_last)
            settings = ([1, 1], [kernel // 2, kernel // 2], NO_GAPS, GROUPS)
            torch.cudnn_convolution_relu(x, weight, zeros(64), *settings)
            torch.cudnn_convolution_add_relu(x, weight, x, 1.0, zeros(64), *settings)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def describe(device: torch.device) -> str:
    """Return a line for the start of a run about what happens to bias, sum and rectifier after a convolution."""
    if missing := missing_fusion(device):
        return f"convolutions: bias, sum and ReLU in passes of their own; cuDNN cannot join them here: {missing}"
    return "convolutions: with bias, sum and ReLU in one cuDNN call"


def rectified_convolution(
    x: Float[Tensor, "n inputs h w"],
    filters: Filters,
    *,
    stride: int = 1,
    add: Float[Tensor, "n outputs h_out w_out"] | None = None,
) -> Float[Tensor, "n outputs h_out w_out"]:
    """Return relu(convolution + bias + add) with padding k // 2. No gradient: what is differentiable calls this."""
    weight, bias = filters
    padding = weight.shape[2] // 2
    has_odd_channels = any(channels % FUSED_CHANNELS for channels in weight.shape[:2])
    if has_odd_channels or missing_fusion(x.device):
        y = torch.conv2d(x, weight, bias, stride, padding)
        return torch.relu_(y if add is None else y.add_(add))
    settings = ([stride, stride], [padding, padding], NO_GAPS, GROUPS)
    if add is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *settings)
    return torch.cudnn_convolution_add_relu(x, weight, add, 1.0, bias, *settings)


def convolution_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, *, stride: int, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of a convolution's input, weight and bias, those that are needed."""
    padding = weight.shape[2] // 2
    sizes, pair = [weight.shape[0]], [padding, padding]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, sizes, [stride, stride], pair, NO_GAPS, False, [0, 0], GROUPS, list(needs)
    )


class RectifiedConvolution(torch.autograd.Function):
    """relu(convolution + bias), of stride 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = rectified_convolution(x, Filters(weight, bias))
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        return convolution_gradients(rectified(gradient, y), x, weight, stride=1, needs=ctx.needs_input_grad)


def rectified(gradient: Tensor, y: Tensor) -> Tensor:
    """Return the gradient before a rectifier whose result is `y`."""
    return torch.ops.aten.threshold_backward(gradient, y, 0)


def residual_block(
    x: Float[Tensor, "n inputs h w"],
    convolutions: tuple[Filters, Filters, Filters],
    shortcut: Filters | None,
    *,
    stride: int = 1,
    rectifies_input_gradient: bool = False,
    has_rectified_gradient: bool = False,
) -> Float[Tensor, "n outputs h_out w_out"]:
    """Return relu(third(second(first(x))) + shortcut(x)), the first two rectified as well.

    `rectifies_input_gradient`: x is the result of a rectifier and goes nowhere else, so the gradient of x is made 0
    where x is, in the pass that sums it. `has_rectified_gradient`: whoever takes the result does so with its gradient.
    """
    third = convolutions[2]
    if shortcut is not None:  # the sum of both biases, so that the shortcut needs no pass for its own
        convolutions = (*convolutions[:2], Filters(third.weight, third.bias + shortcut.bias))
    weights = [tensor for filters in convolutions for tensor in filters]
    of_shortcut = None if shortcut is None else shortcut.weight
    return _ResidualBlock.apply(x, *weights, of_shortcut, stride, rectifies_input_gradient, has_rectified_gradient)


class _ResidualBlock(torch.autograd.Function):
    """The biases are those of frozen batch norms: they have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        *weights, shortcut, stride, rectifies_input, is_rectified = arguments
        first, second, third = (Filters(*weights[place : place + 2]) for place in (0, 2, 4))
        hidden = rectified_convolution(x, first, stride=stride)
        inner = rectified_convolution(hidden, second)
        passed = x if shortcut is None else torch.conv2d(x, shortcut, None, stride)
        y = rectified_convolution(inner, third, add=passed)
        kept = None if is_rectified else y
        ctx.save_for_backward(x, hidden, inner, kept, first.weight, second.weight, third.weight, shortcut)
        ctx.stride, ctx.rectifies_input, ctx.uses_kernels = stride, rectifies_input, uses_kernels(x.device)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, inner, y, first, second, third, shortcut = ctx.saved_tensors
        needs_x, needs_first, _, needs_second, _, needs_third = ctx.needs_input_grad[:6]
        needs_shortcut = ctx.needs_input_grad[7]
        if y is not None:
            gradient = rectified(gradient, y)
        of_inner, of_third, _ = convolution_gradients(
            gradient, inner, third, stride=1, needs=(True, needs_third, False)
        )
        assert of_inner is not None
        of_hidden, of_second, _ = convolution_gradients(
            rectified(of_inner, inner), hidden, second, stride=1, needs=(True, needs_second, False)
        )
        assert of_hidden is not None
        of_x, of_first, _ = convolution_gradients(
            rectified(of_hidden, hidden), x, first, stride=ctx.stride, needs=(needs_x, needs_first, False)
        )
        passed: Tensor | None = gradient
        of_shortcut = None
        if shortcut is not None:
            passed, of_shortcut, _ = convolution_gradients(
                gradient, x, shortcut, stride=ctx.stride, needs=(needs_x, needs_shortcut, False)
            )
        if of_x is not None and passed is not None:
            if not ctx.rectifies_input:
                of_x.add_(passed)
            elif ctx.uses_kernels:
                of_x = load("products").add_rectified(of_x, passed, x)
            else:
                of_x = rectified(of_x.add_(passed), x)
        return of_x, of_first, None, of_second, None, of_third, None, of_shortcut, None, None, None
