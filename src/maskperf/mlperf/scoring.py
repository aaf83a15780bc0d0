"""The score of five runs, and whether they needed as many epochs as the reference does.

Source: MLPerf Training rules, sections on scoring and reference convergence points; the latter are compared by
mlperf-logging's RCP checker.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from mlperf_logging.rcp_checker.rcp_checker import RCP_Checker

from maskperf.config import BENCHMARK
from maskperf.mlperf.rules import RUNS

POINTS = "pruned_rcps"  # the reference points that count


@dataclass(frozen=True)
class ReferenceCheck:
    """The result of the RCP test on five runs."""

    passed: bool
    sentence: str
    scaling_factor: float = 1.0  # the score is multiplied by it; of use only where the test is passed


def score_minutes(minutes: Sequence[int | float | None]) -> float | None:
    """Return the score of five runs: the mean without the fastest and the slowest, before any scaling factor.

    None stands for a failed run; it is the slowest. The score is None with more than one, or without five runs.
    """
    if len(minutes) != RUNS or sum(run is None for run in minutes) > 1:
        return None
    ordered = sorted(math.inf if run is None else run for run in minutes)
    return sum(ordered[1:-1]) / (RUNS - 2)


def reference_check(
    batch_size: int, epochs: Sequence[int | float | None], *, as_in_v3_1: bool = False
) -> ReferenceCheck:
    """Return whether five runs needed as many epochs as the reference; None stands for a failed run."""
    mean = score_minutes(epochs)  # the rule for epochs is that for minutes
    if mean is None:
        reason = f"{RUNS} runs are needed, and {len(epochs)} are there"
        if len(epochs) == RUNS:
            reason = f"{epochs.count(None)} of {RUNS} runs failed, one may"
        return ReferenceCheck(passed=False, sentence=f"failed: {reason}.")
    reference = reference_for(batch_size, as_in_v3_1=as_in_v3_1)
    if reference is None:
        largest = max(point["BS"] for point in _checker(as_in_v3_1).pruned_rcp_data.values())
        reason = f"batch size {batch_size} is above {largest}, the largest with a reference; an own reference is needed"
        return ReferenceCheck(passed=False, sentence=f"failed: {reason}.")
    reference_mean, smallest = float(reference["RCP Mean"]), float(reference["Min Epochs"])
    passed, factor = mean >= smallest, max(1.0, reference_mean / mean) if mean > 0 else 1.0
    needs = f"the reference needs {reference_mean:.3f} at batch size {reference['BS']}"
    if batch_size != reference["BS"]:
        needs += f" (the smallest with a reference, above {batch_size})"
    text = f"{mean:.3f} epochs on average of the middle three; {needs}, and {smallest:.3f} are enough."
    end = " Too few epochs: the runs learned faster than the reference can."
    if passed:
        end = f" The score is multiplied by {factor:.4f}." if factor > 1 else ""
    return ReferenceCheck(passed, f"{'passed' if passed else 'failed'}: {text}{end}", factor)


@cache
def _checker(as_in_v3_1: bool) -> RCP_Checker:
    """Return mlperf-logging's checker, as it is since July 2024 or as it was in round v3.1.

    Today it takes the standard deviation of all runs of a reference point, then of those that the mean is taken of.
    """
    checker = RCP_Checker("training", "3.1.0", BENCHMARK, verbose=False)
    for point in checker.pruned_rcp_data.values() if as_in_v3_1 else ():
        behind_mean = sorted(point["Epochs to converge"])[1:-1]
        point["RCP Stdev"] = np.std(behind_mean)
        point["Min Epochs"] = checker._find_min_acceptable_mean(point["RCP Mean"], point["RCP Stdev"], len(behind_mean))
    return checker


def reference_for(batch_size: int, *, as_in_v3_1: bool = False) -> dict | None:
    """Return the reference that runs at a batch size are compared with, None above the largest reference point."""
    checker = _checker(as_in_v3_1)
    exact = checker._find_rcp(batch_size, POINTS)
    below, above = checker._find_top_min_rcp(batch_size, POINTS), checker._find_bottom_max_rcp(batch_size, POINTS)
    if exact is not None or above is None or below is None:
        return exact or above
    return checker._create_interp_rcp(batch_size, below, above)[1]
