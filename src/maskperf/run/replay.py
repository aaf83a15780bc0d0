"""One step again, on one process: what a black box holds goes through the same model, losses and update."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from maskperf.engine.distributed import init_topology
from maskperf.engine.optimizer import build_optimizer, optimizer_tensors
from maskperf.engine.precision import resolve_precision
from maskperf.engine.step import StepResult, train_step
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.run.black_box import BlackBox
from maskperf.structures import LOSS_NAMES, Images, to_device
from maskperf.techniques import chosen_techniques, using


@dataclass(frozen=True, kw_only=True)
class MicroBatchReplay:
    """One micro-batch alone, from the weights of the black box."""

    process: int
    image_ids: tuple[int, ...]
    losses: dict[str, float]
    bad_inputs: bool  # its pixels or boxes are not finite
    bad_gradients: tuple[str, ...]  # names of parameters, in the model's order


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What happened when the step ran again."""

    bad_weights: tuple[str, ...]  # before the step
    micro_batches: tuple[MicroBatchReplay, ...]
    losses: dict[str, float]  # of the whole step
    bad_weights_after: tuple[str, ...]

    @property
    def is_finite(self) -> bool:
        parts = [batch.bad_gradients for batch in self.micro_batches] + [self.bad_weights, self.bad_weights_after]
        return not any(parts) and all(torch.isfinite(torch.tensor(loss)) for loss in self.losses.values())


def replay(box: BlackBox, device: str) -> Replay:
    """Return what the step does on this device ("cpu", "cuda" or "auto").

    The micro-batches of all processes run one after the other; their gradients are averaged as the processes did.
    """
    topology = init_topology(device)
    config = replace(box.config.optimizer, accumulation_steps=len(box.micro_batches))
    step = partial(train_step, update=box.facts.update, config=config, topology=topology)
    batches = [to_device(batch, topology.device) for batch in box.micro_batches]
    with using(chosen_techniques(box.config.speed)):
        alone = []
        for number, batch in enumerate(batches):
            model, optimizer = restored(box, topology.device)
            losses = _named_losses(step(model, optimizer, [batch]))
            assert isinstance(batch.images, Images)  # what a black box holds
            gradients = ((name, value.grad) for name, value in model.named_parameters() if value.grad is not None)
            alone.append(
                MicroBatchReplay(
                    process=number // box.facts.accumulation_steps,
                    image_ids=tuple(batch.image_ids.tolist()),
                    losses=losses,
                    bad_inputs=bool(_not_finite([("", batch.images.pixels), ("", batch.targets.boxes)])),
                    bad_gradients=_not_finite(gradients),
                )
            )
        model, optimizer = restored(box, topology.device)
        return Replay(
            bad_weights=_not_finite(model.named_parameters()),
            micro_batches=tuple(alone),
            losses=_named_losses(step(model, optimizer, batches)),
            bad_weights_after=_not_finite(model.named_parameters()),
        )


def restored(box: BlackBox, device: torch.device) -> tuple[MaskRcnn, torch.optim.Optimizer]:
    """Return model and optimizer as they were when the box was written."""
    model = MaskRcnn(box.config.model)
    model.load_state_dict(box.weights)
    model.to(device)
    model.compute_dtype = resolve_precision(box.config.speed.precision, device)
    optimizer = build_optimizer(model, box.config.optimizer)
    for name, value in optimizer_tensors(model, optimizer).items():
        value.copy_(box.optimizer[name])
    return model, optimizer


def _named_losses(result: StepResult) -> dict[str, float]:
    return dict(zip(LOSS_NAMES, result.losses.tolist(), strict=True))


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> tuple[str, ...]:
    """Return the names whose tensor holds a number that is not finite."""
    return tuple(name for name, value in named if not torch.isfinite(value).all())
