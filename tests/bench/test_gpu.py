import importlib.metadata
import io
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small_batches import SMALL

from maskperf.bench import gpu, gpu_convolutions, gpu_steps
from maskperf.bench.child import PEERS, Side
from maskperf.bench.gpu_convolutions import Layer, work_of
from maskperf.bench.plan import CASES, GpuPlan, KernelSizes
from maskperf.bench.session import CaseResult
from maskperf.bench.view import show_gpu
from maskperf.config import SpeedConfig

CPU = torch.device("cpu")
PEER = os.environ.get("MASKPERF_PEER_PYTHON", "")
SIZES = {"canvases_hw": ((64, 96), (96, 64)), "batch_sizes": (1,), "usual_batch": 1, "objects": 2}
TIMES = {"repeats": 1, "steps_at_a_time": 1, "warm_up_calls": 0, "threads": 1, "seconds": 120.0}
KERNELS = KernelSizes(images=1, size_hw=(40, 64), channels=2, candidates=8)
TINY = GpuPlan(device="cpu", model=SMALL, kernels=KERNELS, **SIZES, **TIMES)


def shown(found: dict) -> str:
    console = Console(width=250, record=True, file=io.StringIO(), markup=False, highlight=False)
    show_gpu(console, found)
    return console.export_text()


def test_sections_are_measured_and_a_failure_is_shown_and_recorded():
    messages = []
    found = gpu.measure(TINY, messages.append, sections=("device", "kernel nms"))
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"commit", "modified", "environment", "machine", "plan", "sections"}
    device, nms = found["sections"]["device"], found["sections"]["kernel nms"]
    (row,) = device["rows"]
    assert row["packages"]["torch"] == importlib.metadata.version("torch")
    assert row["bfloat16_teraflop_per_second"] > 0 and device["error"] == ""
    assert nms["rows"] == [] and nms["error"].startswith("device cpu: no kernels to measure")  # for NVIDIA GPUs alone
    assert any("kernel nms: 0 rows, then" in line and "no kernels to measure" in line for line in messages)
    assert "kernel nms: NOT COMPLETE, 0 rows" in shown(found)


def test_a_bug_is_recorded_with_its_trace():
    result = gpu.run_section("no such section", TINY, 60.0)
    assert "Traceback" in result["error"] and "KeyError" in result["error"]
    text = shown({"sections": {"steps": result}})
    assert "KeyError: 'no such section'" in text and "Traceback" not in text


def test_a_section_that_takes_too_long_is_stopped_with_its_processes_and_keeps_its_rows(tmp_path, monkeypatch):
    script = tmp_path / "section.py"
    script.write_text(
        f"import subprocess, sys, time\nsys.path.insert(0, {str(PEERS)!r})\nimport serve\n"
        "rows = [{'process': subprocess.Popen(['sleep', '60']).pid}]\n"
        "serve.serve({'section': lambda inputs: (lambda: rows.pop() if rows else time.sleep(60), {})})\n"
    )
    side = Side(name="steps", command=(sys.executable, str(script)), has_processes=True)
    monkeypatch.setattr(gpu, "Side", lambda **options: side)
    result = gpu.run_section("steps", TINY, 4.0)
    assert result["seconds"] < 50  # it would sleep for 60
    (row,) = result["rows"]
    assert "stopped after 4 s" in result["error"]
    state = Path(f"/proc/{row['process']}/stat")
    assert not state.exists() or state.read_text().rpartition(") ")[2][0] == "Z"  # ended, and not yet waited for


def test_no_section_is_begun_when_the_time_is_over():
    plan = GpuPlan(device="cpu", seconds=0.0)
    found = gpu.measure(plan, lambda text: None, sections=("steps", "peer"))
    assert [section["error"] for section in found["sections"].values()] == ["left out: 0 s were over"] * 2


def test_the_waterfall_begins_with_all_off_and_ends_with_all_on():
    first, *others = gpu_steps.switch_rows(CPU, TINY)
    assert (first["name"], first["first_over_this"], first["captured"]) == ("all off", None, False)
    assert [row["name"] for row in others[:2]] == ["+ precision", "+ folded_batch_norm"]
    assert others[-1]["name"] == "+ captured_steps"
    for row in others:
        milliseconds = row["milliseconds"].median
        assert row["first_over_this"].median == pytest.approx(first["milliseconds"].median / milliseconds)
        assert row["images_per_second"] == pytest.approx(1000 / milliseconds)
        assert 0 < row["loss_difference"] < 2 and not row["captured"]  # a CPU has no graphs


