"""Batches of the same canvas with different numbers of objects, rings and points, for the small model."""

import numpy as np
import torch
from golden_reference import flat_polygons

from maskperf.structures import Batch, Images, Targets

CANVAS_HW = (64, 96)


def varied_batch(seed: int, objects: tuple[int, ...], padded_hw: tuple[int, int] = CANVAS_HW) -> Batch:
    """Return noisy pictures with so many objects each; every object has one to three rings of three to nine points."""
    random = np.random.default_rng(seed)
    slots = max(1, *objects)
    boxes = torch.zeros(len(objects), slots, 4)
    labels = torch.zeros(len(objects), slots, dtype=torch.int64)
    rings, ring_offsets = [], [0]
    for image, count in enumerate(objects):
        for slot in range(slots):
            if slot < count:
                corner, size = random.uniform(0, 30, 2), random.uniform(20, 30, 2)
                boxes[image, slot] = torch.tensor([*corner, *(corner + size)])
                labels[image, slot] = int(random.integers(1, 4))
                for _ in range(random.integers(1, 4)):
                    points = corner + size * random.uniform(0, 1, (random.integers(3, 10), 2))
                    rings.append(points.astype(np.float32))
            ring_offsets.append(len(rings))
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=Images(
            pixels=torch.randn(len(objects), 3, *padded_hw, generator=generator) * 50,
            sizes_hw=torch.tensor([[padded_hw[0] - 4, padded_hw[1] - 6]] * len(objects)),
        ),
        targets=Targets(boxes=boxes, labels=labels, valid=labels > 0, polygons=flat_polygons(rings, ring_offsets)),
        image_ids=torch.arange(len(objects)),
        sample_seeds=torch.arange(len(objects)) + 100 * seed,
    )
