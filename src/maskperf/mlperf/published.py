"""What others published: the 23 Mask R-CNN systems of MLPerf Training v3.1, five runs each, with every evaluation."""

import functools
import statistics
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import msgspec

from maskperf.config import NUM_TRAIN_IMAGES

# A run whose loss went to NaN ends with an AP of exactly 0; the lowest AP of a sound first evaluation is 0.027.
COLLAPSED_BOX_AP = 0.01


class PublishedEvaluation(NamedTuple):
    epoch: int
    box_ap: float
    mask_ap: float


class PublishedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One of the five runs of a system."""

    minutes: float  # from run_start to run_stop, as logged
    init_seconds: float  # before run_start, not in `minutes`
    status: str  # "success" where both targets were met
    epochs: int
    median_epoch_seconds: float  # of training alone
    evaluations: tuple[PublishedEvaluation, ...]

    @property
    def reached(self) -> bool:
        return self.status == "success"

    @property
    def collapsed(self) -> bool:
        return self.evaluations[-1].box_ap < COLLAPSED_BOX_AP


class PublishedSystem(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the results table."""

    submitter: str
    system: str
    nodes: int
    accelerators_per_node: int
    accelerator: str
    batch_size: int = msgspec.field(name="global_batch_size")
    decay_steps: tuple[int, ...]
    score_minutes: float
    runs: tuple[PublishedRun, ...]

    @property
    def name(self) -> str:
        return f"{self.submitter}: {self.system}"

    @property
    def accelerators(self) -> int:
        return self.nodes * self.accelerators_per_node

    @property
    def training_devices(self) -> int:
        """The devices that have at least one image of each batch."""
        return min(self.accelerators, self.batch_size)

    @property
    def epochs_to_targets(self) -> list[float]:
        return [float(run.epochs) for run in self.runs if run.reached]

    @property
    def epoch_seconds(self) -> float:
        """The median training time of an epoch over the runs that reached the targets; a collapsed run is faster."""
        return statistics.median(run.median_epoch_seconds for run in self.runs if run.reached)

    @property
    def images_per_second(self) -> float:
        """The training rate of each device that trains."""
        return NUM_TRAIN_IMAGES / self.epoch_seconds / self.training_devices


class PublishedResults(msgspec.Struct, frozen=True):
    """The file beside this module. Source: mlcommons/training_results_v3.1, result logs and system descriptions."""

    systems: tuple[PublishedSystem, ...]


@dataclass(frozen=True)
class BandEpoch:
    """What the published runs of one batch size had after an epoch: means and standard deviations of all of them."""

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
    batch_size: int
    epochs: tuple[BandEpoch, ...]
    sentence: str


@dataclass(frozen=True)
class RankedSystem:
    """A line of the results table."""

    name: str
    accelerators: int | None  # None: unknown, of this system
    accelerator: str
    batch_size: int | None
    minutes: float
    minutes_times_accelerators: float | None
    is_this: bool


@functools.cache
def published_systems() -> tuple[PublishedSystem, ...]:
    content = resources.files("maskperf.mlperf").joinpath("published_v3_1.json").read_bytes()
    return msgspec.json.decode(content, type=PublishedResults).systems


def band_for(batch_size: int) -> PublishedBand:
    """Return how the published runs of this batch size went, or of the nearest one that was published.

    Runs that collapsed are left out. Where two batch sizes are equally near, the smaller one is taken.
    """
    sizes = sorted({system.batch_size for system in published_systems()})
    nearest = min(sizes, key=lambda size: abs(size - batch_size))
    all_runs = [run for system in published_systems() if system.batch_size == nearest for run in system.runs]
    runs = [run for run in all_runs if not run.collapsed]
    sentence = f"{len(runs)} published runs with batch {nearest} (MLPerf Training v3.1)"
    if len(runs) < len(all_runs):
        sentence += f"; {len(all_runs) - len(runs)} more collapsed and are left out"
    if nearest != batch_size:
        sentence += f"; nothing was published with batch {batch_size}, this is the nearest batch"
    found: dict[int, list[tuple[float, float, float]]] = {}  # epoch: box AP, mask AP and minutes of each run
    for run in runs:
        for epoch, box_ap, mask_ap in run.evaluations:
            found.setdefault(epoch, []).append((box_ap, mask_ap, run.minutes * epoch / run.epochs))
    epochs, mean, deviation = [], statistics.fmean, statistics.pstdev
    for epoch in sorted(found):
        box, mask, minutes = zip(*found[epoch], strict=True)
        scores = mean(box), deviation(box), mean(mask), deviation(mask)
        epochs.append(BandEpoch(epoch, len(minutes), *scores, min(minutes), max(minutes)))
    return PublishedBand(batch_size=nearest, epochs=tuple(epochs), sentence=sentence)


def place_among(
    score_minutes: float,
    accelerators: int | None,
    *,
    name: str = "this system",
    accelerator: str = "",
    batch_size: int | None = None,
) -> tuple[RankedSystem, ...]:
    """Return the published systems and this one, the fastest first; a tie goes to the published system."""
    product = None if accelerators is None else score_minutes * accelerators
    rows = [RankedSystem(name, accelerators, accelerator, batch_size, score_minutes, product, is_this=True)]
    for system in published_systems():
        minutes, count = system.score_minutes, system.accelerators
        row = RankedSystem(system.name, count, system.accelerator, system.batch_size, minutes, minutes * count, False)
        rows.append(row)
    return tuple(sorted(rows, key=lambda row: (row.minutes, row.is_this)))
