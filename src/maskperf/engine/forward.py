"""The one place where model and losses meet: a batch goes in, five losses come out.

Names of axes in all shapes, `Float[Tensor, "images rois 4"]` for example, besides those of structures.py:
n: rows of a matrix product, of `inputs` or `outputs` numbers; h, w: cells of a feature map, h_out, w_out after a
convolution; size: bins of a side of a pooled map or pixels of a side of a mask; samples: drawn anchors or cells; boxes,
groups: any boxes, such as those of an image and class; classes: background first; levels: of the pyramid, P2 first;
nine: cells of a 3x3 patch, row by row; terms: losses in the order of LOSS_NAMES; *batch, *rest: any number of axes.
"#" before a name: 1 as well, for all. "a_plus_1": offsets, where entry i is the first of a's i. 4: a box or its deltas.
"""

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from maskperf.config import ModelConfig
from maskperf.losses.box import box_losses, first_rois, packed_positive_rois, positive_rois, sample_rois
from maskperf.losses.mask import mask_loss, mask_targets
from maskperf.losses.rpn import rpn_losses
from maskperf.model.conventions import edges
from maskperf.model.heads import MASK_SIZE
from maskperf.model.mask_rcnn import MaskRcnn, feature_anchors, most_positive_rois, packs_slots
from maskperf.model.proposals import append_truth, select_proposals
from maskperf.structures import LOSS_NAMES, Batch, Images, Losses, Proposals, RpnOutput
from maskperf.techniques import active


def mask_slots(config: ModelConfig) -> int:
    """Return how many positive RoIs of an image the mask head has room for."""
    return config.mask_slots_per_image or most_positive_rois(config)


def training_losses(model: MaskRcnn, batch: Batch, num_mask_slots: int | None = None) -> Losses:
    """Return the losses of one device's batch. Proposals come from the same forward pass, without gradient.

    With `num_mask_slots` the mask head works on so many slots for the positive RoIs of all images together, and the
    mask loss is right where `dropped_masks` is 0. Without, it has room for all that may be.
    """
    config, targets, images = model.config, batch.targets, batch.images
    assert isinstance(images, Images), "raw images go through prepare_images first"
    with model.computing():
        features = model.features(images.pixels)
        rpn, anchors, proposals = _propose(model, features, batch)
        objectness_loss, rpn_box_loss = rpn_losses(
            rpn,
            anchors,
            batch,
            positive_iou=config.rpn_iou_thresholds[1],
            negative_iou=config.rpn_iou_thresholds[0],
            num_samples=config.rpn_samples_per_image,
            positive_fraction=config.rpn_positive_fraction,
            outputs_at=partial(model.rpn_output_at, features) if model.samples_rpn_cells() else None,
        )
        candidates = append_truth(proposals, targets)
        rois = sample_rois(
            candidates,
            targets,
            batch.sample_seeds,
            positive_iou=config.roi_positive_iou,
            num_samples=config.roi_samples_per_image,
            positive_fraction=config.roi_positive_fraction,
        )
        packs = packs_slots(images.pixels.device)
        if packs:
            rois = first_rois(rois, _most(rois.valid))
        logits, deltas = model.box_outputs(features, rois.boxes)
        classification_loss, box_loss = box_losses(logits, deltas, rois, targets)

        image_offsets = None
        if num_mask_slots is not None:
            positive, image_offsets, dropped = packed_positive_rois(rois, targets.valid.shape[1], num_mask_slots)
        else:
            slots = min(mask_slots(config), rois.boxes.shape[1])
            positive, dropped = positive_rois(rois, min(slots, _most(rois.labels > 0)) if packs else slots)
        cropped = replace(positive, boxes=edges(positive.boxes, model.conventions))
        wanted = mask_targets(cropped, targets, MASK_SIZE)
        maps = model.mask_logits(
            features,
            positive.boxes,
            labels=positive.labels if active().class_selected_outputs else None,
            valid=positive.valid if packs and num_mask_slots is None else None,
            image_offsets=image_offsets,
        )
        losses = (objectness_loss, rpn_box_loss, classification_loss, box_loss, mask_loss(maps, positive, wanted))
        return _weighted(losses, config.loss_weights, dropped)


def _weighted(losses: tuple[Tensor, ...], weights: tuple[float, ...], dropped_masks: Tensor) -> Losses:
    """Return the losses in the order of LOSS_NAMES, each times its weight, and as they are where that is 1."""
    terms = {
        name: loss if weight == 1 else loss * weight
        for name, loss, weight in zip(LOSS_NAMES, losses, weights, strict=True)
    }
    return Losses(**terms, dropped_masks=dropped_masks)


def _propose(model: MaskRcnn, features: list[Tensor], batch: Batch) -> tuple[RpnOutput, Tensor, Proposals]:
    """Return the outputs of the RPN, their anchors, and the proposals chosen from them."""
    anchors, level_counts = feature_anchors(model, features)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not model.samples_rpn_cells()):
        rpn = model.rpn_output(features)
    sizes_hw = batch.images.sizes_hw
    proposals = select_proposals(rpn, anchors, level_counts, sizes_hw, config=model.config, training=True)
    return rpn, anchors, proposals


def _most(is_used: Bool[Tensor, "images slots"]) -> int:
    """Return the largest number of slots in use in an image, 1 at least."""
    return max(1, int(is_used.sum(dim=1).max()))
