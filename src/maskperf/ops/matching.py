"""Which ground truth each box belongs to."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Matches:
    """For every box its best ground truth and whether the two are a match."""

    slots: Int[Tensor, "images boxes"]  # ground truth of highest overlap; 0 when there is none
    positive: Bool[Tensor, "images boxes"]
    negative: Bool[Tensor, "images boxes"]  # neither: ignored


def match_to_truth(
    iou: Float[Tensor, "images boxes slots"],
    valid: Bool[Tensor, "images slots"],
    *,
    positive_iou: float,
    negative_iou: float,
    keep_best_of_truth: bool,
) -> Matches:
    """Returns matches by thresholds: positive from `positive_iou` on, negative below `negative_iou`.

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
