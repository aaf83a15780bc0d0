"""A convolution layer with fast CPU paths: the parameters of nn.Conv2d, and its numbers up to rounding."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskperf.ops import winograd
from maskperf.ops.fused_convolution import RectifiedConvolution
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


class Convolution(nn.Conv2d):
    """nn.Conv2d with fast paths for 3x3 and 1x1; without the technique fast_convolutions it is nn.Conv2d itself."""

    def forward(self, x: Tensor, *, add: Tensor | None = None, relu: bool = False) -> Tensor:
        """Return the convolution, plus `add`, rectified where asked."""
        return self.convolve(x, self.weight, self.bias, add=add, relu=relu)

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, add: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        """Return the same with another weight and bias."""
        is_fast = active().fast_convolutions
        if is_fast and _keeps_size(self) and runs_on_cpu(x, weight):
            return fast_convolution(x, weight, bias, stride=self.stride[0], add=add, relu=relu)
        if is_fast and x.dtype == torch.bfloat16 and relu and add is None and self.stride == (1, 1):
            return RectifiedConvolution.apply(x, weight, bias)
        return _finish(self._conv_forward(x, weight, bias), add, relu)


def bias_of(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """Return the bias of a layer that was made with one."""
    assert layer.bias is not None
    return layer.bias


def runs_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Return whether the fast paths apply: on a CPU, in its own number formats."""
    on_cpu = x.device.type == "cpu" and weight.device.type == "cpu"
    return on_cpu and x.dim() == 4 and x.dtype == weight.dtype and x.dtype in CPU_DTYPES


def fast_convolution(
    x: Float[Tensor, "n inputs h w"],
    weight: Float[Tensor, "outputs inputs k k"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    stride: int = 1,
    add: Float[Tensor, "n outputs h_out w_out"] | None = None,
    relu: bool = False,
) -> Float[Tensor, "n outputs h_out w_out"]:
    """Return F.conv2d(x, weight, bias, stride, padding=k // 2) + add, rectified where asked, by the fastest way."""
    if stride == 1 and pointwise_pays(x, weight):
        return Pointwise.apply(x, weight, bias, add, relu)
    if stride == 1 and winograd_pays(x, weight):
        y = Winograd.apply(x, weight, bias, relu and add is None)
        return y if add is None else _finish(y, add, relu)
    return _finish(F.conv2d(x, weight, bias, stride, weight.shape[2] // 2), add, relu)


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


def _keeps_size(layer: nn.Conv2d) -> bool:
    """Return whether a layer keeps the map's size up to its stride, without groups or gaps."""
    size = layer.kernel_size[0] // 2
    return (
        layer.groups == 1
        and layer.stride[0] == layer.stride[1]
        and layer.kernel_size in ((1, 1), (3, 3))
        and layer.padding == (size, size)
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
    )


def _finish(y: Tensor, add: Tensor | None, relu: bool) -> Tensor:
    """Return y + add, rectified where asked, in the memory of `y`: a convolution keeps no result for its backward."""
    if add is not None:
        y = y.add_(add)
    return torch.relu_(y) if relu else y


def _pixel_rows(x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n_h_w channels"]:
    """Return one row for each pixel: a view of a channels-last tensor, a copy of another."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _empty_maps(x: Tensor, channels: int) -> Tensor:
    return torch.empty((x.shape[0], channels, *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last)


class Pointwise(torch.autograd.Function):
    """A 1x1 convolution as one matrix product over all pixels, onto what is to be added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, relu: bool) -> Tensor:
        y = _empty_maps(x, weight.shape[0])
        rows, matrix, results = _pixel_rows(x), weight.flatten(1).t(), _pixel_rows(y)
        if add is not None:
            if bias is None:
                results.copy_(_pixel_rows(add))
            else:
                torch.add(_pixel_rows(add), bias, out=results)
            results.addmm_(rows, matrix)
        elif bias is not None:
            torch.addmm(bias, rows, matrix, out=results)
        else:
            torch.mm(rows, matrix, out=results)
        if relu:
            torch.relu_(results)
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_add, _ = ctx.needs_input_grad
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        rows = _pixel_rows(grad)
        grad_x = grad_weight = None
        if needs_x:
            grad_x = _empty_maps(x, x.shape[1])
            torch.mm(rows, weight.flatten(1), out=_pixel_rows(grad_x))
        if needs_weight:
            grad_weight = rows.t().mm(_pixel_rows(x)).view_as(weight)
        return grad_x, grad_weight, rows.sum(0) if needs_bias else None, grad if needs_add else None, None


class Winograd(torch.autograd.Function):
    """A 3x3 convolution of stride 1 with bias and rectifier; keeps input, weight and, for a rectifier, output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        y = _empty_maps(x, weight.shape[0])
        pixels = x.permute(0, 2, 3, 1).contiguous()
        winograd.convolve(pixels, weight, y.permute(0, 2, 3, 1), bias=bias, relu=relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        grad = grad.permute(0, 2, 3, 1).contiguous()
        grad_x = _empty_maps(x, x.shape[1]) if needs_x else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        if needs_x or needs_weight:
            winograd.convolve_backward(
                grad,
                x.permute(0, 2, 3, 1).contiguous(),
                weight,
                None if grad_x is None else grad_x.permute(0, 2, 3, 1),
                grad_weight,
            )
        return grad_x, grad_weight, grad.flatten(0, 2).sum(0) if needs_bias else None, None
