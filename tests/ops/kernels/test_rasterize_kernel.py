import numpy as np
import pytest
import torch
from golden_reference import flat_polygons
from kernel_device import DEVICE

from maskperf.ops.kernels.rasterize import MAX_SIZE, rasterize_crops
from maskperf.ops.rasterize import rasterize_crops as reference
from maskperf.structures import Polygons, to_device

SIZE = 28
RECTANGLE = ((10, 10), (50, 10), (50, 40), (10, 40))
TRIANGLE = ((30, 5), (55, 45), (5, 45))


def polygons_of(objects: list[list]) -> Polygons:
    polygon_offsets = np.cumsum([0] + [len(polygons) for polygons in objects]).tolist()
    return flat_polygons(
        [np.asarray(polygon, np.float32) for polygons in objects for polygon in polygons], polygon_offsets
    )


def drawn(objects: list[list], boxes: np.ndarray, size: int = SIZE, chosen: list[int] | None = None) -> np.ndarray:
    """Return the masks of the kernel, after a comparison with the reference, which is compared with pycocotools."""
    polygons = polygons_of(objects)
    numbers = torch.tensor(range(len(objects)) if chosen is None else chosen, dtype=torch.int64)
    corners = torch.from_numpy(np.asarray(boxes, np.float32))
    inputs = to_device(polygons, torch.device(DEVICE)), numbers.to(DEVICE), corners.to(DEVICE)
    found = rasterize_crops(*inputs, size)
    expected = reference(polygons, numbers, corners, size)
    wrong = (found.cpu() != expected).flatten(1).any(1).nonzero().flatten().tolist()
    assert wrong == [], f"object {numbers[wrong[0]]}: {objects[numbers[wrong[0]]]}, box {corners[wrong[0]]}"
    return expected.numpy()


def target(polygons: list, box: tuple, size: int = SIZE) -> np.ndarray:
    return drawn([list(polygons)], np.array([box]), size)[0]


def random_boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return float32 boxes. Every second one has sides of 14, 28 or 56 pixels, where scaling rounds nothing."""
    corners = generator.uniform(-20, 900, (count, 2))
    sides = np.exp(generator.uniform(np.log(0.3), np.log(700), (count, 2)))
    corners[::2] = np.round(corners[::2])
    sides[::2] = generator.choice([14, 28, 56], (len(sides[::2]), 2))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def place(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return points given on the mask of 28 x 28 in pixels of the image around the box."""
    sides = np.maximum(box[2:] - box[:2], 1).astype(np.float64)
    return (box[:2] + points * sides / SIZE).astype(np.float32)


POINTS = {
    "inside": lambda g, n: g.uniform(0, SIZE, (n, 2)),
    "around": lambda g, n: g.uniform(-SIZE, 2 * SIZE, (n, 2)),
    "whole pixels": lambda g, n: g.integers(-4, SIZE + 5, (n, 2)).astype(float),
    "half pixels": lambda g, n: g.integers(-4, SIZE + 5, (n, 2)) + 0.5,
    "tenths of pixels": lambda g, n: g.integers(-30, 10 * SIZE + 30, (n, 2)) / 10,  # half-way on the grid of fifths
    "repeated": lambda g, n: np.repeat(g.integers(-10, 2 * SIZE + 10, (n, 2)) / 2, g.integers(1, 4, n), axis=0),
    "on a line": lambda g, n: g.integers(0, SIZE, 2) + g.integers(-6, 7, (n, 1)) * g.integers(-3, 4, 2) / 5,
    "narrow": lambda g, n: np.stack([g.uniform(0, SIZE) + 0.1 * g.normal(size=n), g.uniform(-9, 37, n)], axis=1),
    "low": lambda g, n: np.stack([g.uniform(-9, 37, n), g.uniform(0, SIZE) + 0.1 * g.normal(size=n)], axis=1),
    "tiny": lambda g, n: g.uniform(-1, SIZE + 1, 2) + g.uniform(-0.4, 0.4, (n, 2)),
    "left and above": lambda g, n: g.uniform(-3 * SIZE, SIZE / 2, (n, 2)),
    "far away": lambda g, n: np.concatenate([g.uniform(0, SIZE, (n - 1, 2)), g.uniform(-3000, 3000, (1, 2))]),
}


