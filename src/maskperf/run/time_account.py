"""Where the time of a run goes: seconds by phase, and the rest that no phase claims."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

OTHER = "other"
PHASES = (
    "opening the data",
    "data wait",
    "forward",
    "backward",
    "replay",  # forward and backward as one CUDA graph
    "exchange",  # of gradients between processes
    "optimizer",
    "evaluation",
    "saving",
    OTHER,
)


class TimeAccount:
    """Adds up seconds by phase between start and stop. Phases do not overlap, so their sum is at most the whole."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._start: float | None = None
        self._stop: float | None = None

    def start(self) -> None:
        """Start the clock of the run: a monotonic one, which nobody can set."""
        self._start = time.monotonic()

    def stop(self) -> None:
        if self._stop is None:
            self._stop = time.monotonic()

    def total_seconds(self) -> float:
        """Return what has passed since the start, up to the stop if there was one; 0 before the start."""
        if self._start is None:
            return 0.0
        return (time.monotonic() if self._stop is None else self._stop) - self._start

    def add(self, phase: str, seconds: float) -> None:
        if phase not in PHASES:
            raise ValueError(f"{phase!r} is not one of {', '.join(PHASES)}")
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the time inside the `with` block for this phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(phase, time.monotonic() - start)

    def phases(self) -> dict[str, float]:
        """Return every phase that took time, in the order of `PHASES`; what is left of the whole is "other"."""
        named = {phase: self._seconds[phase] for phase in PHASES if phase in self._seconds and phase != OTHER}
        return {**named, OTHER: max(0.0, self.total_seconds() - sum(named.values()))}
