from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskperf.data.images.sampler import (
    Sampling,
    aspect_groups,
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


def stream(first_step: int, **changes):
    return stream_batches(BY_ASPECT, sampling(**changes), first_step)


def as_lists(batches):
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize(("images", "batch_size", "steps"), [(117266, 16, 7330), (117266, 2, 58634), (96, 48, 3)])
def test_steps_per_epoch_is_one_more_than_the_whole_batches(images, batch_size, steps):
    assert steps_per_epoch(images, batch_size) == steps


def test_batches_follow_the_rule_worked_out_by_hand():
    groups = aspect_groups(np.array([(1, 2), (2, 1), (1, 2), (1, 1), (1, 2), (2, 1)], np.int32))
    # wide: 0 2 | 4; portrait or square: 1 3 | 5; ordered by first element
    assert as_lists(batches_of(groups, images_per_rank=2, shuffle=False)) == [[0, 2], [1, 3], [4], [5]]


def test_one_rank_sees_every_image_once_and_only_the_last_batch_of_a_group_is_short():
    batches = batches_of()
    assert sorted(np.concatenate(batches)) == list(range(25))
    is_portrait = SIZES_HW[:, 0] >= SIZES_HW[:, 1]
    assert all(len(set(is_portrait[batch])) == 1 for batch in batches)
    lengths = {group: [len(batch) for batch in batches if is_portrait[batch[0]] == group] for group in (False, True)}
    assert lengths == {False: [4, 4, 2], True: [4, 4, 4, 3]}


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


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stream_started_in_the_middle_goes_on_the_same(rank):
    whole = [(number, batch.tolist()) for number, batch in islice(stream(0, rank=rank, world=2), 30)]
    assert {number for number, _ in whole} >= {1, 2, 3}
    for first_step in (1, 3, 4, 5, 11, 20):
        part = [(number, batch.tolist()) for number, batch in islice(stream(first_step, rank=rank, world=2), 5)]
        assert part == whole[first_step : first_step + 5]


def test_a_stream_runs_through_its_passes_without_a_pause():
    found = list(islice(stream(0), 14))
    assert [number for number, _ in found] == [1] * 7 + [2] * 7
    assert as_lists(batch for _, batch in found[7:]) == as_lists(batches_of(pass_number=2))


@pytest.mark.parametrize(("world", "batch_size"), [(1, 1), (1, 4), (3, 2), (40, 1)])
def test_evaluation_takes_every_image_once_over_all_ranks(world, batch_size):
    ranks = [evaluation_order(SIZES_HW, batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    taken = [position for batches in ranks for batch in batches for position in batch.tolist()]
    assert sorted(taken) == list(range(25))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_evaluation_puts_like_aspects_together():
    ratios = SIZES_HW[:, 0] / SIZES_HW[:, 1]
    assert all(len(set(ratios[batch])) == 1 for batch in evaluation_order(SIZES_HW, batch_size=5, rank=0, world=1))
