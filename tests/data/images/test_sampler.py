from collections import Counter
from itertools import count, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskperf.config import DataConfig
from maskperf.data.images.buckets import group_numbers, image_buckets
from maskperf.data.images.sampler import (
    Sampling,
    aspect_groups,
    bucket_stream,
    evaluation_order,
    rank_batches,
    steps_per_epoch,
    stream_batches,
)
from maskperf.seeds import derive_seed

SIZES_HW = np.array([(480, 640), (640, 480), (500, 500), (300, 640), (640, 300)] * 5, np.int32)  # 25 images
BY_ASPECT, AS_ONE = aspect_groups(SIZES_HW), np.zeros(25, np.int64)


def sampling(**changes) -> Sampling:
    return Sampling(**{"seed": 7, "rank": 0, "world": 1, "images_per_rank": 4, "shuffle": True, **changes})


def batches_of(groups=BY_ASPECT, pass_number=1, **changes):
    return rank_batches(groups, sampling(**changes), pass_number)


def as_lists(batches):
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize(("images", "batch_size", "steps"), [(117266, 16, 7330), (117266, 2, 58634), (96, 48, 3)])
def test_steps_per_epoch_is_one_more_than_the_whole_batches(images, batch_size, steps):
    assert steps_per_epoch(images, batch_size) == steps


