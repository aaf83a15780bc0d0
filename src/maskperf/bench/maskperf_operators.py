"""maskperf in the benchmarks of single operators."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from maskperf.bench.maskperf_network import read_batch
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

Work = tuple[Callable[[], object], dict]


def roi_align(inputs: dict) -> Work:
    """Return one pooling of the boxes of all images from four levels, with the backward pass if the case has it."""
    device = _start(inputs)
    pool, direction = inputs["case"].split()
    size, _ = POOLS[pool]
    with np.load(inputs["pyramid"]) as arrays:
        features = [torch.from_numpy(arrays[f"level_{number}"]) for number in range(POOLED_LEVELS)]
        boxes = torch.from_numpy(arrays[f"boxes_{pool}"]).to(device)
    features = [feature.to(device, memory_format=torch.channels_last) for feature in features]
    for feature in features:
        feature.requires_grad_(direction != "forward")

    def forward() -> Tensor:
        return pyramid_roi_align(features, boxes, size=size, strides=STRIDES[:POOLED_LEVELS])

    def forward_and_backward() -> None:
        pooled = forward()
        torch.autograd.grad(pooled, features, torch.ones_like(pooled))

    facts = {"items": boxes.shape[0] * boxes.shape[1], "item": "boxes"}
    return _without_gradient(forward) if direction == "forward" else forward_and_backward, facts


def nms(inputs: dict) -> Work:
    """Return one suppression of all groups of boxes, as after the RPN (levels) or at the end (classes)."""
    device = _start(inputs)
    groups = inputs["case"]
    with np.load(inputs["candidates"]) as arrays:
        boxes, valid = (torch.from_numpy(arrays[f"{groups}_{name}"]).to(device) for name in ("boxes", "valid"))

    def work() -> Tensor:
        return nms_sorted(boxes, valid, IOU_OF_GROUPS[groups])

    return _without_gradient(work), {"items": int(valid.sum()), "item": "boxes", "kept": int(work().sum())}


def mask_targets(inputs: dict) -> Work:
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

    def work() -> Tensor:
        return targets_of_rois(rois, targets, MASK_SIZE)

    facts = {"items": rois.valid.numel(), "item": "RoIs", "filled_share": float(work().float().mean())}
    return _without_gradient(work), facts


def _start(inputs: dict) -> torch.device:
    torch.set_num_threads(inputs["threads"])
    device = init_topology(inputs["device"]).device
    keep_memory(device)
    return device


def _without_gradient(operator: Callable[[], Tensor]) -> Callable[[], None]:
    def work() -> None:
        with torch.no_grad():
            operator()

    return work
