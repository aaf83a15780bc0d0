"""The order of images where every batch fills a bucket, the same in all processes."""

from collections import Counter
from itertools import count, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskperf.config import DataConfig
from maskperf.data.images.buckets import group_numbers, image_buckets
from maskperf.data.images.sampler import Sampling, bucket_stream
from maskperf.seeds import derive_seed

BENCHMARK = DataConfig()
TRAIN_IMAGES = 117_266  # of COCO 2017 that are trained on
# Height x width of 170 photographs of COCO 2017 (101 of train2017, 69 of val2017) and how many have it, from the
# annotations of subsets that were published with the repositories COCO128, COCO-MINI, COCO_Tiny and tiny_coco_dataset.
COCO_SIZES_HW = """
    480x640:37 427x640:20 640x480:12 640x427:9 375x500:7 426x640:7 428x640:7 425x640:5 334x500:3 500x375:3 333x500:2
    383x640:2 429x640:2 481x640:2 640x426:2 640x621:2 240x320:1 313x500:1 320x640:1 346x500:1 364x640:1 371x640:1
    377x500:1 382x640:1 388x640:1 393x640:1 400x500:1 406x500:1 406x640:1 407x640:1 408x640:1 414x640:1 418x640:1
    420x640:1 422x640:1 423x640:1 424x640:1 432x640:1 449x640:1 461x614:1 461x640:1 478x640:1 483x640:1 484x640:1
    489x640:1 498x640:1 500x351:1 506x640:1 511x640:1 522x640:1 536x640:1 559x640:1 593x600:1 600x450:1 612x612:1
    640x383:1 640x424:1 640x425:1 640x428:1 640x449:1 640x512:1 640x516:1 640x628:1 640x634:1
"""

group_lists = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(
    lambda groups: np.unique(groups, return_inverse=True)[1]
)


def sampling(**changes) -> Sampling:
    return Sampling(**{"seed": 7, "rank": 0, "world": 1, "images_per_rank": 4, "shuffle": True, **changes})


def stream(groups, first_step=0, **changes):
    return bucket_stream(groups, sampling(**changes), first_step)


def as_lists(drawn):
    return [(passes.tolist(), positions.tolist()) for passes, positions in drawn]


