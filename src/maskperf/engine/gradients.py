"""The backward of one micro-batch, and the buffer in which its gradients meet those of other processes."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskperf.engine.distributed import Topology
from maskperf.engine.stopwatch import Stopwatch
from maskperf.errors import ConfigError
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.structures import Losses

ALIGNMENT = 64  # numbers: every gradient begins at a multiple, for vector loads


@dataclass(frozen=True)
class BatchResult:
    """What forward and backward of one micro-batch leave besides gradients."""

    terms: Float[Tensor, " terms"]  # the losses in the order of LOSS_NAMES
    dropped_masks: Int[Tensor, ""]


def backward(
    losses: Losses,
    *,
    parts: int,
    exchange: AbstractContextManager | None = None,
    stopwatch: Stopwatch | None = None,
) -> BatchResult:
    """Add the gradients of the losses, divided by `parts`, to those of the parameters; done inside of `exchange`."""
    if stopwatch is not None:
        stopwatch.mark("forward")
    with exchange or nullcontext():
        (losses.total() / parts).backward()
    if stopwatch is not None:
        stopwatch.mark("backward")
    return BatchResult(losses.stacked().detach(), losses.dropped_masks)


def gradients_of(model: nn.Module) -> tuple[list[Tensor], tuple[str, ...]]:
    """Return all gradients, and the names of trainable parameters that have none; nothing waits for the device."""
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    without = (name for name, value in model.named_parameters() if value.requires_grad and value.grad is None)
    return found, tuple(without)


def require_gradients(without_gradient: Sequence[str]) -> None:
    """Raise an error that names the trainable parameters without a gradient, if there are any."""
    if without_gradient:
        raise ConfigError(
            f"trainable parameters that no loss reaches and no step would change: {', '.join(without_gradient)}. "
            "Fix: use them where the losses are computed (the RPN head in of_patches and the mask head in of_class as "
            "well as in forward), or set their requires_grad to False"
        )


class Gradients:
    """All gradients of a model in one buffer, averaged over the processes piece by piece while backward goes on.

    Its pieces are the gradients of weights that are cast together, and last all others.

    Every process exchanges the same pieces in the same order, whether its step is replayed or launched anew: backward
    is done with the groups of casts in an order that the network alone decides.
    """

    def __init__(self, model: MaskRcnn, topology: Topology):
        self._topology = topology
        self._casts = model.weight_casts()
        together = [casts.parameters for casts in self._casts]
        known = {parameter for parameters in together for parameter in parameters}
        others: list[Tensor] = [value for value in model.parameters() if value.requires_grad and value not in known]
        starts, ends, end = [], [], 0
        for parameters in (*together, others):
            for parameter in parameters:
                starts.append((parameter, end))
                end += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
            ends.append(end)
        self.flat = torch.zeros(end, device=topology.device)
        self._views = [(value, self.flat.as_strided(value.shape, value.stride(), start)) for value, start in starts]
        self._pieces = [self.flat[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]
        self._magnitudes = torch.zeros(len(self._pieces), device=topology.device)
        self._under_way: dict[int, dist.Work | None] = {}

    def hold(self) -> None:
        """Move every gradient into the buffer; a missing one is zero."""
        for parameter, view in self._views:
            if parameter.grad is None:
                view.zero_()
            elif parameter.grad is not view:
                view.copy_(parameter.grad)
            parameter.grad = view

    def zero(self) -> None:
        """Make all gradients zeros, in the buffer."""
        for parameter, view in self._views:
            parameter.grad = view
        self.flat.zero_()

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Average the gradients over the processes, each piece when the backward inside the `with` block is done
        with it. None of it waits for the device."""
        self._under_way = {}
        for number, casts in enumerate(self._casts):
            casts.after_gradients = partial(self._exchange, number)
        try:
            yield
            for number in range(len(self._pieces)):
                if number not in self._under_way:
                    self._exchange(number)
            for work in self._under_way.values():
                if work is not None:
                    work.wait()  # the device's queue does, not this process
        finally:
            for casts in self._casts:
                casts.after_gradients = None
        if self._topology.world > 1 and not self._averages:
            self.flat.div_(self._topology.world)

    def largest_magnitude(self) -> Float[Tensor, ""]:
        """Return a number that is finite if and only if all gradients of this process were, before the exchange."""
        return self._magnitudes.amax()  # Trap: of numbers that are none, max() and amax() return just that

    @property
    def _averages(self) -> bool:
        return self._topology.device.type == "cuda"  # NCCL divides itself, Gloo cannot

    def _exchange(self, number: int) -> None:
        piece = self._pieces[number]
        if len(piece):
            torch.linalg.vector_norm(piece, ord=float("inf"), out=self._magnitudes[number])
        work = None
        if self._topology.world > 1:
            operation = dist.ReduceOp.AVG if self._averages else dist.ReduceOp.SUM
            work = dist.all_reduce(piece, operation, async_op=True)
        self._under_way[number] = work
