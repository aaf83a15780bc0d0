import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_files import problems_of

from maskperf.model.quantize import (
    describe_loss,
    load_stored_backbone,
    precision_loss,
    quantize_channels,
    store_backbone,
)
from maskperf.model.weights import write_tensor_file

CONV, NORM = "backbone.body.stem.conv1.weight", "backbone.body.stem.bn1.weight"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {CONV: torch.randn(6, 3, 7, 7), NORM: torch.rand(6) + 0.123456789}


def quantize_reference(weight):
    """One channel and one number at a time, in exact Python floats."""
    values = torch.zeros_like(weight, dtype=torch.int8)
    scales = torch.zeros(len(weight))
    for channel, numbers in enumerate(weight):
        scales[channel] = numbers.abs().max() / 127
        scale = float(scales[channel])
        for index in torch.cartesian_prod(*[torch.arange(side) for side in numbers.shape]).tolist():
            quotient = round(float(numbers[tuple(index)]) / scale) if scale else 0
            values[(channel, *index)] = max(-127, min(127, quotient))
    return values, scales


def test_int8_values_and_scales_of_a_small_case():
    weight = torch.tensor([[127.0, -63.4, 0.6], [0.0, 0.0, 0.0], [-254.0, 3.0, 1.0]]).reshape(3, 3, 1, 1)
    values, scales = quantize_channels(weight)
    assert scales.tolist() == [1.0, 0.0, 2.0]
    assert values.flatten(1).tolist() == [[127, -63, 1], [0, 0, 0], [-127, 2, 0]]  # 1.5 and 0.5 go to the even number


def test_int8_equals_the_slow_twin():
    torch.manual_seed(1)
    weight = torch.randn(5, 4, 3, 2) * torch.tensor([1e-3, 1.0, 0.0, 40.0, 1e-12]).reshape(5, 1, 1, 1)
    values, scales = quantize_channels(weight)
    slow_values, slow_scales = quantize_reference(weight)
    assert torch.equal(values, slow_values) and torch.equal(scales, slow_scales)


@settings(max_examples=60)
@given(st.lists(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100), min_size=1))
def test_the_int8_error_is_at_most_half_a_scale(numbers):
    weight = torch.tensor(numbers).reshape(1, -1, 1, 1)
    values, scales = quantize_channels(weight)
    error = (values.double() * scales.double() - weight.double()).abs().max()
    smallest = 2.0**-149  # a scale that is itself near the smallest float32 cannot be exact
    assert error <= scales.double().max() / 2 + 127 * smallest
    assert values.abs().max() <= 127


def test_float32_storage_is_equal_and_says_so(path, weights):
    losses = store_backbone(weights, path, "float32", metadata={"source": "R-50.pkl"})
    stored, metadata = load_stored_backbone(path)
    assert (metadata["storage"], metadata["source"]) == ("float32", "R-50.pkl")
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights.items())
    assert {(loss.snr_db, loss.max_absolute) for loss in losses} == {(math.inf, 0)}
    assert describe_loss(losses) == ["all tensors: equal to the original"]


@pytest.mark.parametrize(("storage", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_rounds_convolutions_and_leaves_batch_norms(path, weights, storage, bits):
    losses = store_backbone(weights, path, storage)
    stored, _ = load_stored_backbone(path)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert torch.equal(stored[NORM], weights[NORM])
    assert torch.equal(stored[CONV], weights[CONV].to(getattr(torch, storage)).float())
    relative = ((stored[CONV] - weights[CONV]) / weights[CONV]).abs().max()
    assert 2.0 ** -(bits + 1) < relative <= 2.0**-bits
    assert losses == precision_loss(weights, stored)


def test_int8_storage_restores_within_half_a_scale_and_is_four_times_smaller(tmp_path):
    weights = {CONV: torch.randn(64, 64, 3, 3), NORM: torch.rand(64)}
    for storage in ("float32", "int8"):
        store_backbone(weights, tmp_path / storage, storage)
    stored, _ = load_stored_backbone(tmp_path / "int8")
    assert stored.keys() == weights.keys() and torch.equal(stored[NORM], weights[NORM])
    scales = weights[CONV].flatten(1).abs().amax(1) / 127
    error = (stored[CONV] - weights[CONV]).abs().flatten(1).amax(1)
    assert bool((error <= scales * 0.50001).all()) and bool((error > scales * 0.4).all())
    assert (tmp_path / "int8").stat().st_size < 0.27 * (tmp_path / "float32").stat().st_size


def test_precision_loss_of_numbers_worked_out_by_hand():
    original = {"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([1.0]), "zero": torch.zeros(2)}
    restored = {"a": torch.tensor([3.0, -4.5]), "b": torch.tensor([1.0]), "zero": torch.tensor([0.0, 0.25])}
    losses = precision_loss(original, restored)
    overall, first, second, third = losses
    assert (first.max_absolute, first.max_relative) == (0.5, 0.125)
    assert first.snr_db == pytest.approx(20.0)  # 25 over 0.25
    assert (second.max_absolute, second.snr_db) == (0.0, math.inf)
    assert third.snr_db == -math.inf
    assert (overall.max_absolute, overall.max_relative) == (0.5, 0.25)
    assert overall.snr_db == pytest.approx(10 * math.log10(26 / 0.3125))
    lines = describe_loss(losses, num_worst=1)
    assert lines[0] == "all tensors: largest error 0.5 (25.00% of the largest magnitude), signal-to-noise 19.2 dB"
    assert [line.split(":")[0] for line in lines] == ["all tensors", "zero"]


def test_an_unknown_storage_is_named_with_the_choices(path, weights):
    with pytest.raises(ValueError, match="'int4' is not one of float32, float16, bfloat16, int8"):
        store_backbone(weights, path, "int4")


@pytest.mark.parametrize(
    ("storage", "number", "fix"),
    [(storage, math.nan, "Use intact weights") for storage in ("float32", "float16", "int8")]
    + [("float16", 1e5, "Store it as bfloat16")],
)
def test_numbers_that_a_storage_cannot_hold_are_refused(path, weights, storage, number, fix):
    weights[CONV][0, 0, 0, :2] = number
    (problem,) = problems_of(store_backbone, weights, path, storage)
    assert (problem.where, problem.value) == (f"tensor {CONV}", "2 of 882") and problem.fix.startswith(fix)
    assert not path.exists()


def test_an_int8_tensor_without_its_scales_is_a_problem(path):
    one = torch.ones(2, 1, 1, 1, dtype=torch.int8)
    tensors = {"one": one, "two": one.clone(), "two.int8_scale": torch.ones(3)}
    write_tensor_file(tensors, path, {"format": "maskperf-backbone", "storage": "int8"})
    problems = problems_of(load_stored_backbone, path)
    assert [(problem.where, problem.value) for problem in problems] == [
        ("tensor one.int8_scale", "missing"),
        ("tensor two.int8_scale", "(3,)"),
    ]


def test_a_file_of_another_kind_is_refused(path):
    write_tensor_file({"a": torch.ones(1)}, path, {})
    (problem,) = problems_of(load_stored_backbone, path)
    assert (problem.field, problem.value) == ("storage", "none") and problem.file == str(path)
