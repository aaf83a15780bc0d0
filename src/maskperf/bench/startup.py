"""How long a fresh process takes to its help, and to the end of its first training step."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from maskperf.bench.child import THREAD_VARIABLES
from maskperf.bench.measure import Timing, measure_in_turn
from maskperf.bench.names import STARTUP
from maskperf.bench.peers.serve import GIB
from maskperf.bench.plan import IMAGES, SEED, Plan
from maskperf.bench.session import CaseResult, SideResult, side_result
from maskperf.bench.synthetic_coco import large_folder, large_json
from maskperf.errors import ConfigError
from maskperf.mlperf.read import parse_records
from maskperf.run.metrics import read_metrics

HELP_SECONDS = 60.0
FIRST_STEP_SECONDS = 1200.0
LOOK_EVERY_SECONDS = 0.01
SHOWN_CHARACTERS = 2000
VAL_IMAGES = IMAGES["scored"]
STEP_PART = "the step itself"


@dataclass(frozen=True, kw_only=True)
class Start:
    """One run, looked at until its first step was done."""

    timing: Timing
    peak_gib: float | None
    parts: dict[str, float]  # seconds on the wall by what they were spent on; their sum is about that of `timing`

    @property
    def seconds_before_step(self) -> float:
        """Seconds on the wall until the first batch was there."""
        return sum(seconds for part, seconds in self.parts.items() if part != STEP_PART)


def measure_startup(plan: Plan, folder: Path, *, recipe: str, pairs: list[str]) -> list[CaseResult]:
    """Return the two cases. Recipes of COCO get a synthetic data set of its size, and random weights.

    One run before the measurements writes the data set of the demo, reads annotations for the first time, and fills
    the caches.
    Errors: ConfigError where the run ends before its first step.
    """
    words = [recipe, *_data_words(plan, folder, recipe), f"system.threads={plan.threads}", *pairs]
    first = _first_step(words, folder / "run_0", plan.threads)
    starts: list[Start] = []

    def first_step() -> Timing:
        starts.append(_first_step(words, folder / f"run_{len(starts) + 1}", plan.threads))
        return starts[-1].timing

    shown = _one_side(plan, _help, lambda: ({}, None))
    started = _one_side(plan, first_step, lambda: (_facts(first, starts), starts[-1].peak_gib))
    return [
        CaseResult(benchmark=STARTUP, case="help", sides=[shown]),
        CaseResult(benchmark=STARTUP, case=f"first step of {recipe}", sides=[started]),
    ]


def _one_side(plan: Plan, measure: Callable[[], Timing], found: Callable[[], tuple[dict, float | None]]) -> SideResult:
    timings = measure_in_turn({"maskperf": measure}, plan.repeats)
    facts, peak_gib = found()
    memory = {"peak_gib": peak_gib, "before_gib": None, "device_peak_gib": None}
    return side_result("maskperf", timings, clock=plan.clock, facts=facts, memory=memory)


def _facts(first: Start, starts: list[Start]) -> dict:
    """Return what the time was spent on: medians, and the first run of all, which had more to do."""
    return {
        "seconds_before_step": median(start.seconds_before_step for start in starts),
        "seconds_of": {part: median(start.parts[part] for start in starts) for part in first.parts},
        "first_run_seconds_before_step": first.seconds_before_step,
        "first_run_seconds_of": first.parts,
    }


def _data_words(plan: Plan, folder: Path, recipe: str) -> list[str]:
    if recipe == "demo":
        return [f"data.root={folder / 'demo'}"]
    words = ["model.backbone_weights=", "data.check_counts=false"]
    for split, images in (("train", plan.images_of("index")), ("val", min(VAL_IMAGES, plan.images_of("index")))):
        json_path = large_json(plan.cache, images=images, seed=SEED + (split == "val"))
        words.append(f"data.{split}_json={json_path}")
        words.append(f"data.{split}_images={large_folder(plan.cache, images=images, seed=SEED)}")
    return words


def _help() -> Timing:
    wall, cpu = time.perf_counter(), _children_seconds()
    command = [sys.executable, "-m", "maskperf", "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=HELP_SECONDS, env=_environment(1))
    return Timing(wall_seconds=time.perf_counter() - wall, cpu_seconds=_children_seconds() - cpu)


def _children_seconds() -> float:
    """Return the processor time of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _first_step(words: list[str], run_dir: Path, threads: int) -> Start:
    """Return the times up to the end of the first step; the run is stopped there."""
    metrics = run_dir / "metrics.jsonl"
    log = run_dir.with_suffix(".log")
    command = [sys.executable, "-m", "maskperf", "run", *words, f"run_dir={run_dir}", "system.log_every_steps=1"]
    start, cpu, start_ms = time.perf_counter(), _children_seconds(), time.time() * 1000
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(threads))
    try:
        while (step := _step_of(metrics)) is None:
            if process.poll() is not None or time.perf_counter() - start > FIRST_STEP_SECONDS:
                end = log.read_text(encoding="utf-8", errors="replace")[-SHOWN_CHARACTERS:]
                raise ConfigError(f"maskperf run {' '.join(words)}: no first step. Its last words:\n{end}")
            time.sleep(LOOK_EVERY_SECONDS)
        wall, peak = time.perf_counter() - start, _peak_gib(process.pid)
    finally:
        process.kill()
        process.wait()
    parts = _parts(start_ms, (run_dir / "mlperf.log").read_text(encoding="utf-8"), step)
    return Start(timing=Timing(wall_seconds=wall, cpu_seconds=_children_seconds() - cpu), peak_gib=peak, parts=parts)


def _step_of(metrics: Path) -> dict | None:
    """Return the first step that a run wrote down, None before there is one."""
    try:
        lines = read_metrics(metrics)
    except OSError:
        return None
    return next((line for line in lines if line["kind"] == "step"), None)


def _parts(start_ms: float, log: str, step: dict) -> dict[str, float]:
    """Return seconds by what they were spent on, from the times in the run's own files."""
    times_ms = {record.key: record.time_ms for record in reversed(parse_records(log)[0])}
    before = step["data_wait_seconds"]
    return {
        "modules, settings, caches dropped": (times_ms["init_start"] - start_ms) / 1000,
        "model": (times_ms["run_start"] - times_ms["init_start"]) / 1000,
        "data opened": (times_ms["epoch_start"] - times_ms["run_start"]) / 1000,
        "first batch": before,
        STEP_PART: step["step_seconds"] - before,
    }


def _peak_gib(process_id: int) -> float | None:
    """Return VmHWM of a process, None where the system has no such file."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / GIB for line in lines if line.startswith("VmHWM:")), None)


def _environment(threads: int) -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": path}
