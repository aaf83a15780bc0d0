import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from maskperf.demo.outlines import polygon_area, run_lengths, tight_box, trace_outline

# pycocotools' decode predates numpy 2 and says so.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def rasterised(polygons: list, size_hw: tuple[int, int]) -> np.ndarray:
    flat = [[float(value) for point in polygon for value in point] for polygon in polygons]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *size_hw))).astype(bool)


@pytest.mark.parametrize(
    ("rows", "areas"),
    [
        (("#.", ".#"), [1, 1]),  # pixels that touch at a corner
        ((".#", "#."), [1, 1]),
        (("####", "#..#", "####"), [12, -2]),  # a hole
        (("#####", "#.###", "##.##", "#####", "#####"), [25, -2]),  # one that is pinched at a corner
        (("....", "...."), []),
    ],
)
def test_each_piece_and_each_hole_has_a_polygon_of_its_own(rows, areas):
    assert [polygon_area(polygon) for polygon in trace_outline(mask_of(*rows))] == areas


def test_a_polygon_lists_only_the_corners_where_it_turns():
    assert trace_outline(mask_of("#..", "###")) == [[(0, 0), (1, 0), (1, 1), (3, 1), (3, 2), (0, 2)]]


@settings(max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_polygons_enclose_exactly_the_pixels_of_the_mask(mask):
    polygons = trace_outline(mask)
    assert sum(polygon_area(polygon) for polygon in polygons) == mask.sum()
    solid = np.zeros_like(mask)
    for polygon in polygons:
        if polygon_area(polygon) > 0:
            solid |= rasterised([polygon], mask.shape)
    assert (solid | mask).sum() == solid.sum()
    if all(polygon_area(polygon) > 0 for polygon in polygons):
        np.testing.assert_array_equal(solid, mask)


@settings(max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_decode_to_the_same_mask(mask):
    counts = run_lengths(mask)
    assert sum(counts) == mask.size
    packed = coco_mask.frPyObjects({"counts": counts, "size": list(mask.shape)}, *mask.shape)
    np.testing.assert_array_equal(coco_mask.decode(packed).astype(bool), mask)


@pytest.mark.parametrize(("rows", "expected"), [(("..", ".#"), [1, 1, 1, 1]), (("#..", "...", "..#"), [0, 0, 3, 3])])
def test_box_spans_the_outer_pixel_edges(rows, expected):
    assert tight_box(mask_of(*rows)) == expected
