"""Synthetic inputs of the benchmarks, made from a seed and written to files for both sides."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

STRIDES = (4, 8, 16, 32, 64)
ANCHOR_SIDE = 8  # times the stride: 32 at P2, 512 at P6
POOLED_LEVELS = 4
SMALLEST_SIDE, LARGEST_SIDE = 16, 600
CANDIDATES = 2000  # of a level, before NMS
CLASSES = 80
BOXES_AFTER_THRESHOLD = 1000  # of an image, with their classes: what NMS sees at the end of a detection
BOXES_OF_POOL = {"7x7": 512, "14x14": 128}  # of an image
MASK_ROIS = 128
POINTS_OF_POLYGON = (8, 38)  # train2017 has 48 numbers an object on average
CHANNELS = 256


def synthetic_boxes(random: np.random.Generator, count: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Return float32 corner boxes inside the image, log-uniform over the scales of the pyramid."""
    height, width = size_hw
    largest = min(LARGEST_SIDE, 0.8 * min(size_hw))
    side = np.exp(random.uniform(np.log(min(SMALLEST_SIDE, largest / 2)), np.log(largest), count))
    stretch = np.sqrt(np.exp(random.uniform(np.log(0.5), np.log(2.0), count)))
    box_width, box_height = np.minimum(side * stretch, width - 2), np.minimum(side / stretch, height - 2)
    x1 = random.uniform(0, width - 1 - box_width)
    y1 = random.uniform(0, height - 1 - box_height)
    return np.stack([x1, y1, x1 + box_width, y1 + box_height], axis=1).astype(np.float32)