@pytest.mark.parametrize("kind", POINTS)
def test_equals_the_reference_on_random_polygons(kind):
    generator = np.random.default_rng(list(POINTS).index(kind))
    boxes = random_boxes(generator, 6)
    objects = [[place(POINTS[kind](generator, int(generator.integers(3, 8))), box)] for box in boxes]
    drawn(objects, boxes)


def test_equals_the_reference_on_an_object_of_190_polygons():
    generator = np.random.default_rng(50)
    box = np.array([3.0, 5.0, 60.0, 90.0], np.float32)
    polygons = [place(POINTS["inside"](generator, 3) * 0.2 + generator.uniform(0, 20, 2), box) for _ in range(190)]
    filled = drawn([polygons], box[None], size=8)
    assert 20 < filled.sum() < 64


@pytest.mark.parametrize("count", [15, 16, 17, 100])
def test_polygons_of_more_points_than_are_worked_on_at_a_time(count):
    generator = np.random.default_rng(count)
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = generator.uniform(8, 14, (count, 1))
    polygon = 14 + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert target([polygon], (0, 0, 28, 28)).sum() > 150


def test_more_crossings_in_a_column_than_a_byte_holds():
    line = np.stack([np.tile([3.0, 20.0], 150), np.full(300, 7.0)], axis=1)
    detour = np.concatenate([line[:-1], [[20.0, 25.0], [3.0, 25.0]]])
    assert target([detour], (0, 0, 28, 28)).sum() > 100
    assert target([line], (0, 0, 28, 28)).sum() == 0


@pytest.mark.parametrize("size", [1, 5, 14, 33, 56, MAX_SIZE])
def test_equals_the_reference_on_a_mask_of_another_size(size):
    assert target([RECTANGLE, TRIANGLE], (8.5, 9.25, 41.75, 47.0), size).any()


def test_a_mask_of_more_rows_than_a_word_has_bits_is_refused():
    with pytest.raises(ValueError, match="at most 64"):
        rasterize_crops(polygons_of([[TRIANGLE]]), torch.tensor([0]), torch.ones(1, 4), MAX_SIZE + 1)


@pytest.mark.parametrize("box", [(5, 5, 5, 5), (5, 5, 5.5, 30), (9, 9, 4, 4), (0.25, 0.5, 1.25, 1.5)])
def test_boxes_thinner_than_a_pixel_count_as_one_pixel(box):
    target([[(4.9, 4.2), (6.3, 5.1), (5.6, 31.0), (0.1, 0.7)]], box)


@pytest.mark.parametrize(
    ("polygons", "box", "pixels"),
    [
        ([RECTANGLE], (10, 10, 50, 40), 784),
        ([RECTANGLE], (0, 0, 60, 50), 288),
        ([TRIANGLE], (5, 5, 55, 45), 392),
        ([((-10, -10), (100, -10), (100, 100), (-10, 100))], (0, 0, 50, 50), 784),
        ([[*RECTANGLE, *RECTANGLE]], (0, 0, 60, 60), 0),  # winds twice: filled by parity
    ],
)
def test_known_shapes_have_the_known_number_of_pixels(polygons, box, pixels):
    assert target(polygons, box).sum() == pixels


def test_objects_may_be_empty_and_drawn_in_any_order():
    objects = [[], [RECTANGLE], [], [TRIANGLE, RECTANGLE]]
    chosen = [3, 0, 1, 1, 2, 3]
    boxes = np.array([[0, 0, 60, 50], [1, 1, 9, 9], [20, 20, 40, 45], [0, 5, 11, 30], [0, 0, 5, 5], [7, 2, 33, 61]])
    filled = drawn(objects, boxes, chosen=chosen).any(axis=(1, 2))
    assert filled.tolist() == [True, False, True, True, False, True]


def test_nothing_to_draw_gives_empty_masks():
    assert not drawn([[], []], np.ones((2, 4))).any()
    assert drawn([[TRIANGLE]], np.zeros((0, 4)), chosen=[]).shape == (0, SIZE, SIZE)
