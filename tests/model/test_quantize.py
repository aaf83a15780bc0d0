import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskperf.errors import DataError, StorageError
from maskperf.model.quantize import (
    describe_loss,
    load_stored_backbone,
    precision_loss,
    quantize_channels,
    restore_channels,
    store_backbone,
)
from maskperf.model.weights import write_tensor_file

CONV, NORM = "backbone.body.stem.conv1.weight", "backbone.body.stem.bn1.weight"


def backbone():
    torch.manual_seed(0)
    return {CONV: torch.randn(6, 3, 7, 7), NORM: torch.rand(6) + 0.123456789}


def quantize_reference(weight):
    """One channel and one number at a time, in exact Python floats."""
    values = torch.zeros_like(weight, dtype=torch.int8)
    scales = torch.zeros(len(weight))
    for channel, numbers in enumerate(weight):
        scales[channel] = numbers.abs().max() / 127
        scale = float(scales[channel])
        for place in torch.cartesian_prod(*[torch.arange(side) for side in numbers.shape]).tolist():
            quotient = round(float(numbers[tuple(place)]) / scale) if scale else 0
            values[(channel, *place)] = max(-127, min(127, quotient))
    return values, scales


def test_int8_values_and_scales_of_a_small_case():
    weight = torch.tensor([[127.0, -63.4, 0.6], [0.0, 0.0, 0.0], [-254.0, 3.0, 1.0]]).reshape(3, 3, 1, 1)
    values, scales = quantize_channels(weight)
    assert scales.tolist() == [1.0, 0.0, 2.0]
    assert values.flatten(1).tolist() == [[127, -63, 1], [0, 0, 0], [-127, 2, 0]]  # 1.5 and 0.5 go to the even number
    assert restore_channels(values, scales).flatten(1).tolist() == [[127, -63, 1], [0, 0, 0], [-254, 4, 0]]


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


def test_float32_storage_is_equal_and_says_so(tmp_path):
    weights = backbone()
    loss = store_backbone(weights, tmp_path / "a.safetensors", "float32", metadata={"source": "R-50.pkl"})
    stored = load_stored_backbone(tmp_path / "a.safetensors")
    assert stored.storage == "float32" and stored.metadata["source"] == "R-50.pkl"
    assert all(torch.equal(stored.weights[name], tensor) for name, tensor in weights.items())
    assert loss.overall.snr_db == math.inf and loss.overall.max_absolute == 0
    assert describe_loss(loss) == ["all tensors: equal to the original"]


