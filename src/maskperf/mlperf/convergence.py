"""How many epochs runs need: learnt from the reference convergence points and from the published runs.

The box target is met only after the last decay of the learning rate, so what counts is the batch size and the epoch
of that decay.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from statistics import fmean
from typing import NamedTuple

import numpy as np

from maskperf.config import NUM_TRAIN_IMAGES
from maskperf.data.images.sampler import steps_per_epoch
from maskperf.errors import ConfigError
from maskperf.mlperf.published import PublishedSystem
from maskperf.mlperf.rules import RUNS
from maskperf.recipes import reference_points

# Schedules whose last decays are nearer to each other than this are taken for one and the same.
SAME_SCHEDULE_EPOCHS = 0.5
# Another schedule than that of the reference points is looked up among batch sizes within this factor.
NEAR_BATCH_FACTOR = 1.25
INTERPOLATION_LEVELS = 20
ROUNDING = 1e-9  # of sums of shares
REFERENCE_BATCHES = tuple(reference_points())

Levels = tuple[tuple[float, float], ...]  # numbers of epochs, ascending, each with its share


@dataclass(frozen=True)
class Range:
    """An expected number, and the two that 5 % and 95 % of all outcomes should stay below."""

    expected: float
    low: float
    high: float


class EpochForecast(NamedTuple):
    """Epochs until the targets are met, for runs that meet them, and what they were learnt from."""

    levels: Levels
    sentence: str


def reference_decay_epoch(batch_size: int) -> float:
    """Return the epoch of the last decay of the reference points, interpolated between their batch sizes."""
    decays = [_epoch_of(point.decay_steps[-1], batch) for batch, point in reference_points().items()]
    return float(np.interp(batch_size, REFERENCE_BATCHES, decays))


def forecast_epochs(
    batch_size: int, systems: Sequence[PublishedSystem], *, last_decay_step: int | None = None
) -> EpochForecast:
    """Return the epochs to expect, learnt from `systems`; by default with the schedule of the reference points.

    Another schedule is looked up among published runs with about the same batch and decay. Where there are none, a
    later decay moves the end by as much, and an earlier one gains nothing: published runs with one needed longer.

    Errors: ConfigError for a batch above the largest reference point: there is nothing to learn from.
    """
    largest = REFERENCE_BATCHES[-1]
    if batch_size > largest:
        unknown = f"there is no reference point above batch {largest}, so the epochs are unknown"
        fix = f"a batch of at most {largest}, or say how many with --epochs."
        raise ConfigError(f"--batch-size {batch_size}: {unknown}. Fix: {fix}")
    forecast = _on_reference_schedule(batch_size, systems)
    usual = reference_decay_epoch(batch_size)
    decay = usual if last_decay_step is None else _epoch_of(last_decay_step, batch_size)
    if abs(decay - usual) < SAME_SCHEDULE_EPOCHS:
        return forecast
    alike = [
        epochs
        for system in systems
        if max(system.batch_size / batch_size, batch_size / system.batch_size) <= NEAR_BATCH_FACTOR
        and abs(_decay_epoch(system) - decay) < SAME_SCHEDULE_EPOCHS
        for epochs in system.epochs_to_targets
    ]
    if alike:
        sentence = f"{len(alike)} published runs with about this batch and the last decay at epoch {decay:.1f}"
        return EpochForecast(_levels(alike), sentence)
    later = max(0.0, decay - usual)
    sentence = f"{forecast.sentence}; moved by {later:.1f}: the last decay is at epoch {decay:.1f}, not {usual:.1f}"
    return EpochForecast(tuple((epochs + later, share) for epochs, share in forecast.levels), sentence)


def _on_reference_schedule(batch_size: int, systems: Sequence[PublishedSystem]) -> EpochForecast:
    runs = {batch: list(map(float, point.epochs)) for batch, point in reference_points().items()}
    for system in systems:
        if abs(_decay_epoch(system) - reference_decay_epoch(system.batch_size)) < SAME_SCHEDULE_EPOCHS:
            runs.setdefault(system.batch_size, []).extend(system.epochs_to_targets)
    high = min((batch for batch in runs if batch >= batch_size), default=max(runs))
    low = max((batch for batch in runs if batch <= batch_size), default=high)
    below, above = _levels(runs[low]), _levels(runs[high])
    if low == high:
        sentence = f"{len(runs[low])} runs with batch {low}: reference point and published"
        if batch_size < low:
            sentence += f"; below batch {low} there is no reference point"
        return EpochForecast(below, sentence)
    count = len(runs[low]) + len(runs[high])
    sentence = f"interpolated between {count} runs with batch {low} and batch {high}: reference points and published"
    weight = (batch_size - low) / (high - low)
    shares = [(index + 0.5) / INTERPOLATION_LEVELS for index in range(INTERPOLATION_LEVELS)]
    between = [(1 - weight) * quantile(below, share) + weight * quantile(above, share) for share in shares]
    return EpochForecast(_levels(between), sentence)


def forecast_series(levels: Levels, failing_share: float) -> tuple[Range, float]:
    """Return the epochs of the score of five runs, exactly, and the share of series without a score.

    Source: MLPerf Training rules: the fastest and the slowest of five are dropped; a run that fails is the slowest.
    """
    outcomes = [(epochs, share * (1 - failing_share)) for epochs, share in levels]
    if failing_share > 0:
        outcomes.append((math.inf, failing_share))
    means: list[tuple[float, float]] = []
    for series in combinations_with_replacement(range(len(outcomes)), RUNS):
        middle = [outcomes[index][0] for index in series[1:-1]]
        if middle[-1] < math.inf:
            orders = math.factorial(RUNS) // math.prod(math.factorial(count) for count in Counter(series).values())
            means.append((sum(middle) / len(middle), orders * math.prod(outcomes[index][1] for index in series)))
    valid = sum(share for _, share in means)
    return range_of(tuple(sorted((mean, share / valid) for mean, share in means))), 1 - valid


def range_of(levels: Levels) -> Range:
    """Return the mean of numbers with their shares, and its 5 % and 95 % quantiles."""
    mean = sum(number * share for number, share in levels)
    return Range(mean, quantile(levels, 0.05), quantile(levels, 0.95))


def quantile(levels: Levels, share: float) -> float:
    """Return the lowest number that at least this share of all numbers does not exceed."""
    total = 0.0
    for number, weight in levels:
        total += weight
        if total >= share - ROUNDING:
            return number
    return levels[-1][0]


def failing_share(systems: Sequence[PublishedSystem]) -> float:
    """Return the share of published runs that did not reach the targets."""
    return fmean(not run.reached for system in systems for run in system.runs)


def _epoch_of(step: int, batch_size: int) -> float:
    return step / steps_per_epoch(NUM_TRAIN_IMAGES, batch_size)


def _decay_epoch(system: PublishedSystem) -> float:
    return _epoch_of(system.decay_steps[-1], system.batch_size)


def _levels(epochs: Sequence[float]) -> Levels:
    return tuple((number, count / len(epochs)) for number, count in sorted(Counter(epochs).items()))
