"""The score of five runs, and whether they needed as many epochs as the reference does.

Source: MLPerf Training rules, sections on scoring and reference convergence points; mlperf-logging, rcp_checker.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from maskperf.mlperf.reference_points import REFERENCE_POINTS, ReferencePoint

RUNS = 5
KEPT_RUNS = RUNS - 2
# Student's t at 0.95 by degrees of freedom: runs behind a reference and three of ours, less two. There are no others.
QUANTILE_OF_FREEDOM = {9: 1.8331129326562374, 11: 1.7958848187040437, 19: 1.729132811521367}
TOOLS = ("today", "v3.1")  # mlperf-logging since July 2024, and as it was in round v3.1
RUNS_BEHIND_AN_INTERPOLATION = 10


@dataclass(frozen=True, kw_only=True)
class ReferenceCheck:
    """What the RCP test says of five runs. Numbers are None where the test has none to compare."""

    passed: bool
    mean_epochs: float | None  # of the three runs in the middle
    reference_mean: float | None
    smallest_mean: float | None  # the fewest epochs that pass
    scaling_factor: float  # the score is multiplied by it; of use only where the test is passed
    sentence: str


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """Convergence at one batch size: mean and standard deviation in epochs."""

    batch_size: int
    mean: float
    deviation: float
    runs: int  # behind the mean

    @property
    def smallest_mean(self) -> float:
        """The mean of three runs that a one-sided pooled t-test at 5 % just takes for no faster."""
        quantile = QUANTILE_OF_FREEDOM[self.runs + KEPT_RUNS - 2]
        return self.mean - quantile * self.deviation * math.sqrt(1 / self.runs + 1 / KEPT_RUNS)


def score_minutes(minutes: Sequence[int | float | None]) -> float | None:
    """Return the score of five runs: the mean without the fastest and the slowest, before any scaling factor.

    None stands for a failed run; it is the slowest. The score is None with more than one, or without five runs.
    """
    if len(minutes) != RUNS or sum(run is None for run in minutes) > 1:
        return None
    ordered = sorted(math.inf if run is None else run for run in minutes)
    return sum(ordered[1:-1]) / KEPT_RUNS


def reference_check(batch_size: int, epochs: Sequence[int | float | None], *, tool: str = "today") -> ReferenceCheck:
    """Return whether five runs needed as many epochs as the reference; None stands for a failed run.

    tool: "today" takes the standard deviation of all runs of a reference point, "v3.1" of those the mean is taken of.
    """
    if tool not in TOOLS:
        raise ValueError(f"tool={tool!r}: there are {', '.join(TOOLS)}")
    failed = sum(epoch is None for epoch in epochs)
    if len(epochs) != RUNS or failed > 1:
        count = f"{RUNS} runs are needed, and {len(epochs)} are there"
        return _without_reference(count if len(epochs) != RUNS else f"{failed} of {RUNS} runs failed, one may")
    mean_epochs = sum(sorted(math.inf if epoch is None else epoch for epoch in epochs)[1:-1]) / KEPT_RUNS
    reference = _reference_for(batch_size, tool)
    if reference is None:
        largest = _kept_references(tool)[-1].batch_size
        text = f"batch size {batch_size} is above {largest}, the largest with a reference; an own reference is needed"
        return _without_reference(text, mean_epochs)
    passed = mean_epochs >= reference.smallest_mean
    factor = max(1.0, reference.mean / mean_epochs) if mean_epochs > 0 else 1.0
    return ReferenceCheck(
        passed=passed,
        mean_epochs=mean_epochs,
        reference_mean=reference.mean,
        smallest_mean=reference.smallest_mean,
        scaling_factor=factor,
        sentence=_sentence(passed, mean_epochs, factor, reference, batch_size),
    )


def _without_reference(reason: str, mean_epochs: float | None = None) -> ReferenceCheck:
    return ReferenceCheck(
        passed=False,
        mean_epochs=mean_epochs,
        reference_mean=None,
        smallest_mean=None,
        scaling_factor=1.0,
        sentence=f"failed: {reason}.",
    )


def _sentence(passed: bool, mean: float, factor: float, reference: _Reference, batch_size: int) -> str:
    needs = f"the reference needs {reference.mean:.3f} at batch size {reference.batch_size}"
    if batch_size != reference.batch_size:
        needs += f" (the smallest with a reference, above {batch_size})"
    text = f"{mean:.3f} epochs on average of the middle three; {needs}, and {reference.smallest_mean:.3f} are enough"
    if not passed:
        return f"failed: {text}. Too few epochs: the runs learned faster than the reference can."
    return f"passed: {text}." + (f" The score is multiplied by {factor:.4f}." if factor > 1 else "")


@cache
def _kept_references(tool: str) -> tuple[_Reference, ...]:
    """Return the reference points that count, by batch size: those on the lower edge of all of them.

    Points below the batch size of the fastest one go, then every point slower than the line between its neighbours.
    The tool of round v3.1 compared the fewest epochs that pass, today's compares the means.
    """

    def epochs_of(reference: _Reference) -> float:
        return reference.mean if tool == "today" else reference.smallest_mean

    points = sorted((_reference_of(point, tool) for point in REFERENCE_POINTS), key=lambda point: point.batch_size)
    fastest = min(points, key=epochs_of)
    kept = [point for point in points if point.batch_size >= fastest.batch_size]
    middle = 1
    while middle < len(kept) - 1:
        between = _interpolate(kept[middle].batch_size, kept[middle - 1], kept[middle + 1])
        if epochs_of(kept[middle]) > epochs_of(between):
            del kept[middle]
        else:
            middle += 1
    return tuple(kept)


def _reference_of(point: ReferencePoint, tool: str) -> _Reference:
    ordered = sorted(point.epochs)
    kept = ordered[1:-1]
    spread = ordered if tool == "today" else kept
    centre = sum(spread) / len(spread)
    deviation = math.sqrt(sum((epochs - centre) ** 2 for epochs in spread) / len(spread))
    return _Reference(batch_size=point.batch_size, mean=sum(kept) / len(kept), deviation=deviation, runs=len(kept))


def _reference_for(batch_size: int, tool: str) -> _Reference | None:
    """Return what runs at a batch size are compared with, None above the largest reference point."""
    kept = _kept_references(tool)
    if batch_size <= kept[0].batch_size:
        return kept[0]
    for low, high in zip(kept, kept[1:], strict=False):
        if batch_size == high.batch_size:
            return high
        if batch_size < high.batch_size:
            return _interpolate(batch_size, low, high)
    return None


def _interpolate(batch_size: int, low: _Reference, high: _Reference) -> _Reference:
    part = (batch_size - low.batch_size) / (high.batch_size - low.batch_size)
    return _Reference(
        batch_size=batch_size,
        mean=low.mean + part * (high.mean - low.mean),
        deviation=low.deviation + part * (high.deviation - low.deviation),
        runs=RUNS_BEHIND_AN_INTERPOLATION,
    )