def steps_in(groups, num_passes: int, batch_size: int) -> int:
    return sum(num_passes * number // batch_size for number in Counter(groups.tolist()).values())


def one_image_after_the_other(groups, *, seed: int, batch_size: int):
    """Yield the same batches, by the rule as it is stated."""
    waiting = {group: [] for group in groups.tolist()}
    for pass_number in count(1):
        order = np.random.default_rng(derive_seed(seed, "order", pass_number)).permutation(len(groups))
        for position in order.tolist():
            batch = waiting[int(groups[position])]
            batch.append((pass_number, position))
            if len(batch) == batch_size:
                yield [number for number, _ in batch], [position for _, position in batch]
                batch.clear()


def coco_sizes_hw(num_images: int) -> np.ndarray:
    """Return the sizes of so many images, as frequent as among the photographs."""
    entries = [entry.replace("x", ":").split(":") for entry in COCO_SIZES_HW.split()]
    sizes, counts = np.split(np.array(entries, np.int64), [2], axis=1)
    shares = counts[:, 0] / counts.sum()
    return sizes[np.random.default_rng(0).choice(len(sizes), num_images, p=shares)]


def test_batches_follow_the_rule_worked_out_by_hand():
    found = stream(np.array([0, 1, 0, 0, 1]), images_per_rank=2, shuffle=False)
    assert as_lists(islice(found, 7)) == [
        *[([1, 1], [0, 2]), ([1, 1], [1, 4])],  # 3 waits
        *[([1, 2], [3, 0]), ([2, 2], [2, 3]), ([2, 2], [1, 4])],
        *[([3, 3], [0, 2]), ([3, 3], [1, 4])],
    ]


@given(group_lists, st.integers(1, 9), st.integers(0, 99), st.integers(0, 30))
def test_batches_are_those_of_one_image_after_the_other(groups, batch_size, seed, first_step):
    expected = islice(one_image_after_the_other(groups, seed=seed, batch_size=batch_size), first_step, first_step + 8)
    found = stream(groups, first_step, seed=seed, images_per_rank=batch_size)
    assert as_lists(islice(found, 8)) == list(expected)


@given(group_lists, st.sampled_from([1, 2, 8]), st.integers(1, 3), st.integers(1, 5))
def test_every_image_comes_once_a_pass_up_to_those_that_wait(groups, world, images_per_rank, num_passes):
    batch_size = world * images_per_rank
    steps = steps_in(groups, num_passes, batch_size)
    drawn = Counter()
    for rank in range(world):
        for passes, positions in islice(stream(groups, rank=rank, world=world, images_per_rank=images_per_rank), steps):
            assert len(passes) == len(positions) == images_per_rank
            drawn.update(zip(passes.tolist(), positions.tolist(), strict=True))
    every = {(number, position) for number in range(1, num_passes + 1) for position in range(len(groups))}
    assert set(drawn) <= every
    assert set(drawn.values()) <= {1}
    waiting = Counter(int(groups[position]) for _, position in every - set(drawn))
    assert all(number < batch_size for number in waiting.values())


@pytest.mark.parametrize("world", [2, 8])
def test_all_processes_have_one_group_in_a_step_and_together_the_batch_of_one(world):
    groups = np.random.default_rng(1).integers(0, 5, 200)
    whole = islice(stream(groups, images_per_rank=16), 40)
    ranks = [islice(stream(groups, rank=rank, world=world, images_per_rank=16 // world), 40) for rank in range(world)]
    for (passes, positions), *parts in zip(whole, *ranks, strict=True):
        assert len(set(groups[positions])) == 1
        assert [number for part, _ in parts for number in part] == passes.tolist()
        assert [position for _, part in parts for position in part] == positions.tolist()


def test_groups_come_in_random_order_and_so_do_images():
    groups = np.repeat([0, 1], 400)
    drawn = list(islice(stream(groups, images_per_rank=8), 100 * 40))
    kinds = np.array([groups[positions[0]] for _, positions in drawn])
    changes = (kinds[1:] != kinds[:-1]).mean()
    assert 0.6 < changes < 0.95  # not one group after the other, nor strictly in turn; 0.8 as both fill at an even pace
    steps = np.zeros(len(groups))
    for step, (_, positions) in enumerate(drawn):
        steps[positions] += step % 100
    means = steps / 40  # of 40 passes, in steps of 100: 49.5 expected, standard deviation 4.6
    assert means.min() > 30 and means.max() < 70
    assert means[:400].mean() == pytest.approx(means[400:].mean(), abs=1)


def test_a_group_smaller_than_a_batch_waits_until_it_fills_one():
    groups = np.array([0, 0, 0, 1])
    drawn = list(islice(stream(groups, images_per_rank=2, world=4), 20))
    lonely = [passes.tolist() for passes, positions in drawn if 3 in positions]
    assert lonely == [[1, 2], [9, 10], [17, 18], [25, 26], [33, 34]]  # the first process's part of eight passes


@pytest.mark.parametrize(("images_per_rank", "num_passes"), [(12, 2), (2, 1), (32, 2)])
def test_eight_processes_on_sizes_of_coco_meet_six_shapes_and_one_bucket_a_step(images_per_rank, num_passes):
    world = 8
    batch_size = world * images_per_rank
    sizes = image_buckets(coco_sizes_hw(TRAIN_IMAGES), BENCHMARK, min_images=batch_size)
    groups = group_numbers(sizes)
    steps = steps_in(groups, num_passes, batch_size)
    assert TRAIN_IMAGES * num_passes - 6 * batch_size < steps * batch_size
    shapes = set()
    options = {"world": world, "images_per_rank": images_per_rank}
    for parts in zip(*(islice(stream(groups, rank=rank, **options), steps) for rank in range(world)), strict=True):
        of_step = {(*sizes[positions[0]].tolist(), len(positions)) for _, positions in parts}
        assert len(of_step) == 1
        shapes |= of_step
        assert all((groups[positions] == groups[parts[0][1][0]]).all() for _, positions in parts)
    assert len(shapes) == 6
