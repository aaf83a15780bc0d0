"""The time of a step's phases by the device's own clock, without waiting for it."""

import time
from typing import Any

import torch


class Stopwatch:
    """The ends of the phases of one step; on a GPU events, which are read when the step is long over."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []  # times in seconds, or events
        self.mark("")

    def mark(self, phase: str) -> None:
        """End the phase of this name, which began at the mark before."""
        now: Any = torch.cuda.Event(enable_timing=True) if self._on_gpu else time.perf_counter()
        if self._on_gpu:
            now.record()
        self._marks.append((phase, now))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase; on a GPU the step must be over."""
        total: dict[str, float] = {}
        for (_, start), (phase, end) in zip(self._marks, self._marks[1:], strict=False):
            elapsed = start.elapsed_time(end) / 1000 if self._on_gpu else end - start
            total[phase] = total.get(phase, 0.0) + elapsed
        return total
