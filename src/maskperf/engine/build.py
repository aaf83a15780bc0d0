"""A model ready to train: made from a seed, weights loaded, kernels warmed up, steps recorded."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from maskperf.config import DataConfig, ModelConfig, RunConfig
from maskperf.data.images.buckets import largest_short_side, round_up
from maskperf.data.images.collate import Packing, Sample, make_batch
from maskperf.data.images.loader import feeding_for, hands_over_bytes, static_buckets
from maskperf.data.images.raw_images import UploadBuffers, prepare_images
from maskperf.data.images.transforms import SizeHw
from maskperf.engine.allocator import keep_freed_memory
from maskperf.engine.capacity import fixed_capacities
from maskperf.engine.distributed import Topology
from maskperf.engine.forward import training_losses
from maskperf.engine.gradients import gradients_of, require_gradients
from maskperf.engine.graphs import CapturedSteps, capture_steps
from maskperf.model.backbone_file import load_backbone_weights
from maskperf.model.mask_rcnn import MaskRcnn, require_one_definition
from maskperf.model.weights import load_model_weights
from maskperf.ops.kernels.selection import uses_kernels
from maskperf.seeds import derive_seed
from maskperf.structures import Batch
from maskperf.techniques import active


def build_model(config: ModelConfig, seed: int) -> tuple[MaskRcnn, list[str]]:
    """Return a model on the CPU and notices about the weights it loaded. Random weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial weights") % 2**63)
        model = MaskRcnn(config)
    notices = []
    if config.backbone_weights:
        notices += load_backbone_weights(model, config.backbone_weights)
    if config.initial_weights:
        path, reset = config.initial_weights, config.reset_predictors
        notices += load_model_weights(model, path, reset_predictors=reset)
    require_one_definition(model)
    return model, notices


def keep_memory(device: torch.device) -> str:
    """Return one line about what becomes of freed memory, after it was decided. Cannot be undone in this process."""
    if device.type != "cpu":
        return "memory: kept by PyTorch's allocator for the GPU"
    if not active().keep_freed_memory:
        return "memory: freed memory goes back to the system (keep_freed_memory is off, see speed.without)"
    if keep_freed_memory():
        return "memory: freed memory stays with the process"
    return "memory: freed memory goes back to the system, although keep_freed_memory is on: there is no glibc here"


def padded_size_hw(data: DataConfig) -> SizeHw:
    """Return the padded size of the widest landscape image."""
    return round_up(largest_short_side(data), data.size_divisor), round_up(data.long_side, data.size_divisor)


def synthetic_batch(data: DataConfig, padded_hw: SizeHw, images: int, *, raw_images: bool = False) -> Batch:
    """Return black images that fill the padded size, with one square object each, as the loader would make them."""
    height, width = padded_hw
    side = float(min(padded_hw) // 2)
    sample = Sample(
        bgr=np.zeros((height // 2, width // 2, 3), np.uint8),
        size_hw=padded_hw,
        is_mirrored=False,
        means_bgr=data.pixel_means_bgr,
        boxes=np.array([[0, 0, side, side]], np.float32),
        labels=np.ones(1, np.int64),
        polygon_offsets=np.array([0, 1]),
        point_offsets=np.array([0, 4]),
        points=np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32),
        image_id=0,
        sample_seed=0,
        original_size_hw=(height // 2, width // 2),
    )
    samples = [replace(sample, sample_seed=number) for number in range(images)]
    buffers = UploadBuffers(max_waiting=1, pin_memory=False) if raw_images else None
    return make_batch(samples, data.size_divisor, Packing(buckets=(padded_hw,), buffers=buffers))


def prepare_steps(
    model: MaskRcnn, config: RunConfig, *, images: int, topology: Topology, say: Callable[[str], None]
) -> CapturedSteps | None:
    """Return the captured steps, where there can be any, after a GPU ran one step on each padded size.

    Synthetic batches warm up kernels and convolutions and are recorded, so that the timed run begins with replays. No
    data set is read. The largest size comes first: the others fit into its memory. A CPU has no kernels to choose, and
    its first step costs what any step costs: nothing is done there.
    """
    device, data = topology.device, config.data
    if device.type != "cuda":
        return None
    feeding = feeding_for(device)
    sizes = static_buckets(data, feeding) or (padded_size_hw(data),)

    def batches() -> Iterator[Batch]:
        for padded_hw in reversed(sizes):
            batch = synthetic_batch(data, padded_hw, images, raw_images=hands_over_bytes(feeding, data))
            yield prepare_images(batch, device, dtype=model.compute_dtype)

    warm_up(model, batches())
    if model.conventions.roi_align is not None:
        say(f"captured steps: off, RoIAlign of model.conventions={model.config.conventions} cannot be recorded")
        return None
    capacities = fixed_capacities(images, usual_first=not uses_kernels(device))
    captured = capture_steps(model, capacities, topology=topology, say=say)
    if captured is not None:
        with best_convolutions():  # the mask head on its usual slots is new here
            captured.record(batches(), parts=config.optimizer.accumulation_steps)
    return captured


def warm_up(model: MaskRcnn, batches: Iterable[Batch]) -> None:
    """Run forward and backward once on each batch, while cuDNN searches for its best algorithms.

    The model is left as it was: no gradient and no running statistic stays.
    """
    state = copy.deepcopy(model.state_dict())
    with best_convolutions():
        for batch in batches:
            training_losses(model, batch).total().backward()
    require_gradients(gradients_of(model)[1])
    model.zero_grad(set_to_none=True)
    model.load_state_dict(state)


@contextmanager
def best_convolutions() -> Iterator[None]:
    """Make cuDNN search for the best algorithm of each new convolution, and remember it in this process.

    Outside, its heuristics choose: a search takes long, and is not for shapes that come once.
    """
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False
