import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_device import DEVICE, seeded

from maskperf.ops import sampling as plain
from maskperf.ops.kernels.sampling import BOXES_AT_A_TIME, CANDIDATES_AT_A_TIME, compact, draw_balanced
from maskperf.ops.sampling import Sample
from maskperf.seeds import derive_seed
from maskperf.structures import map_tensors


def draw_both_ways(
    positive: torch.Tensor, negative: torch.Tensor, seeds: torch.Tensor, num_samples: int, max_positive: int
) -> Sample:
    """Return what the kernels draw, after a comparison with the reference, bit for bit."""
    rule = {"num_samples": num_samples, "max_positive": max_positive}
    found = draw_balanced(positive.to(DEVICE), negative.to(DEVICE), seeds.to(DEVICE), **rule)
    expected = plain.draw_balanced(positive, negative, seeds, **rule)
    torch.testing.assert_close(vars(map_tensors(torch.Tensor.cpu, found)), vars(expected), rtol=0, atol=0)
    return expected


def random_kinds(images: int, count: int, shares: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.rand((images, count), generator=seeded(count))
    return values < shares[0], (values >= shares[0]) & (values < sum(shares))


SEEDS = torch.tensor([derive_seed(3, "sample", 1, image) for image in range(3)])


@pytest.mark.parametrize("count", [1, 255, BOXES_AT_A_TIME, 2 * BOXES_AT_A_TIME + 5])
@pytest.mark.parametrize("shares", [(0.3, 0.6), (0.001, 0.99), (0.97, 0.01), (0.02, 0.02), (0.0, 1.0), (0.0, 0.0)])
def test_equals_the_reference_on_any_number_of_boxes(count, shares):
    draw_both_ways(*random_kinds(3, count, shares), SEEDS, num_samples=256, max_positive=128)


@pytest.mark.parametrize(("num_samples", "max_positive"), [(1, 0), (1, 1), (7, 7), (512, 128), (3000, 3)])
def test_equals_the_reference_for_any_numbers_to_be_drawn(num_samples, max_positive):
    positive, negative = random_kinds(3, BOXES_AT_A_TIME + 900, (0.1, 0.8))
    sample = draw_both_ways(positive, negative, SEEDS, num_samples, max_positive)
    assert sample.positive.sum(dim=1).tolist() == [max_positive] * 3
    assert sample.valid.sum(dim=1).tolist() == [num_samples] * 3


def test_more_candidates_than_are_compared_at_a_time():
    count = 3 * CANDIDATES_AT_A_TIME.value
    everything = torch.ones((1, count), dtype=torch.bool)
    sample = draw_both_ways(~everything, everything, SEEDS[:1], count - 900, 10)
    assert sample.index.unique().numel() == count - 900
    draw_both_ways(everything, ~everything, SEEDS[:1], count, count - 900)


KINDS = st.lists(st.sampled_from("pni"), min_size=9, max_size=9)


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(KINDS, min_size=1, max_size=3),
    seed=st.integers(-(1 << 63), (1 << 63) - 5),
    num_samples=st.integers(1, 14),
    max_positive=st.integers(0, 14),
)
def test_equals_the_reference_for_any_seed(kinds, seed, num_samples, max_positive):
    positive = torch.tensor([[kind == "p" for kind in row] for row in kinds])
    negative = torch.tensor([[kind == "n" for kind in row] for row in kinds])
    seeds = torch.arange(len(kinds)) + seed
    draw_both_ways(positive, negative, seeds, num_samples, min(max_positive, num_samples))


def test_no_boxes_and_no_images():
    for shape in ((2, 0), (0, 7)):
        none = torch.zeros(shape, dtype=torch.bool)
        assert draw_both_ways(none, none, SEEDS[: shape[0]], 4, 2).index.shape == (shape[0], min(4, shape[1]))


@pytest.mark.parametrize("count", [1, 100, BOXES_AT_A_TIME, 2 * BOXES_AT_A_TIME + 77])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.95, 1.0])
def test_kept_boxes_come_first_in_both_orders(count, share):
    keep = torch.rand((3, count), generator=seeded(count)) < share
    for slots in {1, count // 3 + 1, count, count + 5}:
        assert torch.equal(compact(keep.to(DEVICE), slots).cpu(), plain.compact(keep, slots))


def test_masks_of_other_strides_are_read_right():
    positive, negative = random_kinds(300, 3, (0.3, 0.5))
    draw_both_ways(positive.T, negative.T, SEEDS, 20, 5)
    assert torch.equal(compact(positive.T.to(DEVICE), 50).cpu(), plain.compact(positive.T, 50))
