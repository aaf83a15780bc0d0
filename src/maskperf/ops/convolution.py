"""A convolution layer with faster ways to the numbers of nn.Conv2d, up to rounding.

On a CPU, 3x3 by Winograd and 1x1 by a matrix product. For bfloat16 on a GPU, convolution, bias, sum and rectifier in
one cuDNN call: passes of their own over the maps would take as long as the convolutions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maskperf.ops import winograd
from maskperf.ops.kernels.selection import load, uses_kernels
from maskperf.ops.winograd import TILE
from maskperf.techniques import active

CPU_DTYPES = (torch.float32, torch.float64)
# Measured against oneDNN on one core with AVX-512, see docs/performance.md. Winograd's way needs channels, for its
# matrix products to outweigh its transforms; tiles, for them to outweigh the transform of the filters; and tiles that
# are not mostly outside the map. A matrix product for 1x1 differs from oneDNN in the input's gradient on large maps.
WINOGRAD_CHANNELS = 128
WINOGRAD_TILES = 64
WINOGRAD_FILLED = 0.6
POINTWISE_PIXELS = 2048
FUSED_CHANNELS = 8  # cuDNN's fused kernels read so many bfloat16 numbers at a time
GROUPS, DILATION = 1, (1, 1)


class Convolution(nn.Conv2d):
    """nn.Conv2d with fast paths; without the technique fast_convolutions it is nn.Conv2d itself."""

    def forward(self, x: Tensor, *, add: Tensor | None = None, relu: bool = False) -> Tensor:
        """Return the convolution, plus `add`, rectified where asked."""
        return self.convolve(x, self.weight, self.bias, add=add, relu=relu)

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, add: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        """Return the same with another weight and bias."""
        way = self._fast_way(x, weight, fuses=relu and add is None) if active().fast_convolutions else None
        if way is None:
            return _finish(self._conv_forward(x, weight, bias), add, relu)
        return FastConvolution.apply(way, x, weight, bias, add, 1, relu, False)

    def _fast_way(self, x: Tensor, weight: Tensor, *, fuses: bool) -> "Way | None":
        size = self.kernel_size[0] // 2
        keeps_size = self.kernel_size in ((1, 1), (3, 3)) and self.padding == (size, size) and self.stride == (1, 1)
        is_plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if not keeps_size or not is_plain or x.dim() != 4 or x.dtype != weight.dtype:
            return None
        if x.dtype == torch.bfloat16:
            return FUSED if fuses else None
        if x.dtype not in CPU_DTYPES or {x.device.type, weight.device.type} != {"cpu"}:
            return None
        if pointwise_pays(x, weight):
            return POINTWISE
        return WINOGRAD if winograd_pays(x, weight) else None


def bias_of(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """Return the bias of a layer that was made with one."""
    assert layer.bias is not None
    return layer.bias


def pointwise_pays(x: Tensor, weight: Tensor) -> bool:
    """Return whether a 1x1 convolution has so many pixels that a matrix product is at least as fast as oneDNN."""
    return tuple(weight.shape[2:]) == (1, 1) and x.shape[0] * x.shape[2] * x.shape[3] >= POINTWISE_PIXELS


def winograd_pays(x: Tensor, weight: Tensor) -> bool:
    """Return whether a 3x3 convolution is faster by Winograd than by oneDNN, forward and backward together."""
    if tuple(weight.shape[2:]) != (3, 3) or min(weight.shape[:2]) < WINOGRAD_CHANNELS:
        return False
    images, height, width = x.shape[0], x.shape[2], x.shape[3]
    tiles = images * (-(-height // TILE)) * (-(-width // TILE))
    return tiles >= WINOGRAD_TILES and images * height * width >= WINOGRAD_FILLED * TILE**2 * tiles


class Way(NamedTuple):
    """A way to compute a convolution with padding k // 2."""

    result: Callable[..., Tensor]  # of x, weight, bias, add, stride and relu
    gradients: Callable[..., tuple[Tensor | None, ...]]  # of x, weight and bias, where needed


