"""Mistakes that are found before anything heavy is imported or anything is made, and that are shown once."""

import pytest

from maskperf.engine.distributed import claim_device
from maskperf.errors import EXIT_DATA, EXIT_STORAGE, EXIT_USAGE, ConfigError
from maskperf.run import start

CODE = "import sys; from maskperf.cli.main import main; code = main(); print(*sys.modules); sys.exit(code)"


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ("run coco data.root=nowhere model.backbone_weights=", EXIT_DATA, ["nowhere: the folder of data.root"]),
        ("run coco data.root=nowhere runs=2", EXIT_DATA, ["nowhere", "model.backbone_weights"]),
        ("run demo run_dir=file", EXIT_STORAGE, ["a file is in the way"]),
        ("run demo lr=1 epochs=3", EXIT_USAGE, ["did you mean optimizer.learning_rate?", "optimizer.max_epochs?"]),
        ("evaluate --weights nowhere.pth", EXIT_DATA, ["field --weights, value nowhere.pth", "no such file or folder"]),
        ("evaluate --weights file --data nowhere", EXIT_DATA, ["nowhere: the folder of data.root", "--data"]),
        ("report nowhere --compare nothing", EXIT_DATA, ["nowhere", "nothing"]),
        ("replay nowhere", EXIT_DATA, ["nowhere"]),
    ],
)
def test_a_mistake_is_found_before_anything_heavy_is_imported_and_leaves_nothing(
    arguments, code, parts, new_process, tmp_path
):
    (tmp_path / "file").write_text("")
    finished = new_process("-c", CODE, *arguments.split())
    assert finished.returncode == code and all(part in finished.stderr for part in parts), finished.stderr
    assert set(finished.stdout.split()) & {"torch", "numpy"} == set()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("maskperf-errors")] == ["file"]


def test_paths_below_a_missing_root_are_one_problem(maskperf):
    shown = maskperf("run", "coco", "data.root=nowhere", "model.backbone_weights=")
    assert shown.err.count("does not exist") == 1 and "annotations/instances_train2017.json" in shown.err


def test_a_gpu_that_pytorch_cannot_use_is_refused_at_once(maskperf, monkeypatch, tmp_path):
    monkeypatch.setattr(start, "torch_build", lambda: "cpu")
    shown = maskperf("run", "demo", "system.device=cuda")
    assert shown.code == EXIT_USAGE and "built without CUDA. Fix: install" in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("index", "count"), [(0, 0), (1, 1), (8, 8)])
def test_a_process_without_a_gpu_of_its_own_is_refused(index, count, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    with pytest.raises(ConfigError, match=f"GPU {index} is wanted, and PyTorch finds {count or 'none'}. Fix: "):
        claim_device("cuda", index)


def test_processes_of_one_start_show_the_same_error_once_and_other_errors_too(maskperf, monkeypatch, tmp_path):
    for attempt in ("attempt_0", "attempt_1"):
        (tmp_path / attempt).mkdir()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "0" / "error.json"))
    found = [maskperf("run", "demo", pair) for pair in ("lr=1", "lr=1", "epochs=1", "lr=1")]
    assert [shown.code for shown in found] == [EXIT_USAGE] * 4
    assert [bool(shown.err) for shown in found] == [True, False, True, False]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_1" / "0" / "error.json"))
    assert maskperf("run", "demo", "lr=1").err  # torchrun started the processes again
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    assert maskperf("run", "demo", "lr=1").err
