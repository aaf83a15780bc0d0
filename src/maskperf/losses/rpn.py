"""RPN losses: which anchors should fire, and where their boxes should go."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskperf.ops.anchors import anchor_visibility
from maskperf.ops.boxes import RPN_BOX_WEIGHTS, encode_boxes
from maskperf.ops.matching import Matches, match_boxes
from maskperf.ops.sampling import draw_balanced
from maskperf.structures import Batch, RpnOutput, Targets

RPN_SMOOTH_L1_BETA = 1 / 9  # modeling/rpn/loss.py


def assign_anchors(
    anchors: Float[Tensor, "anchors 4"],
    visible: Bool[Tensor, "images anchors"],
    targets: Targets,
    *,
    positive_iou: float,
    negative_iou: float,
) -> Matches:
    """Return the matches of all anchors; those that leave the image are ignored, whatever they match.

    The best overlap of a ground truth is looked for among all anchors, visible or not, so an object may end without
    a positive anchor. Source: `modeling/rpn/loss.py`, `modeling/matcher.py`.
    """
    rule = {"positive_iou": positive_iou, "negative_iou": negative_iou}
    matches = match_boxes(anchors[None], targets.boxes, targets.valid, keep_best_of_truth=True, **rule)
    return Matches(slots=matches.slots, positive=matches.positive & visible, negative=matches.negative & visible)


def rpn_losses(
    rpn: RpnOutput,
    anchors: Float[Tensor, "anchors 4"],
    batch: Batch,
    *,
    positive_iou: float,
    negative_iou: float,
    num_samples: int,
    positive_fraction: float,
    outputs_at: Callable[[Tensor], RpnOutput] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the objectness loss (mean over the sampled anchors of the device's batch) and the box loss
    (smooth L1 with beta 1/9, summed over positives, divided by the number of all sampled anchors).

    The sampled anchors' outputs are taken from `rpn`, or computed by `outputs_at` from their indices
    (images, samples): then the gradient flows there and not to `rpn`.
    """
    visible = anchor_visibility(anchors, batch.images.sizes_hw)
    matches = assign_anchors(
        anchors,
        visible,
        batch.targets,
        positive_iou=positive_iou,
        negative_iou=negative_iou,
    )
    sample = draw_balanced(
        matches.positive,
        matches.negative,
        batch.sample_seeds,
        num_samples=num_samples,
        max_positive=int(num_samples * positive_fraction),
    )
    outputs = outputs_at(sample.index) if outputs_at else _pick(rpn, sample.index)
    num_sampled = sample.valid.sum().clamp(min=1)
    wanted = sample.positive.to(outputs.logits.dtype)
    objectness = F.binary_cross_entropy_with_logits(outputs.logits, wanted, reduction="none")
    objectness_loss = (objectness * sample.valid).sum() / num_sampled
    slots = matches.slots.gather(1, sample.index)
    box_loss = _positive_box_loss(outputs.deltas, anchors[sample.index], slots, sample.positive, batch.targets)
    return objectness_loss, box_loss / num_sampled


def _pick(rpn: RpnOutput, index: Int[Tensor, "images samples"]) -> RpnOutput:
    rows = index[..., None].expand(-1, -1, 4)
    return RpnOutput(logits=rpn.logits.gather(1, index), deltas=rpn.deltas.gather(1, rows))


def _positive_box_loss(
    deltas: Float[Tensor, "images samples 4"],
    anchors: Float[Tensor, "images samples 4"],
    slots: Int[Tensor, "images samples"],
    positive: Bool[Tensor, "images samples"],
    targets: Targets,
) -> Float[Tensor, ""]:
    """Return the summed smooth L1 of the positive anchors."""
    truth = targets.boxes.gather(1, slots[..., None].expand(-1, -1, 4))
    truth = torch.where(positive[..., None], truth, anchors)  # keeps the logarithm finite where unused
    wanted = encode_boxes(truth, anchors, RPN_BOX_WEIGHTS)
    loss = F.smooth_l1_loss(deltas, wanted, beta=RPN_SMOOTH_L1_BETA, reduction="none")
    return (loss * positive[..., None]).sum()
