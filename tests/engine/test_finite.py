import pytest
import torch

from maskperf.engine.finite import any_not_finite

CPU = torch.device("cpu")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 7, 99])
def test_one_bad_number_anywhere_is_found(bad, place):
    tensors = [torch.randn(5), torch.randn(100), torch.zeros(0)]
    assert any_not_finite(tensors, CPU) == 0
    tensors[1][place] = bad
    assert any_not_finite(tensors, CPU) == 1


def test_large_finite_numbers_are_no_fault():
    assert any_not_finite([torch.full((10,), 3.4e38), torch.full((10,), -3.4e38)], CPU) == 0


def test_numbers_of_half_precision_are_judged_as_they_are():
    assert any_not_finite([torch.tensor([65504.0], dtype=torch.float16)], CPU) == 0
    assert any_not_finite([torch.tensor([70000.0]).to(torch.float16)], CPU) == 1


def test_no_numbers_are_no_fault():
    assert any_not_finite([], CPU) == 0