class FastConvolution(torch.autograd.Function):
    """Convolution, bias, sum and rectifier; saves the input, the weight and, for a rectifier, the result.

    The result of a rectifier need not be saved where the gradient that comes back is rectified already.
    """

    @staticmethod
    def forward(
        ctx: Any, way: Way, x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, *settings: Any
    ) -> Tensor:
        ctx.way, (ctx.stride, relu, has_rectified_gradient) = way, settings
        y = way.result(x, weight, bias, add, ctx.stride, relu)
        ctx.save_for_backward(x, weight, y if relu and not has_rectified_gradient else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        if y is not None:
            gradient = rectified(gradient, y)
        gradients = ctx.way.gradients(gradient, x, weight, ctx.stride, ctx.needs_input_grad[1:4])
        return None, *gradients, gradient if ctx.needs_input_grad[4] else None, None, None, None


def rectified(gradient: Tensor, y: Tensor) -> Tensor:
    """Return the gradient before a rectifier whose result is `y`."""
    return torch.ops.aten.threshold_backward(gradient, y, 0)


def _finish(y: Tensor, add: Tensor | None, relu: bool) -> Tensor:
    """Return y + add, rectified where asked, in the memory of `y`: a convolution keeps no result for its backward."""
    if add is not None:
        y = y.add_(add)
    return torch.relu_(y) if relu else y


def _empty_maps(x: Tensor, channels: int) -> Tensor:
    return torch.empty((x.shape[0], channels, *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last)


def _pixel_rows(x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n_h_w channels"]:
    """Return one row for each pixel: a view of a channels-last tensor, a copy of another."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, stride: int, relu: bool) -> Tensor:
    """Return a 1x1 convolution as one matrix product over all pixels, onto what is to be added."""
    y = _empty_maps(x, weight.shape[0])
    rows, matrix, results, base = _pixel_rows(x), weight.flatten(1).t(), _pixel_rows(y), bias
    if add is not None:
        base = _pixel_rows(add) if bias is None else torch.add(_pixel_rows(add), bias, out=results)
    if base is None:
        torch.mm(rows, matrix, out=results)
    else:
        torch.addmm(base, rows, matrix, out=results)
    return torch.relu_(y) if relu else y


def _pointwise_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    rows, of_x = _pixel_rows(gradient), None
    if needs[0]:
        of_x = _empty_maps(x, x.shape[1])
        torch.mm(rows, weight.flatten(1), out=_pixel_rows(of_x))
    of_weight = rows.t().mm(_pixel_rows(x)).view_as(weight) if needs[1] else None
    return of_x, of_weight, rows.sum(0) if needs[2] else None


def _winograd(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, stride: int, relu: bool) -> Tensor:
    y = _empty_maps(x, weight.shape[0])
    pixels, results = x.permute(0, 2, 3, 1).contiguous(), y.permute(0, 2, 3, 1)
    winograd.convolve(pixels, weight, results, bias=bias, relu=relu and add is None)
    return y if add is None else _finish(y, add, relu)


def _winograd_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    gradient, pixels = gradient.permute(0, 2, 3, 1).contiguous(), x.permute(0, 2, 3, 1).contiguous()
    of_x = _empty_maps(x, x.shape[1]) if needs[0] else None
    of_weight = torch.empty_like(weight) if needs[1] else None
    if needs[0] or needs[1]:
        of_pixels = None if of_x is None else of_x.permute(0, 2, 3, 1)
        winograd.convolve_backward(gradient, pixels, weight, of_pixels, of_weight)
    return of_x, of_weight, gradient.flatten(0, 2).sum(0) if needs[2] else None


def fused_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None = None, stride: int = 1, relu: bool = True
) -> Tensor:
    """Return the convolution by one cuDNN call where it can; else by passes of their own."""
    padding = weight.shape[2] // 2
    has_odd_channels = any(channels % FUSED_CHANNELS for channels in weight.shape[:2])
    if not relu or has_odd_channels or missing_fusion(x.device):
        return _finish(torch.conv2d(x, weight, bias, stride, padding), add, relu)
    settings = ([stride, stride], [padding, padding], DILATION, GROUPS)
    if add is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *settings)
    return torch.cudnn_convolution_add_relu(x, weight, add, 1.0, bias, *settings)


def _fused_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    sizes, strides, padding = [weight.shape[0]], [stride, stride], [weight.shape[2] // 2] * 2
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, sizes, strides, padding, DILATION, False, [0, 0], GROUPS, list(needs)
    )


POINTWISE = Way(_pointwise, _pointwise_gradients)
WINOGRAD = Way(_winograd, _winograd_gradients)
FUSED = Way(fused_convolution, _fused_gradients)


@functools.cache
def missing_fusion(device: torch.device) -> str:
    """Return why cuDNN cannot fuse a convolution with what follows on this device; empty where it can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    zeros = functools.partial(torch.zeros, dtype=torch.bfloat16, device=device)
    try:
        for kernel in (1, 3):
            x = zeros(1, 64, 8, 8).contiguous(memory_format=torch.channels_last)
            weight = zeros(64, 64, kernel, kernel).contiguous(memory_format=torch.channels_last)
            settings = ([1, 1], [kernel // 2, kernel // 2], DILATION, GROUPS)
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


class Filters(NamedTuple):
    """Weight and bias of a convolution."""

    weight: Float[Tensor, "outputs inputs k k"]
    bias: Float[Tensor, " outputs"]


def residual_block(
    x: Float[Tensor, "n inputs h w"],
    convolutions: tuple[Filters, Filters, Filters],
    shortcut: Filters | None,
    *,
    stride: int = 1,
    rectifies_input_gradient: bool = False,
    has_rectified_gradient: bool = False,
) -> Float[Tensor, "n outputs h_out w_out"]:
    """Return relu(third(second(first(x))) + shortcut(x)), the first two rectified as well, by fused convolutions.

    `rectifies_input_gradient`: x is the result of a rectifier and goes nowhere else, so the gradient of x is made 0
    where x is, in the pass that sums it. `has_rectified_gradient`: whoever takes the result does so with its gradient.
    """
    first, second, third = convolutions
    x, passed = _Branches.apply(x, rectifies_input_gradient)
    y = FastConvolution.apply(FUSED, x, *first, None, stride, True, False)
    y = FastConvolution.apply(FUSED, y, *second, None, 1, True, False)
    bias = third.bias
    if shortcut is not None:  # the sum of both biases, so that the shortcut needs no pass for its own
        passed, bias = torch.conv2d(passed, shortcut.weight, None, stride), third.bias + shortcut.bias
    return FastConvolution.apply(FUSED, y, third.weight, bias, passed, 1, True, has_rectified_gradient)


class _Branches(torch.autograd.Function):
    """A map for two users. The sum of their gradients is rectified in the same pass where asked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rectifies_gradient: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x if rectifies_gradient else None)
        ctx.uses_kernels = uses_kernels(x.device)
        return x.view_as(x), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, passed: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if x is not None and ctx.uses_kernels:
            return load("products").add_rectified(gradient, passed, x), None
        gradient.add_(passed)  # nobody else has it: it comes straight from the first convolution
        return gradient if x is None else rectified(gradient, x), None
