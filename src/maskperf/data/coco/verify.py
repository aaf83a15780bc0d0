"""Whether the data is COCO 2017 as the benchmark knows it, by counts that any loss or change of data would move."""

from maskperf.config import NUM_TRAIN_IMAGES, NUM_VAL_IMAGES
from maskperf.data.coco.index import CocoIndex

NUM_CATEGORIES = 80
NUM_COORDINATES = 41_697_368  # x and y counted separately
NUM_INSTANCES_AND_POLYGONS = 1_816_793


def check_benchmark_counts(train: CocoIndex, val: CocoIndex) -> list[str]:
    """Return one sentence for each count that is not the benchmark's; none for COCO 2017 read by `read_coco`.

    Source: the tensors of published benchmark results, made from train2017 with the same filter.
    """
    num_parts = len(train.labels) + len(train.point_offsets) - 1
    counts = (
        (train, "training images with an object", len(train.image_ids), NUM_TRAIN_IMAGES),
        (val, "validation images", len(val.image_ids), NUM_VAL_IMAGES),
        (train, "categories", len(train.category_ids), NUM_CATEGORIES),
        (val, "categories", len(val.category_ids), NUM_CATEGORIES),
        (train, "polygon coordinates (x and y counted separately)", train.points.size, NUM_COORDINATES),
        (train, "training objects and polygons (their sum)", num_parts, NUM_INSTANCES_AND_POLYGONS),
    )
    return [
        f"{index.json_path} has {found:,} {what}, but COCO 2017 has {expected:,}: "
        "the file is another one, or was changed or cut."
        for index, what, found, expected in counts
        if found != expected
    ]


def count_notices(train: CocoIndex, val: CocoIndex) -> list[str]:
    """Return one notice where the data is not COCO 2017, for a run that does not demand it."""
    mismatches = check_benchmark_counts(train, val)
    more = f" {len(mismatches)} counts differ." if len(mismatches) > 1 else ""
    return [
        f"not COCO 2017: {first}{more} That is right for other data, and the classes follow the file; where it is to "
        "be COCO 2017, get its files again (data.check_counts=true refuses others)"
        for first in mismatches[:1]
    ]
