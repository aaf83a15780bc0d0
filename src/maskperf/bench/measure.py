"""Medians and their spread, and sides measured in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

CLOCKS = ("wall", "cpu")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One measurement of one side: seconds of one call, by the clock on the wall and of all its threads together."""

    wall_seconds: float
    cpu_seconds: float

    def by(self, clock: str) -> float:
        return self.wall_seconds if clock == "wall" else self.cpu_seconds


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Where a number lies over the repeats."""

    median: float
    minimum: float
    first_quartile: float
    third_quartile: float
    maximum: float
    count: int


def spread_of(values: list[float]) -> Spread:
    """Return the median, the extremes and the quartiles (those of the data itself, ends included)."""
    first, _, third = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(
        median=median(values),
        minimum=min(values),
        first_quartile=first,
        third_quartile=third,
        maximum=max(values),
        count=len(values),
    )


def ratio_spread(ours: list[float], others: list[float]) -> Spread:
    """Return how many times as long the other side takes, pair by pair: both of a pair were measured in turn."""
    return spread_of([other / our for our, other in zip(ours, others, strict=True)])


def measure_in_turn(sides: dict[str, Callable[[], Timing]], repeats: int) -> dict[str, list[Timing]]:
    """Return the timings of each side, A B A B ...: a machine that slows down slows both down."""
    timings: dict[str, list[Timing]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, measure in sides.items():
            timings[name].append(measure())
    return timings