def synthetic_polygon(random: np.random.Generator, box: np.ndarray) -> np.ndarray:
    """Return a polygon [points, 2] with dents that just fills the corner box."""
    count = int(random.integers(*POINTS_OF_POLYGON))
    angles = np.sort(random.uniform(0, 2 * np.pi, count))
    radius = random.uniform(0.6, 1.0, count)
    points = np.stack([np.cos(angles) * radius, np.sin(angles) * radius], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    return (box[:2] + (points - low) / (high - low) * (box[2:] - box[:2])).astype(np.float32)


def cells_of(size_hw: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return rows and columns of a feature level."""
    return -(-size_hw[0] // stride), -(-size_hw[1] // stride)


def batch_arrays(
    random: np.random.Generator, *, size_hw: tuple[int, int], images: int, objects: int, classes: int
) -> dict[str, np.ndarray]:
    """Return one training batch: pixels, boxes, labels, and the points of one polygon an object.

    Pixels have a deviation of 1: random weights then give logits and offsets of the size that training starts with.
    """
    boxes = synthetic_boxes(random, images * objects, size_hw)
    polygons = [synthetic_polygon(random, box) for box in boxes]
    return {
        "pixels": random.standard_normal((images, 3, *size_hw), np.float32),
        "boxes": boxes.reshape(images, objects, 4),
        "labels": random.integers(1, classes, (images, objects)),
        "points": np.concatenate(polygons),
        "point_offsets": np.cumsum([0, *map(len, polygons)]),
    }


def write_batch(path: Path, *, size_hw: tuple[int, int], images: int, objects: int, classes: int, seed: int) -> None:
    """Write one training batch, its polygons also as bit-packed masks."""
    random = np.random.default_rng(seed)
    arrays = batch_arrays(random, size_hw=size_hw, images=images, objects=objects, classes=classes)
    polygons = np.split(arrays["points"], arrays["point_offsets"][1:-1])
    masks = np.stack([np.packbits(_mask_of(polygon, size_hw), axis=1) for polygon in polygons])
    np.savez(path, masks=masks.reshape(images, objects, size_hw[0], -1), **arrays)  # type: ignore[arg-type]  # NumPy's stubs let any keyword be allow_pickle


def _mask_of(polygon: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    mask = Image.new("L", size_hw[::-1])
    ImageDraw.Draw(mask).polygon(polygon.ravel().tolist(), fill=1)
    return np.asarray(mask)


def write_pyramid(path: Path, *, size_hw: tuple[int, int], images: int, seed: int, channels: int = CHANNELS) -> None:
    """Write the levels P2 to P5 of random features, and the boxes that are pooled from them."""
    random = np.random.default_rng(seed)
    levels = {}
    for number, stride in enumerate(STRIDES[:POOLED_LEVELS]):
        shape = (images, channels, *cells_of(size_hw, stride))
        levels[f"level_{number}"] = random.standard_normal(shape, np.float32)
    boxes = {
        f"boxes_{name}": synthetic_boxes(random, images * count, size_hw).reshape(images, count, 4)
        for name, count in BOXES_OF_POOL.items()
    }
    np.savez(path, **levels, **boxes)  # type: ignore[arg-type]  # as above


def write_candidates(path: Path, *, size_hw: tuple[int, int], images: int, seed: int) -> None:
    """Write boxes sorted by descending score in groups: an image's levels (RPN), and its classes (detection)."""
    random = np.random.default_rng(seed)
    by_level = [_level_candidates(random, stride, size_hw) for _ in range(images) for stride in STRIDES]
    by_class = [group for _ in range(images) for group in _class_candidates(random, size_hw)]
    arrays = {}
    for name, groups in (("levels", by_level), ("classes", by_class)):
        counts = np.array([len(group) for group in groups])
        valid = np.arange(counts.max()) < counts[:, None]
        boxes = np.zeros((*valid.shape, 4), np.float32)
        boxes[valid] = np.concatenate(groups)
        scores = -np.sort(-random.uniform(0.05, 1.0, valid.shape).astype(np.float32), axis=1) * valid
        arrays.update({f"{name}_boxes": boxes, f"{name}_valid": valid, f"{name}_scores": scores})
    np.savez(path, images=images, **arrays)  # type: ignore[arg-type]  # as above


def _level_candidates(random: np.random.Generator, stride: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Return boxes near the anchors of one level, clipped to the image."""
    rows, columns = cells_of(size_hw, stride)
    count = min(CANDIDATES, 3 * rows * columns)
    centre = random.uniform((0, 0), size_hw[::-1], (count, 2))
    side = stride * ANCHOR_SIDE * np.exp(random.normal(0, 0.1, (count, 2)))
    ratio = np.sqrt(random.choice([0.5, 1.0, 2.0], count))[:, None]
    half = side * np.concatenate([ratio, 1 / ratio], axis=1) / 2
    limits = np.array([size_hw[1] - 1, size_hw[0] - 1] * 2)
    return np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, limits).astype(np.float32)


def _class_candidates(random: np.random.Generator, size_hw: tuple[int, int]) -> list[np.ndarray]:
    """Return the boxes of each class: shifted copies of a few objects, most of them of the object's own class."""
    objects = synthetic_boxes(random, 20, size_hw)
    classes = random.integers(0, CLASSES, len(objects))
    owner = random.integers(0, len(objects), BOXES_AFTER_THRESHOLD)
    stray = random.uniform(size=len(owner)) < 0.3
    class_of_box = np.where(stray, random.integers(0, CLASSES, len(owner)), classes[owner])
    boxes = shifted(random, objects[owner], 0.15, size_hw)
    return [boxes[class_of_box == number] for number in range(CLASSES)]


def shifted(random: np.random.Generator, boxes: np.ndarray, amount: float, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the boxes with corners moved by about `amount` of the sides, inside the image, one pixel wide or more."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    limits = np.array([size_hw[1] - 1, size_hw[0] - 1] * 2)
    moved = np.clip(boxes + random.normal(0, amount, boxes.shape) * sides, 0, limits)
    low, high = np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])
    return np.concatenate([low, np.maximum(high, low + 1)], axis=1).astype(np.float32)


def write_mask_rois(path: Path, *, batch: Path, size_hw: tuple[int, int], seed: int) -> None:
    """Write the RoIs of mask targets: shifted copies of the objects of a batch, with the slots of those objects."""
    random = np.random.default_rng(seed)
    with np.load(batch) as arrays:
        boxes, labels = arrays["boxes"], arrays["labels"]
    slots = random.integers(0, boxes.shape[1], (len(boxes), MASK_ROIS))
    of_image = np.arange(len(boxes))[:, None]
    rois = shifted(random, boxes[of_image, slots].reshape(-1, 4), 0.1, size_hw)
    np.savez(path, rois=rois.reshape(len(boxes), MASK_ROIS, 4), slots=slots, labels=labels[of_image, slots])
