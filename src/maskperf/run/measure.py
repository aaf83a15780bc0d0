"""What a training costs on this machine: the time of a step, and how many images of a batch fit into memory."""

import gc
import statistics
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from maskperf.config import RunConfig
from maskperf.data.coco.paths import locate
from maskperf.data.images.raw_images import prepare_images
from maskperf.engine.build import build_model, padded_size_hw, synthetic_batch
from maskperf.engine.distributed import Topology
from maskperf.engine.forward import training_losses
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.precision import resolve_precision, set_precision
from maskperf.engine.step import train_step
from maskperf.errors import joined_errors
from maskperf.evaluation.predict import predict
from maskperf.machine.hardware import describe_memory
from maskperf.machine.sources import peak_memory_bytes
from maskperf.machine.threads import threads_of_process
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.run.data import micro_batches, open_splits, split_batches
from maskperf.techniques import chosen_techniques, using

WARM_UP_STEPS, MEASURED_STEPS = 2, 6
EVALUATED_IMAGES = 16
MOST_IMAGES = 16  # of an automatic batch on one device: beyond it, rates that follow the batch become risky
UNKNOWN_GIB = 4.0  # free memory of a system that does not say
MEMORY_SHARE = 0.6  # of what is free; real images have more objects than the synthetic ones


def measure_speed(config: RunConfig, topology: Topology) -> tuple[float, float]:
    """Return the seconds of a step and of an evaluation, after a few steps of a model that is thrown away.

    Errors: DataError for data that cannot be used.
    """
    train, val, errors = open_splits(locate(config.data), config.data)
    if errors or train is None or val is None:
        raise joined_errors(errors)
    torch.set_num_threads(threads_of_process(config.system.threads).count)
    with using(chosen_techniques(config.speed)):
        model = _model_for(config, topology, len(train.category_ids))
        optimizer = build_optimizer(model, config.optimizer)
        step = partial(train_step, model, optimizer, config=config.optimizer, topology=topology)
        seeded = replace(config, seed=max(0, config.seed))
        batches = micro_batches(seeded, topology, train, 0, WARM_UP_STEPS + MEASURED_STEPS)
        seconds = []
        started = time.monotonic()
        for update, of_one_step in enumerate(batches, start=1):
            step(of_one_step, update=update)
            if topology.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - started)
            started = time.monotonic()
        evaluated = min(EVALUATED_IMAGES, len(val.image_ids))
        some = val.without(range(evaluated, len(val.image_ids)))
        started = time.monotonic()
        predict(model, split_batches(some, config, topology), train.category_ids, topology)
        per_image = (time.monotonic() - started) / evaluated
    del model, optimizer, step
    gc.collect()
    return statistics.median(seconds[WARM_UP_STEPS:]), per_image * len(val.image_ids)


def fitting_batch(config: RunConfig, topology: Topology, num_classes: int, num_images: int) -> tuple[int, str]:
    """Return a batch size for one process, a power of two, and a sentence about the memory that decided it.

    Measured are steps of one and of two synthetic images of the largest padded size.
    """
    with using(chosen_techniques(config.speed)):
        model = _model_for(config, topology, num_classes)
        peaks = [_peak_bytes(model, config, topology, images) for images in (1, 2)]
    free = _free_bytes(topology)
    del model
    gc.collect()
    per_image = max(peaks[1] - peaks[0], 1 << 20)
    fits = max(1, int(MEMORY_SHARE * free / per_image))
    limit = min(fits, MOST_IMAGES if topology.device.type == "cuda" else MOST_IMAGES // 2, max(1, num_images // 4))
    batch_size = 1 << (limit.bit_length() - 1)
    gib = 1 << 30
    text = f"an image needs {per_image / gib:.2f} GiB, {free / gib:.1f} GiB are free"
    return batch_size, f"batch=auto: {batch_size}; {text}"


def _model_for(config: RunConfig, topology: Topology, num_classes: int) -> MaskRcnn:
    model, _ = build_model(replace(config.model, num_classes=num_classes + 1), max(0, config.seed))
    model.to(topology.device)
    set_precision(model, config.speed.precision, topology.device, lambda text: None)
    return model


def _peak_bytes(model: MaskRcnn, config: RunConfig, topology: Topology, images: int) -> int:
    """Return the largest memory of a step on so many synthetic images, on a GPU that of its tensors."""
    device, is_cuda = topology.device, topology.device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        forget_peak()
    batch = synthetic_batch(config.data, padded_size_hw(config.data), images)
    batch = prepare_images(batch, device, dtype=resolve_precision(config.speed.precision, device))
    training_losses(model, batch).total().backward()
    model.zero_grad(set_to_none=True)
    if is_cuda:
        return torch.cuda.max_memory_allocated(device)
    return peak_memory_bytes()


def forget_peak() -> None:
    """Let the process's peak of memory begin anew, where the kernel can do that: what came before is no batch."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # source: proc(5)


def _free_bytes(topology: Topology) -> int:
    if topology.device.type == "cuda":
        return torch.cuda.mem_get_info(topology.device)[0]
    return int((describe_memory().available_gib or UNKNOWN_GIB) * (1 << 30))
