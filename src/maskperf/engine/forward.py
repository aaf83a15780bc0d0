"""The one place where model and losses meet: a batch goes in, five losses come out."""

from torch import nn

from maskperf.config import ModelConfig
from maskperf.losses.box import box_losses, positive_rois, sample_rois
from maskperf.losses.mask import mask_loss, mask_targets
from maskperf.losses.rpn import rpn_losses
from maskperf.model.heads import MASK_SIZE
from maskperf.model.mask_rcnn import STRIDES, MaskRcnn
from maskperf.model.proposals import append_truth, select_proposals
from maskperf.ops.anchors import pyramid_anchors
from maskperf.structures import Batch, Losses


def feature_anchors(model: MaskRcnn, features: list) -> tuple:
    """Returns the anchors of all levels for these feature maps, and how many each level has."""
    config = model.config
    sizes = tuple((feature.shape[2], feature.shape[3]) for feature in features)
    anchors = pyramid_anchors(sizes, STRIDES, config.anchor_sizes, config.anchor_ratios, features[0].device)
    return anchors, tuple(height * width * len(config.anchor_ratios) for height, width in sizes)


def mask_slots(config: ModelConfig) -> int:
    """Returns how many positive RoIs of an image the mask head has room for."""
    return config.mask_slots_per_image or max(1, int(config.roi_samples_per_image * config.roi_positive_fraction))


def training_losses(model: nn.Module, batch: Batch) -> Losses:
    """Returns the losses of one device's batch. Proposals come from the same forward pass, without gradient."""
    config = model.config
    targets = batch.targets
    features = model.features(batch.images.pixels)
    anchors, level_counts = feature_anchors(model, features)
    rpn = model.rpn_output(features)
    objectness_loss, rpn_box_loss = rpn_losses(rpn, anchors, batch, config=config)

    sizes_hw = batch.images.sizes_hw
    proposals = select_proposals(rpn, anchors, level_counts, sizes_hw, config=config, training=True)
    rois = sample_rois(append_truth(proposals, targets), targets, batch.sample_seeds, config=config)
    logits, deltas = model.box_outputs(features, rois.boxes)
    classification_loss, box_loss = box_losses(logits, deltas, rois, targets)

    positive, dropped = positive_rois(rois, min(mask_slots(config), rois.boxes.shape[1]))
    wanted = mask_targets(positive, targets, MASK_SIZE)
    return Losses(
        objectness=objectness_loss,
        rpn_box=rpn_box_loss,
        classification=classification_loss,
        box=box_loss,
        mask=mask_loss(model.mask_logits(features, positive.boxes), positive, wanted),
        dropped_masks=dropped,
    )
