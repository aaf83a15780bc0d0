"""A small model and small synthetic batches."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from golden_reference import flat_polygons
from torch import Tensor

from maskperf.config import ModelConfig
from maskperf.engine.build import build_model
from maskperf.engine.forward import training_losses
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.structures import Batch, Images, Losses, Targets

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


def losses_and_gradients(model: MaskRcnn, batch: Batch, *options) -> tuple[Losses, dict[str, Tensor | None]]:
    model.zero_grad(set_to_none=True)
    losses = training_losses(model, batch, *options)
    losses.total().backward()
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def batch_of(pixels: Tensor, objects: list, size_hw: tuple[int, int], ids: Sequence[int], slots: int = 1) -> Batch:
    """Return images of these objects: box, label and polygons of each. The seeds of random draws are the ids + 100."""
    slots = max(slots, *map(len, objects))
    empty = ([0.0] * 4, 0, [])
    padded = [entry for of_image in objects for entry in (of_image + [empty] * slots)[:slots]]
    boxes, labels, polygons = zip(*padded, strict=True)
    labels = torch.tensor(labels).view(-1, slots)
    outlines = [np.asarray(outline, np.float32) for of_object in polygons for outline in of_object]
    return Batch(
        images=Images(pixels=pixels, sizes_hw=torch.tensor([size_hw] * len(objects))),
        targets=Targets(
            boxes=torch.tensor(np.array(boxes), dtype=torch.float32).view(-1, slots, 4),
            labels=labels,
            valid=labels > 0,
            polygons=flat_polygons(outlines, np.cumsum([0, *map(len, polygons)]).tolist()),
        ),
        image_ids=torch.tensor(ids),
        sample_seeds=torch.tensor(ids) + 100,
    )


def rectangle(x1: float, y1: float, x2: float, y2: float) -> list[tuple[float, float]]:
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def small_batch(seed: int) -> Batch:
    """Return one noisy 64 x 96 image with two objects; different for every seed."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 25 + 15 * torch.rand(2, 2, generator=generator)], dim=1).tolist()
    objects = [(box, label, [rectangle(*box)]) for box, label in zip(boxes, (1, 3), strict=True)]
    return batch_of(torch.randn(1, 3, 64, 96, generator=generator) * 50, [objects], (60, 90), [seed])


def varied_batch(seed: int, objects: tuple[int, ...], padded_hw: tuple[int, int] = (64, 96)) -> Batch:
    """Return noisy images with so many objects each; every object has 1 to 3 polygons of 3 to 9 points."""
    random = np.random.default_rng(seed)

    def draw() -> tuple:
        corner, size = random.uniform(0, 30, 2), random.uniform(20, 30, 2)
        label, count = int(random.integers(1, 4)), random.integers(1, 4)
        outlines = [corner + size * random.uniform(0, 1, (random.integers(3, 10), 2)) for _ in range(count)]
        return [*corner, *(corner + size)], label, outlines

    drawn = [[draw() for _ in range(count)] for count in objects]
    pixels = torch.randn(len(objects), 3, *padded_hw, generator=torch.Generator().manual_seed(seed)) * 50
    batch = batch_of(pixels, drawn, (padded_hw[0] - 4, padded_hw[1] - 6), range(len(objects)))
    return replace(batch, sample_seeds=torch.arange(len(objects)) + 100 * seed)
