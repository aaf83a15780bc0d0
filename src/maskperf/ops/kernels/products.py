"""What surrounds matrix products in bfloat16: casts of all weights, logits of own classes, sums of gradients.

References: ops/products.py and, for sums, ops/convolution.py.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskperf.ops.kernels.values import jit

BLOCK_SIZE = 1024  # elements of one program that casts
BLOCK = tl.constexpr(BLOCK_SIZE)
# Of the table: addresses of values, gradient and factors (0: none), how many values, how many of one factor, first
# index among all values, first index in the buffer of casts.
COLUMNS = tl.constexpr(7)
PIXELS_AT_A_TIME = tl.constexpr(64)
SUMS_AT_A_TIME = tl.constexpr(2048)


class WeightCasts:
    """The casts of some parameters, in one buffer that each call fills anew; a call is one launch.

    The backward adds to the parameters' gradients itself, in one launch and one copy, and autograd has nothing left
    to do for them: a parameter without a gradient is given one of zeros first. The table of addresses is copied to
    the device when something has moved, so a step that is to be captured as a CUDA graph must have been done before.
    """

    def __init__(self, parameters: list[Tensor], factors: list[Tensor | None], dtype: torch.dtype):
        self.parameters = parameters
        self.after_gradients: Callable[[], None] | None = None
        self._factors = factors
        counts = [parameter.numel() for parameter in parameters]
        blocks = [-(-count // BLOCK_SIZE) for count in counts]
        device = parameters[0].device
        owners = [torch.full((number,), index) for index, number in enumerate(blocks)]
        firsts = [torch.arange(number) * BLOCK_SIZE for number in blocks]
        self._blocks = torch.stack([torch.cat(owners), torch.cat(firsts)], dim=1).to(device)
        self._starts = [sum(counts[:index]) for index in range(len(counts))]
        # Every cast begins at a multiple of the block, so that all are aligned as matrix units want it.
        self._cast_starts = [sum(blocks[:index]) * BLOCK_SIZE for index in range(len(counts))]
        self._casts = torch.empty(sum(blocks) * BLOCK_SIZE, dtype=dtype, device=device)
        self._table = torch.zeros(len(parameters), COLUMNS.value, dtype=torch.int64, device=device)
        self._rows: list[list[int]] = []  # what the table holds

    def __call__(self) -> list[Tensor]:
        return list(_Casts.apply(self, *self.parameters))

    def fill(self) -> tuple[Tensor, ...]:
        self._write_table()
        _cast[(len(self._blocks),)](self._casts, self._blocks, self._table)
        return tuple(
            self._casts.as_strided(parameter.shape, parameter.stride(), start)
            for parameter, start in zip(self.parameters, self._cast_starts, strict=True)
        )

    def add_gradients(self, gradients: tuple[Tensor | None, ...]) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._write_table()
        rows = [self._in_memory_order(*pair) for pair in zip(gradients, self.parameters, strict=True)]
        _add_gradients[(len(self._blocks),)](torch.cat(rows), self._blocks, self._table)
        if self.after_gradients is not None:
            self.after_gradients()

    def _in_memory_order(self, gradient: Tensor | None, parameter: Tensor) -> Tensor:
        """Return the gradient's values in one row, in the order in which the parameter's lie in memory."""
        if gradient is None:
            return self._casts.new_zeros(parameter.numel())
        if gradient.stride() != parameter.stride():
            gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
        return gradient.as_strided((gradient.numel(),), (1,))

    def _write_table(self) -> None:
        rows, starts = [], zip(self._starts, self._cast_starts, strict=True)
        for parameter, factors, (start, cast_start) in zip(self.parameters, self._factors, starts, strict=True):
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                raise ValueError(f"a gradient with strides {gradient.stride()}; its parameter has {parameter.stride()}")
            addresses = [0 if one is None else one.data_ptr() for one in (parameter, gradient, factors)]
            count = parameter.numel()
            rows.append([*addresses, count, count // parameter.shape[0], start, cast_start])
        if rows != self._rows:
            self._rows = rows
            table = torch.tensor(rows, dtype=torch.int64)
            # Pinned memory: a copy from any other would wait for the device.
            self._table.copy_(table.pin_memory() if self._table.is_cuda else table, non_blocking=True)


class _Casts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, casts: WeightCasts, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.casts = casts
        ctx.set_materialize_grads(False)
        return casts.fill()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        ctx.casts.add_gradients(gradients)
        return (None, *(None for _ in gradients))


def own_class_logits(maps: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Return (rois, pixels), float32, of maps (rois, pixels, channels), weights (rois, channels), offsets (rois)."""
    rois, pixels, channels = maps.shape
    result = torch.empty(rois, pixels, device=maps.device)
    if rois:
        grid = (rois, triton.cdiv(pixels, PIXELS_AT_A_TIME.value))
        _logits[grid](result, maps.contiguous(), weights, offsets, pixels, channels)
    return result


