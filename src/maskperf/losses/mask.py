"""Mask-head loss: binary cross-entropy against rasterised polygons and run-length encoded masks."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from maskperf.ops.products import own_class
from maskperf.ops.rasterize import rasterize_crops
from maskperf.ops.run_lengths import crop_run_lengths
from maskperf.structures import SampledRois, Targets


@torch.no_grad()
def mask_targets(rois: SampledRois, targets: Targets, size: int) -> Bool[Tensor, "images masks size size"]:
    """Return the ground-truth mask of each positive RoI inside its box, on a grid of size x size."""
    slots = targets.valid.shape[1]
    first_object = torch.arange(len(rois.boxes), device=rois.boxes.device)[:, None] * slots
    objects = rois.matched_slots + first_object
    boxes = rois.boxes.flatten(0, 1)
    masks = rasterize_crops(targets.polygons, objects.flatten(), boxes, size)
    if targets.run_lengths is not None:  # an object has polygons or runs, so one of the two masks is empty
        masks = masks | crop_run_lengths(targets.run_lengths, objects.flatten(), boxes, size)
    return masks.unflatten(0, rois.valid.shape)


def mask_loss(
    logits: Float[Tensor, "images masks *classes size size"],
    rois: SampledRois,
    wanted: Bool[Tensor, "images masks size size"],
) -> Float[Tensor, ""]:
    """Return the mean over positive RoIs and pixels, on the map of the true class only; 0 without positive RoIs.

    `logits` are those of all classes or of the true one.
    The zero stays connected to the logits, so every parameter gets a gradient in every process.
    Source: `modeling/roi_heads/mask_head/loss.py`.
    """
    size = logits.shape[-1]
    chosen = logits if logits.ndim == 4 else own_class(logits, rois.labels)
    entropy = F.binary_cross_entropy_with_logits(chosen, wanted.to(chosen.dtype), reduction="none")
    num_pixels = (rois.valid.sum() * size * size).clamp(min=1)
    return (entropy * rois.valid[..., None, None]).sum() / num_pixels
