"""Which ground truth each box belongs to."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.kernels.selection import load, uses_kernels

_MAX_OVERLAPS = 1 << 21  # worked on at a time: small enough to stay in a processor's cache


@dataclass(frozen=True)
class Matches:
    """For every box its best ground truth and whether the two are a match."""

    slots: Int[Tensor, "images boxes"]  # ground truth of highest overlap; 0 when there is none, any if one is NaN
    positive: Bool[Tensor, "images boxes"]
    negative: Bool[Tensor, "images boxes"]  # neither: ignored


def match_boxes(
    boxes: Float[Tensor, "images boxes 4"],
    truth: Float[Tensor, "images slots 4"],
    valid: Bool[Tensor, "images slots"],
    *,
    positive_iou: float,
    negative_iou: float,
) -> Matches:
    """Return the matches of each image's own boxes, by thresholds alone."""
    rule = {"positive_iou": positive_iou, "negative_iou": negative_iou}
    if uses_kernels(boxes.device):
        return load("matching").match_boxes(boxes, truth, valid, keep_best_of_truth=False, **rule)
    return match_to_truth(pairwise_iou(boxes, truth), valid, keep_best_of_truth=False, **rule)


def match_anchors(
    anchors: Float[Tensor, "anchors 4"],
    truth: Float[Tensor, "images slots 4"],
    valid: Bool[Tensor, "images slots"],
    *,
    positive_iou: float,
    negative_iou: float,
) -> Matches:
    """Return the matches of anchors that all images share, with the best of each ground truth kept."""
    rule = {"positive_iou": positive_iou, "negative_iou": negative_iou}
    if uses_kernels(truth.device):
        return load("matching").match_boxes(anchors[None], truth, valid, keep_best_of_truth=True, **rule)
    return match_by_slots(anchors, truth, valid, **rule)


def match_to_truth(
    iou: Float[Tensor, "images boxes slots"],
    valid: Bool[Tensor, "images slots"],
    *,
    positive_iou: float,
    negative_iou: float,
    keep_best_of_truth: bool,
) -> Matches:
    """Return matches by thresholds: positive from `positive_iou` on, negative below `negative_iou`.

    With `keep_best_of_truth`, all boxes that share the highest overlap of some ground truth are positive too, each
    matched to its own best ground truth. Padded slots never match. Source: `modeling/matcher.py`.
    """
    iou = iou.masked_fill(~valid[:, None, :], -1.0)
    best_iou, slots = iou.max(dim=2)
    positive = best_iou >= positive_iou
    negative = best_iou < negative_iou
    if keep_best_of_truth:
        best_of_truth = iou.amax(dim=1, keepdim=True)
        is_best = ((iou == best_of_truth) & valid[:, None, :]).any(dim=2)
        positive = positive | is_best
        negative = negative & ~is_best
    return Matches(slots=slots, positive=positive, negative=negative)


def match_by_slots(
    anchors: Float[Tensor, "anchors 4"],
    truth: Float[Tensor, "images slots 4"],
    valid: Bool[Tensor, "images slots"],
    *,
    positive_iou: float,
    negative_iou: float,
) -> Matches:
    """Return what `match_anchors` returns, on any device.

    Equal to `match_to_truth` of all overlaps, which for many anchors and objects are too many to keep: here a few
    ground truths at a time are compared with all anchors.
    """
    images, num_slots = valid.shape
    best_iou = truth.new_full((images, len(anchors)), -1.0)
    slots = torch.zeros((images, len(anchors)), dtype=torch.int64, device=truth.device)
    is_best = torch.zeros_like(slots, dtype=torch.bool)
    per_chunk = max(1, _MAX_OVERLAPS // max(1, slots.numel()))
    for start in range(0, num_slots, per_chunk):
        real = valid[:, start : start + per_chunk, None]
        iou = pairwise_iou(truth[:, start : start + per_chunk], anchors[None]).masked_fill_(~real, -1.0)
        best_of_truth = (iou == iou.amax(dim=2, keepdim=True)) & real
        for place, (overlap, best) in enumerate(zip(iou.unbind(1), best_of_truth.unbind(1), strict=True)):
            slots.masked_fill_(overlap > best_iou, start + place)  # of equal overlaps the first slot stays
            torch.maximum(best_iou, overlap, out=best_iou)
            is_best |= best
    return Matches(
        slots=slots,
        positive=(best_iou >= positive_iou) | is_best,
        negative=(best_iou < negative_iou) & ~is_best,
    )
