"""Started by test_crowded_images.py: forward and backward of one image, and the memory that it took.

Words: how many objects the image has, and how many polygons the last of them.
"""

import resource
import sys

import numpy as np
import torch
from small_batches import batch_of, small_model

from maskperf.engine.forward import training_losses

HEIGHT, WIDTH = 608, 800
POINTS_OF_POLYGON = 30
KIB_OF_MIB = 1024

num_objects, num_polygons = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
random = np.random.default_rng(0)
corner = random.uniform(0, (WIDTH - 200, HEIGHT - 200), (num_objects, 2))
boxes = np.concatenate([corner, corner + random.uniform(20, 190, (num_objects, 2))], axis=1).astype(np.float32)
counts = [1] * (num_objects - 1) + [num_polygons]
objects = [
    (box, 1, [random.uniform(box[:2], box[2:], (POINTS_OF_POLYGON, 2)) for _ in range(count)])
    for box, count in zip(boxes, counts, strict=True)
]
batch = batch_of(torch.randn(1, 3, HEIGHT, WIDTH) * 50, [objects], (HEIGHT, WIDTH), [1])
model = small_model(seed=0)
losses = training_losses(model, batch)
losses.total().backward()
assert torch.isfinite(losses.total()) and losses.dropped_masks == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // KIB_OF_MIB)
