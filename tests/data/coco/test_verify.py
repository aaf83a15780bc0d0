from pathlib import Path

import numpy as np
import pytest

from maskperf.data.coco.index import CocoIndex
from maskperf.data.coco.verify import check_benchmark_counts, count_notices

NUM_OBJECTS = 849_947  # synthesized, as is how they spread over polygons: only the sum is known
NUM_POLYGONS = 1_816_793 - NUM_OBJECTS


def synthetic_index(
    name: str, num_images: int, num_categories: int, objects: int, polygons: int, points: int
) -> CocoIndex:
    return CocoIndex(
        json_path=Path(name),
        image_folder=Path("images"),
        image_ids=np.arange(num_images),
        file_names=(),
        sizes_hw=np.zeros((num_images, 2), np.int32),
        object_offsets=np.zeros(num_images + 1, np.int64),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.ones(objects, np.int64),
        polygon_offsets=np.zeros(objects + 1, np.int64),
        point_offsets=np.zeros(polygons + 1, np.int64),
        points=np.zeros((points, 2), np.float32),
        category_ids=np.arange(num_categories),
        category_names=(),
        notices=(),
    )


def train(**changes: int) -> CocoIndex:
    counts = {"num_images": 117_266, "num_categories": 80, "objects": NUM_OBJECTS, "polygons": NUM_POLYGONS}
    return synthetic_index("train.json", **{**counts, "points": 41_697_368 // 2, **changes})


def val(**changes: int) -> CocoIndex:
    counts = {"num_images": 5_000, "num_categories": 80, "objects": 3, "polygons": 4, "points": 5}
    return synthetic_index("val.json", **{**counts, **changes})


def test_the_counts_of_coco_2017_pass():
    assert check_benchmark_counts(train(), val()) == []


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"num_images": 118_287}, ("118,287 training images", "117,266")),
        ({"num_categories": 79}, ("79 categories", "has 80")),
        ({"points": 41_697_368 // 2 - 1}, ("41,697,366 polygon coordinates", "41,697,368")),
        ({"objects": NUM_OBJECTS + 1}, ("1,816,794 training objects and polygons", "1,816,793")),
        ({"polygons": NUM_POLYGONS - 1}, ("1,816,792 training objects and polygons", "1,816,793")),
    ],
)
def test_each_count_of_training_is_explained(changes, facts):
    (sentence,) = check_benchmark_counts(train(**changes), val())
    assert sentence.startswith("train.json has ")
    assert all(fact in sentence for fact in facts)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [({"num_images": 4_999}, ("4,999 validation images", "5,000")), ({"num_categories": 81}, ("81",))],
)
def test_each_count_of_validation_is_explained(changes, facts):
    (sentence,) = check_benchmark_counts(train(), val(**changes))
    assert sentence.startswith("val.json has ") and all(fact in sentence for fact in facts)


def test_all_mismatches_are_listed():
    wrong = {"num_images": 1, "num_categories": 2, "points": 3}
    assert len(check_benchmark_counts(train(**wrong), val(num_images=1, num_categories=2))) == 5


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        ({}, None),
        ({"num_images": 117_265}, "not COCO 2017: train.json has 117,265 training images"),
        ({"num_categories": 81}, "not COCO 2017: train.json has 81 categories"),
        ({"points": 1}, "not COCO 2017: train.json has 2 polygon coordinates"),
        ({"objects": NUM_OBJECTS - 1}, "not COCO 2017: train.json has "),
        ({"num_images": 5, "num_categories": 2}, "not COCO 2017: train.json has 5 training images"),
    ],
)
def test_other_data_than_coco_is_one_notice(change, begins):
    found = count_notices(train(**change), val())
    assert [notice.startswith(begins) for notice in found] == ([] if begins is None else [True])
    assert ("2 counts differ" in "".join(found)) is (len(change) == 2)
