import numpy as np
import pytest
from PIL import Image

from maskperf.data.images.transforms import (
    flip_boxes,
    flip_points,
    normalize,
    normalize_into,
    resize_and_mirror,
    resize_boxes,
    resize_points,
    target_size_hw,
)

BENCHMARK_ROWS = [  # original width, height, resized width, height
    (640, 480, 1066, 800),
    (480, 640, 800, 1066),
    (640, 427, 1199, 800),
    (640, 426, 1201, 800),
    (640, 640, 800, 800),
    (640, 384, 1333, 800),
    (640, 383, 1333, 798),
    (640, 360, 1333, 750),
    (640, 320, 1332, 666),
    (640, 200, 1334, 417),
    (640, 150, 1331, 312),
]


@pytest.mark.parametrize("row", BENCHMARK_ROWS)
def test_target_size_follows_the_benchmark_table(row):
    width, height, new_width, new_height = row
    assert target_size_hw((height, width), 800, 1333) == (new_height, new_width)
    assert target_size_hw((width, height), 800, 1333) == (new_width, new_height)


def test_target_size_rounds_half_to_even():
    # 5 * 1 / 2 = 2.5 becomes 2, and 7 * 1 / 2 = 3.5 becomes 4
    assert target_size_hw((10, 20), 800, 5) == (2, 4)
    assert target_size_hw((10, 20), 800, 7) == (4, 8)


def test_target_size_keeps_an_image_whose_short_side_fits():
    assert target_size_hw((800, 1001), 800, 1333) == (800, 1001)


def test_target_size_never_reaches_zero():
    assert target_size_hw((1, 5000), 800, 1333) == (1, 5000)
    assert min(target_size_hw((2, 6000), 800, 1333)) == 1


def test_resized_pixels_equal_pillow():
    rgb = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    expected = np.array(Image.fromarray(rgb).resize((40, 31), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_and_mirror(rgb, (31, 40), is_mirrored=False), expected)
    np.testing.assert_array_equal(resize_and_mirror(rgb, (13, 17), is_mirrored=False), rgb)


def test_columns_are_resized_before_rows_whatever_the_version_of_pillow():
    rgb = np.random.default_rng(0).integers(0, 256, (90, 30, 3), dtype=np.uint8)
    image = Image.fromarray(rgb).resize((23, 90), Image.Resampling.BILINEAR)
    columns_first = np.asarray(image.resize((23, 21), Image.Resampling.BILINEAR))
    image = Image.fromarray(rgb).resize((30, 21), Image.Resampling.BILINEAR)
    rows_first = np.asarray(image.resize((23, 21), Image.Resampling.BILINEAR))
    assert (columns_first != rows_first).any()
    np.testing.assert_array_equal(resize_and_mirror(rgb, (21, 23), is_mirrored=False), columns_first)


def test_boxes_and_points_scale_by_the_ratio_of_each_axis():
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    np.testing.assert_array_equal(resize_boxes(boxes, (10, 20), (30, 40)), [[2, 6, 6, 12]])
    points = np.array([[1, 2], [0.5, 10]], np.float32)
    np.testing.assert_array_equal(resize_points(points, (10, 20), (30, 40)), [[2, 6], [1, 30]])


def test_flip_mirrors_at_width_minus_one_for_boxes_and_points():
    np.testing.assert_array_equal(flip_boxes(np.array([[1, 2, 3, 4]], np.float32), 10), [[6, 2, 8, 4]])
    np.testing.assert_array_equal(flip_points(np.array([[1, 2], [9.5, 0]], np.float32), 10), [[8, 2], [-0.5, 0]])


def test_flip_twice_gives_back_the_boxes():
    boxes = np.array([[1, 2, 3, 4], [0, 0, 9, 9]], np.float32)
    np.testing.assert_array_equal(flip_boxes(flip_boxes(boxes, 10), 10), boxes)


def test_normalize_gives_bgr_minus_the_means():
    rgb = np.array([[[10, 20, 30], [1, 2, 3]]], np.uint8)
    expected = [[[29.5, 2.5]], [[19, 1]], [[8, -1]]]
    np.testing.assert_array_equal(normalize(rgb, (0.5, 1.0, 2.0)), expected)


@pytest.mark.parametrize("size_hw", [(31, 40), (13, 17), (5, 6)])
def test_a_picture_is_mirrored_after_its_resize(size_hw):
    picture = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    resized = resize_and_mirror(picture, size_hw, is_mirrored=False)
    np.testing.assert_array_equal(resize_and_mirror(picture, size_hw, is_mirrored=False), resized)
    np.testing.assert_array_equal(resize_and_mirror(picture, size_hw, is_mirrored=True), resized[:, ::-1])


@pytest.mark.parametrize("size_hw", [(5, 7), (8, 12), (1, 12), (8, 1)])
def test_a_canvas_holds_the_normalized_picture_and_zeros(size_hw):
    bgr = np.random.default_rng(1).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    means_bgr = (102.9801, 115.9465, 122.7717)
    canvas = np.full((8, 12, 3), np.nan, np.float32)
    normalize_into(canvas, bgr, means_bgr)
    expected = np.zeros((8, 12, 3), np.float32)
    expected[: size_hw[0], : size_hw[1]] = normalize(bgr[:, :, ::-1], means_bgr).transpose(1, 2, 0)
    np.testing.assert_array_equal(canvas, expected)
