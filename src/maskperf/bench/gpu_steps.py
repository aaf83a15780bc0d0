"""Training steps on one card: by canvas, batch size, precision and way of launching; and the waterfall of switches.

Not yet run on a GPU.
"""

import gc
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from maskperf.bench.gpu_clock import measure_in_turn, wall_milliseconds_of
from maskperf.bench.gpu_kernels import synthetic_polygons
from maskperf.bench.gpu_plan import GpuPlan
from maskperf.bench.measure import Spread, ratio_spread, spread_of
from maskperf.bench.switches import cumulative_speeds, loss_difference
from maskperf.bench.synthetic import synthetic_boxes
from maskperf.config import OptimizerConfig, SpeedConfig
from maskperf.engine.build import build_model
from maskperf.engine.distributed import Topology
from maskperf.engine.graphs import capture_batch
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.precision import set_precision
from maskperf.engine.step import train_step
from maskperf.structures import LOSS_NAMES, Batch, Images, Targets, to_device
from maskperf.techniques import chosen_techniques, using

SEED = 1
GIB = 2**30
# So small that the weights hardly move: all repeats work on the same proposals.
OPTIMIZER = OptimizerConfig(learning_rate=1e-6, warmup_steps=0)
MODES = (  # precision, captured
    ("bfloat16", True),
    ("bfloat16", False),
    ("float32", True),
    ("float32", False),
)


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """What was measured of one kind of step."""

    name: str
    canvas_hw: tuple[int, int]
    images: int
    precision: str
    captured: bool  # that it was replayed, not that it should be
    milliseconds: Spread  # of a whole step, from its start on the host to its end on the device
    images_per_second: float
    first_over_this: Spread | None  # how many times as fast as the first row, measured in turn
    loss_difference: float | None  # largest relative difference of the terms of the first step from the first row's
    peak_gib: float | None
    messages: list[str]


@dataclass(frozen=True, kw_only=True)
class FullRow:
    """A kind of step that does not fit in the card's memory."""

    name: str
    canvas_hw: tuple[int, int]
    images: int
    error: str


class Stepper:
    """One model with its optimizer and batch; `step` is the training step of a run."""

    def __init__(self, speed: SpeedConfig, batch: Batch, plan: GpuPlan, device: torch.device):
        self.messages: list[str] = []
        self.speed, self.batch = speed, batch
        self._techniques = chosen_techniques(speed)
        self._model = build_model(plan.model, SEED)[0].to(device)
        self._optimizer = build_optimizer(self._model, OPTIMIZER)
        self._topology = Topology(rank=0, world=1, local_rank=0, device=device)
        with using(self._techniques):
            set_precision(self._model, speed.precision, device, self.messages.append)
            self._captured = capture_batch(self._model, batch, topology=self._topology, say=self.messages.append)
        self._update = 0
        self.dropped_masks = torch.zeros(())  # of the last step

    @property
    def is_captured(self) -> bool:
        return self._captured is not None and self._captured.replayed > 0

    def step(self) -> torch.Tensor:
        """Return the five losses of one more step, on the device."""
        self._update += 1
        with using(self._techniques):
            result = train_step(
                self._model,
                self._optimizer,
                [self.batch],
                update=self._update,
                config=OPTIMIZER,
                topology=self._topology,
                captured=self._captured,
                all_masks=False,
            )
        self.dropped_masks = result.dropped_masks
        return result.losses


def step_rows(device: torch.device, plan: GpuPlan) -> Iterator[StepRow | FullRow]:
    """Return every batch size in every mode on the first canvas, then the other canvases as a run would have them."""
    first, *others = plan.canvases_hw
    kinds = [
        (first, images, mode)
        for images, mode in itertools.product((plan.usual_batch, *_without(plan.batch_sizes, plan.usual_batch)), MODES)
    ]
    kinds += [(canvas, plan.usual_batch, MODES[0]) for canvas in others]
    for canvas, images, (precision, captured) in kinds:
        name = f"{precision}, {'captured' if captured else 'eager'}"
        speed = SpeedConfig(precision=precision, without=() if captured else ("captured_steps",))
        try:
            rows = list(_measured({name: speed}, synthetic_batch(plan, canvas, images, device), plan, device))
        except torch.OutOfMemoryError as error:
            rows = [FullRow(name=name, canvas_hw=canvas, images=images, error=str(error).splitlines()[0])]
        yield from rows


