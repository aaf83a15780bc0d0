"""Bytes, operations and launches of one training step, by part: python null_step_cost.py IMAGES OBJECTS, JSON.

On the null CUDA; step_cost.py starts it and prints a table. The rules of counting:

* an operator of ATen reads every tensor that it is given and writes every one that it returns or changes, each once
  and whole; one that only overwrites does not read what it overwrites; views and empty tensors cost nothing;
* a convolution with a bias goes over its result once more, to add it in a kernel of its own, unless it is one of
  cuDNN's fused ones;
* a Triton kernel reads or writes every tensor that it is given once and whole; behind a table of addresses it does
  what TABLE_BYTES says.

It is a lower bound of what a card moves for these operators: a sort or a sum may go over its numbers several times.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import prod
from unittest import mock

import torch
from null_device import WORK, calls_so_far, recording
from null_steps import WARM_UP_STEPS, made_stepper
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, mm_flop
from triton.runtime.jit import JITFunction

from maskperf.engine import forward
from maskperf.engine import graphs as captured
from maskperf.engine.gradients import BatchResult
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.ops.kernels import products

SAMPLING = ("append_truth", "sample_rois", "positive_rois", "packed_positive_rois")
PARTS = {  # of the forward pass: what is called there
    "features": [(MaskRcnn, "features")],
    "RPN of all anchors": [(MaskRcnn, "rpn_output")],
    "RPN of sampled anchors": [(MaskRcnn, "rpn_output_at")],
    "RPN losses, matching, sampling": [(forward, "rpn_losses")],
    "proposals": [(forward, "select_proposals")],
    "RoIs, matching, sampling": [(forward, name) for name in SAMPLING],
    "box head": [(MaskRcnn, "box_outputs")],
    "box losses": [(forward, "box_losses")],
    "mask targets": [(forward, "mask_targets")],
    "mask head": [(MaskRcnn, "mask_logits")],
    "mask loss": [(forward, "mask_loss")],
    "backward": [(Tensor, "backward")],
}
REST = "inputs, update, checks"
VIEWS = (
    "view _unsafe_view _reshape_alias permute transpose t expand slice select unsqueeze squeeze detach alias split "
    "split_with_sizes unbind as_strided diagonal unflatten movedim lift_fresh set_"
)
EMPTY = "empty empty_strided empty_like new_empty new_empty_strided"
FILLED = "zeros zeros_like new_zeros ones ones_like new_ones full full_like new_full arange scalar_tensor"
FREE = {*VIEWS.split(), *EMPTY.split()}
MAKING = set(FILLED.split())
OVERWRITING = {"copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_"}  # and return what they have overwritten
FUSED_CONVOLUTIONS = {"cudnn_convolution_relu", "cudnn_convolution_add_relu"}
# For each program of a kernel that takes a table: what it reads and writes behind it, in float32.
TABLE_BYTES = {
    "_cast": 4 * products.BLOCK_SIZE,  # reads a value; the cast is written to a tensor that is given
    "_add_gradients": 2 * 4 * products.BLOCK_SIZE,  # reads and writes a gradient
}


@dataclass
class Cost:
    """What a part of a step costs."""

    bytes: int = 0
    flop: int = 0
    operators: int = 0
    launches: int = 0


@dataclass
class Ledger:
    """The costs of all parts; the one that is going on now gets what is spent."""

    costs: defaultdict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    part: str = REST
    calls: list[tuple[int, str]] = field(default_factory=list)  # from which recorded call on which part goes on

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        before, self.part = self.part, part
        self.calls.append((calls_so_far(), part))
        try:
            yield
        finally:
            self.part = before
            self.calls.append((calls_so_far(), before))

    def watched(self, part: str, function: Callable) -> Callable:
        def call(*arguments, **options):
            with self.inside(part):
                return function(*arguments, **options)

        return call

    def spend(self, *, bytes: int, flop: int = 0, operators: int = 0) -> None:
        cost = self.costs[self.part]
        cost.bytes += bytes
        cost.flop += flop
        cost.operators += operators


class Operators(TorchDispatchMode):
    """Spend the operators of ATen that work on the device."""

    def __init__(self, ledger: Ledger):
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        result = function(*arguments, **options)
        name = function._schema.name.split("::")[1]
        taken = _on_device((arguments, options))
        made = _on_device(result) or _on_device(_changed(function, arguments))
        if name not in FREE and (taken or made):
            self._ledger.spend(
                bytes=_bytes_of_operator(name, arguments, taken, made),
                flop=_flop_of(name, function, arguments, options, result),
                operators=1,
            )
        return result


def _on_device(values) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor) and value.is_cuda]


def _changed(function, arguments: tuple) -> list:
    """Return the arguments that an operator writes to; those that return nothing have only these."""
    pairs = zip(function._schema.arguments, arguments, strict=False)
    return [value for entry, value in pairs if entry.alias_info is not None and entry.alias_info.is_write]


def bytes_of(tensor: Tensor) -> int:
    """Return the bytes of the numbers that a tensor has in memory: expanded ones are there once."""
    lengths = [length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or length < 2]
    return prod(lengths) * tensor.element_size()


def _bytes_of_operator(name: str, arguments: tuple, taken: list[Tensor], made: list[Tensor]) -> int:
    total = (0 if name in MAKING else sum(map(bytes_of, taken))) + (
        0 if name in OVERWRITING else sum(map(bytes_of, made))
    )
    if name == "convolution" and arguments[2] is not None:
        total += 2 * sum(map(bytes_of, made))
    return total


def _flop_of(name: str, function, arguments: tuple, options: dict, result) -> int:
    if name in FUSED_CONVOLUTIONS:
        return conv_flop_count(arguments[0].shape, arguments[1].shape, result.shape)
    if name == "_addmm_activation":
        return mm_flop(arguments[1].shape, arguments[2].shape)
    count = flop_registry.get(function._overloadpacket)
    return count(*arguments, **options, out_val=result) if count else 0


def _kernels_spent(ledger: Ledger, run: Callable) -> Callable:
    """Return JITFunction.run, that spends what it launches."""

    def spending(kernel, *arguments, grid, warmup, **options):
        total = sum(map(bytes_of, _on_device((arguments, options))))
        if "table" in kernel.arg_names:
            total += prod(grid) * TABLE_BYTES[kernel.__name__]
        ledger.spend(bytes=total)
        return run(kernel, *arguments, grid=grid, warmup=warmup, **options)

    return spending


class _Relauncher(captured.CudaRecorder):
    """A recorder whose replay does the work anew, so that its operators can be seen."""

    def __init__(self, device: torch.device):
        pass

    def warm_up(self, work: Callable[[], BatchResult]) -> None:
        work()

    def record(self, work: Callable[[], BatchResult]) -> tuple[BatchResult, Callable[[], BatchResult]]:
        return work(), work


def step_costs(images: int, objects: int) -> dict[str, Cost]:
    """Return the costs of a replayed step by part, in the order of the step: its graph's, and what is around it."""
    with mock.patch.object(captured, "CudaRecorder", _Relauncher):
        stepper = made_stepper(images, objects, captured=True)
    for _ in range(WARM_UP_STEPS):
        stepper.step()
    assert stepper.is_captured, stepper.messages
    ledger = Ledger()
    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                watched = ledger.watched(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, watched))
        stack.enter_context(mock.patch.object(JITFunction, "run", _kernels_spent(ledger, JITFunction.run)))
        recorded = stack.enter_context(recording())
        stack.enter_context(Operators(ledger))
        stepper.step()
    changes = [(0, REST), *ledger.calls, (len(recorded.calls), REST)]
    for (first, part), (last, _) in pairwise(changes):
        ledger.costs[part].launches += sum(call.kind in WORK for call in recorded.calls[first:last])
    return {part: ledger.costs[part] for part in [*PARTS, REST]}


if __name__ == "__main__":
    found = step_costs(*map(int, sys.argv[1:]))
    print(json.dumps({part: asdict(cost) for part, cost in found.items()}))
