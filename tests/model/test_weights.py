import pickle
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from permissions import UMASKS, common_user, modes, open_folder, umask
from weight_files import TINY, assert_equal, problems_of

from maskperf.errors import DataError, StorageError
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import (
    load_model_weights,
    read_metadata,
    read_tensor_file,
    save_reference_state,
    save_state,
    write_tensor_file,
)

FULL_DEPTH = replace(TINY, stage_blocks=(3, 4, 6, 3), mask_head_convs=4)
METADATA = {"recipe": "demo", "category_ids": [1, 90], "category_names": ["person", "tooth brush"], "epoch": 3}
ANCHORS = "rpn.anchor_generator.cell_anchors."


def random_model(seed, **changes):
    torch.manual_seed(seed)
    model = MaskRcnn(replace(FULL_DEPTH, **changes))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model


def assert_same(model, other):
    assert_equal(model.state_dict(), other.state_dict())


def reference_state(model):
    """A state dict as the reference writes it, its anchors typed from the table of the benchmark's description."""
    state = dict(model.state_dict())
    state[f"{ANCHORS}0"] = torch.tensor([[-22.0, -10, 25, 13], [-14, -14, 17, 17], [-10, -22, 13, 25]])
    state[f"{ANCHORS}3"] = torch.tensor([[-164.0, -72, 195, 103], [-112, -112, 143, 143], [-76, -168, 107, 199]])
    return state


