"""The reference's own data set class and transforms, on a small COCO folder."""

from pathlib import Path

import numpy as np
import pytest

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.images.collate import make_batch
from maskperf.data.images.loader import load_sample

FOLDER = Path(__file__).parents[2] / "golden" / "data_path"
IMAGE_IDS = (2190, 4264, 6005, 7079, 8042, 8116)


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz") as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture(scope="module")
def index():
    return read_coco(FOLDER / "instances.json", FOLDER / "images", training=True)


def test_the_same_images_are_kept_in_the_same_order(index, expected):
    np.testing.assert_array_equal(index.image_ids, expected["ids"])
    assert tuple(index.image_ids) == IMAGE_IDS


def test_labels_stand_for_the_same_categories(index, expected):
    np.testing.assert_array_equal(index.category_ids, expected["category_of_label"])


def test_what_is_left_out_is_reported(index):
    crowds, small, no_annotation, no_object, categories = index.notices
    assert crowds == "1 of 27 annotations are crowd regions and are not trained on"
    assert small.startswith("2 annotations with a box at most one pixel wide or high: left out of training")
    assert "first ids: 164, 202" in small
    assert no_annotation.startswith("1 images without an annotation") and "first ids: 5153" in no_annotation
    assert no_object.startswith("1 images without an object") and "first ids: 2227" in no_object
    assert categories.startswith("62 of 80 categories have no annotation")


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("image_id", IMAGE_IDS)
def test_pixels_and_targets_equal_the_reference(index, expected, image_id, flip):
    data = DataConfig(short_side=192, long_side=320, flip_probability=float(flip), pixel_means_bgr=(0.0, 0.0, 0.0))
    position = int(np.searchsorted(index.image_ids, image_id))
    sample = load_sample(index, position, data=data, seed=1, epoch=1, training=True)
    key = f"flip{flip}/{image_id}"
    pixels = make_batch([sample], size_divisor=1).images.pixels[0]
    np.testing.assert_array_equal(pixels, expected[f"{key}/pixels_bgr"].astype(np.float32))
    np.testing.assert_array_equal(sample.labels, expected[f"{key}/labels"])
    np.testing.assert_array_equal(sample.boxes, expected[f"{key}/boxes"])
    np.testing.assert_array_equal(sample.points.reshape(-1), expected[f"{key}/polygons"])
    np.testing.assert_array_equal(np.diff(sample.point_offsets) * 2, expected[f"{key}/polygon_lengths"])


def test_evaluation_keeps_every_image():
    index = read_coco(FOLDER / "instances.json", FOLDER / "images", training=False)
    assert list(index.image_ids) == [2190, 2227, 4264, 5153, 6005, 7079, 8042, 8116]
    assert len(index.object_offsets) == 9
