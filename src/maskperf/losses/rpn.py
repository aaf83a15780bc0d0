"""RPN losses: which anchors should fire, and where their boxes should go."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskperf.config import ModelConfig
from maskperf.ops.anchors import anchor_visibility
from maskperf.ops.boxes import RPN_BOX_WEIGHTS, encode_boxes, pairwise_iou
from maskperf.ops.matching import Matches, match_to_truth
from maskperf.ops.sampling import sample_balanced
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
    """Returns the matches of all anchors; those that leave the picture are ignored, whatever they match.

    The best overlap of a ground truth is looked for among all anchors, visible or not, so an object may end without
    a positive anchor. Source: `modeling/rpn/loss.py`, `modeling/matcher.py`.
    """
    iou = pairwise_iou(anchors[None], targets.boxes)
    matches = match_to_truth(
        iou, targets.valid, positive_iou=positive_iou, negative_iou=negative_iou, keep_best_of_truth=True
    )
    return Matches(slots=matches.slots, positive=matches.positive & visible, negative=matches.negative & visible)


def rpn_losses(
    rpn: RpnOutput, anchors: Float[Tensor, "anchors 4"], batch: Batch, *, config: ModelConfig
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns the objectness loss (mean over the sampled anchors of the device's batch) and the box loss
    (smooth L1 with beta 1/9, summed over positives, divided by the number of all sampled anchors)."""
    targets = batch.targets
    visible = anchor_visibility(anchors, batch.images.sizes_hw)
    matches = assign_anchors(
        anchors,
        visible,
        targets,
        positive_iou=config.rpn_positive_iou,
        negative_iou=config.rpn_negative_iou,
    )
    positive, negative = sample_balanced(
        matches.positive,
        matches.negative,
        batch.sample_seeds,
        num_samples=config.rpn_samples_per_image,
        positive_fraction=config.rpn_positive_fraction,
    )
    num_sampled = (positive.sum() + negative.sum()).clamp(min=1)
    objectness = F.binary_cross_entropy_with_logits(rpn.logits, positive.to(rpn.logits.dtype), reduction="none")
    objectness_loss = (objectness * (positive | negative)).sum() / num_sampled
    box_loss = _positive_box_loss(rpn, anchors, targets, positive, matches.slots, config)
    return objectness_loss, box_loss / num_sampled


def _positive_box_loss(
    rpn: RpnOutput,
    anchors: Tensor,
    targets: Targets,
    positive: Tensor,
    slots: Int[Tensor, "images anchors"],
    config: ModelConfig,
) -> Float[Tensor, ""]:
    """Returns the summed smooth L1 of the positive anchors, of which there are at most a fixed number per image."""
    limit = min(int(config.rpn_samples_per_image * config.rpn_positive_fraction), positive.shape[1])
    index = positive.to(torch.uint8).topk(limit, dim=1).indices
    chosen = positive.gather(1, index)
    rows = index[..., None].expand(-1, -1, 4)
    truth = targets.boxes.gather(1, slots.gather(1, index)[..., None].expand(-1, -1, 4))
    chosen_anchors = anchors[index]
    truth = torch.where(chosen[..., None], truth, chosen_anchors)  # keeps the logarithm finite where unused
    wanted = encode_boxes(truth, chosen_anchors, RPN_BOX_WEIGHTS)
    loss = F.smooth_l1_loss(rpn.deltas.gather(1, rows), wanted, beta=RPN_SMOOTH_L1_BETA, reduction="none")
    return (loss * chosen[..., None]).sum()
