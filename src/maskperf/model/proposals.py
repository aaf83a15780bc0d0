"""From RPN outputs to proposals: per level top-k, decode, clip, NMS; then a quota over levels and, pooled, images.

Shapes: N images, A anchors of all levels, L levels, K candidates of a level, P proposals of an image.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.config import ModelConfig
from maskperf.model.conventions import Conventions, conventions_of
from maskperf.ops.boxes import RPN_BOX_WEIGHTS, are_at_least, clip_boxes, decode_boxes
from maskperf.ops.nms import nms_sorted
from maskperf.ops.ranking import best_anchors, best_mask
from maskperf.ops.sampling import compact
from maskperf.structures import Proposals, RpnOutput, Targets


@torch.no_grad()
def select_proposals(
    rpn: RpnOutput,
    anchors: Float[Tensor, "A 4"],
    level_counts: tuple[int, ...],
    sizes_hw: Int[Tensor, "N 2"],
    *,
    config: ModelConfig,
    training: bool,
) -> Proposals:
    """Return the proposals of each image (N, P): in training in the order of levels, in testing by falling score.

    In training the quota is taken over all images of the batch together ("pooled") or image by image.
    Source: `modeling/rpn/inference.py` of the reference; ranking is by float32 sigmoid scores.
    """
    limit = config.candidates_per_level[0 if training else 1]
    conventions = conventions_of(config)
    boxes, scores, valid = _candidates(rpn, anchors, level_counts, sizes_hw, limit=limit, conventions=conventions)
    alive = nms_sorted(boxes.flatten(0, 1), valid.flatten(0, 1), config.rpn_nms_iou)
    boxes, scores = boxes.flatten(1, 2), scores.flatten(1, 2)
    ranked = torch.where(alive.view(scores.shape), scores, -1.0)
    if not training:
        best, index = ranked.topk(min(config.proposals_test, ranked.shape[1]), dim=1)
        return _take(boxes, scores, best >= 0, index)
    if config.proposal_quota == "pooled":
        keep = best_mask(ranked.view(1, -1), config.proposals_train).view(ranked.shape)
    else:
        keep = best_mask(ranked, config.proposals_train)
    index = compact(keep, min(config.proposals_train, ranked.shape[1]))
    return _take(boxes, scores, keep.gather(1, index), index)


def _candidates(
    rpn: RpnOutput,
    anchors: Tensor,
    level_counts: tuple[int, ...],
    sizes_hw: Tensor,
    *,
    limit: int,
    conventions: Conventions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (N, L, K, 4), scores and valid (N, L, K): each level's best anchors, decoded and clipped."""
    scores, index = best_anchors(rpn.logits, level_counts, min(limit, max(level_counts)))
    index = index.flatten(1)
    deltas = rpn.deltas.gather(1, index[..., None].expand(-1, -1, 4))
    decoded = decode_boxes(deltas, anchors[index], RPN_BOX_WEIGHTS, limits_shrinking=conventions.limits_shrinking)
    boxes = clip_boxes(decoded, sizes_hw, has_plus_one=conventions.has_plus_one)
    # A diverged network gives boxes that are not finite: they must not reach code that turns them into indices. The
    # loss says what happened.
    valid = (scores >= 0) & boxes.isfinite().all(dim=2).view_as(scores)
    if conventions.least_proposal is not None:
        valid &= are_at_least(boxes, conventions.least_proposal).view_as(scores)
    return boxes.view(*scores.shape, 4).masked_fill(~valid[..., None], 0.0), scores, valid


def _take(boxes: Tensor, scores: Tensor, valid: Tensor, index: Tensor) -> Proposals:
    """Return the candidates (N, L * K) at `index` (N, P) as proposals, zeros where they are not valid."""
    boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    scores = scores.gather(1, index)
    return Proposals(boxes=boxes * valid[..., None], scores=scores * valid, valid=valid)


def append_truth(proposals: Proposals, targets: Targets) -> Proposals:
    """Return the proposals followed by the ground truth with score 1, on top of the quota."""
    return Proposals(
        boxes=torch.cat([proposals.boxes, targets.boxes], dim=1),
        scores=torch.cat([proposals.scores, targets.valid.to(proposals.scores.dtype)], dim=1),
        valid=torch.cat([proposals.valid, targets.valid], dim=1),
    )
