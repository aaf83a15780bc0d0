import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from maskperf.bench import gpu
from maskperf.bench.measure import spread_of
from maskperf.bench.names import SUMMARIES
from maskperf.bench.plan import GpuPlan
from maskperf.bench.view import spread_text
from maskperf.cli.bench import DEFAULT_CACHE, busy_neighbours
from maskperf.errors import EXIT_DONE, EXIT_STORAGE, EXIT_USAGE

TINY = ["--size", "64x96", "--images", "1", "--threads", "1", "--repeats", "2", "--set", "system.device=cpu"]


@pytest.mark.slow
def test_one_benchmark_is_measured_shown_and_written(tmp_path, maskperf):
    file = tmp_path / "bench.json"
    arguments = ["mask_targets", *TINY, "--clock", "cpu", "--json", str(file), "--cache", str(tmp_path)]
    shown = maskperf("bench", *arguments)
    assert shown.code == EXIT_DONE
    assert all(part in shown.out for part in ("GFLOP/s by float32 matrix products", "28x28", "RoIs/s"))
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["command"] == ["maskperf", "bench", *arguments]
    assert {"commit", "machine", "ceiling", "plan"} <= set(found)
    assert found["ceiling"]["environment"]["packages"]["torch"] and found["ceiling"]["flop_per_second"] > 1e9
    side = found["results"][0]["sides"][0]
    assert len(side["timings"]) == 2 and 0.05 < side["peak_gib"] < 4
    assert side["seconds"]["median"] == pytest.approx(sum(timing["cpu_seconds"] for timing in side["timings"]) / 2)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="this Python has torchvision")
def test_a_peer_without_its_packages_is_an_error_with_the_command_to_install_them(maskperf):
    shown = maskperf("bench", "mask_targets", *TINY, "--peer", "--peer-python", sys.executable)
    assert shown.code == EXIT_USAGE and f"Fix: {sys.executable} -m pip install torchvision" in shown.err


def test_help_names_every_benchmark(maskperf):
    shown = maskperf("bench", "--help")
    assert shown.code == EXIT_DONE and str(DEFAULT_CACHE) in shown.out
    assert all(f"\n  {name} " in shown.out for name in SUMMARIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("--json taken", "taken: exists already.*--overwrite"), ("--cache taken/cache", "taken/cache: the folder cannot")],
)
def test_a_path_that_is_taken_is_an_error_of_storage(arguments, message, maskperf, tmp_path):
    (tmp_path / "taken").write_text("{}")
    shown = maskperf("bench", "nms", *arguments.split())
    assert shown.code == EXIT_STORAGE and re.search(message, shown.err)


def test_times_are_shown_in_a_unit_that_fits_them():
    assert spread_text(asdict(spread_of([0.0123, 0.0119, 0.014]))) == "12.3 ms (11.9 to 14)"
    assert spread_text(asdict(spread_of([2.5]))) == "2.5 s (2.5 to 2.5)"
    assert spread_text(asdict(spread_of([4e-6]))) == "4 us (4 to 4)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu_is_an_error(tmp_path, maskperf):
    shown = maskperf("bench", "gpu", "--json", tmp_path / "gpu.json")
    assert shown.code == EXIT_USAGE and "no CUDA GPU here. Fix: " in shown.err
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_on_a_gpu_is_shown_and_written(tmp_path, monkeypatch, maskperf):
    found = {"commit": "abc", "sections": {"switches": {"rows": [], "error": "no time", "seconds": 1.0}}}
    plans = []
    monkeypatch.setattr(gpu, "measure", lambda plan, folder, say: plans.append(plan) or found)
    arguments = ["bench", "gpu", "--repeats", "3", "--threads", "2", "--json", str(tmp_path / "gpu.json")]
    shown = maskperf(*arguments)
    assert shown.code == EXIT_DONE and "switches: NOT COMPLETE" in shown.out
    assert plans == [GpuPlan(repeats=3, threads=2)]
    written = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert written == {"command": ["maskperf", *arguments], **found}


def test_busy_neighbours_end_with_a_benchmark_that_is_killed():
    code = """if True:
    import os, signal, subprocess
    from maskperf.cli import bench
    start = subprocess.Popen
    def shown(*arguments):
        program = start(*arguments)
        print(program.pid, flush=True)
        return program
    subprocess.Popen = shown
    with bench.busy_neighbours(1):
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    state = Path(f"/proc/{killed.stdout.strip()}/stat")
    end = time.monotonic() + 20
    while is_running(state) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(state)


def is_running(state):
    try:
        return state.read_text().rpartition(") ")[2][0] != "Z"  # ended, and waited for by nobody yet
    except OSError:
        return False


def test_busy_neighbours_keep_a_core_each_and_end_with_the_block(monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", lambda command: started.append(popen(command)) or started[-1])
    with pytest.raises(KeyboardInterrupt), busy_neighbours(2):
        assert [program.poll() for program in started] == [None] * 2
        raise KeyboardInterrupt
    assert [program.returncode for program in started] == [-signal.SIGKILL] * 2
