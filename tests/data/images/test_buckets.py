import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskperf.config import DataConfig
from maskperf.data.images.buckets import bucket_sizes, group_numbers, image_buckets, padded_size
from maskperf.data.images.transforms import target_size_hw

BENCHMARK = DataConfig()

sides = st.tuples(st.integers(1, 900), st.integers(1, 1500), st.integers(1, 128))
size_lists = st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), min_size=1, max_size=20)


def test_the_benchmark_has_three_buckets_each_way():
    sides = (1088, 1216, 1344)
    assert bucket_sizes(BENCHMARK) == tuple(pair for side in sides for pair in ((side, 800), (800, side)))


@pytest.mark.parametrize(
    ("size_hw", "bucket"),
    [
        ((480, 640), (800, 1088)),
        ((427, 640), (800, 1216)),
        ((426, 640), (800, 1216)),
        ((640, 424), (1216, 800)),
        ((360, 640), (800, 1344)),
        ((640, 200), (1344, 800)),
        ((640, 640), (1088, 800)),  # a square counts as portrait, as in the reference
        ((100, 801), (800, 1344)),
        ((1, 5000), (32, 5024)),  # larger than all buckets
    ],
)
def test_an_image_has_the_smallest_bucket_that_holds_it(size_hw, bucket):
    assert padded_size(target_size_hw(size_hw, 800, 1333), bucket_sizes(BENCHMARK), 32) == bucket
    assert image_buckets(np.array([size_hw]), BENCHMARK).tolist() == [list(bucket)]


@given(sides, size_lists)
def test_every_image_has_one_bucket_and_no_smaller_one_would_do(sides, sizes_hw):
    data = DataConfig(short_side=sides[0], long_side=sides[1], size_divisor=sides[2])
    buckets = bucket_sizes(data)
    assert len(set(buckets)) == len(buckets) <= 6
    assert {(width, height) for height, width in buckets} == set(buckets)
    resized = [target_size_hw(size, data.short_side, data.long_side) for size in sizes_hw]
    found = [tuple(size) for size in image_buckets(np.array(sizes_hw), data).tolist()]
    assert found == [padded_size(size, buckets, data.size_divisor) for size in resized]
    for (height, width), bucket in zip(resized, found, strict=True):
        assert height <= bucket[0]
        assert width <= bucket[1]
        assert bucket[0] % data.size_divisor == bucket[1] % data.size_divisor == 0
        smaller = [other for other in buckets if other[0] * other[1] < bucket[0] * bucket[1]]
        assert bucket not in buckets or all(height > other[0] or width > other[1] for other in smaller)
    groups = group_numbers(np.array(found)).tolist()
    assert len(set(zip(groups, found, strict=True))) == len(set(groups)) == len(set(found))
    for bucket in set(found):  # a batch of one group has the padded size of its images
        own = np.array([size for size, other in zip(resized, found, strict=True) if other == bucket])
        assert padded_size(tuple(own.max(axis=0).tolist()), buckets, data.size_divisor) == bucket


def test_images_of_a_bucket_that_few_have_join_a_larger_one():
    sizes_hw = np.array([(480, 640)] * 5 + [(427, 640)] * 2 + [(360, 640)] * 3 + [(640, 427)] + [(640, 480)])
    small, middle, large = (800, 1088), (800, 1216), (800, 1344)

    def buckets(min_images: int) -> list[tuple[int, int]]:
        return [tuple(bucket) for bucket in image_buckets(sizes_hw, BENCHMARK, min_images=min_images).tolist()]

    apart = [small] * 5 + [middle] * 2 + [large] * 3 + [(1216, 800), (1088, 800)]
    assert buckets(1) == apart
    assert buckets(2) == [*apart[:-1], (1216, 800)]
    assert buckets(3) == [small] * 5 + [large] * 5 + [(1216, 800)] * 2
    assert buckets(6) == [middle] * 7 + [large] * 3 + [(1216, 800)] * 2  # the images of the largest stay alone
    assert buckets(8) == [large] * 10 + [(1216, 800)] * 2
    alone = np.array([(427, 640), (640, 480)])
    assert image_buckets(alone, BENCHMARK, min_images=9).tolist() == [[800, 1216], [1088, 800]]  # none is larger
    outsize = np.array([(1, 5000), (480, 640)])
    assert image_buckets(outsize, BENCHMARK, min_images=9).tolist() == [[32, 5024], [800, 1088]]
