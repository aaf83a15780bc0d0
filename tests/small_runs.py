"""Runs of the whole program that take seconds: the demo recipe, much reduced."""

import json
from pathlib import Path
from typing import Any

from maskperf.cli.main import main

NO_TARGETS = ("evaluation.box_target=0", "evaluation.mask_target=0")


def small_run_arguments(folder: Path, *more: str) -> list[str]:
    """Return the arguments of a demo run of a few steps on 24 images, everything inside `folder`."""
    return [
        "run",
        "demo",
        "seed=7",
        f"data.root={folder / 'data'}",
        f"run_dir={folder / 'run'}",
        "data.generate_images=24,8",
        "data.short_side=64",
        "data.long_side=96",
        "optimizer.max_epochs=1",
        "system.log_every_steps=2",
        "system.threads=1",
        *more,
    ]


def small_run(folder: Path, *more: str) -> int:
    """Return the exit code of such a run."""
    return main(small_run_arguments(folder, *more))


def log_events(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    lines = (run / "mlperf.log").read_text().splitlines()
    assert all(line.startswith(":::MLLOG {") for line in lines)
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def read_results(run: Path) -> dict[str, Any]:
    """Return results.json of a run."""
    return json.loads((run / "results.json").read_text())