def reference_batches(sizes_hw, settings: Sampling, pass_number: int):
    """Return the batches as the reference makes them, one image after the other."""
    order = np.random.default_rng(derive_seed(settings.seed, "order", pass_number)).permutation(len(sizes_hw)).tolist()
    length = -(-len(order) // settings.world)
    while len(order) < length * settings.world:
        order += order[: length * settings.world - len(order)]
    batches, open_batches = [], {}
    for position in order[settings.rank * length : (settings.rank + 1) * length]:
        is_wide = sizes_hw[position][0] < sizes_hw[position][1]
        if len(open_batches.get(is_wide, [0] * settings.images_per_rank)) == settings.images_per_rank:
            open_batches[is_wide] = []
            batches.append(open_batches[is_wide])
        open_batches[is_wide].append(position)
    return batches


sizes = st.tuples(st.integers(1, 900), st.integers(1, 900))
worlds = st.integers(1, 5).flatmap(lambda world: st.tuples(st.integers(0, world - 1), st.just(world)))


@given(st.lists(sizes, min_size=1, max_size=40), worlds, st.integers(1, 6), st.integers(0, 99))
def test_two_groups_give_the_order_of_the_reference(sizes_hw, rank_of_world, images_per_rank, seed):
    rank, world = rank_of_world
    settings = sampling(seed=seed, rank=rank, world=world, images_per_rank=images_per_rank)
    found = rank_batches(aspect_groups(np.array(sizes_hw)), settings, 2)
    assert as_lists(found) == reference_batches(sizes_hw, settings, 2)


@given(st.lists(st.integers(-3, 9), min_size=1, max_size=60), worlds, st.integers(1, 6), st.integers(0, 99))
def test_batches_of_any_groups_share_one_permutation_in_its_order(groups, rank_of_world, images_per_rank, seed):
    rank, world = rank_of_world
    groups = np.array(groups)
    batches = batches_of(groups, seed=seed, rank=rank, world=world, images_per_rank=images_per_rank)
    assert all(len(set(groups[batch])) == 1 for batch in batches)
    short = [int(groups[batch[0]]) for batch in batches if len(batch) < images_per_rank]
    assert len(short) == len(set(short))  # one in a group at most
    (whole,) = batches_of(np.zeros_like(groups), seed=seed, images_per_rank=len(groups))
    block = np.resize(whole, -(-len(groups) // world) * world).reshape(world, -1)[rank]
    assert sorted(np.concatenate(batches)) == sorted(block)
    firsts = [block.tolist().index(batch[0]) for batch in batches]
    assert world > len(groups) or firsts == sorted(firsts)


def test_passes_and_seeds_differ_and_repeat():
    first, again, *others = map(as_lists, (batches_of(), batches_of(), batches_of(pass_number=2), batches_of(seed=8)))
    assert first == again and first not in others


def test_a_stream_runs_through_its_passes_without_a_pause():
    passes, positions = zip(*islice(stream_batches(BY_ASPECT, sampling()), 14), strict=True)
    assert [set(numbers.tolist()) for numbers in passes] == [{1}] * 7 + [{2}] * 7
    assert as_lists(positions) == as_lists(batches_of()) + as_lists(batches_of(pass_number=2))


@pytest.mark.parametrize(("world", "batch_size"), [(1, 1), (1, 4), (3, 2), (40, 1)])
def test_evaluation_takes_every_image_once_over_all_ranks(world, batch_size):
    ranks = [evaluation_order(SIZES_HW, batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    taken = [position for batches in ranks for batch in batches for position in batch.tolist()]
    assert sorted(taken) == list(range(25))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_evaluation_puts_like_aspects_together():
    ratios = SIZES_HW[:, 0] / SIZES_HW[:, 1]
    assert all(len(set(ratios[batch])) == 1 for batch in evaluation_order(SIZES_HW, batch_size=5, rank=0, world=1))


# ---- every batch fills a bucket

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


def bucket_batches(groups, **changes):
    return bucket_stream(groups, sampling(**changes))


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


@given(group_lists, st.integers(1, 9), st.integers(0, 99))
def test_batches_are_those_of_one_image_after_the_other(groups, batch_size, seed):
    expected = one_image_after_the_other(groups, seed=seed, batch_size=batch_size)
    found = map(as_lists, bucket_batches(groups, seed=seed, images_per_rank=batch_size))
    for passes_and_positions, other in islice(zip(found, expected, strict=True), 38):
        assert passes_and_positions == list(other)


@given(group_lists, st.sampled_from([1, 2, 8]), st.integers(1, 3), st.integers(1, 5))
def test_every_image_comes_once_a_pass_up_to_those_that_wait(groups, world, images_per_rank, num_passes):
    batch_size = world * images_per_rank
    steps = steps_in(groups, num_passes, batch_size)
    drawn = Counter()
    for rank in range(world):
        for passes, positions in islice(
            bucket_batches(groups, rank=rank, world=world, images_per_rank=images_per_rank), steps
        ):
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
    whole = islice(bucket_batches(groups, images_per_rank=16), 40)
    ranks = [
        islice(bucket_batches(groups, rank=rank, world=world, images_per_rank=16 // world), 40) for rank in range(world)
    ]
    for (passes, positions), *parts in zip(whole, *ranks, strict=True):
        assert len(set(groups[positions])) == 1
        assert [number for part, _ in parts for number in part] == passes.tolist()
        assert [position for _, part in parts for position in part] == positions.tolist()


def test_groups_come_in_random_order_and_so_do_images():
    groups = np.repeat([0, 1], 400)
    drawn = list(islice(bucket_batches(groups, images_per_rank=8), 100 * 40))
    kinds = np.array([groups[positions[0]] for _, positions in drawn])
    changes = (kinds[1:] != kinds[:-1]).mean()
    assert 0.6 < changes < 0.95  # not one group after the other, nor strictly in turn; 0.8 as both fill at an even pace
    steps = np.zeros(len(groups))
    for step, (_, positions) in enumerate(drawn):
        steps[positions] += step % 100
    means = steps / 40  # of 40 passes, in steps of 100: 49.5 expected, standard deviation 4.6
    assert means.min() > 30 and means.max() < 70
    assert means[:400].mean() == pytest.approx(means[400:].mean(), abs=1)


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
    for parts in zip(
        *(islice(bucket_batches(groups, rank=rank, **options), steps) for rank in range(world)), strict=True
    ):
        of_step = {(*sizes[positions[0]].tolist(), len(positions)) for _, positions in parts}
        assert len(of_step) == 1
        shapes |= of_step
        assert all((groups[positions] == groups[parts[0][1][0]]).all() for _, positions in parts)
    assert len(shapes) == 6
