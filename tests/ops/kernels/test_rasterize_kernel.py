import numpy as np
import pytest
import torch
from kernel_device import DEVICE
from random_polygons import (
    KINDS,
    RECTANGLE,
    SIZE,
    TRIANGLE,
    far_away,
    inside,
    place,
    polygons_of,
    random_rois,
)

from maskperf.ops.kernels.rasterize import MAX_SIZE, rasterize_crops
from maskperf.ops.rasterize import rasterize_crops as reference
from maskperf.structures import to_device


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


SHAPES = (*KINDS, far_away)


@pytest.mark.parametrize("kind", SHAPES)
def test_equals_the_reference_on_random_polygons(kind):
    generator = np.random.default_rng(SHAPES.index(kind))
    boxes = random_rois(generator, 6)
    drawn([[place(kind(generator, int(generator.integers(3, 8))), box)] for box in boxes], boxes)


def test_equals_the_reference_on_an_object_of_190_polygons():
    generator = np.random.default_rng(50)
    box = np.array([3.0, 5.0, 60.0, 90.0], np.float32)
    polygons = [place(inside(generator, 3) * 0.2 + generator.uniform(0, 20, 2), box) for _ in range(190)]
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


THIN = [(4.9, 4.2), (6.3, 5.1), (5.6, 31.0), (0.1, 0.7)]


@pytest.mark.parametrize(
    ("polygon", "box"),
    [
        *((THIN, box) for box in ((5, 5, 5, 5), (5, 5, 5.5, 30), (9, 9, 4, 4), (0.25, 0.5, 1.25, 1.5))),
        *((RECTANGLE, box) for box in ((10, 10, 50, 40), (0, 0, 60, 50))),
        (TRIANGLE, (5, 5, 55, 45)),
        (((-10, -10), (100, -10), (100, 100), (-10, 100)), (0, 0, 50, 50)),
        ((*RECTANGLE, *RECTANGLE), (0, 0, 60, 60)),  # winds twice: filled by parity
    ],
)
def test_equals_the_reference_on_known_shapes_and_boxes_thinner_than_a_pixel(polygon, box):
    target([polygon], box)


def test_objects_may_be_empty_and_drawn_in_any_order():
    objects = [[], [RECTANGLE], [], [TRIANGLE, RECTANGLE]]
    chosen = [3, 0, 1, 1, 2, 3]
    boxes = np.array([[0, 0, 60, 50], [1, 1, 9, 9], [20, 20, 40, 45], [0, 5, 11, 30], [0, 0, 5, 5], [7, 2, 33, 61]])
    filled = drawn(objects, boxes, chosen=chosen).any(axis=(1, 2))
    assert filled.tolist() == [True, False, True, True, False, True]


def test_nothing_to_draw_gives_empty_masks():
    assert not drawn([[], []], np.ones((2, 4))).any()
    assert drawn([[TRIANGLE]], np.zeros((0, 4)), chosen=[]).shape == (0, SIZE, SIZE)
