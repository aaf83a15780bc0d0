"""How much a larger padded size moves the losses of one batch, for the same boxes: by activations near the border."""

from functools import partial

import pytest
import torch
from golden_reference import GOLDEN_FOLDER, golden_model
from loss_options import rpn_options

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.images.buckets import bucket_sizes
from maskperf.data.images.collate import Packing, make_batch
from maskperf.data.images.loader import load_sample
from maskperf.losses.box import box_losses
from maskperf.losses.mask import mask_loss, mask_targets
from maskperf.losses.rpn import rpn_losses
from maskperf.model.heads import MASK_SIZE
from maskperf.model.mask_rcnn import feature_anchors
from maskperf.structures import Batch, SampledRois

DATA = DataConfig(short_side=192, long_side=320)
POSITION = 1  # 114 x 319 pixels: padded to 128 x 320 alone, its bucket 192 x 320


@pytest.fixture(scope="module")
def samples():
    folder = GOLDEN_FOLDER / "data_path"
    index = read_coco(folder / "instances.json", folder / "images", training=True)
    return [load_sample(index, POSITION, data=DATA, seed=0, epoch=0, training=True)]


def losses_at_the_truth(model, batch: Batch) -> dict[str, float]:
    """Return the five losses, those of the RoI heads for the true boxes and for as many shifted ones."""
    features = model.features(batch.images.pixels)
    anchors, _ = feature_anchors(model, features)
    objectness, rpn_box = rpn_losses(model.rpn_output(features), anchors, batch, **rpn_options(model.config))
    targets = batch.targets
    rois = SampledRois(
        boxes=torch.cat([targets.boxes, targets.boxes + 5.0], dim=1),
        labels=targets.labels.repeat(1, 2),
        matched_slots=torch.arange(targets.labels.shape[1]).repeat(1, 2),
        valid=targets.valid.repeat(1, 2),
    )
    classification, box = box_losses(*model.box_outputs(features, rois.boxes), rois, targets)
    logits = model.mask_logits(features, rois.boxes, labels=rois.labels)
    mask = mask_loss(logits, rois, mask_targets(rois, targets, MASK_SIZE))
    named = {"objectness": objectness, "rpn_box": rpn_box, "classification": classification, "box": box, "mask": mask}
    return {name: value.item() for name, value in named.items()}


def test_a_bucket_moves_the_losses_of_the_same_boxes_little(samples):
    small, large = make_batch(samples, 32), make_batch(samples, 32, Packing(buckets=bucket_sizes(DATA)))
    assert small.images.pixels.shape[2:] == (128, 320)
    assert large.images.pixels.shape[2:] == (192, 320)
    assert torch.equal(large.images.pixels[:, :, :128], small.images.pixels)
    assert not large.images.pixels[:, :, 128:].any()
    assert torch.equal(large.targets.boxes, small.targets.boxes)
    assert torch.equal(large.targets.polygons.points, small.targets.polygons.points)
    with torch.no_grad():
        before, after = map(partial(losses_at_the_truth, golden_model()), (small, large))
    moved = {name: abs(after[name] / before[name] - 1) for name in before}
    assert max(moved.values()) < 1e-3  # 1e-4 measured with these weights
    assert any(moved.values())  # else both had one size