def test_the_reference_state_has_its_312_names_and_anchors(tmp_path):
    model = random_model(0)
    save_reference_state(model, tmp_path / "a.pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(content) == ["model"] and len(content["model"]) == 312
    for name, tensor in reference_state(model).items():
        assert torch.equal(content["model"][name], tensor), name
    assert content["model"]["roi_heads.mask.predictor.conv5_mask.weight"].is_contiguous()


def test_the_reference_state_of_trainable_batch_norms_needs_no_epsilon(tmp_path):
    model = random_model(0, batch_norm="trainable").eval()
    save_reference_state(model, tmp_path / "a.pth")
    frozen = random_model(1).eval()
    load_model_weights(frozen, tmp_path / "a.pth")
    pixels = torch.randn(1, 3, 64, 64)
    for mine, theirs in zip(model.features(pixels), frozen.features(pixels), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert len(torch.load(tmp_path / "a.pth", weights_only=True)["model"]) == 312


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_state_dict_is_loaded_bare_or_below_model_with_or_without_prefix(tmp_path, prefix, wrapped):
    source, model = random_model(0), random_model(1)
    state = OrderedDict((prefix + name, tensor) for name, tensor in reference_state(source).items())
    content = {"model": state, "optimizer": {"param_groups": [{"lr": 0.1}]}, "iteration": 7} if wrapped else state
    torch.save(content, tmp_path / "a.pth")
    notices = load_model_weights(model, tmp_path / "a.pth")
    assert_same(model, source)
    assert "307 tensors loaded" in notices[0] and "2 tensors of cell anchors equal" in notices[1]


def test_safetensors_give_back_every_bit_and_the_metadata(tmp_path):
    source, model, path = random_model(0), random_model(1), tmp_path / "a.safetensors"
    save_state(source.state_dict(), path, METADATA)
    assert read_metadata(path) == METADATA
    assert load_model_weights(model, path) == [f"{path}: 307 tensors loaded"]
    assert_same(model, source)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_counters_of_trainable_batch_norms_may_be_missing_or_left_out(tmp_path):
    trainable, frozen = random_model(0, batch_norm="trainable"), random_model(1)
    save_state(trainable.state_dict(), tmp_path / "trainable.safetensors", METADATA)
    assert "53 counters" in load_model_weights(frozen, tmp_path / "trainable.safetensors")[1]
    save_state(frozen.state_dict(), tmp_path / "frozen.safetensors", METADATA)
    other = random_model(2, batch_norm="trainable")
    assert "has no counters" in load_model_weights(other, tmp_path / "frozen.safetensors")[1]
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(tensor, trainable.state_dict()[name]) and torch.equal(tensor, other.state_dict()[name])


def test_all_differences_are_listed_and_the_model_is_left_alone(tmp_path):
    state = reference_state(random_model(0))
    del state["rpn.head.conv.bias"]
    state["rpn.head.extra"] = torch.ones(2)
    state["roi_heads.box.predictor.cls_score.bias"] = torch.ones(81)
    state["backbone.fpn.fpn_inner1.bias"] = torch.tensor([1.0, float("nan"), float("inf"), 0.0])
    state[f"{ANCHORS}0"] = state[f"{ANCHORS}0"] + 0.5
    state[f"{ANCHORS}3"] = torch.ones(1, 4)
    state[f"{ANCHORS}7"] = torch.ones(3, 4)
    torch.save({"model": state}, tmp_path / "a.pth")
    model, untouched = random_model(1), random_model(1)
    problems = problems_of(load_model_weights, model, tmp_path / "a.pth")
    assert {(problem.where.removeprefix("tensor "), problem.field) for problem in problems} == {
        ("rpn.head.conv.bias", "name"),
        ("rpn.head.extra", "name"),
        ("roi_heads.box.predictor.cls_score.bias", "shape"),
        ("backbone.fpn.fpn_inner1.bias", "values"),
        (f"{ANCHORS}0", "values"),
        (f"{ANCHORS}3", "shape"),
        (f"{ANCHORS}7", "name"),
    }
    assert len(problems) == 7
    assert all(problem.file == str(tmp_path / "a.pth") and problem.fix for problem in problems)
    assert_same(model, untouched)


def test_weights_of_other_classes_are_taken_but_for_the_predictors(tmp_path):
    source, model, untouched = (
        random_model(0, num_classes=5),
        random_model(1, num_classes=3),
        random_model(1, num_classes=3),
    )
    save_state(source.state_dict(), tmp_path / "a.safetensors", METADATA)
    with pytest.raises(DataError, match="model.num_classes"):
        load_model_weights(model, tmp_path / "a.safetensors")
    notices = load_model_weights(model, tmp_path / "a.safetensors", reset_predictors=True)
    kept = {
        name for name in model.state_dict() if "cls_score" in name or "bbox_pred.w" in name or "mask_fcn_logits" in name
    }
    kept = {name for name in kept if not name.startswith("rpn")} | {"roi_heads.box.predictor.bbox_pred.bias"}
    assert len(kept) == 6 and all(name in notices[1] for name in kept)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (untouched if name in kept else source).state_dict()[name]), name


@pytest.mark.parametrize(
    ("sizes", "where"), [((16, 64, 128, 256, 512), "tensor "), ((16, 32, 64, 128, 256), "5 tensors (")]
)
def test_other_anchors_are_one_problem_with_both_tables(tmp_path, sizes, where):
    save_reference_state(random_model(0, anchor_sizes=sizes), tmp_path / "a.pth")
    (problem,) = problems_of(load_model_weights, random_model(1), tmp_path / "a.pth")
    assert problem.where.startswith(f"{where}{ANCHORS}0") and "model.anchor_sizes" in problem.fix
    assert "[-14.0, -14.0, 17.0, 17.0]" in problem.message and "[-6.0, -6.0, 9.0, 9.0]" in problem.value


class Marker:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pth_that_runs_code_is_refused_and_not_run(tmp_path):
    torch.save({"model": {"a": Marker(tmp_path / "was_here")}}, tmp_path / "a.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Marker(tmp_path / "was_here"), protocol=2))
    model = random_model(0)
    for name in ("a.pth", "plain.pth"):
        (problem,) = problems_of(load_model_weights, model, tmp_path / name)
        assert problem.file == str(tmp_path / name) and "cannot be loaded as plain tensors" in problem.message
    assert not (tmp_path / "was_here").exists()


@pytest.fixture(params=["a.pth", "a.safetensors"])
def path(request, tmp_path):
    return tmp_path / request.param


def save(model, path):
    if path.suffix == ".pth":
        save_reference_state(model, path)
    else:
        save_state(model.state_dict(), path, METADATA)


def test_files_cut_short_or_of_another_kind_are_named(path):
    model = random_model(0)
    assert "no such file" in problems_of(load_model_weights, model, path)[0].message
    save(model, path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:3], whole[: len(whole) // 2], whole[:-1], b"text"):
        path.write_bytes(damaged)
        (problem,) = problems_of(load_model_weights, model, path)
        assert (problem.file, problem.field) == (str(path), "content")


@pytest.mark.parametrize(
    ("content", "field"),
    [([1, 2], "content"), ({"model": 3}, "content"), ({"model": {"a": 1}}, "entry a"), ({"epoch": 1}, "entry epoch")],
)
def test_content_that_is_no_state_dict_is_refused(tmp_path, content, field):
    torch.save(content, tmp_path / "a.pth")
    (problem,) = problems_of(load_model_weights, random_model(0), tmp_path / "a.pth")
    assert problem.field == field


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensor_file({"a": torch.ones(8), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}, path, {})
    assert read_tensor_file(path)[0]["b"] == 3
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    assert problems_of(read_tensor_file, path)[0].field == "tensors_sha256"


def test_metadata_of_another_format_is_refused(tmp_path):
    write_tensor_file({"a": torch.ones(1)}, tmp_path / "other.safetensors", {"format": "pt"})
    assert problems_of(read_metadata, tmp_path / "other.safetensors")[0].value == "pt"


def test_a_failed_save_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_state(random_model(0).state_dict(), path, METADATA)
    before = path.read_bytes()

    def full_disk(tensors, temporary, metadata):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskperf.model.weights.save_file", full_disk)
    with pytest.raises(StorageError, match=r"a\.safetensors: cannot be written.*No space left"):
        save_state(random_model(1).state_dict(), path, METADATA)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_impossible_folder_is_a_storage_error(path):
    with pytest.raises(StorageError, match="cannot be written"):
        save(random_model(0), path.parent / "none" / path.name)


@pytest.mark.parametrize("mask", UMASKS)
def test_files_have_the_permissions_of_the_umask_also_over_older_ones(path, mask):
    path.touch(mode=0o600)
    with umask(mask):
        save(random_model(0), path)
    assert modes(path.parent) == {path.name: f"{0o666 & ~mask:o}"}


def test_a_file_that_this_user_may_not_read_is_no_damaged_file(path):
    model = random_model(0)
    with open_folder() as folder:
        save(model, folder / path.name)
        (folder / path.name).chmod(0)
        with common_user():
            (problem,) = problems_of(load_model_weights, model, folder / path.name)
    assert problem.message == "cannot be read: Permission denied." and "permission" in problem.fix
