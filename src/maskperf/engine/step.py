"""One optimizer step: learning rate, forward, backward, mean over processes, update."""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskperf.config import OptimizerConfig
from maskperf.engine.distributed import Topology, average_gradients, average_tensor
from maskperf.engine.forward import training_losses
from maskperf.engine.optimizer import learning_rates_at, set_learning_rates
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.structures import Batch


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind; tensors stay on the device until someone reads them."""

    losses: Tensor  # the five terms in the order of LOSS_NAMES, mean over micro-batches and processes
    dropped_masks: Tensor
    learning_rate: float
    images: int


def train_step(
    model: MaskRcnn,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    *,
    update: int,
    config: OptimizerConfig,
    topology: Topology,
) -> StepResult:
    """Trains on the micro-batches of one step and returns its losses. `update` counts from 1.

    Each micro-batch has its own loss means, as if it were a device; gradients are averaged over micro-batches and
    processes. Nothing here waits for the device.
    """
    rates = learning_rates_at(update, config)
    set_learning_rates(optimizer, rates)
    optimizer.zero_grad(set_to_none=True)
    terms, dropped = [], []
    for batch in micro_batches:
        losses = training_losses(model, batch)
        (losses.total() / len(micro_batches)).backward()
        terms.append(losses.stacked().detach())
        dropped.append(losses.dropped_masks)
    average_gradients(model, topology)
    optimizer.step()
    return StepResult(
        losses=average_tensor(torch.stack(terms).mean(dim=0), topology),
        dropped_masks=torch.stack(dropped).sum(),
        learning_rate=rates[0],
        images=sum(len(batch.image_ids) for batch in micro_batches),
    )
