"""From images to detections: proposals, classes, boxes, suppression per class, masks of the final boxes."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maskperf.config import ModelConfig
from maskperf.model.conventions import conventions_of
from maskperf.model.mask_rcnn import MaskRcnn, feature_anchors, packs_slots
from maskperf.model.proposals import select_proposals
from maskperf.ops.boxes import BOX_HEAD_WEIGHTS, are_at_least, clip_boxes, decode_boxes
from maskperf.ops.nms import nms_sorted
from maskperf.ops.products import own_class
from maskperf.structures import Detections, Images, Proposals
from maskperf.techniques import active


@torch.no_grad()
def detect(model: MaskRcnn, images: Images) -> Detections:
    """Return the detections of each image, boxes at the scale of the resized image, with mask probabilities.

    On a CPU the number of slots is that of the image with most detections. On a GPU it is `detections_per_image`,
    more only where that many tie, so that shapes hardly ever change; the host waits for it once.
    Source: `modeling/roi_heads/*/inference.py` of the reference.
    """
    config = model.config
    with model.computing():
        features = model.features(images.pixels)
        anchors, level_counts = feature_anchors(model, features)
        rpn = model.rpn_output(features)
        proposals = select_proposals(rpn, anchors, level_counts, images.sizes_hw, config=config, training=False)
        logits, deltas = model.box_outputs(features, proposals.boxes)
        exact_sizes = images.pixels.device.type == "cpu"
        found = select_detections(logits, deltas, proposals, images.sizes_hw, config, exact_sizes=exact_sizes)
        valid = found.valid if packs_slots(images.pixels.device) else None
        if active().class_selected_outputs:
            maps = model.mask_logits(features, found.boxes, labels=found.labels, valid=valid)
        else:
            maps = own_class(model.mask_logits(features, found.boxes, valid=valid), found.labels)
    return replace(found, mask_probs=maps.sigmoid())


def select_detections(
    logits: Float[Tensor, "images rois classes"],
    deltas: Float[Tensor, "images rois classes 4"],
    proposals: Proposals,
    sizes_hw: Tensor,
    config: ModelConfig,
    *,
    exact_sizes: bool = True,
) -> Detections:
    """Return the detections that pass the score threshold, suppression within their class, and the best
    `detections_per_image` of each image; those tied with the last one stay where the conventions have it so.

    With `exact_sizes` suppression sees as many slots of a class as there are scores above the threshold, and the
    result has as many as the image with most detections: less work, but sizes that depend on what was found, and two
    reads from the device. Without, suppression sees a slot of each RoI, the result has `detections_per_image` slots
    or, with ties, more, and there is one read. The detections are the same.
    """
    conventions, limit = conventions_of(config), config.detections_per_image
    scores = logits.softmax(dim=2)[..., 1:].transpose(1, 2)  # images, foreground classes, rois
    rois = proposals.boxes[:, :, None, :].expand_as(deltas)
    boxes = decode_boxes(deltas, rois, BOX_HEAD_WEIGHTS, limits_shrinking=conventions.limits_shrinking)
    boxes = clip_boxes(boxes.flatten(1, 2), sizes_hw, has_plus_one=conventions.has_plus_one).view_as(deltas)
    boxes = boxes[:, :, 1:].transpose(1, 2)
    passing = (scores > config.score_threshold) & proposals.valid[:, None, :]
    if conventions.least_detection is not None:
        passing &= are_at_least(boxes, conventions.least_detection)
    ranked = torch.where(passing, scores, -1.0)
    most = int(passing.sum(dim=2).max()) if exact_sizes else ranked.shape[2]
    ranked, index = ranked.topk(most, dim=2)
    boxes = boxes.gather(2, index[..., None].expand(-1, -1, -1, 4))
    passing = (ranked > 0).flatten(0, 1)
    alive = nms_sorted(boxes.flatten(0, 1), passing, config.detection_nms_iou).view_as(ranked)
    labels = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)[None, :, None].expand_as(ranked)
    ranked = torch.where(alive, ranked, -1.0).flatten(1)
    kept = _best_with_ties(ranked, limit)
    slots = int(kept.sum(dim=1).max())  # reads from the device: detection is not part of the training step
    if not conventions.keeps_ties:
        slots = min(slots, limit)
    if not exact_sizes:
        slots = max(slots, min(limit, ranked.shape[1]))
    ranked, index = torch.where(kept, ranked, -1.0).topk(slots, dim=1)
    valid = ranked > 0
    return Detections(
        boxes=boxes.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 4)) * valid[..., None],
        scores=ranked.clamp(min=0),
        labels=labels.flatten(1).gather(1, index) * valid,
        valid=valid,
    )


def _best_with_ties(ranked: Float[Tensor, "images boxes"], limit: int) -> Bool[Tensor, "images boxes"]:
    if ranked.shape[1] <= limit:
        return ranked > 0
    last = ranked.topk(limit, dim=1).values[:, -1:]
    return (ranked > 0) & (ranked >= last)
