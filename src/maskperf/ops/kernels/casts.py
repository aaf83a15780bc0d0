"""Casts of all weights as one Triton kernel, and their gradients back to float32 as another.

Twin: ops/products.py.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

NUMBERS_AT_A_TIME = 1024  # of one program
BLOCK = tl.constexpr(NUMBERS_AT_A_TIME)
# Of the table: addresses of values, gradient and factors (0: none), how many numbers, how many of one factor, first
# place among all numbers, first place in the buffer of casts.
COLUMNS = tl.constexpr(7)


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
        blocks = [-(-count // NUMBERS_AT_A_TIME) for count in counts]
        device = parameters[0].device
        owners = [torch.full((number,), place) for place, number in enumerate(blocks)]
        firsts = [torch.arange(number) * NUMBERS_AT_A_TIME for number in blocks]
        self._blocks = torch.stack([torch.cat(owners), torch.cat(firsts)], dim=1).to(device)
        self._starts = [sum(counts[:place]) for place in range(len(counts))]
        # Every cast begins at a multiple of the block, so that all are aligned as matrix units want it.
        self._cast_starts = [sum(blocks[:place]) * NUMBERS_AT_A_TIME for place in range(len(counts))]
        self._casts = torch.empty(sum(blocks) * NUMBERS_AT_A_TIME, dtype=dtype, device=device)
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
        """Return the gradient's numbers in one row, in the order in which the parameter's lie in memory."""
        if gradient is None:
            return self._casts.new_zeros(parameter.numel())
        if gradient.stride() != parameter.stride():
            gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
        return gradient.as_strided((gradient.numel(),), (1,))

    def _write_table(self) -> None:
        rows = []
        for place, (parameter, factors) in enumerate(zip(self.parameters, self._factors, strict=True)):
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                raise ValueError(f"a gradient with strides {gradient.stride()}; its parameter has {parameter.stride()}")
            rows.append(
                [
                    parameter.data_ptr(),
                    0 if gradient is None else gradient.data_ptr(),
                    0 if factors is None else factors.data_ptr(),
                    parameter.numel(),
                    parameter.numel() // parameter.shape[0],
                    self._starts[place],
                    self._cast_starts[place],
                ]
            )
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


@triton.jit
@no_type_check
def _factors_at(row, place, mask):
    """Return the factors of these numbers of a parameter: one for each output channel, which come slowest."""
    factors = tl.load(row + 2)
    number = (place // tl.load(row + 4)).to(tl.int32)
    return tl.load(factors.to(tl.pointer_type(tl.float32)) + number, mask=mask & (factors != 0), other=1.0)


@triton.jit
@no_type_check
def _cast(casts, blocks, table):
    """One program: up to 1024 numbers of one parameter."""
    block = blocks + tl.program_id(0).to(tl.int64) * 2
    row = table + tl.load(block) * COLUMNS
    place = tl.multiple_of(tl.load(block + 1), 1024) + tl.arange(0, BLOCK)
    mask = place < tl.load(row + 3)
    value = tl.load(tl.load(row).to(tl.pointer_type(tl.float32)) + place, mask=mask)
    value *= _factors_at(row, place, mask)
    target = casts + tl.multiple_of(tl.load(row + 6), 1024) + place
    tl.store(target, value.to(casts.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def _add_gradients(gradients, blocks, table):
    """One program: up to 1024 numbers of one parameter's gradient."""
    block = blocks + tl.program_id(0).to(tl.int64) * 2
    row = table + tl.load(block) * COLUMNS
    place = tl.multiple_of(tl.load(block + 1), 1024) + tl.arange(0, BLOCK)
    mask = place < tl.load(row + 3)
    value = tl.load(gradients + tl.load(row + 5) + place, mask=mask).to(tl.float32)
    total = tl.load(row + 1).to(tl.pointer_type(tl.float32)) + place
    value = tl.load(total, mask=mask) + value * _factors_at(row, place, mask)
    tl.store(total, value, mask=mask)
