"""Runs of the whole program that take seconds: the demo recipe, much reduced."""

from pathlib import Path

from maskperf.cli.main import main


def small_run_words(folder: Path, *more: str) -> list[str]:
    """Return the words of a demo run of a few steps on 24 pictures, everything inside `folder`."""
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
    return main(small_run_words(folder, *more))
