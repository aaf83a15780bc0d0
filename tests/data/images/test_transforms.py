import numpy as np
import pytest
from PIL import Image

from maskperf.data.images.transforms import normalize_into, resize_and_mirror, target_size_hw

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


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("row", BENCHMARK_ROWS)
def test_target_size_follows_the_benchmark_table(row):
    width, height, new_width, new_height = row
    assert target_size_hw((height, width), 800, 1333) == (new_height, new_width)
    assert target_size_hw((width, height), 800, 1333) == (new_width, new_height)


@pytest.mark.parametrize(
    ("size_hw", "long_side", "expected"),
    [
        ((10, 20), 5, (2, 4)),  # half to even: 5 * 1 / 2 = 2.5 becomes 2
        ((10, 20), 7, (4, 8)),  # and 3.5 becomes 4
        ((800, 1001), 1333, (800, 1001)),  # its short side is right already
        ((1, 5000), 1333, (1, 5000)),
        ((2, 6000), 1333, (1, 3000)),  # never zero
    ],
)
def test_target_size_in_the_corners(size_hw, long_side, expected):
    assert target_size_hw(size_hw, 800, long_side) == expected


def test_resized_pixels_equal_pillow():
    rgb = random_image(13, 17)
    expected = np.array(Image.fromarray(rgb).resize((40, 31), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_and_mirror(rgb, (31, 40), is_mirrored=False), expected)
    np.testing.assert_array_equal(resize_and_mirror(rgb, (13, 17), is_mirrored=False), rgb)


def test_columns_are_resized_before_rows_whatever_the_version_of_pillow():
    rgb = random_image(90, 30)
    image = Image.fromarray(rgb).resize((23, 90), Image.Resampling.BILINEAR)
    columns_first = np.asarray(image.resize((23, 21), Image.Resampling.BILINEAR))
    image = Image.fromarray(rgb).resize((30, 21), Image.Resampling.BILINEAR)
    rows_first = np.asarray(image.resize((23, 21), Image.Resampling.BILINEAR))
    assert (columns_first != rows_first).any()
    np.testing.assert_array_equal(resize_and_mirror(rgb, (21, 23), is_mirrored=False), columns_first)


@pytest.mark.parametrize("size_hw", [(31, 40), (13, 17), (5, 6)])
def test_an_image_is_mirrored_after_its_resize(size_hw):
    rgb = random_image(13, 17)
    resized = resize_and_mirror(rgb, size_hw, is_mirrored=False)
    np.testing.assert_array_equal(resize_and_mirror(rgb, size_hw, is_mirrored=True), resized[:, ::-1])


@pytest.mark.parametrize("size_hw", [(5, 7), (8, 12), (1, 12), (8, 1)])
def test_the_output_holds_the_image_minus_its_means_and_zeros(size_hw):
    bgr, means_bgr = random_image(*size_hw), (102.9801, 115.9465, 122.7717)
    output = np.full((8, 12, 3), np.nan, np.float32)
    normalize_into(output, bgr, means_bgr)
    expected = np.zeros((8, 12, 3), np.float32)
    expected[: size_hw[0], : size_hw[1]] = bgr.astype(np.float32) - np.array(means_bgr, np.float32)
    np.testing.assert_array_equal(output, expected)
