from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskperf.ops.sampling import choose_random, compact, draw_balanced, random_keys, sample_balanced_reference
from maskperf.seeds import derive_seed

MASK_64 = (1 << 64) - 1
# Values that chi-square of so many degrees of freedom passes once in 10,000 times.
CHI_SQUARE_LIMIT = {9: 33.72, 11: 37.37, 15: 44.26}


def splitmix64(seed: int, count: int) -> list[int]:
    """Return the first numbers of SplitMix64 (Steele, Lea and Flood 2014) in whole-number arithmetic."""
    state, numbers = seed & MASK_64, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK_64
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK_64
        numbers.append(mixed ^ (mixed >> 31))
    return numbers


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def bools(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def random_bools(*shape: int, share: float, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def test_the_twin_has_the_published_numbers():
    # Widely published test vector of the generator for the seed 1234567.
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_keys_are_the_upper_62_bits_of_splitmix64():
    seeds = [0, 1, 1234567, (1 << 62) - 1, 1 << 40, -1, -(1 << 63), derive_seed(3, "sample", 1, 42)]
    keys = random_keys(torch.tensor(seeds), 50)
    assert keys.tolist() == [[number >> 2 for number in splitmix64(seed, 50)] for seed in seeds]


@settings(max_examples=80)
@given(seed=st.integers(-(1 << 63), (1 << 63) - 1), count=st.integers(0, 20))
def test_keys_equal_the_twin_for_any_seed(seed, count):
    keys = random_keys(torch.tensor([seed]), count)
    assert keys.shape == (1, count)
    assert keys[0].tolist() == [number >> 2 for number in splitmix64(seed, count)]
    assert all(0 <= key < 1 << 62 for key in keys[0].tolist())


@pytest.mark.parametrize("shift", [58, 31, 0], ids=["upper bits", "middle bits", "lower bits"])
@pytest.mark.parametrize(("seeds", "count"), [(1, 32_000), (320, 100), (32_000, 1)])
def test_keys_are_uniform_within_a_seed_and_over_neighbouring_seeds(seeds, count, shift):
    keys = random_keys(torch.arange(1000, 1000 + seeds), count)
    counts = torch.bincount(((keys >> shift) & 15).flatten(), minlength=16).tolist()
    assert chi_square(counts) < CHI_SQUARE_LIMIT[15]


def test_keys_of_different_images_are_different():
    seeds = torch.tensor([derive_seed(7, "sample", 1, image) for image in range(200)])
    keys = random_keys(seeds, 200)
    assert keys.unique().numel() == 200 * 200


@pytest.mark.parametrize(("quota", "num_eligible"), [(2, 5), (3, 5)])
def test_every_subset_is_equally_likely(quota, num_eligible):
    eligible = bools([[1, 0, 1, 1, 0, 1, 1]]).repeat(5000, 1)
    keys = random_keys(torch.arange(5000), 7)
    chosen = choose_random(eligible, keys, quota, torch.full((5000,), quota))
    seen = Counter(tuple(row.nonzero().flatten().tolist()) for row in chosen)
    assert set(seen) == set(combinations([0, 2, 3, 5, 6], quota))
    assert chi_square(list(seen.values())) < CHI_SQUARE_LIMIT[9]


def test_positives_and_negatives_are_drawn_independently():
    # One of 3 positives and three of 4 negatives: 12 pairs of subsets.
    positive = bools([[1, 1, 0, 0, 1, 0, 0]]).repeat(6000, 1)
    seeds = torch.arange(6000) * 7919
    chosen = sample_balanced_reference(positive, ~positive, seeds, num_samples=4, positive_fraction=0.25)
    seen = Counter(tuple(row.nonzero().flatten().tolist()) for row in chosen[0] | chosen[1])
    assert len(seen) == 12
    assert {sum(index in (0, 1, 4) for index in subset) for subset in seen} == {1}
    assert chi_square(list(seen.values())) < CHI_SQUARE_LIMIT[11]


def test_the_largest_keys_of_the_eligible_are_chosen():
    keys = torch.tensor([[50, 90, 10, 70, 30], [1, 2, 3, 4, 5]])
    eligible = bools([[1, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    chosen = choose_random(eligible, keys, 3, torch.tensor([2, 3]))
    assert chosen.tolist() == bools([[1, 0, 0, 1, 0], [1, 1, 1, 0, 0]]).tolist()
    all_of_eight = torch.ones((5, 8), dtype=torch.bool)
    chosen = choose_random(all_of_eight, random_keys(torch.arange(5), 8), 4, torch.tensor([0, 1, 3, 4, 7]))
    assert chosen.sum(dim=1).tolist() == [0, 1, 3, 4, 4]  # each image its own count, none more than the limit


def test_every_eligible_one_is_chosen_when_the_quota_is_large():
    eligible = random_bools(6, 40, share=0.3, seed=0)
    chosen = choose_random(eligible, random_keys(torch.arange(6), 40), 1000, torch.full((6,), 1000))
    assert torch.equal(chosen, eligible)


def test_without_boxes_a_sample_is_empty_and_the_box_head_takes_at_most_a_quarter_positives():
    for positive, expected in (
        (random_bools(3, 2000, share=0.5, seed=2), ([128] * 3, [384] * 3)),
        (torch.zeros((3, 0), dtype=torch.bool), ([0] * 3, [0] * 3)),
    ):
        chosen = sample_balanced_reference(
            positive, ~positive, torch.arange(3), num_samples=512, positive_fraction=0.25
        )
        assert tuple(kind.sum(dim=1).tolist() for kind in chosen) == expected


@pytest.mark.parametrize(
    ("num_positive", "num_negative", "expected"),
    [
        (500, 2000, (128, 128)),  # plenty of both
        (128, 2000, (128, 128)),
        (3, 2000, (3, 253)),  # few positives: negatives fill the rest
        (0, 2000, (0, 256)),
        (500, 40, (128, 40)),  # few negatives: positives do not fill the rest
        (3, 5, (3, 5)),
        (500, 0, (128, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_numbers_of_the_rpn_sample(num_positive, num_negative, expected):
    order = torch.randperm(2600, generator=torch.Generator().manual_seed(1))
    positive = (order < num_positive)[None]
    negative = ((order >= 600) & (order < 600 + num_negative))[None]
    chosen = sample_balanced_reference(positive, negative, torch.tensor([9]), num_samples=256, positive_fraction=0.5)
    assert (chosen[0].sum().item(), chosen[1].sum().item()) == expected


ANY_SAMPLE = given(
    kinds=st.lists(st.lists(st.sampled_from("pni"), min_size=9, max_size=9), min_size=1, max_size=4),
    seed=st.integers(0, (1 << 62) - 5),
    num_samples=st.integers(1, 14),
    positive_fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)


@settings(max_examples=80)
@ANY_SAMPLE
def test_a_sample_is_within_its_kind_and_exactly_as_large_as_the_rule_says(kinds, seed, num_samples, positive_fraction):
    positive = bools([[kind == "p" for kind in row] for row in kinds])
    negative = bools([[kind == "n" for kind in row] for row in kinds])
    seeds = torch.arange(len(kinds)) + seed
    rule = {"num_samples": num_samples, "positive_fraction": positive_fraction}
    chosen_positive, chosen_negative = sample_balanced_reference(positive, negative, seeds, **rule)
    assert not bool((chosen_positive & ~positive).any())
    assert not bool((chosen_negative & ~negative).any())
    for image, row in enumerate(kinds):
        num_positive = min(row.count("p"), int(num_samples * positive_fraction))
        assert chosen_positive[image].sum().item() == num_positive
        assert chosen_negative[image].sum().item() == min(row.count("n"), num_samples - num_positive)
        alone = sample_balanced_reference(positive[[image]], negative[[image]], seeds[[image]], **rule)
        assert torch.equal(alone[0][0], chosen_positive[image])
        assert torch.equal(alone[1][0], chosen_negative[image])


@settings(max_examples=80)
@ANY_SAMPLE
def test_drawn_indices_are_the_boxes_of_the_sample(kinds, seed, num_samples, positive_fraction):
    positive = bools([[kind == "p" for kind in row] for row in kinds])
    negative = bools([[kind == "n" for kind in row] for row in kinds])
    seeds = torch.arange(len(kinds)) + seed
    rule = {"num_samples": num_samples, "positive_fraction": positive_fraction}
    wanted_positive, wanted_negative = sample_balanced_reference(positive, negative, seeds, **rule)
    sample = draw_balanced(positive, negative, seeds, **rule)
    assert sample.index.shape == (len(kinds), min(num_samples, 9))
    assert not bool((sample.positive & ~sample.valid).any())
    for image in range(len(kinds)):
        positives = sample.index[image][sample.positive[image]].tolist()
        negatives = sample.index[image][sample.valid[image] & ~sample.positive[image]].tolist()
        assert sorted(positives) == wanted_positive[image].nonzero().flatten().tolist()
        assert sorted(negatives) == wanted_negative[image].nonzero().flatten().tolist()
        # positives, negatives, empty places
        order = (2 * sample.valid[image].int() + sample.positive[image].int()).tolist()
        assert order == sorted(order, reverse=True)


def test_an_image_draws_the_same_wherever_it_stands_in_the_batch():
    positive = random_bools(6, 300, share=0.3, seed=3)
    negative = ~positive & random_bools(6, 300, share=0.8, seed=4)
    seeds = torch.tensor([derive_seed(0, "sample", 2, image) for image in range(6)])
    rule = {"num_samples": 40, "positive_fraction": 0.5}
    together = sample_balanced_reference(positive, negative, seeds, **rule)
    order = torch.tensor([4, 0, 5, 1])
    shuffled = sample_balanced_reference(positive[order], negative[order], seeds[order], **rule)
    for all_six, four in zip(together, shuffled, strict=True):
        assert torch.equal(all_six[order], four)
    assert not torch.equal(together[0][0], together[0][1])


def test_boxes_that_are_not_eligible_can_be_appended_without_effect():
    positive = random_bools(2, 100, share=0.4, seed=5)
    seeds = torch.tensor([11, 12])
    rule = {"num_samples": 20, "positive_fraction": 0.5}
    short = sample_balanced_reference(positive, ~positive, seeds, **rule)
    more = torch.zeros((2, 33), dtype=torch.bool)
    long = sample_balanced_reference(torch.cat([positive, more], 1), torch.cat([~positive, more], 1), seeds, **rule)
    for without, with_more in zip(short, long, strict=True):
        assert torch.equal(torch.cat([without, more], 1), with_more)


def test_compact_puts_the_kept_first_and_keeps_both_orders():
    keep = bools([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert compact(keep, 4).tolist() == [[1, 3, 4, 0], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert compact(keep, 2).tolist() == [[1, 3], [0, 1], [0, 1]]
    assert compact(bools([[0, 1, 1]]), 10).tolist() == [[1, 2, 0]]  # no more than there are


def test_compact_equals_a_sort_by_hand_on_many_boxes():
    keep = random_bools(3, 5000, share=0.2, seed=6)
    index = compact(keep, 3000)
    for image, row in enumerate(keep.tolist()):
        expected = [i for i, kept in enumerate(row) if kept] + [i for i, kept in enumerate(row) if not kept]
        assert index[image].tolist() == expected[:3000]
