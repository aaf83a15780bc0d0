"""What others published: the 23 Mask R-CNN systems of MLPerf Training v3.1, five runs each, with every evaluation.

The file beside this module holds the figures of mlcommons/training_results_v3.1; times are minutes from run_start to
run_stop, as logged.
"""

import functools
import json
import statistics
from dataclasses import dataclass
from importlib import resources
from typing import Any

FILE_NAME = "published_v3_1.json"
# A run whose loss went to NaN ends with an AP of exactly 0; the lowest AP of a sound first evaluation is 0.027.
COLLAPSED_BOX_AP = 0.01


@dataclass(frozen=True, kw_only=True)
class PublishedEvaluation:
    epoch: int
    box_ap: float
    mask_ap: float


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """One of the five runs of a system."""

    minutes: float
    init_seconds: float  # before run_start, not in `minutes`
    reached: bool  # both targets met; otherwise its log ends with "aborted"
    epochs: int
    median_epoch_seconds: float  # of training alone
    evaluations: tuple[PublishedEvaluation, ...]

    @property
    def collapsed(self) -> bool:
        return self.evaluations[-1].box_ap < COLLAPSED_BOX_AP


@dataclass(frozen=True, kw_only=True)
class PublishedSystem:
    """One entry of the results table."""

    submitter: str
    system: str
    nodes: int
    accelerators_per_node: int
    accelerator: str
    framework: str
    batch_size: int
    learning_rate: float
    decay_steps: tuple[int, ...]
    warmup_steps: int
    warmup_factor: float
    proposals: int
    score_minutes: float
    runs: tuple[PublishedRun, ...]

    @property
    def name(self) -> str:
        return f"{self.submitter}: {self.system}"

    @property
    def accelerators(self) -> int:
        return self.nodes * self.accelerators_per_node


@dataclass(frozen=True, kw_only=True)
class BandEpoch:
    """What the published runs of one batch size had after an epoch: means, and standard deviations of all of them."""

    epoch: int
    runs: int
    box_mean: float
    box_deviation: float
    mask_mean: float
    mask_deviation: float
    # Fastest and slowest of these runs at the end of this epoch, had all epochs of a run been equally long.
    minutes_low: float
    minutes_high: float


@dataclass(frozen=True, kw_only=True)
class PublishedBand:
    batch_size: int  # of the published runs
    asked_batch_size: int
    epochs: tuple[BandEpoch, ...]
    runs: int  # that did not collapse
    minutes_low: float  # fastest and slowest of the runs that reached the targets
    minutes_high: float
    sentence: str


@dataclass(frozen=True, kw_only=True)
class RankedSystem:
    """A line of the results table."""

    name: str
    accelerators: int
    accelerator: str
    batch_size: int | None
    minutes: float
    minutes_times_accelerators: float
    is_this: bool


@functools.cache
def published_systems() -> tuple[PublishedSystem, ...]:
    """Return the published systems in the order of submitters and systems.

    Source: mlcommons/training_results_v3.1, result logs and system descriptions.
    """
    text = resources.files("maskperf.mlperf").joinpath(FILE_NAME).read_text(encoding="utf-8")
    return tuple(_system(entry) for entry in json.loads(text)["systems"])


def _system(entry: dict[str, Any]) -> PublishedSystem:
    return PublishedSystem(
        submitter=entry["submitter"],
        system=entry["system"],
        nodes=entry["nodes"],
        accelerators_per_node=entry["accelerators_per_node"],
        accelerator=entry["accelerator"],
        framework=entry["framework"],
        batch_size=entry["global_batch_size"],
        learning_rate=entry["base_learning_rate"],
        decay_steps=tuple(entry["decay_steps"]),
        warmup_steps=entry["warmup_steps"],
        warmup_factor=entry["warmup_factor"],
        proposals=entry["num_image_candidates"],
        score_minutes=entry["score_minutes"],
        runs=tuple(_run(run) for run in entry["runs"]),
    )


