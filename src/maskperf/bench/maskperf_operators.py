"""maskperf in the benchmarks of single operators."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from maskperf.bench.maskperf_network import batch_of, start
from maskperf.bench.peers.torch_work import IOU_OF_GROUPS, POOLED_SIZES, read_arrays
from maskperf.bench.run_lengths import as_run_lengths
from maskperf.bench.synthetic import POOLED_LEVELS, STRIDES
from maskperf.losses.mask import mask_targets as targets_of_rois
from maskperf.model.heads import MASK_SIZE
from maskperf.ops.nms import nms_sorted
from maskperf.ops.roi_align import pyramid_roi_align
from maskperf.structures import SampledRois, to_device

Work = tuple[Callable[[], object], dict]


def roi_align(inputs: dict) -> Work:
    """Return one pooling of the boxes of all images from four levels, with the backward pass if the case has it."""
    device = start(inputs).device
    pool, direction = inputs["case"].split()
    arrays = read_arrays(inputs["pyramid"], device)
    boxes, levels = arrays[f"boxes_{pool}"], [arrays[f"level_{number}"] for number in range(POOLED_LEVELS)]
    features = [level.to(memory_format=torch.channels_last) for level in levels]
    for feature in features:
        feature.requires_grad_(direction != "forward")

    def forward() -> Tensor:
        return pyramid_roi_align(features, boxes, size=POOLED_SIZES[pool], strides=STRIDES[:POOLED_LEVELS])

    def forward_and_backward() -> tuple[Tensor, ...]:
        pooled = forward()
        return torch.autograd.grad(pooled, features, torch.ones_like(pooled))

    facts = {"items": boxes.shape[0] * boxes.shape[1], "item": "boxes"}
    return torch.no_grad()(forward) if direction == "forward" else forward_and_backward, facts


def nms(inputs: dict) -> Work:
    """Return one suppression of all groups of boxes, as after the RPN (levels) or at the end (classes)."""
    device = start(inputs).device
    groups = inputs["case"]
    arrays = read_arrays(inputs["candidates"], device)
    boxes, valid = arrays[f"{groups}_boxes"], arrays[f"{groups}_valid"]
    work = torch.no_grad()(partial(nms_sorted, boxes, valid, IOU_OF_GROUPS[groups]))
    return work, {"items": int(valid.sum()), "item": "boxes", "kept": int(work().sum())}


def mask_targets(inputs: dict) -> Work:
    """Return the targets of all RoIs, 28 x 28 each, of polygons or of the same masks as run lengths."""
    device = start(inputs).device
    batch = batch_of(read_arrays(inputs["batch"]))
    if "run lengths" in inputs["case"]:
        batch = as_run_lengths(batch)
    targets = to_device(batch.targets, device)
    arrays = read_arrays(inputs["mask_rois"], device)
    valid = torch.ones_like(arrays["slots"], dtype=torch.bool)
    rois = SampledRois(boxes=arrays["rois"], labels=arrays["labels"], matched_slots=arrays["slots"], valid=valid)
    work = torch.no_grad()(partial(targets_of_rois, rois, targets, MASK_SIZE))
    return work, {"items": valid.numel(), "item": "RoIs", "filled_share": float(work().float().mean())}
