"""Box-head losses: RoIs drawn from the proposals, their classes and their offsets."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.ops.boxes import BOX_HEAD_WEIGHTS, encode_boxes
from maskperf.ops.matching import match_boxes
from maskperf.ops.products import own_class
from maskperf.ops.sampling import compact, draw_balanced
from maskperf.structures import Proposals, SampledRois, Targets

BOX_SMOOTH_L1_BETA = 1.0  # modeling/roi_heads/box_head/loss.py
_ROI_SALT = 0x5DEECE66D  # so that RoIs and anchors of an image draw different numbers


@torch.no_grad()
def sample_rois(
    candidates: Proposals,
    targets: Targets,
    seeds: Int[Tensor, " images"],
    *,
    positive_iou: float,
    num_samples: int,
    positive_fraction: float,
) -> SampledRois:
    """Return the sampled RoIs of each image, positives first, then background, then empty slots.

    A candidate takes the label of its best ground truth from `positive_iou` on, else it is background. With the
    benchmark's 512 RoIs at most 128 are positive.
    Source: `modeling/roi_heads/box_head/loss.py`.
    """
    matches = match_boxes(
        candidates.boxes,
        targets.boxes,
        targets.valid,
        positive_iou=positive_iou,
        negative_iou=positive_iou,
        keep_best_of_truth=False,
    )
    sample = draw_balanced(
        matches.positive & candidates.valid,
        matches.negative & candidates.valid,
        seeds ^ _ROI_SALT,
        num_samples=num_samples,
        max_positive=int(num_samples * positive_fraction),
    )
    slots = matches.slots.gather(1, sample.index) * sample.valid
    return SampledRois(
        boxes=candidates.boxes.gather(1, sample.index[..., None].expand(-1, -1, 4)) * sample.valid[..., None],
        labels=targets.labels.gather(1, slots) * sample.positive,
        matched_slots=slots,
        valid=sample.valid,
    )


def box_losses(
    logits: Float[Tensor, "images rois classes"],
    deltas: Float[Tensor, "images rois classes 4"],
    rois: SampledRois,
    targets: Targets,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return cross-entropy over all RoIs, and smooth L1 of the true class's offsets over the positive ones,
    both divided by the number of all RoIs of the device's batch."""
    num_rois = rois.valid.sum().clamp(min=1)
    entropy = F.cross_entropy(logits.flatten(0, 1), rois.labels.flatten(), reduction="none")
    classification_loss = (entropy * rois.valid.flatten()).sum() / num_rois
    positive = rois.labels > 0
    predicted = own_class(deltas, rois.labels)
    truth = targets.boxes.gather(1, rois.matched_slots[..., None].expand(-1, -1, 4))
    truth = torch.where(positive[..., None], truth, rois.boxes)  # keeps the logarithm finite where unused
    wanted = encode_boxes(truth, rois.boxes, BOX_HEAD_WEIGHTS)
    loss = F.smooth_l1_loss(predicted, wanted, beta=BOX_SMOOTH_L1_BETA, reduction="none")
    return classification_loss, (loss * positive[..., None]).sum() / num_rois


def positive_rois(rois: SampledRois, mask_slots: int) -> tuple[SampledRois, Int[Tensor, ""]]:
    """Return the positive RoIs in `mask_slots` slots per image, and how many found no slot.

    They come first in `rois`, so this is a slice; `valid` then means positive.
    """
    chosen = first_rois(rois, mask_slots)
    return replace(chosen, valid=chosen.labels > 0), (rois.labels[:, mask_slots:] > 0).sum()


def packed_positive_rois(
    rois: SampledRois, slots: int, places: int
) -> tuple[SampledRois, Int[Tensor, " images_plus_1"], Int[Tensor, ""]]:
    """Return the positive RoIs of all images as those of one, in `places` slots, as if it had all objects.

    Besides, image i has the RoIs offsets[i]:offsets[i + 1], and how many found no slot. `slots` are those of an image.
    """
    positive = rois.labels > 0
    images, per_image = positive.shape
    index = compact(positive.view(1, -1), places)
    kept = positive.view(1, -1).gather(1, index)
    first_slots = torch.arange(images, device=positive.device)[:, None] * slots
    chosen = SampledRois(
        boxes=rois.boxes.view(1, -1, 4).gather(1, index[..., None].expand(-1, -1, 4)),
        labels=rois.labels.view(1, -1).gather(1, index),
        matched_slots=(rois.matched_slots + first_slots).view(1, -1).gather(1, index),
        valid=kept,
    )
    counts = positive.sum(dim=1)
    offsets = F.pad(counts.cumsum(0), (1, 0)).clamp(max=places)
    return chosen, offsets, counts.sum() - kept.sum()


def first_rois(rois: SampledRois, count: int) -> SampledRois:
    """Return the first `count` RoIs of every image."""
    return SampledRois(
        boxes=rois.boxes[:, :count],
        labels=rois.labels[:, :count],
        matched_slots=rois.matched_slots[:, :count],
        valid=rois.valid[:, :count],
    )
