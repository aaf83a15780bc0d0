"""Our side of the benchmarks of single operators."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from maskperf.bench.ours_model import read_batch
from maskperf.bench.run_lengths import as_run_lengths
from maskperf.bench.synthetic import POOLED_LEVELS, POOLS, STRIDES
from maskperf.engine.build import keep_memory
from maskperf.engine.distributed import init_topology
from maskperf.losses.mask import mask_targets as targets_of_rois
from maskperf.model.heads import MASK_SIZE
from maskperf.ops.nms import nms_sorted
from maskperf.ops.roi_align import pyramid_roi_align
from maskperf.structures import SampledRois, to_device

IOU_OF_GROUPS = {"levels": 0.7, "classes": 0.5}


def roi_align(inputs: dict) -> tuple[Callable[[], None], dict]:
    """Return one pooling of the boxes of all images from four levels, with the backward pass if asked for."""
    device = _start(inputs)
    pool, direction = inputs["case"].split()
    size, _ = POOLS[pool]
    with np.load(inputs["pyramid"]) as arrays:
        features = [torch.from_numpy(arrays[f"level_{number}"]) for number in range(POOLED_LEVELS)]
        boxes = torch.from_numpy(arrays[f"boxes_{pool}"]).to(device)
    features = [feature.to(device, memory_format=torch.channels_last) for feature in features]
    facts = {"items": boxes.shape[0] * boxes.shape[1], "item": "boxes"}
    if direction == "forward":
        return _without_gradient(lambda: pyramid_roi_align(features, boxes, size=size, strides=_strides())), facts
    for feature in features:
        feature.requires_grad_()

    def work() -> None:
        pooled = pyramid_roi_align(features, boxes, size=size, strides=_strides())
        torch.autograd.grad(pooled, features, torch.ones_like(pooled))

    return work, facts


def nms(inputs: dict) -> tuple[Callable[[], None], dict]:
    """Return one suppression of all groups of boxes, as after the RPN (levels) or at the end (classes)."""
    device = _start(inputs)
    groups = inputs["case"]
    with np.load(inputs["candidates"]) as arrays:
        boxes = torch.from_numpy(arrays[f"{groups}_boxes"]).to(device)
        valid = torch.from_numpy(arrays[f"{groups}_valid"]).to(device)
    kept = int(nms_sorted(boxes, valid, IOU_OF_GROUPS[groups]).sum())
    facts = {"items": int(valid.sum()), "item": "boxes", "kept": kept}
    return _without_gradient(lambda: nms_sorted(boxes, valid, IOU_OF_GROUPS[groups])), facts


def mask_targets(inputs: dict) -> tuple[Callable[[], None], dict]:
    """Return the targets of all RoIs, 28 x 28 each, of polygons or of the same masks as run lengths."""
    device = _start(inputs)
    batch = read_batch(inputs["batch"])
    if "run lengths" in inputs["case"]:
        batch = as_run_lengths(batch)
    targets = to_device(batch.targets, device)
    with np.load(inputs["mask_rois"]) as arrays:
        rois = SampledRois(
            boxes=torch.from_numpy(arrays["rois"]),
            labels=torch.from_numpy(arrays["labels"]).to(torch.int64),
            matched_slots=torch.from_numpy(arrays["slots"]).to(torch.int64),
            valid=torch.ones(arrays["slots"].shape, dtype=torch.bool),
        )
    rois = to_device(rois, device)
    share = float(targets_of_rois(rois, targets, MASK_SIZE).float().mean())
    facts = {"items": rois.valid.numel(), "item": "RoIs", "filled_share": share}
    return _without_gradient(lambda: targets_of_rois(rois, targets, MASK_SIZE)), facts


def _start(inputs: dict) -> torch.device:
    torch.set_num_threads(inputs["threads"])
    device = init_topology(inputs["device"]).device
    keep_memory(device)
    return device


def _strides() -> tuple[int, ...]:
    return STRIDES[:POOLED_LEVELS]


def _without_gradient(operator: Callable[[], Tensor]) -> Callable[[], None]:
    def work() -> None:
        with torch.no_grad():
            operator()

    return work