def switch_rows(device: torch.device, plan: GpuPlan) -> Iterator[StepRow]:
    """Return the waterfall: all switches off, then one more on in each row; all rows measured in turn."""
    batch = synthetic_batch(plan, plan.canvases_hw[0], plan.usual_batch, device)
    yield from _measured(cumulative_speeds("cuda"), batch, plan, device)


def _without(values: tuple[int, ...], value: int) -> tuple[int, ...]:
    return tuple(entry for entry in values if entry != value)


def _measured(speeds: dict[str, SpeedConfig], batch: Batch, plan: GpuPlan, device: torch.device) -> Iterator[StepRow]:
    """Return one row for each; all models stay on the card, so that they can be measured in turn."""
    steppers, losses, peaks = {}, {}, {}
    for name, speed in speeds.items():
        steppers[name] = Stepper(speed, batch, plan, device)
        peaks[name], losses[name] = _warm_up(steppers[name], plan, device)
    times = measure_in_turn(
        {
            name: partial(wall_milliseconds_of, stepper.step, device, plan.steps_at_a_time)
            for name, stepper in steppers.items()
        },
        plan.repeats,
    )
    first = next(iter(speeds))
    for name, stepper in steppers.items():
        yield StepRow(
            name=name,
            canvas_hw=tuple(batch.images.pixels.shape[2:]),
            images=len(batch.image_ids),
            precision=stepper.speed.precision,
            captured=stepper.is_captured,
            milliseconds=spread_of(times[name]),
            images_per_second=len(batch.image_ids) * 1000 / spread_of(times[name]).median,
            first_over_this=None if name == first else ratio_spread(times[name], times[first]),
            loss_difference=None if name == first else loss_difference(losses[name], losses[first]),
            peak_gib=peaks[name],
            messages=stepper.messages,
        )


def _warm_up(stepper: Stepper, plan: GpuPlan, device: torch.device) -> tuple[float | None, dict[str, float]]:
    """Return the most memory that this model took by itself, and the losses of its first step."""
    _free(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    losses = stepper.step().tolist()
    for _ in range(plan.warm_up_calls):
        stepper.step()
    if dropped := int(stepper.dropped_masks):
        stepper.messages.append(f"{dropped} masks found no place: a run would do this step again, with room for all")
    peak = (torch.cuda.max_memory_allocated(device) - before) / GIB if device.type == "cuda" else None
    return peak, dict(zip(LOSS_NAMES, losses, strict=True))


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def synthetic_batch(plan: GpuPlan, canvas_hw: tuple[int, int], images: int, device: torch.device) -> Batch:
    """Return random pictures that fill the canvas, each with `plan.objects` objects of one polygon."""
    random = np.random.default_rng(SEED)
    boxes = synthetic_boxes(random, images * plan.objects, canvas_hw)
    shape = (images, plan.objects)
    generator = torch.Generator(device).manual_seed(SEED)
    pixels = torch.randn(images, 3, *canvas_hw, generator=generator, device=device)
    targets = Targets(
        boxes=torch.from_numpy(boxes).view(*shape, 4),
        labels=torch.from_numpy(random.integers(1, plan.model.num_classes, shape)),
        valid=torch.ones(shape, dtype=torch.bool),
        polygons=synthetic_polygons(random, boxes),
    )
    batch = Batch(
        images=Images(
            pixels=pixels.contiguous(memory_format=torch.channels_last),
            sizes_hw=torch.tensor([canvas_hw] * images),
        ),
        targets=targets,
        image_ids=torch.arange(images),
        sample_seeds=torch.arange(images) + SEED,
    )
    return to_device(batch, device)
