"""The reference's golden numbers and the model weights they were computed with (see tests/golden/README.md)."""

import zlib
from pathlib import Path

import numpy as np
import torch

from maskperf.config import ModelConfig
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.structures import Batch, Images, Polygons, Targets

GOLDEN_FOLDER = Path(__file__).parent / "golden"

# Nothing is random: every labelled anchor and every candidate is in the losses.
CHANCE_FREE = {
    "rpn_samples_per_image": 1_000_000,
    "rpn_positive_fraction": 1.0,
    "roi_samples_per_image": 100_000,
    "roi_positive_fraction": 1.0,
    "mask_slots_per_image": 24,
    "score_threshold": 0.02,
}
_GAIN = {"cls_logits": 0.05, "bbox_pred": 0.02, "cls_score": 0.05, "mask_fcn_logits": 0.3}


def golden_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a parameter or buffer of the golden model, made by formula from its reference name."""
    generator = np.random.default_rng(zlib.crc32(f"golden:{name}".encode()))
    last = name.split(".")[-1]
    if "bn" in name or "downsample.1" in name:
        # All four are drawn, in this order, from the generator of each name; then the named one is taken.
        draws = {
            "weight": generator.uniform(0.3, 0.6, shape) * (0.4 if name.endswith("bn3.weight") else 1.0),
            "bias": generator.normal(0, 0.05, shape),
            "running_mean": generator.normal(0, 0.05, shape),
            "running_var": generator.uniform(0.8, 1.2, shape),
        }
        value = draws[last]
    elif last == "bias":
        value = generator.normal(0, 0.01, shape)
    else:
        gain = 0.7 if "fpn" in name else _GAIN.get(name.split(".")[-2], 1.0)
        value = generator.normal(0, 1, shape) * gain * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def golden_model(**changes) -> MaskRcnn:
    model = MaskRcnn(ModelConfig(**{**CHANCE_FREE, **changes}))
    state = model.state_dict()
    model.load_state_dict({name: golden_weight(name, tuple(value.shape)) for name, value in state.items()})
    return model


def golden_batch(numbers) -> Batch:
    """Return the two synthetic images of reference.npz as a padded batch."""
    images = [torch.from_numpy(numbers[f"in/image{i}"]) for i in range(2)]
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = ((sizes.amax(0) + 31) // 32 * 32).tolist()
    pixels = torch.zeros(2, 3, height, width)
    slots = max(len(numbers[f"in/labels{i}"]) for i in range(2))
    boxes = torch.zeros(2, slots, 4)
    labels = torch.zeros(2, slots, dtype=torch.int64)
    polygons, polygon_offsets = [], [0]
    for i, image in enumerate(images):
        pixels[i, :, : image.shape[1], : image.shape[2]] = image
        count = len(numbers[f"in/labels{i}"])
        boxes[i, :count] = torch.from_numpy(numbers[f"in/boxes{i}"])
        labels[i, :count] = torch.from_numpy(numbers[f"in/labels{i}"])
        for slot in range(slots):
            keys = [key for key in numbers if key.startswith(f"in/poly{i}_{slot}_")]
            polygons.extend(numbers[key].reshape(-1, 2) for key in sorted(keys))
            polygon_offsets.append(len(polygons))
    return Batch(
        images=Images(pixels=pixels, sizes_hw=sizes),
        targets=Targets(
            boxes=boxes, labels=labels, valid=labels > 0, polygons=flat_polygons(polygons, polygon_offsets)
        ),
        image_ids=torch.tensor([1, 2]),
        sample_seeds=torch.tensor([11, 12]),
    )


def flat_polygons(polygons: list[np.ndarray], polygon_offsets: list[int]) -> Polygons:
    """Return polygons (points, 2) and the first polygon of each object as flat tensors."""
    point_offsets = np.cumsum([0] + [len(polygon) for polygon in polygons])
    points_of_object = np.diff(point_offsets[polygon_offsets])
    polygons_of_object = np.diff(polygon_offsets)
    return Polygons(
        points=torch.from_numpy(np.concatenate(polygons).astype(np.float32)) if polygons else torch.zeros(0, 2),
        point_offsets=torch.from_numpy(point_offsets.astype(np.int64)),
        polygon_offsets=torch.tensor(polygon_offsets),
        max_points=int(points_of_object.max(initial=0)),
        max_polygons=int(polygons_of_object.max(initial=0)),
    )
