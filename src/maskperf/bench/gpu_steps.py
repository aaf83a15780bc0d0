"""Training steps on one GPU: by padded size, batch size, precision and launching; and the waterfall of switches.

Not yet run on a GPU.
"""

import gc
import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from maskperf.bench.device_clock import wall_milliseconds_of
from maskperf.bench.maskperf_network import Stepper, batch_of
from maskperf.bench.measure import measure_in_turn, ratio_spread, spread_of
from maskperf.bench.plan import GpuPlan
from maskperf.bench.switches import ALL_ON, loss_difference, waterfall
from maskperf.bench.synthetic import batch_arrays
from maskperf.config import OptimizerConfig, SpeedConfig
from maskperf.engine.distributed import Topology
from maskperf.structures import LOSS_NAMES, Batch, Images, to_device

SEED = 1
GIB = 2**30
# So small that the weights hardly move: all repeats work on the same proposals.
OPTIMIZER = OptimizerConfig(learning_rate=1e-6, warmup_steps=0)
MODES = (("bfloat16", True), ("bfloat16", False), ("float32", True), ("float32", False))  # precision, captured


def make_stepper(plan: GpuPlan, speed: SpeedConfig, batch: Batch, device: torch.device) -> Stepper:
    return Stepper(plan.model, speed, OPTIMIZER, batch, Topology(device=device))


def step_rows(device: torch.device, plan: GpuPlan) -> Iterator[dict]:
    """Yield every batch size in every mode at the first padded size, then the other sizes as a run has them.

    A step that does not fit in the GPU's memory is a row with its error.
    """
    first, *others = plan.canvases_hw
    batch_sizes = dict.fromkeys((plan.usual_batch, *plan.batch_sizes))
    kinds = [(first, images, mode) for images, mode in itertools.product(batch_sizes, MODES)]
    kinds += [(canvas_hw, plan.usual_batch, MODES[0]) for canvas_hw in others]
    for canvas_hw, images, (precision, captured) in kinds:
        name = f"{precision}, {'captured' if captured else 'eager'}"
        speed = SpeedConfig(precision=precision, without=() if captured else ("captured_steps",))
        try:
            yield from list(_measured({name: speed}, synthetic_batch(plan, canvas_hw, images, device), plan, device))
        except torch.OutOfMemoryError as error:
            text = str(error).splitlines()[0]
            yield {"name": name, "canvas_hw": canvas_hw, "images": images, "error": text}


def switch_rows(device: torch.device, plan: GpuPlan) -> Iterator[dict]:
    """Yield the waterfall: all switches off, then one more on in each row; all rows measured in turn."""
    batch = synthetic_batch(plan, plan.canvases_hw[0], plan.usual_batch, device)
    speeds = {row.name: row.speed for row in waterfall("cuda") if row.name != ALL_ON}
    yield from _measured(speeds, batch, plan, device)


def _measured(speeds: dict[str, SpeedConfig], batch: Batch, plan: GpuPlan, device: torch.device) -> Iterator[dict]:
    """Yield one row for each; all models stay on the GPU, so that they can be measured in turn."""
    steppers, losses, peaks = {}, {}, {}
    for name, speed in speeds.items():
        steppers[name] = make_stepper(plan, speed, batch, device)
        peaks[name], losses[name] = _warm_up(steppers[name], plan, device)
    clock = partial(wall_milliseconds_of, device=device, calls=plan.steps_at_a_time)
    times = measure_in_turn({name: partial(clock, stepper.step) for name, stepper in steppers.items()}, plan.repeats)
    assert isinstance(batch.images, Images)
    images, first = len(batch.image_ids), next(iter(speeds))
    for name, stepper in steppers.items():
        milliseconds = spread_of(times[name])
        yield {
            "name": name,
            "canvas_hw": tuple(batch.images.pixels.shape[2:]),  # padded size
            "images": images,
            "precision": stepper.speed.precision,
            "captured": stepper.is_captured,  # that it was replayed, not that it should be
            "milliseconds": milliseconds,  # of a whole step, from its start on the host to its end on the device
            "images_per_second": images * 1000 / milliseconds.median,
            # How many times as fast as the first row, measured in turn.
            "first_over_this": None if name == first else ratio_spread(times[name], times[first]),
            # Largest relative difference of the terms of the first step from the first row's.
            "loss_difference": None if name == first else loss_difference(losses[name], losses[first]),
            "peak_gib": peaks[name],
            "messages": stepper.messages,
        }


def _warm_up(stepper: Stepper, plan: GpuPlan, device: torch.device) -> tuple[float | None, dict[str, float]]:
    """Return the peak memory of this model by itself, and the losses of its first step."""
    gc.collect()
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    result = stepper.step()
    losses = dict(zip(LOSS_NAMES, result.losses.tolist(), strict=True))
    for _ in range(plan.warm_up_calls):
        result = stepper.step()
    if dropped := int(result.dropped_masks):
        stepper.messages.append(f"{dropped} masks found no slot: a run would repeat this step, with room for all")
    return (torch.cuda.max_memory_allocated(device) - before) / GIB if is_cuda else None, losses


def synthetic_batch(plan: GpuPlan, canvas_hw: tuple[int, int], images: int, device: torch.device) -> Batch:
    """Return random images that fill the padded size, each with `plan.objects` objects of one polygon."""
    numbers = {"images": images, "objects": plan.objects, "classes": plan.model.num_classes}
    arrays = batch_arrays(np.random.default_rng(SEED), size_hw=canvas_hw, **numbers)
    return to_device(batch_of({name: torch.from_numpy(values) for name, values in arrays.items()}), device)