def test_steps_are_measured_by_mode_and_padded_size_and_a_full_gpu_is_a_row(monkeypatch):
    measured = gpu_steps._measured

    def full_in_float32(speeds, *arguments):
        if "float32, eager" in speeds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried\nand so on")
        return measured(speeds, *arguments)

    monkeypatch.setattr(gpu_steps, "_measured", full_in_float32)
    rows = list(gpu_steps.step_rows(CPU, TINY))
    modes = ("bfloat16, captured", "bfloat16, eager", "float32, captured", "float32, eager")
    expected = [*((mode, (64, 96)) for mode in modes), (modes[0], (96, 64))]
    assert [(row["name"], row["canvas_hw"]) for row in rows] == expected
    assert rows[3]["error"] == "CUDA out of memory. Tried"


def test_the_step_that_is_measured_is_that_of_a_run_with_these_switches():
    batch = gpu_steps.synthetic_batch(TINY, (64, 96), 2, CPU)
    assert batch.targets.boxes.shape == (2, 2, 4) and batch.images.sizes_hw.tolist() == [[64, 96]] * 2
    assert batch.targets.polygons.polygon_offsets.tolist() == [0, 1, 2, 3, 4]
    precise, plain = (
        gpu_steps.make_stepper(TINY, SpeedConfig(precision=precision), batch, CPU).step().losses
        for precision in ("bfloat16", "float32")
    )
    assert precise.shape == (5,) and bool((plain > 0).all())
    assert not torch.equal(precise, plain)


STEM = Layer((1, 3, 64, 96), (8, 3, 7, 7), (2, 2), (3, 3), False)
TRANSPOSED = Layer((2, 6, 5, 7), (6, 4, 2, 2), (2, 2), (0, 0), True)


def test_every_convolution_of_a_step_is_found_and_measured():
    layers = gpu_convolutions.layers_of_a_step(CPU, TINY)
    assert layers[STEM] == 1
    # The stem, three in each of four blocks and their shortcuts, eight in the pyramid, the RPN's on five levels.
    assert sum(layers.values()) >= 1 + 12 + 4 + 8 + 5


@pytest.mark.parametrize(
    ("layer", "flop"), [(STEM, 2 * 32 * 48 * 8 * 3 * 49), (TRANSPOSED, 2 * 2 * 10 * 14 * 4 * 6)], ids=["stem", "mask"]
)
@pytest.mark.parametrize("direction", gpu_convolutions.PASSES)
def test_a_convolution_is_measured_in_each_direction(layer, flop, direction):
    row = gpu_convolutions.measure_layer(layer, direction, CPU)
    assert row["teraflop_per_second"] * 1e9 * row["milliseconds"].median == pytest.approx(flop)


@pytest.mark.parametrize(
    ("layer", "others"),
    [
        (Layer((1, 8, 6, 9), (4, 8, 1, 1), (1, 1), (0, 0), False), 4),
        (Layer((1, 8, 6, 9), (4, 8, 3, 3), (2, 2), (1, 1), False), 1),
        (TRANSPOSED, 0),
    ],
)
def test_alternatives_for_a_convolution_do_the_same_work(layer, others):
    def result_of(direction):
        torch.manual_seed(0)
        return work_of(layer, direction, CPU)()

    directions = gpu_convolutions.directions_of(layer)
    assert directions[:3] == gpu_convolutions.PASSES and len(directions) == 3 + others
    for alternative in directions[3:]:
        found, direction = result_of(alternative), alternative.removesuffix(gpu_convolutions.AS_A_PRODUCT)
        if alternative == gpu_convolutions.WITH_RELU:
            torch.testing.assert_close(found, result_of("forward").relu())
        elif direction == "forward":
            expected = result_of("forward")
            torch.testing.assert_close(found.view(1, 6, 9, 4).permute(0, 3, 1, 2), expected, rtol=2**-6, atol=2**-6)
        else:
            expected = layer.input_shape if direction == "input gradient" else layer.weight_shape
            assert found.numel() == math.prod(expected)


