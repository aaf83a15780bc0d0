from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coco_folder import good_document, read

from maskperf.data.coco.index import CocoIndex
from maskperf.data.coco.verify import check_benchmark_counts, count_notices

NUM_OBJECTS = 849_947  # synthesized, as is how they spread over polygons: only the sum is known
NUM_POLYGONS = 1_816_793 - NUM_OBJECTS


@pytest.fixture
def counts_of(tmp_path):
    """Return a function that returns indexes with the counts of COCO 2017, but for these."""
    plain = read(tmp_path, good_document())

    def indexes(train: dict, val: dict) -> list[CocoIndex]:
        of_train = {"num_images": 117_266, "objects": NUM_OBJECTS, "polygons": NUM_POLYGONS, "points": 41_697_368 // 2}
        of_val = {"num_images": 5_000, "objects": 3, "polygons": 4, "points": 5}
        return [
            replace(
                plain,
                json_path=Path(name),
                image_ids=np.arange(counts["num_images"]),
                labels=np.ones(counts["objects"], np.int64),
                point_offsets=np.zeros(counts["polygons"] + 1, np.int64),
                points=np.zeros((counts["points"], 2), np.float32),
                category_ids=np.arange(counts.get("num_categories", 80)),
            )
            for name, counts in (("train.json", of_train | train), ("val.json", of_val | val))
        ]

    return indexes


@pytest.mark.parametrize(
    ("train", "val", "facts"),
    [
        ({"num_images": 118_287}, {}, ("train.json has 118,287 training images", "117,266")),
        ({"num_categories": 79}, {}, ("train.json has 79 categories", "has 80")),
        ({"points": 41_697_368 // 2 - 1}, {}, ("train.json has 41,697,366 polygon coordinates", "41,697,368")),
        ({"objects": NUM_OBJECTS + 1}, {}, ("train.json has 1,816,794 training objects and polygons", "1,816,793")),
        ({"polygons": NUM_POLYGONS - 1}, {}, ("train.json has 1,816,792 training objects and polygons", "1,816,793")),
        ({}, {"num_images": 4_999}, ("val.json has 4,999 validation images", "5,000")),
        ({}, {"num_categories": 81}, ("val.json has 81 categories", "has 80")),
    ],
)
def test_each_count_is_compared_and_named_in_one_sentence_and_one_notice(counts_of, train, val, facts):
    (sentence,) = check_benchmark_counts(*counts_of(train, val))
    assert all(fact in sentence for fact in facts)
    (notice,) = count_notices(*counts_of(train, val))
    assert notice.startswith(f"not COCO 2017: {facts[0]}") and "counts differ" not in notice


def test_no_mismatch_and_many(counts_of):
    assert check_benchmark_counts(*counts_of({}, {})) == count_notices(*counts_of({}, {})) == []
    wrong = counts_of({"num_images": 1, "num_categories": 2, "points": 3}, {"num_images": 1, "num_categories": 2})
    assert len(check_benchmark_counts(*wrong)) == 5
    (notice,) = count_notices(*wrong)
    assert notice.startswith("not COCO 2017: train.json has 1 training images") and "5 counts differ" in notice
