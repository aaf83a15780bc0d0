import pytest
import torch

from maskperf.engine.finite import any_not_finite, largest_magnitude, smallest_and_largest

CPU = torch.device("cpu")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 7, 99])
def test_one_bad_number_anywhere_is_found(bad, place):
    tensors = [torch.randn(5), torch.randn(100), torch.zeros(0)]
    assert any_not_finite(tensors, CPU) == 0
    tensors[1][place] = bad
    assert any_not_finite(tensors, CPU) == 1


def test_large_finite_numbers_are_no_problem():
    assert any_not_finite([torch.full((10,), 3.4e38), torch.full((10,), -3.4e38)], CPU) == 0


def test_numbers_of_half_precision_are_judged_as_they_are():
    assert any_not_finite([torch.tensor([65504.0], dtype=torch.float16)], CPU) == 0
    assert any_not_finite([torch.tensor([70000.0]).to(torch.float16)], CPU) == 1


@pytest.mark.parametrize("way", [smallest_and_largest, largest_magnitude])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_both_ways_tell_the_same(way, bad):
    tensors = [torch.randn(3, 4), torch.tensor([1.0, bad, -1.0]), torch.tensor(2.0)]
    assert bool(torch.isfinite(way(tensors)).all()) == (bad == 3e38)


def test_no_numbers_are_no_problem():
    assert any_not_finite([], CPU) == 0