def test_every_case_that_is_compared_has_torchvision_as_its_peer_and_without_one_a_row_names_the_option():
    peers = {(case.benchmark, case.name): [peer.name for peer in case.peers] for case in CASES}
    assert all("torchvision" in peers[name] for name in gpu.COMPARED)
    (row,) = gpu.peer_rows(CPU, TINY)
    assert "--peer-python" in row["left_out"]


def test_the_session_has_the_device_model_and_sizes_of_the_plan(tmp_path):
    plan = gpu.plan_of_session(replace(TINY, peer_python="/peer/python"), torch.device("cuda", 0), tmp_path)
    assert (plan.device, plan.config.system.device, plan.config.model) == ("cuda", "cuda", TINY.model)
    assert (plan.size_hw, plan.objects, plan.peer_python) == ((64, 96), 2, "/peer/python")


def test_a_case_that_fails_is_a_row_and_the_others_are_measured(monkeypatch):
    def measure(case, plan, folder, say):
        if case.benchmark == "step":
            raise RuntimeError("torchvision failed:\nTraceback\nOutOfMemoryError: full")
        say("a message")
        return CaseResult(benchmark=case.benchmark, case=case.name, sides=[])

    monkeypatch.setattr(gpu, "measure_case", measure)
    failed, measured = gpu.peer_rows(CPU, replace(TINY, peer_python="/peer/python"), gpu.COMPARED[:2])
    assert failed["name"] == "step training step" and failed["error"].endswith("OutOfMemoryError: full")
    assert measured == {"benchmark": "infer", "case": "detections", "sides": [], "messages": ["a message"]}
    text = shown({"sections": {"peer": {"rows": [failed], "error": "", "seconds": 1.0}}})
    assert text.strip() == "peer, step training step: OutOfMemoryError: full"


@pytest.mark.skipif(not PEER, reason="MASKPERF_PEER_PYTHON names no Python with torchvision")
def test_a_case_is_measured_on_both_sides():
    (row,) = gpu.peer_rows(CPU, replace(TINY, peer_python=PEER), (("nms", "classes"),))
    assert [side["name"] for side in row["sides"]] == ["maskperf", "torchvision"]
    assert row["sides"][1]["times_as_long"]["median"] > 0


def test_all_tables_can_be_shown():
    spread = {"median": 2.0, "first_quartile": 1.0, "third_quartile": 3.0}
    step = {"name": "bfloat16, captured", "canvas_hw": [800, 1344], "images": 8, "captured": True, "peak_gib": 9.87}
    step |= {"milliseconds": spread, "images_per_second": 4000.0, "first_over_this": None, "loss_difference": 1e-3}
    step["messages"] = ["captured steps: off from now on"]
    kernel = {"name": "NMS", "shape": "10 x 2000 boxes", "largest_difference": 0.0, "largest_value": 1.0}
    kernel |= dict.fromkeys(("kernel_milliseconds", "plain_milliseconds", "plain_over_kernel"), spread)
    layer = {"input_shape": [8, 3, 800, 1344], "weight_shape": [64, 3, 7, 7], "stride": [2, 2], "transposed": False}
    convolution = {"direction": "forward", "layer": layer, "times_in_a_step": 1, "milliseconds": spread}
    seconds = spread | {"minimum": 1.0, "maximum": 3.0}
    side = {"seconds": seconds, "times_as_long": spread, "facts": {}, "peak_gib": 1.0, "device_peak_gib": 2.0}
    sides = [side | {"name": name} for name in ("maskperf", "torchvision")]
    sections = {
        "kernel nms": [kernel],
        "switches": [step],
        "steps": [step, {"name": "float32, eager", "images": 16, "error": "CUDA out of memory"}],
        "convolutions": [convolution | {"teraflop_per_second": 512.3}],
        "peer": [{"benchmark": "step", "case": "training step", "sides": sides}],
        "device": [{"left_out": "for a reason"}],
    }
    text = shown({"sections": {name: {"rows": rows, "error": "", "seconds": 1.0} for name, rows in sections.items()}})
    parts = ("10 x 2000 boxes", "4000.0", "9.87", "512.3", "torchvision", "for a reason")
    parts += ("captured steps: off from now on", "steps, float32, eager, 16 images: CUDA out of memory")
    assert [part for part in parts if part not in text] == []
