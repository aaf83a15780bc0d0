"""Seconds of a fresh process to its help, and to the end of its first training step."""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from maskperf.bench.child import environment_of
from maskperf.bench.measure import Timing, measure_in_turn
from maskperf.bench.names import STARTUP
from maskperf.bench.peers.serve import GIB, memory_bytes
from maskperf.bench.plan import IMAGES, SEED, Plan
from maskperf.bench.session import CaseResult, side_result
from maskperf.bench.synthetic_coco import large_folder, large_json
from maskperf.errors import ConfigError
from maskperf.mlperf.read import parse_records
from maskperf.schema import METRICS_FILE, StepLine, read_metrics

HELP_SECONDS = 60.0
FIRST_STEP_SECONDS = 1200.0
LOOK_EVERY_SECONDS = 0.01
SHOWN_CHARACTERS = 2000
LAST_PART = "the step itself"
NO_MEMORY = {"peak_gib": None, "before_gib": None, "device_peak_gib": None}


def measure_startup(plan: Plan, folder: Path, *, recipe: str, pairs: list[str]) -> list[CaseResult]:
    """Return the two cases. Recipes of COCO get a synthetic data set of its size, and random weights.

    One run before the measurements writes the data set of the demo, reads annotations for the first time, and fills
    the caches.
    Errors: ConfigError where the run ends before its first step.
    """
    arguments = [recipe, *_data_arguments(plan, folder, recipe), f"system.threads={plan.threads}", *pairs]
    parts: list[dict[str, float]] = []  # wall seconds of each run by what they were spent on
    memory: dict[str, float | None] = dict(NO_MEMORY)

    def first_step() -> Timing:
        timing, memory["peak_gib"], seconds_of = _first_step(arguments, folder / f"run_{len(parts)}", plan.threads)
        parts.append({"seconds_before_step": sum(seconds_of.values()) - seconds_of[LAST_PART], **seconds_of})
        return timing

    first_step()
    helps = measure_in_turn({"maskperf": _help}, plan.repeats)
    steps = measure_in_turn({"maskperf": first_step}, plan.repeats)
    first, *others = parts
    medians = {part: median(found[part] for found in others) for part in first}
    facts = {
        "seconds_before_step": medians.pop("seconds_before_step"),
        "seconds_of": medians,
        "first_run_seconds_before_step": first.pop("seconds_before_step"),
        "first_run_seconds_of": first,
    }
    sides = {
        "help": side_result("maskperf", helps, clock=plan.clock, facts={}, memory=NO_MEMORY),
        f"first step of {recipe}": side_result("maskperf", steps, clock=plan.clock, facts=facts, memory=memory),
    }
    return [CaseResult(benchmark=STARTUP, case=name, sides=[side]) for name, side in sides.items()]


def _data_arguments(plan: Plan, folder: Path, recipe: str) -> list[str]:
    if recipe == "demo":
        return [f"data.root={folder / 'demo'}"]
    arguments = ["model.backbone_weights=", "data.check_counts=false"]
    train_images = plan.images_of("index")
    for split, images in (("train", train_images), ("val", min(IMAGES["scored"], train_images))):
        arguments += [
            f"data.{split}_json={large_json(plan.cache, images=images, seed=SEED + (split == 'val'))}",
            f"data.{split}_images={large_folder(plan.cache, images=images, seed=SEED)}",
        ]
    return arguments


def _help() -> Timing:
    wall, cpu = time.perf_counter(), _children_seconds()
    command = [sys.executable, "-m", "maskperf", "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=HELP_SECONDS, env=environment_of(1))
    return Timing(wall_seconds=time.perf_counter() - wall, cpu_seconds=_children_seconds() - cpu)


def _children_seconds() -> float:
    """Return the processor time of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _first_step(arguments: list[str], run_dir: Path, threads: int) -> tuple[Timing, float | None, dict[str, float]]:
    """Return the time up to the end of the first step, the peak in GiB and the `_parts`; the run is stopped there."""
    metrics = run_dir / METRICS_FILE
    log = run_dir.with_suffix(".log")
    command = [sys.executable, "-m", "maskperf", "run", *arguments, f"run_dir={run_dir}", "system.log_every_steps=1"]
    start, cpu, start_ms = time.perf_counter(), _children_seconds(), time.time() * 1000
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment_of(threads))
    try:
        while (step := next((line for line in read_metrics(metrics) if isinstance(line, StepLine)), None)) is None:
            if process.poll() is not None or time.perf_counter() - start > FIRST_STEP_SECONDS:
                end = log.read_text(encoding="utf-8", errors="replace")[-SHOWN_CHARACTERS:]
                raise ConfigError(f"maskperf run {' '.join(arguments)}: no first step. Its last output:\n{end}")
            time.sleep(LOOK_EVERY_SECONDS)
        wall, peak = time.perf_counter() - start, memory_bytes("VmHWM", process.pid)
    finally:
        process.kill()
        process.wait()
    timing = Timing(wall_seconds=wall, cpu_seconds=_children_seconds() - cpu)
    parts = _parts(start_ms, (run_dir / "mlperf.log").read_text(encoding="utf-8"), step)
    return timing, None if peak is None else peak / GIB, parts


def _parts(start_ms: float, log: str, step: StepLine) -> dict[str, float]:
    """Return seconds by what they were spent on, from the times in the run's own files."""
    records = reversed(parse_records(log)[0])
    times_ms = {record.key: record.time_ms for record in records if record.time_ms is not None}
    waiting, whole = step.data_wait_seconds, step.step_seconds
    assert waiting is not None and whole is not None  # a run measures both
    return {
        "modules, settings, caches dropped": (times_ms["init_start"] - start_ms) / 1000,
        "model": (times_ms["run_start"] - times_ms["init_start"]) / 1000,
        "data opened": (times_ms["epoch_start"] - times_ms["run_start"]) / 1000,
        "first batch": waiting,
        LAST_PART: whole - waiting,
    }
