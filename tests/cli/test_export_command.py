"""`maskperf export`: files of other runtimes, verified on data, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_weights import write_small_weights

from maskperf.errors import EXIT_RULE, EXIT_STORAGE, EXIT_USAGE
from maskperf.export import formats

ONE_THREAD = ("--set", "system.threads=1")


@pytest.fixture
def export(weights, new_process):
    """Return a function that exports in a process of its own: what checks types here is no part of a graph."""

    def run(form, name, *more, path=weights):
        command = ("-m", "maskperf", "export", path, "--format", form, "--out", name)
        done = new_process(*command, *more, *ONE_THREAD)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def assert_verified(out, images=4):
    assert f"verified on {images} images of" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("box AP", "mask AP"))]
    assert len(rows) == 2 and all(float(row[2]) == float(row[5]) for row in rows)
    assert "0 have no partner" in out


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # TorchScript, by PyTorch
def test_torchscript_is_verified_on_the_data_of_the_run(maskperf, weights, tmp_path):
    shown = maskperf("export", weights, "--format", "torchscript", "--out", "model.pt", *ONE_THREAD)
    assert shown.code == 0, shown.err
    assert_verified(shown.out)
    content = {formats.METADATA_KEY: ""}
    network = torch.jit.load(str(tmp_path / "model.pt"), _extra_files=content)
    contract = json.loads(content[formats.METADATA_KEY])
    assert contract["size_hw"] == [96, 96] and contract["short_side"] == 64 and len(contract["category_ids"]) == 8
    boxes, scores, labels, masks = network(torch.zeros(1, 96, 96, 3, dtype=torch.uint8), torch.tensor([[96, 96]]))
    assert boxes.shape == (1, 20, 4) and scores.shape == labels.shape == (1, 20) and masks.shape == (1, 20, 28, 28)


@pytest.mark.slow
def test_onnx_has_standard_operators_alone_and_gives_the_same_ap(export, tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    assert_verified(export("onnx", "model.onnx", "--dynamic-batch"))
    assert formats.foreign_operators(tmp_path / "model.onnx") == []
    run = formats.open_exported(tmp_path / "model.onnx", form="onnx")
    for count in (1, 3):
        outputs = run(np.zeros((count, 96, 96, 3), np.uint8), np.array([[96, 96]] * count))
        assert [output.shape for output in outputs] == [(count, 20, 4), (count, 20), (count, 20), (count, 20, 28, 28)]


@pytest.mark.slow
@pytest.mark.parametrize("conventions", ["torchvision", "detectron2", "mmdetection"])
def test_onnx_of_other_conventions_gives_the_same_ap(conventions, export, tmp_path):
    """Those of detectron2 and mmdetection have the RoiAlign of onnxruntime, which is not of maskperf."""
    pytest.importorskip("onnxruntime")
    path, _ = write_small_weights(tmp_path / "other", images=4, pairs=(f"model.conventions={conventions}",))
    assert_verified(export("onnx", "model.onnx", path=path))
    nodes = {node.op_type for node in pytest.importorskip("onnx").load(tmp_path / "model.onnx").graph.node}
    assert ("RoiAlign" in nodes) == (conventions != "torchvision")


def test_a_format_without_an_operator_of_the_conventions_is_refused(maskperf, tmp_path):
    path, _ = write_small_weights(tmp_path / "other", images=1, pairs=("model.conventions=detectron2",))
    shown = maskperf("export", path, "--format", "torchscript", "--out", "model.pt", *ONE_THREAD)
    assert shown.code == EXIT_USAGE and "detectron2" in shown.err and "Fix: --format onnx" in shown.err
    assert not Path("model.pt").exists()


@pytest.mark.slow
def test_torch_export_gives_the_same_ap(export):
    assert_verified(export("torch-export", "model.pt2", "--images", "3"), images=3)


def test_without_data_random_images_are_compared_and_that_is_said(maskperf, weights, tmp_path):
    away = ("--set", f"data.root={tmp_path / 'nowhere'}")
    shown = maskperf("export", weights, "--format", "torchscript", "--out", "model.pt", *away, *ONE_THREAD)
    assert shown.code == 0, shown.err
    assert "verified on random images alone" in shown.out and "0 have no partner" in shown.out


def test_a_comparison_of_nothing_is_said(maskperf, weights):
    blind = ("--set", "model.score_threshold=0.999", "--images", "1")
    shown = maskperf("export", weights, "--format", "torchscript", "--out", "model.pt", *blind, *ONE_THREAD)
    assert shown.code == 0 and "note: nothing was found on these images, so nothing was compared. Fix: " in shown.out


@pytest.mark.parametrize("has_data", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_file_that_differs_is_refused_and_not_kept(maskperf, weights, tmp_path, monkeypatch, has_data):
    honest = formats.open_exported

    def moved(path, *, form):
        run = honest(path, form=form)

        def wrong(images, sizes_hw):
            boxes, scores, labels, masks = run(images, sizes_hw)
            return [boxes + 30 * (scores > 0)[..., None], scores, labels, masks]

        return wrong

    monkeypatch.setattr(formats, "open_exported", moved)
    monkeypatch.setattr("maskperf.export.verify.MOST_AP", -1.0)  # random weights have an AP of 0, moved or not
    more = () if has_data else ("--set", f"data.root={tmp_path / 'nowhere'}")
    shown = maskperf("export", weights, "--format", "torchscript", "--out", "model.pt", *more, *ONE_THREAD)
    assert shown.code == EXIT_RULE and "No file was written" in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        (["--format", "torchscript", "--dynamic-batch"], EXIT_USAGE, "fixed batch"),
        (["--format", "onnx", "--size", "100x100"], EXIT_USAGE, "multiples of 32"),
        (["--format", "coreml"], EXIT_USAGE, "coreml"),
        (["--format", "onnx", "--out", "there.onnx"], EXIT_STORAGE, "exists already"),
    ],
)
def test_mistakes_are_found_first(maskperf, weights, tmp_path, more, code, text):
    (tmp_path / "there.onnx").write_text("")
    shown = maskperf("export", weights, *(more if "--out" in more else [*more, "--out", "model.x"]))
    assert (shown.code, text in shown.err) == (code, True), shown.err


def test_without_onnxscript_the_error_says_what_to_install(maskperf, weights, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    shown = maskperf("export", weights, "--format", "onnx", "--out", "model.onnx", *ONE_THREAD)
    assert shown.code == EXIT_USAGE and "pip install 'maskperf[export]'" in shown.err
