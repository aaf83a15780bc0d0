import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskperf.config import DataConfig
from maskperf.data.images.canvas import canvas_buckets, canvas_groups, canvas_of, padding_share, resized_sizes_hw
from maskperf.data.images.sampler import aspect_groups, rank_batches
from maskperf.data.images.transforms import target_size_hw

BENCHMARK = DataConfig()
# Height and width of the images 9 to 49 in a published copy of the annotations of val2017, in its order.
SOME_OF_COCO = np.array(
    [
        *((427, 640), (486, 500), (480, 640), (426, 640), (640, 428), (640, 428), (429, 640), (375, 500), (427, 640)),
        *((480, 640), (640, 425), (427, 640), (640, 426), (480, 640), (480, 640), (332, 500), (426, 640), (640, 426)),
        *((480, 640), (428, 640), (640, 358), (428, 640), (368, 640), (428, 640), (426, 640), (480, 640), (357, 500)),
        *((424, 640), (427, 640), (427, 640), (444, 640), (375, 500), (640, 478), (427, 640), (320, 640), (640, 480)),
        *((640, 480), (334, 500), (480, 640), (480, 640), (426, 640)),
    ]
)

configs = st.builds(
    DataConfig, short_side=st.integers(1, 900), long_side=st.integers(1, 1500), size_divisor=st.integers(1, 128)
)
size_lists = st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), min_size=1, max_size=20)


def test_the_benchmark_has_three_canvases_each_way():
    sides = (1088, 1216, 1344)
    assert canvas_buckets(BENCHMARK) == tuple(pair for side in sides for pair in ((side, 800), (800, side)))


@pytest.mark.parametrize(
    ("size_hw", "canvas"),
    [
        ((480, 640), (800, 1088)),
        ((427, 640), (800, 1216)),
        ((426, 640), (800, 1216)),
        ((640, 424), (1216, 800)),
        ((360, 640), (800, 1344)),
        ((640, 200), (1344, 800)),
        ((640, 640), (1088, 800)),  # a square counts as upright, as in the reference
        ((100, 801), (800, 1344)),
    ],
)
def test_an_image_has_the_smallest_canvas_that_holds_it(size_hw, canvas):
    resized = target_size_hw(size_hw, 800, 1333)
    assert canvas_of(resized, canvas_buckets(BENCHMARK), 32) == canvas


def test_an_image_larger_than_all_canvases_has_its_own():
    sizes_hw = np.array([(1, 5000), (480, 640), (1, 4990), (5000, 1)])
    assert resized_sizes_hw(sizes_hw, BENCHMARK).tolist() == [[1, 5000], [800, 1066], [1, 4990], [5000, 1]]
    assert canvas_of((1, 5000), canvas_buckets(BENCHMARK), 32) == (32, 5024)
    groups = canvas_groups(sizes_hw, BENCHMARK).tolist()
    assert len(set(groups)) == 4  # 5024 x 32, 800 x 1088, 4992 x 32, 32 x 5024


@given(configs, size_lists)
def test_every_image_has_one_canvas_and_no_smaller_one_would_do(data, sizes_hw):
    canvases = canvas_buckets(data)
    assert len(set(canvases)) == len(canvases) <= 6
    assert {(width, height) for height, width in canvases} == set(canvases)
    resized = resized_sizes_hw(np.array(sizes_hw), data).tolist()
    assert resized == [list(target_size_hw(size, data.short_side, data.long_side)) for size in sizes_hw]
    groups = canvas_groups(np.array(sizes_hw), data).tolist()
    found = [canvas_of((height, width), canvases, data.size_divisor) for height, width in resized]
    for (height, width), canvas in zip(resized, found, strict=True):
        assert height <= canvas[0]
        assert width <= canvas[1]
        assert canvas[0] % data.size_divisor == canvas[1] % data.size_divisor == 0
        smaller = [other for other in canvases if other[0] * other[1] < canvas[0] * canvas[1]]
        assert canvas not in canvases or all(height > other[0] or width > other[1] for other in smaller)
    pairs = set(zip(groups, found, strict=True))
    assert len(pairs) == len(set(groups)) == len(set(found))


@given(configs, size_lists)
def test_a_batch_of_one_group_has_the_canvas_of_its_images(data, sizes_hw):
    canvases, resized = canvas_buckets(data), resized_sizes_hw(np.array(sizes_hw), data)
    groups = canvas_groups(np.array(sizes_hw), data)
    for group in set(groups.tolist()):
        own = resized[groups == group]
        largest = (int(own[:, 0].max()), int(own[:, 1].max()))
        assert canvas_of(largest, canvases, data.size_divisor) == canvas_of(
            tuple(own[0].tolist()), canvases, data.size_divisor
        )


def test_padding_is_counted_in_pixels():
    data = DataConfig(short_side=32, long_side=64, size_divisor=32)
    sizes_hw = np.array([(32, 64), (32, 33), (32, 32)])
    assert padding_share(sizes_hw, [np.array([0])], data) == 0
    assert padding_share(sizes_hw, [np.array([0, 1]), np.array([2])], data) == pytest.approx(31 / 160)
    assert padding_share(sizes_hw, [np.array([2])], data, ((64, 32),)) == 0.5
    assert padding_share(sizes_hw, [], data) == 1


def test_buckets_save_padding_on_sizes_of_coco():
    sizes_hw = np.tile(SOME_OF_COCO, (25, 1))  # 1025 images
    shares = {}
    for name, groups, canvases in (
        ("reference", aspect_groups(sizes_hw), ()),
        ("buckets", canvas_groups(sizes_hw, BENCHMARK), ()),
        ("buckets of fixed size", canvas_groups(sizes_hw, BENCHMARK), canvas_buckets(BENCHMARK)),
        ("two fixed sizes", aspect_groups(sizes_hw), ((800, 1344), (1344, 800))),
    ):
        batches = rank_batches(groups, seed=1, pass_number=1, rank=0, world=1, images_per_rank=12, shuffle=True)
        shares[name] = padding_share(sizes_hw, batches, BENCHMARK, canvases)
    assert shares["buckets"] <= shares["buckets of fixed size"] < shares["reference"] <= shares["two fixed sizes"]
    assert shares["buckets of fixed size"] < 0.05
