import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from small_release import BACKBONE, backbone_arrays

from maskperf import errors
from maskperf.engine.build import build_model
from maskperf.model.backbone_file import load_backbone
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import load_model_weights, read_header, read_metadata, read_tensor_file, save_state
from maskperf.overrides import from_json_text, to_json_text, with_overrides
from maskperf.recipes import coco

SIZES = [
    *BACKBONE,
    *("model.num_classes=3", "model.fpn_channels=4", "model.box_head_channels=4", "model.mask_head_channels=4"),
]
CONV = "backbone.body.layer2.0.conv2.weight"


def config_of(*pairs):
    return with_overrides(coco(), ["model.backbone_weights=", *SIZES, *pairs])


def write_run_model(path, *pairs):
    """Write a model as a run does, and return it."""
    config = config_of(*pairs)
    model, _ = build_model(config.model, seed=5)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and "running_var" in name:
            tensor.uniform_(0.5, 1.5)
    metadata = {
        "recipe": "coco",
        "category_ids": [3, 7],
        "category_names": ["cup", "dog"],
        "config": to_json_text(config),
    }
    save_state(model.state_dict(), path, metadata)
    return model


def write_backbone_pickle(path):
    """Write a small backbone as Detectron would, and return its arrays."""
    classifier = {"fc1000_w": np.ones((2, 3), np.float32), "fc1000_b": np.ones(2, np.float32)}
    blobs = {**classifier, **backbone_arrays()}
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    return blobs


def stored_backbone(path):
    return load_backbone(path, MaskRcnn(config_of().model).state_dict())[0]


@pytest.fixture
def convert(maskperf):
    """Return a function that converts a file and returns what was shown, its errors where another code is expected."""

    def run(*arguments, code=errors.EXIT_DONE):
        shown = maskperf("convert", *arguments)
        assert shown.code == code, shown.err
        return shown.out if code == errors.EXIT_DONE else shown.err

    return run


def test_a_pickle_becomes_a_file_that_a_model_can_load_and_nothing_else_is_written(convert, tmp_path):
    blobs = write_backbone_pickle(Path("R.pkl"))
    shown = convert("backbone", "R.pkl", "R-new.safetensors", *BACKBONE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R-new.safetensors", "R.pkl"]
    tensors = stored_backbone("R-new.safetensors")
    assert np.array_equal(tensors[CONV].numpy(), blobs["res3_0_branch2b_w"])
    assert np.array_equal(tensors["backbone.body.stem.bn1.bias"].numpy(), blobs["res_conv1_bn_b"])
    assert "all tensors: equal to the original" in shown and "written: R-new.safetensors (float32)" in shown
    assert "is not that (" in shown  # the MD5 of the benchmark's file


@pytest.mark.parametrize(("storage", "kind"), [("float16", torch.float16), ("int8", torch.int8)])
def test_fewer_bits_cost_what_is_printed(convert, storage, kind):
    blobs = write_backbone_pickle(Path("R.pkl"))
    shown = convert("backbone", "--storage", storage, "R.pkl", "small.safetensors", *BACKBONE)
    assert read_tensor_file("small.safetensors")[0][CONV].dtype == kind
    exact, restored = torch.from_numpy(blobs["res3_0_branch2b_w"]), stored_backbone("small.safetensors")[CONV]
    assert 0 < (exact - restored).abs().max() < 0.02 * exact.abs().max()
    assert all(part in shown for part in ("all tensors: largest error", "signal-to-noise", f"({storage})"))


def test_a_converted_backbone_can_be_converted_again_and_names_its_origin_only_if_it_is_exact(convert):
    write_backbone_pickle(Path("R.pkl"))
    convert("backbone", "R.pkl", "exact.safetensors", *BACKBONE)
    convert("backbone", "exact.safetensors", "small.safetensors", *BACKBONE, "--storage", "int8")
    convert("backbone", "small.safetensors", "again.safetensors", *BACKBONE)
    exact, small, again = (read_header(Path(f"{name}.safetensors")) for name in ("exact", "small", "again"))
    assert small["source_sha256"] == exact["source_sha256"] and "source_sha256" not in again
    assert again["source"] == "small.safetensors"
    assert torch.equal(stored_backbone("again.safetensors")[CONV], stored_backbone("small.safetensors")[CONV])


@pytest.fixture
def reference(convert):
    """Return a function that writes a run's model, converts it to model.pth, and returns it with what was shown."""

    def run(*pairs):
        model = write_run_model("model.safetensors", *pairs)
        return model, convert("model", "model.safetensors", "model.pth")

    return run


def write_categories(path, *categories):
    image = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}
    Path(path).write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))


def test_a_model_comes_back_from_the_reference_form_bit_by_bit(convert, reference):
    model, _ = reference()
    assert list(torch.load("model.pth", weights_only=True)) == ["model"]
    write_categories("two.json", {"id": 7, "name": "dog"}, {"id": 3, "name": "cup"})
    shown = convert("model", "model.pth", "back.safetensors", "--categories", "two.json", *SIZES)
    assert "written: back.safetensors" in shown
    tensors, metadata = read_tensor_file("back.safetensors")[0], read_metadata("back.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert (metadata["category_ids"], metadata["category_names"]) == ([3, 7], ["cup", "dog"])
    assert from_json_text(metadata["config"]).model == config_of().model


def test_without_categories_the_file_has_no_labels_and_a_notice_is_shown(convert, reference):
    model, _ = reference()
    assert "--categories FILE" in convert("model", "model.pth", "bare.safetensors", *SIZES)
    assert read_header(Path("bare.safetensors")).keys() == {"tensors_sha256"}
    other, _ = build_model(config_of().model, seed=6)
    load_model_weights(other, "bare.safetensors")
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_trainable_batch_norms_lose_their_epsilon_to_the_variances_exactly_once(convert, reference):
    model, shown = reference("model.batch_norm=trainable")
    assert "epsilon of the batch norms" in shown
    convert("model", "model.pth", "back.safetensors", *SIZES)
    tensors = read_tensor_file("back.safetensors")[0]
    name = "backbone.body.stem.bn1.running_var"
    assert torch.equal(tensors[name], model.state_dict()[name] + 1e-5)
    assert not any(name.endswith("num_batches_tracked") for name in tensors)


MODEL = ["model", "model.pth", "b.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["backbone", "R.pkl", "b.safetensors"], "R.pkl: 159 tensors (conv1_w, "),  # of other sizes
        (["backbone", "none.pkl", "b.safetensors"], "none.pkl: whole file, field path"),
        (["backbone", "none.safetensors", "b.safetensors"], "none.safetensors: whole file, field path"),
        ([*MODEL, "--categories", "one.json", *SIZES], "one.json: the list of categories, field categories, value 1 "),
        (MODEL, "this model has 64; "),  # without metadata it is taken for that of COCO
    ],
)
def test_files_that_do_not_fit_are_refused(convert, reference, arguments, named):
    reference()
    write_backbone_pickle(Path("R.pkl"))
    write_categories("one.json", {"id": 7, "name": "dog"})
    assert named in convert(*arguments, code=errors.EXIT_DATA)
    assert not Path("b.safetensors").exists()


@pytest.mark.parametrize(("kind", "source"), [("backbone", "a.pkl"), ("model", "a.pth")])
def test_no_file_is_written_over(convert, kind, source):
    Path(source).write_text("x")
    Path("b.safetensors").write_text("precious")
    assert "b.safetensors: exists already" in convert(kind, source, "b.safetensors", code=errors.EXIT_STORAGE)
    assert Path("b.safetensors").read_text() == "precious"
