"""Stochastic gradient descent as one Triton kernel over all parameters: decay, momentum, update.

Twin: torch.optim.SGD, fused or not. Not yet run on a GPU.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS_AT_A_TIME = 1024
BLOCK = tl.constexpr(NUMBERS_AT_A_TIME)
ALIGNMENT_BYTES = 16  # of a vector load
COLUMNS = tl.constexpr(5)  # of the table: addresses of values, gradient and momentum, how many numbers, which group


class TritonSgd(torch.optim.SGD):
    """SGD with momentum, without dampening or Nesterov, of float32 parameters; one launch for all of them.

    As with PyTorch's fused update, `found_inf` above 0 leaves values and momentum as they are, decided on the device,
    and a group's "lr" may be a tensor there. A parameter without a gradient is left alone.
    A table on the device says where everything is. It is copied there when something has moved, so a step that is to
    be captured as a CUDA graph must have been done once before with the same gradients.

    Errors: ValueError for parameters the kernel cannot work on.
    """

    def __init__(self, groups: list[dict], *, lr: float, momentum: float):
        super().__init__(groups, lr=lr, momentum=momentum)
        self._parameters = [
            (place, number) for number, group in enumerate(self.param_groups) for place in group["params"]
        ]
        for parameter, _ in self._parameters:
            _require_plain(parameter)
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        device = self._parameters[0][0].device
        self._blocks = _list_blocks([parameter.numel() for parameter, _ in self._parameters]).to(device)
        self._table = torch.zeros(len(self._parameters), COLUMNS.value, dtype=torch.int64, device=device)
        self._rows: list[list[int]] = []  # what the table holds
        self._rules = torch.zeros(len(self.param_groups), 2, device=device)  # learning rate and decay of each group
        self._no_fault = torch.zeros((), device=device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Returns nothing; updates the parameters in place. Does not wait for the device."""
        if closure is not None:
            raise ValueError("closure: this optimizer does not call one")
        gradients = [_gradient_of(parameter) for parameter, _ in self._parameters]
        self._write_table(gradients)
        for rules, group in zip(self._rules, self.param_groups, strict=True):
            rules[0].copy_(group["lr"]) if isinstance(group["lr"], Tensor) else rules[0].fill_(group["lr"])
            rules[1].fill_(group["weight_decay"])
        fault = getattr(self, "found_inf", None)
        _update[(len(self._blocks),)](
            self._blocks,
            self._table,
            self._rules,
            self._no_fault if fault is None else fault,
            self.param_groups[0]["momentum"],
            IS_ALIGNED=all(address % ALIGNMENT_BYTES == 0 for row in self._rows for address in row[:3]),
        )

    def _write_table(self, gradients: list[Tensor | None]) -> None:
        rows = []
        for (parameter, group), gradient in zip(self._parameters, gradients, strict=True):
            momentum = self.state[parameter]["momentum_buffer"]
            if momentum.stride() != parameter.stride():
                raise ValueError(
                    f"momentum_buffer: strides {momentum.stride()}, its parameter has {parameter.stride()}"
                )
            place = 0 if gradient is None else gradient.data_ptr()
            rows.append([parameter.data_ptr(), place, momentum.data_ptr(), parameter.numel(), group])
        if rows != self._rows:
            self._rows = rows
            table = torch.tensor(rows, dtype=torch.int64)
            # Pinned memory: a copy from any other would wait for the device.
            self._table.copy_(table.pin_memory() if self._table.is_cuda else table, non_blocking=True)


def _require_plain(parameter: Tensor) -> None:
    """Returns nothing for a parameter in float32 whose numbers fill one piece of memory."""
    if parameter.dtype != torch.float32:
        raise ValueError(f"a parameter of {parameter.dtype}: the kernel updates float32 alone")
    if parameter.stride() != torch.empty_like(parameter, device="meta").stride():
        raise ValueError(f"a parameter with strides {parameter.stride()}: its numbers do not lie in one piece")


def _gradient_of(parameter: Tensor) -> Tensor | None:
    """Returns the gradient with its numbers in the order of the parameter's."""
    gradient = parameter.grad
    if gradient is None or (gradient.stride() == parameter.stride() and gradient.dtype == torch.float32):
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _list_blocks(counts: list[int]) -> Tensor:
    """Returns (parameter, first number) of every program's part, int64 (blocks, 2)."""
    owners = [torch.full((triton.cdiv(count, NUMBERS_AT_A_TIME),), number) for number, count in enumerate(counts)]
    firsts = [torch.arange(0, count, NUMBERS_AT_A_TIME) for count in counts]
    return torch.stack([torch.cat(owners), torch.cat(firsts)], dim=1)


@triton.jit
@no_type_check
def _numbers_at(address, IS_ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, 16) if IS_ALIGNED else pointer


@triton.jit
@no_type_check
def _update_part(values, gradients, momenta, rules, momentum, mask):
    value = tl.load(values, mask=mask)
    change = momentum * tl.load(momenta, mask=mask) + (tl.load(gradients, mask=mask) + tl.load(rules + 1) * value)
    tl.store(momenta, change, mask=mask)
    tl.store(values, value - tl.load(rules) * change, mask=mask)


@triton.jit
@no_type_check
def _update(blocks, table, rules, fault, momentum, IS_ALIGNED: tl.constexpr):
    """One program: up to 1024 numbers of one parameter."""
    if tl.load(fault) > 0:
        return
    block = blocks + tl.program_id(0).to(tl.int64) * 2
    row = table + tl.load(block) * COLUMNS
    if tl.load(row + 1) == 0:
        return  # no gradient
    first = tl.multiple_of(tl.load(block + 1), 1024)
    place = first + tl.arange(0, BLOCK)
    values = _numbers_at(tl.load(row), IS_ALIGNED) + place
    gradients = _numbers_at(tl.load(row + 1), IS_ALIGNED) + place
    momenta = _numbers_at(tl.load(row + 2), IS_ALIGNED) + place
    count = tl.load(row + 3)
    rules += tl.load(row + 4) * 2
    if first + BLOCK <= count:  # apart, because a mask would keep the loads from taking several numbers at a time
        _update_part(values, gradients, momenta, rules, momentum, None)
    else:
        _update_part(values, gradients, momenta, rules, momentum, place < count)
