"""Which ground truth each box belongs to."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.kernels.selection import has_kernel

_MAX_OVERLAPS = 1 << 21  # worked on at a time: small enough to stay in a processor's cache


@dataclass(frozen=True)
class Matches:
    """For every box its best ground truth and whether the two are a match."""

    slots: Int[Tensor, "images boxes"]  # ground truth of highest overlap; 0 when there is none, any if one is NaN
    positive: Bool[Tensor, "images boxes"]
    negative: Bool[Tensor, "images boxes"]  # neither: ignored


@has_kernel("matching")
def match_boxes(
    boxes: Float[Tensor, "#images boxes 4"],
    truth: Float[Tensor, "images slots 4"],
    valid: Bool[Tensor, "images slots"],
    *,
    positive_iou: float,
    negative_iou: float,
    keep_best_of_truth: bool,
) -> Matches:
    """Return matches by thresholds: positive from `positive_iou` on, negative below `negative_iou`.

    Boxes are each image's own, or anchors that all images share. With `keep_best_of_truth`, all boxes that share the
    highest overlap of some ground truth are positive too, each matched to its own best ground truth. Padded slots
    never match. Source: `modeling/matcher.py`.
    All overlaps of many anchors and objects would be too many to store: a few ground truths at a time meet all boxes.
    """
    images, num_slots = valid.shape
    best_iou = truth.new_full((images, boxes.shape[1]), -1.0)
    slots = torch.zeros_like(best_iou, dtype=torch.int64)
    is_best = torch.zeros_like(best_iou, dtype=torch.bool)
    per_chunk = max(1, _MAX_OVERLAPS // max(1, slots.numel()))
    for start in range(0, num_slots, per_chunk):
        real = valid[:, start : start + per_chunk, None]
        iou = pairwise_iou(truth[:, start : start + per_chunk], boxes).masked_fill_(~real, -1.0)
        for slot, overlap in enumerate(iou.unbind(1), start=start):
            slots.masked_fill_(overlap > best_iou, slot)  # of equal overlaps the first slot stays
            torch.maximum(best_iou, overlap, out=best_iou)
        if keep_best_of_truth:
            for best in ((iou == iou.amax(dim=2, keepdim=True)) & real).unbind(1):
                is_best |= best
    return Matches(
        slots=slots,
        positive=(best_iou >= positive_iou) | is_best,
        negative=(best_iou < negative_iou) & ~is_best,
    )
