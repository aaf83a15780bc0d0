"""One optimizer step: learning rate, forward, backward, mean over processes, update."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import get_total_norm

from maskperf.config import OptimizerConfig
from maskperf.engine.distributed import Topology, average_gradients, sum_tensor
from maskperf.engine.forward import training_losses
from maskperf.engine.gradients import backward, gradients_of
from maskperf.engine.graphs import CapturedSteps
from maskperf.engine.optimizer import (
    clip_gradients,
    learning_rates_at,
    set_learning_rates,
    skip_updates_from_now_on,
    skipped_update,
)
from maskperf.engine.stopwatch import Stopwatch
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.structures import Batch

BAD_PARTS = ("loss", "gradient", "weight")


@dataclass(frozen=True)
class StepResult:
    """What a step returns; tensors stay on the device until someone reads them."""

    losses: Float[Tensor, " terms"]  # in the order of LOSS_NAMES, mean over micro-batches and processes
    dropped_masks: Tensor  # in all processes; a step without slots for all masks changes no weight
    not_finite: Float[Tensor, "processes parts"]  # above 0 where that part of BAD_PARTS was not finite
    learning_rate: float
    images: int
    stopwatch: Stopwatch
    without_gradient: tuple[str, ...] = ()  # trainable parameters; known where no gradients are captured


def train_step(
    model: MaskRcnn,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    *,
    update: int,
    config: OptimizerConfig,
    topology: Topology,
    captured: CapturedSteps | None = None,
    all_masks: bool = True,
) -> StepResult:
    """Train on the micro-batches of one step and return its losses, without waiting for the device.

    `update` counts from 1. With `captured`, forward and backward are replayed for the batches it takes; their phase is
    then "replay". Without `all_masks` these have fewer mask slots, and where they are too few in a process no process's
    weights change.

    Each micro-batch has its own loss means, as if it were a device; gradients are averaged over micro-batches and
    processes. From the first step on whose loss or gradient is not finite the weights stay as they are, in all
    processes.
    """
    rates = learning_rates_at(update, config)
    set_learning_rates(optimizer, rates)
    stopwatch, parts, results = Stopwatch(topology.device), len(micro_batches), []
    if captured is None:
        optimizer.zero_grad(set_to_none=True)
    else:
        captured.gradients.zero()
    for part, batch in enumerate(micro_batches, start=1):
        if captured is None:
            results.append(backward(training_losses(model, batch), parts=parts, stopwatch=stopwatch))
        else:
            results.append(captured.run(batch, part=part, parts=parts, all_masks=all_masks, stopwatch=stopwatch))
    mean_terms = torch.stack([result.terms for result in results]).mean(dim=0)
    dropped = torch.stack([result.dropped_masks for result in results]).sum()
    gradients, without = gradients_of(model) if captured is None else ([captured.gradients.largest_magnitude()], ())
    own = [any_not_finite([mean_terms], topology.device), any_not_finite(gradients, topology.device)]
    not_finite, dropped = _sum_over_processes(own, dropped[None], topology)
    dropped = dropped[0].to(torch.int64)
    if captured is None:  # else the last backward has averaged
        average_gradients(model, topology)
    stopwatch.mark("exchange")
    skip_updates_from_now_on(optimizer, not_finite.sum())
    clip_gradients(optimizer, config)
    with skipped_update(optimizer, dropped):
        optimizer.step()
    own = [any_not_finite((value for value in model.parameters() if value.requires_grad), topology.device)]
    weight_problems, mean_terms = _sum_over_processes(own, mean_terms / topology.world, topology)
    skip_updates_from_now_on(optimizer, weight_problems.sum())
    stopwatch.mark("optimizer")
    return StepResult(
        losses=mean_terms,
        dropped_masks=dropped,
        not_finite=torch.cat([not_finite, weight_problems], dim=1),
        learning_rate=rates[0],
        images=sum(len(batch.image_ids) for batch in micro_batches),
        stopwatch=stopwatch,
        without_gradient=without,
    )


def any_not_finite(tensors: Iterable[Tensor], device: torch.device) -> Float[Tensor, ""]:
    """Return 1 on the device where one of the numbers is infinite or not a number, else 0, in one pass over memory."""
    filled = [tensor.detach() for tensor in tensors if tensor.numel()]
    if not filled:
        return torch.zeros((), device=device)
    if device.type == "cpu":  # 15 times as fast there
        largest = torch.stack([end.float() for tensor in filled for end in torch.aminmax(tensor)])
    else:  # a launch or two for all tensors, not two for each
        largest = get_total_norm([tensor.float() for tensor in filled], norm_type=float("inf"))
    return 1 - torch.isfinite(largest).all().float()


def _sum_over_processes(own: list[Tensor], values: Tensor, topology: Topology) -> tuple[Tensor, Tensor]:
    """Return [process, problem], of which `own` is this process's row, and the sums of `values`, in one exchange."""
    numbers = torch.zeros(topology.world * len(own) + len(values), device=topology.device)
    problems, sums = numbers[: -len(values)].view(topology.world, -1), numbers[-len(values) :]
    for index, problem in enumerate(own):
        problems[topology.rank, index] = problem
    sums.copy_(values)
    sum_tensor(numbers, topology)
    return problems, sums
