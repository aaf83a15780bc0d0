import numpy as np
import pytest
import torch
from random_polygons import (
    KINDS,
    RECTANGLE,
    SIZE,
    TRIANGLE,
    Polygon,
    around,
    coco_target,
    far_away,
    place,
    polygons_of,
    random_rois,
    round_shape,
)

from maskperf.ops.rasterize import rasterize_crops

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SQUARES = (((0, 0), (20, 0), (20, 20), (0, 20)), ((30, 30), (50, 30), (50, 50), (30, 50)))
ROOF = ((10.2, 10.7), (39.6, 12.1), (35.5, 44.9), (12.3, 40.0))


def target(polygons, box, size: int = SIZE) -> np.ndarray:
    """Return the target of a single object."""
    boxes = torch.tensor([box], dtype=torch.float32)
    return rasterize_crops(polygons_of([list(polygons)]), torch.tensor([0]), boxes, size)[0].numpy()


def assert_equals_pycocotools(objects: list[list[Polygon]], boxes: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Compare every object pixel by pixel, all in one call; returns the number of set pixels of each."""
    found = rasterize_crops(polygons_of(objects), torch.arange(len(objects)), torch.from_numpy(boxes), size).numpy()
    expected = np.stack([coco_target(polygons, box, size) for polygons, box in zip(objects, boxes, strict=True)])
    wrong = np.flatnonzero((found != expected).any(axis=(1, 2)))
    assert wrong.tolist() == [], f"object {wrong[:1]}: polygons {objects[wrong[0]]}, box {boxes[wrong[0]]}"
    return expected.sum(axis=(1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_equals_pycocotools_on_random_polygons(kind):
    generator = np.random.default_rng(KINDS.index(kind))
    boxes = random_rois(generator, 1200)
    objects = [[place(kind(generator, int(generator.integers(3, 9))), box)] for box in boxes]
    pixels = assert_equals_pycocotools(objects, boxes)
    assert (pixels > 0).sum() > 60  # the case is worth something


def test_equals_pycocotools_on_objects_of_many_polygons():
    generator = np.random.default_rng(100)
    boxes = random_rois(generator, 500)
    objects = []
    for box in boxes:
        kinds = generator.choice(len(KINDS), int(generator.integers(1, 9)))
        objects.append([place(KINDS[kind](generator, int(generator.integers(3, 7))), box) for kind in kinds])
    assert_equals_pycocotools(objects, boxes)
    assert max(len(polygons) for polygons in objects) == 8


def test_equals_pycocotools_far_outside_the_box():
    generator = np.random.default_rng(101)
    boxes = random_rois(generator, 200)
    pixels = assert_equals_pycocotools([[place(far_away(generator, 4), box)] for box in boxes], boxes)
    assert ((pixels > 0) & (pixels < SIZE * SIZE)).sum() > 50


def test_equals_pycocotools_on_a_grid_of_another_size():
    generator = np.random.default_rng(102)
    boxes = random_rois(generator, 150)
    objects = [[place(round_shape(generator, 4), box), place(around(generator, 5), box)] for box in boxes]
    assert_equals_pycocotools(objects, boxes, size=14)
    assert_equals_pycocotools(objects, boxes, size=56)


def test_equals_pycocotools_on_more_crossings_in_a_column_than_a_byte_holds():
    # 301 and 600 points that go back and forth over the same columns, one polygon on one line, the other spread.
    line = np.stack([np.tile([3.0, 20.0], 300), np.full(600, 7.0)], axis=1)
    spread = np.stack([np.resize([3.0, 20.0, 12.0], 301), np.linspace(0, 27, 301)], axis=1)
    box = np.array([[0, 0, 28, 28]] * 2, np.float32)
    assert_equals_pycocotools([[line], [spread]], box)
    # An odd number of edges along the line beside a closing detour leaves area.
    detour = np.concatenate([line[:-1], [[20.0, 25.0], [3.0, 25.0]]])
    assert assert_equals_pycocotools([[detour]], box[:1])[0] > 100


@pytest.mark.parametrize("box", [(5, 5, 5, 5), (5, 5, 5.5, 30), (9, 9, 4, 4), (0.25, 0.5, 1.25, 1.5)])
def test_boxes_thinner_than_a_pixel_count_as_one_pixel(box):
    polygon = np.array([[4.9, 4.2], [6.3, 5.1], [5.6, 31.0], [0.1, 0.7]], np.float32)
    assert_equals_pycocotools([[polygon]], np.array([box], np.float32))
    far = (box[0] + max(box[2] - box[0], 1), box[1] + max(box[3] - box[1], 1))
    assert np.array_equal(target([polygon], box), target([polygon], (*box[:2], *far)))


@pytest.mark.parametrize(
    ("polygons", "box", "pixels"),
    [
        ([RECTANGLE], (10, 10, 50, 40), 784),
        ([RECTANGLE], (0, 0, 60, 50), 288),
        ([TRIANGLE], (5, 5, 55, 45), 392),
        (SQUARES, (0, 0, 50, 50), 242),
        ([((-10, -10), (100, -10), (100, 100), (-10, 100))], (0, 0, 50, 50), 784),
        ([ROOF], (8.5, 9.25, 41.75, 47.0), 510),
        ([(*RECTANGLE, *RECTANGLE)], (0, 0, 60, 60), 0),  # winds twice: filled by parity
        ([RECTANGLE, RECTANGLE], (0, 0, 60, 50), 288),  # two polygons: united
    ],
)
def test_known_shapes_have_the_known_number_of_pixels(polygons, box, pixels):
    assert target(polygons, box).sum() == pixels


def test_shapes_fill_the_known_rows_and_columns():
    expected = np.zeros((SIZE, SIZE), bool)
    expected[6:22, 5:23] = True
    assert np.array_equal(target([RECTANGLE], (0, 0, 60, 50)), expected)
    in_pairs = [width for width in range(2, 27, 2) for _ in range(2)]
    assert target([TRIANGLE], (5, 5, 55, 45)).sum(axis=1).tolist() == [0, *in_pairs, 28]
    known = [0, 1, 13, 22, 22, 22, 22, 23, 23, 23, 23, 23, 22, *[23] * 5, *[24] * 5, 19, 12, 5, 0, 0]
    assert target([ROOF], (8.5, 9.25, 41.75, 47.0)).sum(axis=0).tolist() == known


def test_an_object_without_polygons_is_empty_and_shifts_nobody():
    objects = [[], [RECTANGLE], [], [], [TRIANGLE, RECTANGLE], []]
    boxes = torch.tensor([[0.0, 0.0, 60.0, 50.0]]).repeat(6, 1)
    found = rasterize_crops(polygons_of(objects), torch.arange(6), boxes, SIZE).numpy()
    for mask, polygons in zip(found, objects, strict=True):
        assert np.array_equal(mask, target(polygons, (0, 0, 60, 50)))
    assert found.any(axis=(1, 2)).tolist() == [False, True, False, False, True, False]


def test_an_object_may_be_drawn_for_many_boxes_in_any_order():
    generator = np.random.default_rng(5)
    objects = [
        [place(around(generator, 5), np.array([0, 0, 80, 80])) for _ in range(1 + index % 3)] for index in range(4)
    ]
    chosen = [3, 0, 0, 2, 3, 1]
    boxes = np.concatenate([generator.uniform(-10, 40, (6, 2)), generator.uniform(41, 90, (6, 2))], 1).astype(
        np.float32
    )
    found = rasterize_crops(polygons_of(objects), torch.tensor(chosen), torch.from_numpy(boxes), SIZE).numpy()
    for mask, index, box in zip(found, chosen, boxes, strict=True):
        assert np.array_equal(mask, coco_target(objects[index], box, SIZE))


def test_nothing_to_draw_gives_empty_targets():
    no_points = polygons_of([[], []])
    assert no_points.points.shape == (0, 2)
    found = rasterize_crops(no_points, torch.tensor([0, 1, 1]), torch.ones(3, 4), SIZE)
    assert found.shape == (3, SIZE, SIZE)
    assert not bool(found.any())
    nothing = torch.zeros(0, dtype=torch.int64)
    for polygons in (no_points, polygons_of([[np.array(TRIANGLE)]])):
        assert rasterize_crops(polygons, nothing, torch.zeros(0, 4), SIZE).shape == (0, SIZE, SIZE)
