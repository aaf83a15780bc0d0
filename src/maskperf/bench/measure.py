"""Medians and their spread, and sides measured in turn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

Measured = TypeVar("Measured")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one call: on the wall clock, and of processor time over all threads."""

    wall_seconds: float
    cpu_seconds: float

    def by(self, clock: str) -> float:
        return self.wall_seconds if clock == "wall" else self.cpu_seconds


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Statistics of a number over the repeats."""

    median: float
    minimum: float
    first_quartile: float
    third_quartile: float
    maximum: float
    count: int


def spread_of(values: list[float]) -> Spread:
    """Return the median, the extremes and the quartiles (of the data itself, ends included)."""
    first, _, third = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(
        median=median(values),
        minimum=min(values),
        first_quartile=first,
        third_quartile=third,
        maximum=max(values),
        count=len(values),
    )


def ratio_spread(values: list[float], others: list[float]) -> Spread:
    """Return the spread of other / value, pair by pair: both of a pair were measured in turn."""
    return spread_of([other / value for value, other in zip(values, others, strict=True)])


def measure_in_turn(sides: Mapping[str, Callable[[], Measured]], repeats: int) -> dict[str, list[Measured]]:
    """Return the measurements of each side, taken as A B A B ...: a machine that slows down slows all sides down."""
    found: dict[str, list[Measured]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, measure in sides.items():
            found[name].append(measure())
    return found
