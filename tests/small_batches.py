"""A small model and small synthetic batches."""

import torch
from golden_reference import flat_polygons

from maskperf.config import ModelConfig
from maskperf.engine.build import build_model
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.structures import Batch, Images, Targets

SMALL = ModelConfig(
    num_classes=4,
    stage_blocks=(1, 1, 1, 1),
    stem_channels=8,
    stage_channels=(16, 24, 32, 48),
    frozen_stages=0,
    fpn_channels=16,
    anchor_sizes=(16, 32, 64, 96, 128),
    candidates_per_level=(50, 1000),
    proposals_train=60,
    rpn_samples_per_image=32,
    roi_samples_per_image=16,
    box_head_channels=32,
    mask_head_channels=16,
    mask_head_convs=1,
)


def small_model(seed: int) -> MaskRcnn:
    return build_model(SMALL, seed)[0]


def small_batch(seed: int) -> Batch:
    """Return one noisy 64 x 96 image with two objects; different for every seed."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 25 + 15 * torch.rand(2, 2, generator=generator)], dim=1)
    x1, y1, x2, y2 = boxes.unbind(1)
    rings = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], dim=1).view(2, 4, 2).numpy()
    return Batch(
        images=Images(pixels=torch.randn(1, 3, 64, 96, generator=generator) * 50, sizes_hw=torch.tensor([[60, 90]])),
        targets=Targets(
            boxes=boxes[None],
            labels=torch.tensor([[1, 3]]),
            valid=torch.ones(1, 2, dtype=torch.bool),
            polygons=flat_polygons(list(rings), [0, 1, 2]),
        ),
        image_ids=torch.tensor([seed]),
        sample_seeds=torch.tensor([seed + 100]),
    )
