import importlib.util
import sys

import numpy as np
import pytest
import torch
from golden_reference import flat_polygons

from maskperf.bench.gpu_kernels import gpu_kernel_rows
from maskperf.bench.plan import GpuPlan
from maskperf.errors import ConfigError
from maskperf.model import patches
from maskperf.ops import matching, nms, ranking, rasterize, roi_align, sampling
from maskperf.ops.kernels import selection
from maskperf.techniques import plain, using

CUDA = torch.device("cuda", 0)


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


def test_nothing_is_missing_on_a_fitting_gpu(machine):
    assert selection.missing_part(CUDA) == ""
    assert selection.uses_kernels(CUDA)


def test_a_cpu_has_no_kernels():
    assert not selection.uses_kernels(torch.device("cpu"))
    assert "NVIDIA" in selection.missing_part(torch.device("cpu"))


def test_a_gpu_of_another_maker_has_no_kernels(machine):
    machine.setattr(torch.version, "cuda", None)
    assert "NVIDIA" in selection.missing_part(CUDA)


def test_triton_must_be_installed(machine):
    machine.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in selection.missing_part(CUDA)


@pytest.mark.parametrize(("capability", "is_enough"), [((7, 5), False), ((8, 0), True), ((10, 0), True)])
def test_the_gpu_must_know_bfloat16(machine, capability, is_enough):
    machine.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert selection.uses_kernels(CUDA) == is_enough
    assert is_enough or "capability (7, 5)" in selection.missing_part(CUDA)


def test_a_c_compiler_is_needed(machine):
    machine.setattr(selection.shutil, "which", lambda name: None)
    assert "CC" in selection.missing_part(CUDA)
    machine.setattr(selection.shutil, "which", lambda name: "/opt/cc" if name == "my-cc" else None)
    selection.missing_part.cache_clear()
    machine.setenv("CC", "my-cc")
    assert selection.uses_kernels(CUDA)


def test_a_compiler_that_was_chosen_must_be_there(machine):
    machine.setattr(selection.shutil, "which", lambda name: None if name == "my-cc" else f"/usr/bin/{name}")
    machine.setenv("CC", "my-cc")
    assert "set CC" in selection.missing_part(CUDA)


def test_the_headers_of_python_are_needed(machine, tmp_path):
    (tmp_path / "Python.h").unlink()
    assert "Python.h" in selection.missing_part(CUDA)


def test_the_choice_is_described_with_its_reason(machine):
    assert selection.OPERATORS in selection.describe(CUDA)
    with using(plain()):
        assert "triton_kernels is off" in selection.describe(CUDA)
        assert not selection.uses_kernels(CUDA)
    assert "NVIDIA" in selection.describe(torch.device("cpu"))
    machine.setattr(importlib.util, "find_spec", lambda name: None)
    selection.missing_part.cache_clear()
    assert "pip install triton" in selection.describe(CUDA)


BOXES = torch.tensor([[[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0]]])
VALID = torch.ones(1, 2, dtype=torch.bool)


def pooled() -> object:
    return roi_align.pyramid_roi_align([torch.zeros(1, 2, 8, 8)], BOXES, size=2, strides=(4,))


def suppressed() -> object:
    return nms.nms_sorted(BOXES, VALID, 0.5)


def drawn() -> object:
    triangle = np.array([[0, 0], [9, 0], [5, 9]], np.float32)
    polygons = flat_polygons([triangle], [0, 1])
    return rasterize.rasterize_crops(polygons, torch.tensor([0]), BOXES[0, :1], 4)


def matched_anchors() -> object:
    return matching.match_boxes(BOXES, BOXES, VALID, positive_iou=0.7, negative_iou=0.3, keep_best_of_truth=True)


def matched_rois() -> object:
    return matching.match_boxes(BOXES, BOXES, VALID, positive_iou=0.5, negative_iou=0.5, keep_best_of_truth=False)


def taken_patches() -> object:
    return patches.cell_patches([torch.zeros(1, 2, 8, 8)], torch.zeros(1, 3, dtype=torch.int64))


def sampled() -> object:
    rule = {"num_samples": 2, "max_positive": 1}
    return sampling.draw_balanced(VALID, ~VALID, torch.tensor([1]), **rule)


def compacted() -> object:
    return sampling.compact(VALID, 2)


def ranked() -> object:
    return ranking.best_anchors(BOXES[0, :, :2], (1, 1), 1)


def best_masked() -> object:
    return ranking.best_mask(BOXES[0], 2)


def parts(result: object) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result if isinstance(result, tuple) else vars(result).values())


WORK = [
    (pooled, roi_align, "pyramid_roi_align"),
    (suppressed, nms, "nms_sorted"),
    (drawn, rasterize, "rasterize_crops"),
    (matched_anchors, matching, "match_boxes"),
    (matched_rois, matching, "match_boxes"),
    (taken_patches, patches, "cell_patches"),
    (sampled, sampling, "draw_balanced"),
    (compacted, sampling, "compact"),
    (ranked, ranking, "best_anchors"),
    (best_masked, ranking, "best_mask"),
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


def test_the_measurement_refuses_a_device_without_kernels():
    with pytest.raises(ConfigError, match="device cpu: no kernels to measure"):
        list(gpu_kernel_rows("nms", torch.device("cpu"), GpuPlan()))


def test_a_missing_triton_stops_the_kernels_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "maskperf.ops.kernels.nms", raising=False)
    with pytest.raises(ModuleNotFoundError, match="triton"):
        selection.load("nms")
    assert not selection.uses_kernels(torch.device("cpu"))
