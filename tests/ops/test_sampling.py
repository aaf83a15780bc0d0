from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskperf.ops.sampling import compact, draw_balanced, random_keys
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


def drawn(positive: torch.Tensor, negative: torch.Tensor, seeds: torch.Tensor, **rule: int) -> list[torch.Tensor]:
    """Return which boxes are drawn as positives and which as negatives."""
    sample = draw_balanced(positive, negative, seeds, **rule)
    kinds = (sample.positive, sample.valid & ~sample.positive)
    return [torch.zeros(positive.shape, dtype=torch.int64).scatter_add(1, sample.index, kind.long()) for kind in kinds]


def random_bools(*shape: int, share: float, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def test_splitmix64_has_the_published_numbers():
    # Widely published test vector of the generator for the seed 1234567.
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(max_examples=80)
@given(seed=st.integers(-(1 << 63), (1 << 63) - 1), count=st.integers(0, 50))
def test_keys_are_the_upper_62_bits_of_splitmix64(seed, count):
    keys = random_keys(torch.tensor([seed]), count)
    assert keys.shape == (1, count)
    assert keys[0].tolist() == [number >> 2 for number in splitmix64(seed, count)]


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


@pytest.mark.parametrize("quota", [2, 3])
def test_every_subset_is_equally_likely(quota):
    eligible = bools([[1, 0, 1, 1, 0, 1, 1]]).repeat(5000, 1)
    chosen, others = drawn(
        eligible, torch.zeros_like(eligible), torch.arange(5000), num_samples=quota, max_positive=quota
    )
    seen = Counter(tuple(row.nonzero().flatten().tolist()) for row in chosen)
    assert set(seen) == set(combinations([0, 2, 3, 5, 6], quota))
    assert chi_square(list(seen.values())) < CHI_SQUARE_LIMIT[9]
    assert not others.any()


def test_positives_and_negatives_are_drawn_independently():
    # One of 3 positives and three of 4 negatives: 12 pairs of subsets.
    positive = bools([[1, 1, 0, 0, 1, 0, 0]]).repeat(6000, 1)
    chosen = sum(drawn(positive, ~positive, torch.arange(6000) * 7919, num_samples=4, max_positive=1))
    seen = Counter(tuple(row.nonzero().flatten().tolist()) for row in chosen)
    assert len(seen) == 12
    assert {sum(index in (0, 1, 4) for index in subset) for subset in seen} == {1}
    assert chi_square(list(seen.values())) < CHI_SQUARE_LIMIT[11]


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
    chosen = drawn(positive, negative, torch.tensor([9]), num_samples=256, max_positive=128)
    assert (chosen[0].sum().item(), chosen[1].sum().item()) == expected


@settings(max_examples=150)
@given(
    kinds=st.integers(0, 9).flatmap(
        lambda boxes: st.lists(st.lists(st.sampled_from("pni"), min_size=boxes, max_size=boxes), min_size=1, max_size=4)
    ),
    seed=st.integers(0, (1 << 62) - 5),
    num_samples=st.integers(1, 14),
    share=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_each_image_draws_the_boxes_of_largest_keys_positives_first(kinds, seed, num_samples, share):
    positive, negative = (bools([[kind == wanted for kind in row] for row in kinds]) for wanted in "pn")
    seeds, max_positive = torch.arange(len(kinds)) + seed, int(num_samples * share)
    sample = draw_balanced(positive, negative, seeds, num_samples=num_samples, max_positive=max_positive)
    assert sample.index.shape == (len(kinds), min(num_samples, len(kinds[0])))
    for image, row in enumerate(kinds):
        keys = random_keys(seeds[[image]], len(row))[0].tolist()
        by_key = sorted(range(len(row)), key=lambda index, keys=keys: -keys[index])
        positives = sorted([index for index in by_key if row[index] == "p"][:max_positive])
        negatives = sorted([index for index in by_key if row[index] == "n"][: num_samples - len(positives)])
        unused = sample.index.shape[1] - len(positives) - len(negatives)
        assert sample.index[image].tolist() == positives + negatives + [0] * unused
        assert sample.positive[image].sum() == sample.positive[image, : len(positives)].sum() == len(positives)
        assert sample.valid[image].tolist() == [True] * len(positives + negatives) + [False] * unused


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
