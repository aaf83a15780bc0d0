import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_reference import flat_polygons

from maskperf.model import patches
from maskperf.ops import matching, nms, ranking, rasterize, roi_align, sampling
from maskperf.ops.kernels import selection
from maskperf.techniques import plain, using

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Make this look like a machine with a fitting GPU, with everything installed; what is remembered is forgotten."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(selection.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(selection.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    selection.missing_part.cache_clear()
    yield monkeypatch
    selection.missing_part.cache_clear()


# What changes on the machine, and what the sentence about it says; empty where nothing is missing.
MACHINES = {
    "a fitting GPU": (lambda patch: None, ""),
    "a GPU of another maker": (lambda patch: patch.setattr(torch.version, "cuda", None), "NVIDIA"),
    "no Triton": (lambda patch: patch.setattr(importlib.util, "find_spec", lambda name: None), "pip install triton"),
    **{
        f"capability {capability}": (
            lambda patch, it=capability: patch.setattr(torch.cuda, "get_device_capability", lambda device: it),
            text,
        )
        for capability, text in (((7, 5), "capability (7, 5)"), ((8, 0), ""), ((10, 0), ""))
    },
    "no compiler": (lambda patch: patch.setattr(selection.shutil, "which", lambda name: None), "set CC"),
    "another compiler": (lambda patch: only_compiler(patch, "my-cc"), ""),
    "not the chosen compiler": (lambda patch: only_compiler(patch, "gcc"), "set CC"),
    "no headers": (lambda patch: Path(selection.sysconfig.get_paths()["include"], "Python.h").unlink(), "Python.h"),
}


def only_compiler(patch, present: str) -> None:
    patch.setenv("CC", "my-cc")
    patch.setattr(selection.shutil, "which", lambda name: f"/opt/{name}" if name == present else None)


@pytest.mark.parametrize(("change", "text"), MACHINES.values(), ids=MACHINES)
def test_kernels_are_used_where_nothing_is_missing(machine, change, text):
    change(machine)
    assert selection.uses_kernels(CUDA) == (text == "")
    assert (selection.missing_part(CUDA) == "") if text == "" else (text in selection.missing_part(CUDA))
    assert (text or selection.OPERATORS) in selection.describe(CUDA)


def test_a_cpu_has_no_kernels_and_a_gpu_none_where_they_are_switched_off(machine):
    assert not selection.uses_kernels(CPU)
    assert "NVIDIA" in selection.missing_part(CPU) and "NVIDIA" in selection.describe(CPU)
    with using(plain()):
        assert "triton_kernels is off" in selection.describe(CUDA)
        assert not selection.uses_kernels(CUDA)


BOXES = torch.tensor([[[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0]]])
VALID = torch.ones(1, 2, dtype=torch.bool)
MAPS = [torch.zeros(1, 2, 8, 8)]
TRIANGLE = flat_polygons([np.array([[0, 0], [9, 0], [5, 9]], np.float32)], [0, 1])
RULE = {"positive_iou": 0.7, "negative_iou": 0.3, "keep_best_of_truth": True}


def parts(result: object) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result if isinstance(result, tuple) else vars(result).values())


WORK = [
    (lambda: roi_align.pyramid_roi_align(MAPS, BOXES, size=2, strides=(4,)), roi_align, "pyramid_roi_align"),
    (lambda: nms.nms_sorted(BOXES, VALID, 0.5), nms, "nms_sorted"),
    (lambda: rasterize.rasterize_crops(TRIANGLE, torch.tensor([0]), BOXES[0, :1], 4), rasterize, "rasterize_crops"),
    (lambda: matching.match_boxes(BOXES, BOXES, VALID, **RULE), matching, "match_boxes"),
    (lambda: patches.cell_patches(MAPS, torch.zeros(1, 3, dtype=torch.int64)), patches, "cell_patches"),
    (
        lambda: sampling.draw_balanced(VALID, ~VALID, torch.tensor([1]), num_samples=2, max_positive=1),
        sampling,
        "draw_balanced",
    ),
    (lambda: sampling.compact(VALID, 2), sampling, "compact"),
    (lambda: ranking.best_anchors(BOXES[0, :, :2], (1, 1), 1), ranking, "best_anchors"),
    (lambda: ranking.best_mask(BOXES[0], 2), ranking, "best_mask"),
]


@pytest.mark.parametrize(("work", "module", "name"), WORK)
def test_an_operator_takes_its_kernel_where_it_may_and_can(work, module, name, monkeypatch):
    expected = work()  # here is no GPU
    taken = []

    class Kernels:
        def __getattr__(self, name):
            return lambda *arguments, **options: taken.append((name, len(options))) or expected

    monkeypatch.setattr(selection, "missing_part", lambda device: "")
    monkeypatch.setattr(selection, "load", lambda name: taken.append(name) or Kernels())
    with using(plain()):
        found = work()
    assert all(torch.equal(one, other) for one, other in zip(parts(found), parts(expected), strict=True))
    assert taken == []
    assert work() is expected
    assert taken[0] == module.__name__.rpartition(".")[2]
    assert taken[1][0] == name


def test_a_missing_triton_stops_the_kernels_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "maskperf.ops.kernels.nms", raising=False)
    with pytest.raises(ModuleNotFoundError, match="triton"):
        selection.load("nms")
