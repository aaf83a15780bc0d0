"""Polygons of many kinds, RoIs around them, and their mask targets as pycocotools draws them."""

import numpy as np
from golden_reference import flat_polygons
from pycocotools import mask as coco_mask

from maskperf.structures import Polygons

SIZE = 28
Polygon = np.ndarray  # points x (x, y), float32
RECTANGLE = ((10, 10), (50, 10), (50, 40), (10, 40))
TRIANGLE = ((30, 5), (55, 45), (5, 45))


def polygons_of(objects: list) -> Polygons:
    offsets = np.cumsum([0, *map(len, objects)]).tolist()
    return flat_polygons([np.asarray(polygon, np.float32) for polygons in objects for polygon in polygons], offsets)


def coco_target(polygons: list[Polygon], box: np.ndarray, size: int) -> np.ndarray:
    """Return the mask target of one object in the reference's steps, drawn by pycocotools."""
    x1, y1, x2, y2 = box.astype(np.float32)
    width, height = max(x2 - x1, np.float32(1)), max(y2 - y1, np.float32(1))
    ratio = np.array([size / float(width), size / float(height)]).astype(np.float32)
    local = [(polygon.astype(np.float32) - np.array([x1, y1])) * ratio for polygon in polygons]
    assert all(polygon.dtype == np.float32 for polygon in local)
    encoded = coco_mask.frPyObjects([polygon.astype(np.float64).ravel().tolist() for polygon in local], size, size)
    return coco_mask.decode(coco_mask.merge(encoded)).astype(bool)


def random_rois(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return RoIs in float32. Every second one has sides of 14, 28 or 56 pixels, where scaling rounds nothing."""
    corners = generator.uniform(-20, 900, (count, 2))
    sides = np.exp(generator.uniform(np.log(0.3), np.log(700), (count, 2)))
    corners[::2] = np.round(corners[::2])
    sides[::2] = generator.choice([14, 28, 56], (len(sides[::2]), 2))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def place(points: np.ndarray, box: np.ndarray) -> Polygon:
    """Return points given on the grid of 28 x 28 in pixels of the image around the RoI."""
    sides = np.maximum(box[2:] - box[:2], 1).astype(np.float64)
    return (box[:2] + points * sides / SIZE).astype(np.float32)


def inside(generator, count):
    return generator.uniform(0, SIZE, (count, 2))


def around(generator, count):
    return generator.uniform(-SIZE, 2 * SIZE, (count, 2))


def whole_pixels(generator, count):
    return generator.integers(-4, SIZE + 5, (count, 2)).astype(float)


def half_pixels(generator, count):
    return generator.integers(-4, SIZE + 5, (count, 2)) + 0.5


def tenths_of_pixels(generator, count):
    # Half-way points of the grid of fifths, where "add 0.5 and truncate" decides.
    return generator.integers(-30, 10 * SIZE + 30, (count, 2)) / 10


def repeated(generator, count):
    points = generator.integers(-10, 2 * SIZE + 10, (count, 2)) / 2
    return np.repeat(points, generator.integers(1, 4, count), axis=0)


def back_and_forth(generator, count):
    points = around(generator, count)
    way_back = points[-2:0:-1] + generator.choice([0, 0.1, 0.3]) * generator.standard_normal((count - 2, 2))
    return np.concatenate([points, way_back])  # no area, or slivers


def collinear(generator, count):
    steps = generator.integers(-6, 7, (max(count, 3), 1))
    return generator.integers(0, SIZE, 2) + steps * generator.integers(-3, 4, 2) / generator.choice([1, 2, 5])


def steep_and_flat(generator, count):
    points = around(generator, count)
    narrow = generator.uniform(0, SIZE) + generator.choice([0, 0.1, 0.2, 1.0]) * generator.standard_normal(count)
    points[:, generator.integers(0, 2)] = narrow
    return points


def upright(generator, count):
    corner, side = generator.integers(-40, 150, 2) / 5, generator.integers(0, 150, 2) / 5
    return corner + np.array([[0, 0], [1, 0], [1, 1], [0, 1]])[:: generator.choice([-1, 1])] * side


def tiny(generator, count):
    return generator.uniform(-1, SIZE + 1, 2) + generator.uniform(-0.4, 0.4, (count, 2))


def left_and_above(generator, count):
    return generator.uniform(-3 * SIZE, SIZE / 2, (count, 2))


def round_shape(generator, count):
    angles = np.sort(generator.uniform(0, 2 * np.pi, 3 * count))
    radius = generator.uniform(2, 20) * generator.uniform(0.6, 1.4, (3 * count, 1))
    return generator.uniform(0, SIZE, 2) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def far_away(generator, count):
    return np.concatenate([inside(generator, count - 2), generator.uniform(-3000, 3000, (2, 2))])


KINDS = (
    *(inside, around, whole_pixels, half_pixels, tenths_of_pixels, repeated, back_and_forth, collinear),
    *(steep_and_flat, upright, tiny, left_and_above, round_shape),
)
