"""Runs of the whole program that take seconds: the demo recipe, much reduced."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskperf.cli.main import main
from maskperf.evaluation.scores import Scores
from maskperf.run import evaluations
from maskperf.schema import StepLine, read_metrics

NO_TARGETS = ("evaluation.box_target=0", "evaluation.mask_target=0")
SMALL = (
    *("seed=7", "data.generate_images=24,8", "data.short_side=64", "data.long_side=96", "optimizer.max_epochs=1"),
    *("system.log_every_steps=2", "system.threads=1"),
)
TESTS = Path(__file__).parent


def small_run_arguments(folder: Path, *more: str) -> list[str]:
    """Return the arguments of a demo run of three steps on 24 images, everything inside `folder`."""
    return ["run", "demo", f"data.root={folder / 'data'}", f"run_dir={folder / 'run'}", *SMALL, *more]


def small_run(folder: Path, *more: str) -> int:
    """Return the exit code of such a run."""
    return main(small_run_arguments(folder, *more))


def run_on_two_processes(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a script of this folder under torchrun."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(TESTS / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def log_events(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    lines = (run / "mlperf.log").read_text().splitlines()
    assert all(line.startswith(":::MLLOG {") for line in lines)
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def read_results(run: Path) -> dict[str, Any]:
    """Return results.json of a run."""
    return json.loads((run / "results.json").read_text())


def step_lines(run: Path) -> list[StepLine]:
    """Return the lines of the steps in the metrics of a run."""
    return [line for line in read_metrics(run / "metrics.jsonl") if isinstance(line, StepLine)]


def change_scores(patch: pytest.MonkeyPatch, change: Callable[[Scores, str, int], Scores]) -> list[str]:
    """Let `change` have the scores, the engine and the number of each evaluation; return the engines asked so far."""
    honest, asked = evaluations.score, list[str]()

    def score(*arguments: Any, engine: str, **options: Any) -> Scores:
        asked.append(engine)
        return change(honest(*arguments, engine=engine, **options), engine, asked.count("fast"))

    patch.setattr(evaluations, "score", score)
    return asked


def with_aps(scores: Scores, box_ap: float, mask_ap: float) -> Scores:
    """Return scores with other APs."""
    stats = {"box_stats": (box_ap, *scores.box_stats[1:]), "mask_stats": (mask_ap, *scores.mask_stats[1:])}
    return replace(scores, box_ap=box_ap, mask_ap=mask_ap, **stats)
