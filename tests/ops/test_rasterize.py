import numpy as np
import pytest
import torch
from golden_reference import flat_polygons
from pycocotools import mask as coco_mask

from maskperf.ops.rasterize import rasterize_crops
from maskperf.structures import Polygons

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SIZE = 28
Polygon = np.ndarray  # points x (x, y), float32
RECTANGLE = ((10, 10), (50, 10), (50, 40), (10, 40))
TRIANGLE = ((30, 5), (55, 45), (5, 45))
SQUARES = (((0, 0), (20, 0), (20, 20), (0, 20)), ((30, 30), (50, 30), (50, 50), (30, 50)))
ROOF = ((10.2, 10.7), (39.6, 12.1), (35.5, 44.9), (12.3, 40.0))


def coco_target(polygons: list[Polygon], box: np.ndarray, size: int) -> np.ndarray:
    """Return the mask target of one object in the reference's steps, drawn by pycocotools."""
    x1, y1, x2, y2 = box.astype(np.float32)
    width, height = max(x2 - x1, np.float32(1)), max(y2 - y1, np.float32(1))
    ratio = np.array([size / float(width), size / float(height)]).astype(np.float32)
    local = [(polygon.astype(np.float32) - np.array([x1, y1])) * ratio for polygon in polygons]
    assert all(polygon.dtype == np.float32 for polygon in local)
    encoded = coco_mask.frPyObjects([polygon.astype(np.float64).ravel().tolist() for polygon in local], size, size)
    return coco_mask.decode(coco_mask.merge(encoded)).astype(bool)


def polygons_of(objects: list[list[Polygon]]) -> Polygons:
    offsets = np.cumsum([0] + [len(polygons) for polygons in objects]).tolist()
    return flat_polygons([np.asarray(polygon, np.float32) for polygons in objects for polygon in polygons], offsets)


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
