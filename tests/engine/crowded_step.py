"""Started by test_crowded_pictures.py: forward and backward of one picture, and the memory that it took.

Words: how many objects the picture has, and how many rings the last of them.
"""

import resource
import sys

import numpy as np
import torch
from golden_reference import flat_polygons
from small_batches import SMALL

from maskperf.engine.build import build_model
from maskperf.engine.forward import training_losses
from maskperf.structures import Batch, Images, Targets

HEIGHT, WIDTH = 608, 800
POINTS_OF_RING = 30
KIB_OF_MIB = 1024

num_objects, num_rings = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
random = np.random.default_rng(0)
corner = random.uniform(0, (WIDTH - 200, HEIGHT - 200), (num_objects, 2))
boxes = np.concatenate([corner, corner + random.uniform(20, 190, (num_objects, 2))], axis=1).astype(np.float32)
counts = [1] * (num_objects - 1) + [num_rings]
rings = [
    random.uniform(box[:2], box[2:], (POINTS_OF_RING, 2)).astype(np.float32)
    for box, count in zip(boxes, counts, strict=True)
    for _ in range(count)
]
batch = Batch(
    images=Images(pixels=torch.randn(1, 3, HEIGHT, WIDTH) * 50, sizes_hw=torch.tensor([[HEIGHT, WIDTH]])),
    targets=Targets(
        boxes=torch.from_numpy(boxes)[None],
        labels=torch.ones(1, num_objects, dtype=torch.int64),
        valid=torch.ones(1, num_objects, dtype=torch.bool),
        polygons=flat_polygons(rings, np.cumsum([0, *counts]).tolist()),
    ),
    image_ids=torch.tensor([1]),
    sample_seeds=torch.tensor([2]),
)
model = build_model(SMALL, seed=0)[0]
losses = training_losses(model, batch)
losses.total().backward()
assert torch.isfinite(losses.total()) and losses.dropped_masks == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // KIB_OF_MIB)
