"""How many epochs runs need: learnt from the reference convergence points and from the published runs.

The box target is met only after the last decay of the learning rate, so what counts is the batch size and the epoch
of that decay. Of two runs with the same of both, one may still need many epochs more than the other.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise

from maskperf.data.coco.verify import NUM_TRAIN_IMAGES
from maskperf.data.images.sampler import steps_per_epoch
from maskperf.errors import ConfigError
from maskperf.mlperf.published import PublishedSystem
from maskperf.mlperf.reference_points import REFERENCE_POINTS

RUNS_OF_A_SERIES = 5
# Schedules whose last decays are nearer to each other than this are taken for one and the same.
SAME_SCHEDULE_EPOCHS = 0.5
# A schedule of its own is looked up among batch sizes within this factor.
NEAR_BATCH_FACTOR = 1.25
INTERPOLATION_LEVELS = 20
ROUNDING = 1e-9  # of sums of shares
REFERENCE_BATCHES = tuple(point.batch_size for point in REFERENCE_POINTS)
_POINT_OF_BATCH = {point.batch_size: point for point in REFERENCE_POINTS}


@dataclass(frozen=True, kw_only=True)
class EpochForecast:
    """Epochs until the targets are met, for runs that meet them: possible numbers, ascending, and their shares."""

    levels: tuple[tuple[float, float], ...]
    sentence: str  # what it was learnt from

    def quantile(self, share: float) -> float:
        return _weighted_quantile(self.levels, share)


@dataclass(frozen=True, kw_only=True)
class SeriesForecast:
    """The mean epochs of the runs that make the score of five: fastest and slowest dropped, one failure allowed."""

    mean_epochs: float
    low_epochs: float  # 5 % of all series that count are lower
    high_epochs: float  # 95 %
    void_share: float  # of series in which more than one run fails, and which have no score


def reference_decay_epoch(batch_size: int) -> float:
    """Return the epoch of the last decay of the reference points, interpolated between their batch sizes."""
    low, high, weight = _neighbours(batch_size, REFERENCE_BATCHES)
    low_decay = _decay_epoch(_POINT_OF_BATCH[low].decay_steps[-1], low)
    high_decay = _decay_epoch(_POINT_OF_BATCH[high].decay_steps[-1], high)
    return (1 - weight) * low_decay + weight * high_decay


def forecast_epochs(
    batch_size: int, systems: Sequence[PublishedSystem], *, last_decay_step: int | None = None
) -> EpochForecast:
    """Return the epochs to expect; without `last_decay_step` for the schedule of the reference points.

    `systems` are the published systems to learn from. A schedule that is not that of the reference points is looked up
    among published runs with about the same batch and decay; where there are none, a later decay moves the end by as
    much, and an earlier one gains nothing (the published runs with an earlier one needed longer).

    Errors: ConfigError for a batch above the largest reference point: there is nothing to learn from.
    """
    largest = REFERENCE_BATCHES[-1]
    if batch_size > largest:
        text = (
            f"--batch-size {batch_size}: there is no reference point above batch {largest}, so the epochs are unknown"
        )
        raise ConfigError(f"{text}. Fix: a batch of at most {largest}, or say how many with --epochs.")
    usual = reference_decay_epoch(batch_size)
    decay = usual if last_decay_step is None else _decay_epoch(last_decay_step, batch_size)
    if abs(decay - usual) < SAME_SCHEDULE_EPOCHS:
        return _on_reference_schedule(batch_size, systems)
    alike = [run for system in systems if _is_alike(system, batch_size, decay) for run in system.runs if run.reached]
    if alike:
        sentence = f"{len(alike)} published runs with about this batch and the last decay at epoch {decay:.1f}"
        return EpochForecast(levels=_levels([float(run.epochs) for run in alike]), sentence=sentence)
    return _moved(_on_reference_schedule(batch_size, systems), decay, usual)


def _on_reference_schedule(batch_size: int, systems: Sequence[PublishedSystem]) -> EpochForecast:
    points = {point.batch_size: [float(epochs) for epochs in point.epochs] for point in REFERENCE_POINTS}
    for system in systems:
        system_decay = _decay_epoch(system.decay_steps[-1], system.batch_size)
        if abs(system_decay - reference_decay_epoch(system.batch_size)) < SAME_SCHEDULE_EPOCHS:
            points.setdefault(system.batch_size, []).extend(float(run.epochs) for run in system.runs if run.reached)
    low, high, weight = _neighbours(batch_size, sorted(points))
    if low == high:
        sentence = f"{len(points[low])} runs with batch {low}: reference point and published"
        if batch_size < low:
            sentence += f"; below batch {low} there is no reference point"
        levels = _levels(points[low])
    else:
        runs = len(points[low]) + len(points[high])
        sentence = f"interpolated between {runs} runs with batch {low} and batch {high}: reference points and published"
        shares = [(index + 0.5) / INTERPOLATION_LEVELS for index in range(INTERPOLATION_LEVELS)]
        below, above = _levels(points[low]), _levels(points[high])
        levels = _levels(
            [
                (1 - weight) * _weighted_quantile(below, share) + weight * _weighted_quantile(above, share)
                for share in shares
            ]
        )
    return EpochForecast(levels=levels, sentence=sentence)


def _moved(forecast: EpochForecast, decay: float, usual: float) -> EpochForecast:
    later = max(0.0, decay - usual)
    moved = tuple((epochs + later, share) for epochs, share in forecast.levels)
    text = f"moved by {later:.1f}" if later else "not moved"
    sentence = (
        f"{forecast.sentence}; {text}, as the last decay is at epoch {decay:.1f} instead of {usual:.1f}"
        " (nothing was published with such a schedule)"
    )
    return EpochForecast(levels=moved, sentence=sentence)


def forecast_series(forecast: EpochForecast, failing_share: float) -> SeriesForecast:
    """Return the score of five runs in epochs, exactly, over every series that can come out.

    Source: MLPerf Training rules: the fastest and the slowest of five are dropped; a run that fails is the slowest.
    """
    levels = [(epochs, share * (1 - failing_share)) for epochs, share in forecast.levels]
    if failing_share > 0:
        levels.append((math.inf, failing_share))
    means: list[tuple[float, float]] = []
    for series in combinations_with_replacement(range(len(levels)), RUNS_OF_A_SERIES):
        kept = [levels[index][0] for index in series[1:-1]]
        if kept[-1] == math.inf:
            continue
        orders = math.factorial(RUNS_OF_A_SERIES)
        for count in Counter(series).values():
            orders //= math.factorial(count)
        means.append((sum(kept) / len(kept), orders * math.prod(levels[index][1] for index in series)))
    valid = sum(share for _, share in means)
    if not valid > 0:
        raise ConfigError("--failing-share 1: no series of five would have a score. Fix: a share below 1.")
    means = sorted((mean, share / valid) for mean, share in means)
    return SeriesForecast(
        mean_epochs=sum(mean * share for mean, share in means),
        low_epochs=_weighted_quantile(means, 0.05),
        high_epochs=_weighted_quantile(means, 0.95),
        void_share=1 - valid,
    )


def failing_share(systems: Sequence[PublishedSystem]) -> float:
    """Return the share of published runs that did not reach the targets."""
    runs = [run for system in systems for run in system.runs]
    return sum(not run.reached for run in runs) / len(runs)


def _is_alike(system: PublishedSystem, batch_size: int, decay: float) -> bool:
    factor = max(system.batch_size / batch_size, batch_size / system.batch_size)
    system_decay = _decay_epoch(system.decay_steps[-1], system.batch_size)
    return factor <= NEAR_BATCH_FACTOR and abs(system_decay - decay) < SAME_SCHEDULE_EPOCHS


def _decay_epoch(step: int, batch_size: int) -> float:
    return step / steps_per_epoch(NUM_TRAIN_IMAGES, batch_size)


def _neighbours(batch_size: int, batches: Sequence[int]) -> tuple[int, int, float]:
    """Return the batches below and above, and the weight of the one above; twice the same one at and past the ends."""
    if batch_size <= batches[0]:
        return batches[0], batches[0], 0.0
    for low, high in pairwise(batches):
        if low < batch_size < high:
            return low, high, (batch_size - low) / (high - low)
        if batch_size == high:
            return high, high, 0.0
    return batches[-1], batches[-1], 0.0


def _levels(epochs: Sequence[float]) -> tuple[tuple[float, float], ...]:
    counts = Counter(epochs)
    return tuple((number, counts[number] / len(epochs)) for number in sorted(counts))


def _weighted_quantile(levels: Sequence[tuple[float, float]], share: float) -> float:
    total = 0.0
    for number, weight in levels:
        total += weight
        if total >= share - ROUNDING:
            return number
    return levels[-1][0]