def own_class_gradients(maps: Tensor, weights: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the maps, in their type and 0 where they are, and that of the weights in float32.

    Both in one pass over the head's largest map, without atomics.
    """
    rois, pixels, channels = maps.shape
    maps = maps.contiguous()
    of_maps, of_weights = torch.empty_like(maps), torch.empty(rois, channels, device=maps.device)
    if rois:
        _gradients[(rois,)](of_maps, of_weights, maps, weights, gradient.contiguous(), pixels, channels)
    return of_maps, of_weights


def add_rectified(first: Tensor, second: Tensor, x: Tensor) -> Tensor:
    """Return first + second where x is above 0, else 0, in the memory of `first`. All are channels-last."""
    first, second, x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (first, second, x))
    if count := first.numel():
        _add_rectified[(triton.cdiv(count, SUMS_AT_A_TIME.value),)](first, second, x, count)
    return first


@jit
def _values_of(blocks, table):
    """Return the row of a program's parameter, the indices of up to 1024 of its values, which are real, and their
    factors: one for each output channel, which come slowest."""
    block = blocks + tl.program_id(0).to(tl.int64) * 2
    row = table + tl.load(block) * COLUMNS
    index = tl.multiple_of(tl.load(block + 1), 1024) + tl.arange(0, BLOCK)
    mask = index < tl.load(row + 3)
    factors = tl.load(row + 2)
    factor = factors.to(tl.pointer_type(tl.float32)) + (index // tl.load(row + 4)).to(tl.int32)
    return row, index, mask, tl.load(factor, mask=mask & (factors != 0), other=1.0)


@jit
def _cast(casts, blocks, table):
    row, index, mask, factor = _values_of(blocks, table)
    value = tl.load(tl.load(row).to(tl.pointer_type(tl.float32)) + index, mask=mask) * factor
    target = casts + tl.multiple_of(tl.load(row + 6), 1024) + index
    tl.store(target, value.to(casts.dtype.element_ty), mask=mask)


@jit
def _add_gradients(gradients, blocks, table):
    row, index, mask, factor = _values_of(blocks, table)
    value = tl.load(gradients + tl.load(row + 5) + index, mask=mask).to(tl.float32)
    total = tl.load(row + 1).to(tl.pointer_type(tl.float32)) + index
    tl.store(total, tl.load(total, mask=mask) + value * factor, mask=mask)


@jit
def _map_of(maps, weights, roi, first, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return 64 pixels of a RoI: their indices among all pixels, which are real, offsets of their channels in the maps,
    which of these are real, their values, and the weights of the channels."""
    channel = tl.arange(0, triton.next_power_of_2(CHANNELS))
    pixel = first + tl.arange(0, PIXELS_AT_A_TIME)
    weight = tl.load(weights + roi * CHANNELS + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    is_real = (pixel < PIXELS)[:, None] & (channel < CHANNELS)[None, :]
    offset = (roi * PIXELS + pixel)[:, None] * CHANNELS + channel[None, :]
    value = tl.load(maps + offset, mask=is_real, other=0.0).to(tl.float32)
    return roi * PIXELS + pixel, pixel < PIXELS, offset, is_real, value, weight[None, :]


@jit
def _logits(result, maps, weights, offsets, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """One program: 64 pixels of one RoI."""
    roi, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * PIXELS_AT_A_TIME
    pixel, is_pixel, _, _, value, weight = _map_of(maps, weights, roi, first, PIXELS, CHANNELS)
    tl.store(result + pixel, tl.sum(value * weight, axis=1) + tl.load(offsets + roi), mask=is_pixel)


@jit
def _gradients(of_maps, of_weights, maps, weights, gradient, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """One program: one RoI."""
    roi = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, triton.next_power_of_2(CHANNELS))
    total = tl.zeros([channel.shape[0]], tl.float32)
    for first in range(0, PIXELS, PIXELS_AT_A_TIME):
        pixel, is_pixel, offset, is_real, value, weight = _map_of(maps, weights, roi, first, PIXELS, CHANNELS)
        slope = tl.load(gradient + pixel, mask=is_pixel, other=0.0)[:, None]
        total += tl.sum(value * slope, axis=0)
        change = tl.where(value == 0.0, 0.0, slope * weight)
        tl.store(of_maps + offset, change.to(of_maps.dtype.element_ty), mask=is_real)
    tl.store(of_weights + roi * CHANNELS + channel, total, mask=channel < CHANNELS)


@jit
def _add_rectified(first, second, x, count):
    index = tl.program_id(0).to(tl.int64) * SUMS_AT_A_TIME + tl.arange(0, SUMS_AT_A_TIME)
    mask = index < count
    total = tl.load(first + index, mask=mask).to(tl.float32) + tl.load(second + index, mask=mask).to(tl.float32)
    # Not "x > 0": where x is NaN the gradient passes, as PyTorch lets it pass.
    total = tl.where(tl.load(x + index, mask=mask).to(tl.float32) <= 0.0, 0.0, total)
    tl.store(first + index, total.to(first.dtype.element_ty), mask=mask)