def _run(entry: dict[str, Any]) -> PublishedRun:
    return PublishedRun(
        minutes=entry["minutes"],
        init_seconds=entry["init_seconds"],
        reached=entry["status"] == "success",
        epochs=entry["epochs"],
        median_epoch_seconds=entry["median_epoch_seconds"],
        evaluations=tuple(
            PublishedEvaluation(epoch=epoch, box_ap=box_ap, mask_ap=mask_ap)
            for epoch, box_ap, mask_ap in entry["evaluations"]
        ),
    )


def band_for(batch_size: int) -> PublishedBand:
    """Return how the published runs of this batch size went, or of the nearest one that was published.

    Runs that collapsed are left out. Where two batch sizes are equally near, the smaller one is taken.
    """
    sizes = sorted({system.batch_size for system in published_systems()})
    nearest = min(sizes, key=lambda size: abs(size - batch_size))
    all_runs = [run for system in published_systems() if system.batch_size == nearest for run in system.runs]
    runs = [run for run in all_runs if not run.collapsed]
    minutes = [run.minutes for run in runs if run.reached]
    sentence = f"{len(runs)} published runs with batch {nearest} (MLPerf Training v3.1)"
    if len(runs) < len(all_runs):
        sentence += f"; {len(all_runs) - len(runs)} more collapsed and are left out"
    if nearest != batch_size:
        sentence += f"; nothing was published with batch {batch_size}, this is the nearest batch"
    return PublishedBand(
        batch_size=nearest,
        asked_batch_size=batch_size,
        epochs=_band_epochs(runs),
        runs=len(runs),
        minutes_low=min(minutes),
        minutes_high=max(minutes),
        sentence=sentence,
    )


def _band_epochs(runs: list[PublishedRun]) -> tuple[BandEpoch, ...]:
    by_epoch: dict[int, list[tuple[PublishedRun, PublishedEvaluation]]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            by_epoch.setdefault(evaluation.epoch, []).append((run, evaluation))
    return tuple(_band_epoch(epoch, by_epoch[epoch]) for epoch in sorted(by_epoch))


def _band_epoch(epoch: int, found: list[tuple[PublishedRun, PublishedEvaluation]]) -> BandEpoch:
    box = [evaluation.box_ap for _, evaluation in found]
    mask = [evaluation.mask_ap for _, evaluation in found]
    minutes = [run.minutes * epoch / run.epochs for run, _ in found]
    return BandEpoch(
        epoch=epoch,
        runs=len(found),
        box_mean=statistics.fmean(box),
        box_deviation=statistics.pstdev(box),
        mask_mean=statistics.fmean(mask),
        mask_deviation=statistics.pstdev(mask),
        minutes_low=min(minutes),
        minutes_high=max(minutes),
    )


def place_among(
    score_minutes: float,
    accelerators: int,
    *,
    name: str = "this system",
    accelerator: str = "",
    batch_size: int | None = None,
) -> tuple[RankedSystem, ...]:
    """Returns the published systems and this one, the fastest first; a tie goes to the published system."""
    lines = [
        _ranked(
            system.score_minutes,
            system.accelerators,
            name=system.name,
            accelerator=system.accelerator,
            batch_size=system.batch_size,
            is_this=False,
        )
        for system in published_systems()
    ]
    lines.append(
        _ranked(score_minutes, accelerators, name=name, accelerator=accelerator, batch_size=batch_size, is_this=True)
    )
    return tuple(sorted(lines, key=lambda line: (line.minutes, line.is_this)))


def _ranked(
    minutes: float, accelerators: int, *, name: str, accelerator: str, batch_size: int | None, is_this: bool
) -> RankedSystem:
    return RankedSystem(
        name=name,
        accelerators=accelerators,
        accelerator=accelerator,
        batch_size=batch_size,
        minutes=minutes,
        minutes_times_accelerators=minutes * accelerators,
        is_this=is_this,
    )