@pytest.mark.parametrize(("storage", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_rounds_convolutions_and_keeps_batch_norms(tmp_path, storage, bits):
    weights = backbone()
    loss = store_backbone(weights, tmp_path / "a.safetensors", storage)
    stored = load_stored_backbone(tmp_path / "a.safetensors").weights
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert torch.equal(stored[NORM], weights[NORM])
    assert torch.equal(stored[CONV], weights[CONV].to(getattr(torch, storage)).float())
    relative = ((stored[CONV] - weights[CONV]) / weights[CONV]).abs().max()
    assert 2.0 ** -(bits + 1) < relative <= 2.0**-bits
    assert loss == precision_loss(weights, stored)


def test_int8_storage_restores_within_half_a_scale_and_is_four_times_smaller(tmp_path):
    weights = {CONV: torch.randn(64, 64, 3, 3), NORM: torch.rand(64)}
    store_backbone(weights, tmp_path / "full.safetensors", "float32")
    store_backbone(weights, tmp_path / "int8.safetensors", "int8")
    stored = load_stored_backbone(tmp_path / "int8.safetensors").weights
    assert stored.keys() == weights.keys() and torch.equal(stored[NORM], weights[NORM])
    scales = weights[CONV].flatten(1).abs().amax(1) / 127
    error = (stored[CONV] - weights[CONV]).abs().flatten(1).amax(1)
    assert bool((error <= scales * 0.50001).all()) and bool((error > scales * 0.4).all())
    sizes = [(tmp_path / name).stat().st_size for name in ("full.safetensors", "int8.safetensors")]
    assert sizes[1] < 0.27 * sizes[0]


def test_precision_loss_of_numbers_worked_out_by_hand():
    original = {"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([1.0]), "zero": torch.zeros(2)}
    restored = {"a": torch.tensor([3.0, -4.5]), "b": torch.tensor([1.0]), "zero": torch.tensor([0.0, 0.25])}
    loss = precision_loss(original, restored)
    first, second, third = loss.tensors
    assert (first.max_absolute, first.max_relative) == (0.5, 0.125)
    assert first.snr_db == pytest.approx(20.0)  # 25 over 0.25
    assert (second.max_absolute, second.snr_db) == (0.0, math.inf)
    assert third.snr_db == -math.inf
    assert (loss.overall.max_absolute, loss.overall.max_relative) == (0.5, 0.25)
    assert loss.overall.snr_db == pytest.approx(10 * math.log10(26 / 0.3125))
    lines = describe_loss(loss, num_worst=1)
    assert lines[0] == "all tensors: largest error 0.5 (25.00% of the largest magnitude), signal-to-noise 19.2 dB"
    assert [line.split(":")[0] for line in lines] == ["all tensors", "zero"]


def test_an_unknown_storage_is_named_with_the_choices(tmp_path):
    with pytest.raises(ValueError, match="'int4' is not one of float32, float16, bfloat16, int8"):
        store_backbone(backbone(), tmp_path / "a.safetensors", "int4")


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_nan_is_not_stored(tmp_path, storage):
    weights = backbone()
    weights[CONV][0, 0, 0, 0] = math.nan
    with pytest.raises(DataError) as caught:
        store_backbone(weights, tmp_path / "a.safetensors", storage)
    (problem,) = caught.value.problems
    assert (problem.where, problem.value) == (f"tensor {CONV}", "1 of 882")
    assert not (tmp_path / "a.safetensors").exists()


def test_numbers_beyond_float16_are_not_stored_as_infinity(tmp_path):
    weights = backbone()
    weights[CONV][0, 0, 0, :2] = 1e5
    with pytest.raises(DataError, match="value 2 of 882.*Store it as bfloat16") as caught:
        store_backbone(weights, tmp_path / "a.safetensors", "float16")
    assert len(caught.value.problems) == 1
    store_backbone(weights, tmp_path / "a.safetensors", "bfloat16")


def test_a_file_cut_short_or_changed_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    store_backbone(backbone(), path, "int8")
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for damaged in (whole[:4], whole[: header - 3], whole[:-1], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.safetensors.*Fix:"):
            load_stored_backbone(path)
    path.write_bytes(whole[:header] + bytes([whole[header] ^ 1]) + whole[header + 1 :])
    with pytest.raises(DataError, match="changed after they were written"):
        load_stored_backbone(path)


def test_an_int8_tensor_without_its_scales_is_a_problem(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"one": torch.ones(2, 1, 1, 1, dtype=torch.int8), "two": torch.ones(2, 1, 1, 1, dtype=torch.int8)}
    tensors["two.int8_scale"] = torch.ones(3)
    write_tensor_file(tensors, path, {"format": "maskperf-backbone", "storage": "int8"})
    with pytest.raises(DataError) as caught:
        load_stored_backbone(path)
    assert [(problem.where, problem.value) for problem in caught.value.problems] == [
        ("tensor one.int8_scale", "missing"),
        ("tensor two.int8_scale", "(3,)"),
    ]


def test_a_file_of_another_kind_is_refused(tmp_path):
    write_tensor_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {})
    with pytest.raises(DataError, match="not written as a stored backbone"):
        load_stored_backbone(tmp_path / "a.safetensors")


def test_a_folder_that_does_not_exist_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        store_backbone(backbone(), tmp_path / "none" / "a.safetensors", "float32")
