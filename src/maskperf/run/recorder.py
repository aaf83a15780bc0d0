"""From the results of steps to metrics.jsonl, the progress line, the windows of the log and the collapse guard."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from maskperf.engine.step import BAD_PARTS, StepResult
from maskperf.errors import LostRunError, NonFiniteError, UserError
from maskperf.run.collapse import CollapseGuard
from maskperf.run.progress import Progress, memory_now_gib
from maskperf.schema import (
    WINDOW_STEPS,
    EpochRow,
    EvaluationLine,
    GuardEvent,
    GuardLine,
    LossWindow,
    MetricsLine,
    StepLine,
)
from maskperf.structures import LOSS_NAMES

MOST_STEPS_UNREAD = 10  # the host knows of a problem at most this many steps after it happened
OTHER = "other"
PHASES = (
    *("opening the data", "data wait", "forward", "backward"),
    "replay",  # forward and backward as one CUDA graph
    "exchange",  # of gradients between processes
    *("optimizer", "evaluation", "saving", OTHER),
)


class TimeAccount:
    """Seconds by phase between start and stop. Phases do not overlap, so their sum is at most the whole."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._start: float | None = None
        self._stop: float | None = None

    def start(self) -> None:
        self._start = time.monotonic()

    def stop(self) -> None:
        """Stop the clock; a second stop changes nothing."""
        if self._stop is None:
            self._stop = time.monotonic()

    def total_seconds(self) -> float:
        """Return the time since the start, up to the stop if there was one; 0 before the start."""
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
        """Return every phase that took time, in the order of `PHASES`; what no phase claims is "other"."""
        named = {phase: self._seconds[phase] for phase in PHASES if phase in self._seconds and phase != OTHER}
        return {**named, OTHER: max(0.0, self.total_seconds() - sum(named.values()))}


@dataclass(frozen=True)
class _UnreadStep:
    result: StepResult
    epoch: int
    step: int
    data_wait_seconds: float
    step_seconds: float


class _Sums:
    """Losses, images and seconds of some steps of all processes."""

    def __init__(self, world: int):
        self._world = world
        self.losses: list[list[float]] = []  # the five terms of each step
        self._images = 0
        self._seconds = 0.0

    def add(self, losses: list[float], images: int, seconds: float) -> None:
        self.losses.append(losses)
        self._images += images * self._world
        self._seconds += seconds

    @property
    def images_per_second(self) -> float:
        return self._images / max(self._seconds, 1e-9)


class StepRecorder:
    """Collects step results and, every few steps, reads them from the device, checks, writes and shows them.

    The same numbers reach every process, so all of them decide alike and stop at the same step. Without a path nothing
    is written.
    """

    def __init__(
        self,
        path: Path | None,
        progress: Progress,
        account: TimeAccount,
        *,
        every_steps: int,
        world: int,
        stop_on_collapse: bool,
    ):
        self.rows: list[EpochRow] = []
        self.events: list[GuardEvent] = []
        self.steps_checked = 0
        self._account = account
        self._stream = path.open("ab") if path is not None else None
        self._progress = progress
        self._read_every = min(every_steps, MOST_STEPS_UNREAD)
        self._world = world
        self._stop_on_collapse = stop_on_collapse
        self._guard = CollapseGuard()
        self._unread: list[_UnreadStep] = []
        self._epoch, self._window = _Sums(world), _Sums(world)
        self._complete_windows: list[LossWindow] = []
        self._last_time = time.monotonic()

    def start_epoch(self) -> None:
        self._last_time = time.monotonic()
        self._epoch = _Sums(self._world)

    def add(self, result: StepResult, *, epoch: int, step: int, data_wait_seconds: float) -> bool:
        """Take one step's result; time is counted from the end of the step before, its wait for data included.

        Return whether the device was waited for and read, which happens at the same steps in every process.
        Errors: LostRunError as soon as a problem or a collapse is read.
        """
        now = time.monotonic()
        self._unread.append(_UnreadStep(result, epoch, step, data_wait_seconds, now - self._last_time))
        self._last_time = now
        if len(self._unread) < self._read_every:
            return False
        self._flush()
        return True

    def take_windows(self) -> list[LossWindow]:
        """Return the windows of `WINDOW_STEPS` steps that were completed since the last call."""
        complete, self._complete_windows = self._complete_windows, []
        return complete

    def epoch_summary(self) -> tuple[float, float]:
        """Return the epoch's mean loss and its images/s over all processes, data waits included."""
        self._flush()
        totals = [sum(losses) for losses in self._epoch.losses]
        return sum(totals) / max(1, len(totals)), self._epoch.images_per_second

    def evaluation(self, row: EpochRow) -> None:
        """Write and show what an evaluation found."""
        self.rows.append(row)
        self._progress.evaluation(row.epoch, row.box_ap, row.mask_ap, row.evaluation_seconds)
        line = EvaluationLine(
            step=row.step,
            epoch=row.epoch,
            box_ap=row.box_ap,
            mask_ap=row.mask_ap,
            evaluation_seconds=row.evaluation_seconds,
            minutes=row.seconds_since_start / 60,
        )
        self._write(line)
        self._last_time = time.monotonic()  # the next step does not include the evaluation

    def note(self, event: str, step: int, epoch: int, text: str) -> None:
        """Record, write and show an event of the guard."""
        self.events.append(GuardEvent(event=event, step=step, epoch=epoch, text=text))
        self._write(GuardLine(step=step, epoch=epoch, event=event, text=text))
        self._progress.message(f"{event}: {text}")

    def close(self) -> None:
        self._progress.close()
        if self._stream is not None:
            self._stream.close()

    def _flush(self) -> None:
        if not self._unread:
            return
        steps, self._unread = self._unread, []
        losses = torch.stack([step.result.losses for step in steps]).tolist()
        problems = torch.stack([step.result.not_finite for step in steps]).tolist()
        dropped = torch.stack([step.result.dropped_masks for step in steps]).tolist()
        for step, terms, problem, num_dropped in zip(steps, losses, problems, dropped, strict=True):
            self._record(step, terms)
            self.steps_checked += 1
            self._check_dropped_masks(step, num_dropped)
            self._check_finite(step, terms, problem)
            self._check_collapse(step, sum(terms))
        shown = _Sums(self._world)
        for step, terms in zip(steps, losses, strict=True):
            shown.add(terms, step.result.images, step.step_seconds)
        self._progress.step(
            epoch=steps[-1].epoch,
            step=steps[-1].step,
            loss=sum(losses[-1]),
            learning_rate=steps[-1].result.learning_rate,
            images_per_second=shown.images_per_second,
        )

    def _record(self, step: _UnreadStep, terms: list[float]) -> None:
        result = step.result
        phases = result.stopwatch.seconds()
        for phase, seconds in phases.items():
            self._account.add(phase, seconds)
        # On a GPU the step's phases run while the host waits for data: only what they leave counts as waiting.
        waited = min(step.data_wait_seconds, max(0.0, step.step_seconds - sum(phases.values())))
        self._account.add("data wait", waited)
        self._epoch.add(terms, result.images, step.step_seconds)
        self._window.add(terms, result.images, step.step_seconds)
        if len(self._window.losses) == WINDOW_STEPS:
            self._complete_windows.append(self._finished_window(step))
            self._window = _Sums(self._world)
        line = StepLine(
            step=step.step,
            epoch=step.epoch,
            **dict(zip(LOSS_NAMES, terms, strict=True)),
            total=sum(terms),
            learning_rate=result.learning_rate,
            images_per_second=result.images * self._world / max(step.step_seconds, 1e-9),
            data_wait_seconds=waited,
            step_seconds=step.step_seconds,
            memory_gib=memory_now_gib(),
            **{f"{phase}_seconds": seconds for phase, seconds in phases.items()},
        )
        self._write(line)

    def _finished_window(self, last: _UnreadStep) -> LossWindow:
        means = [sum(values) / WINDOW_STEPS for values in zip(*self._window.losses, strict=True)]
        return LossWindow(
            step=last.step,
            epoch=last.epoch,
            losses=dict(zip(LOSS_NAMES, means, strict=True)),
            learning_rate=last.result.learning_rate,
            images_per_second=self._window.images_per_second,
        )

    def _write(self, line: MetricsLine) -> None:
        if self._stream is not None:
            self._stream.write(msgspec.json.encode(line) + b"\n")  # msgspec writes NaN and infinity as null
            self._stream.flush()

    def _check_dropped_masks(self, step: _UnreadStep, num_dropped: int) -> None:
        if num_dropped:
            raise UserError(
                f"step {step.step}: {num_dropped} positive RoIs found no slot in the mask head. "
                "Fix: set model.mask_slots_per_image=0, which makes room for all of them."
            )

    def _check_finite(self, step: _UnreadStep, terms: list[float], problems: list[list[float]]) -> None:
        found = [
            f"{part} of process {rank}"
            for rank, parts in enumerate(problems)
            for part, count in zip(BAD_PARTS, parts, strict=True)
            if count > 0
        ]
        if not found:
            return
        losses = ", ".join(f"{name} {term:.4g}" for name, term in zip(LOSS_NAMES, terms, strict=True))
        text = (
            f"step {step.step} (epoch {step.epoch}): not a finite number: {', '.join(found)}. "
            f"Losses: {losses}. Learning rate: {step.result.learning_rate:.6g}."
        )
        self._lose(NonFiniteError(text, step=step.step), step)

    def _check_collapse(self, step: _UnreadStep, total: float) -> None:
        event = self._guard.add(step.step, total if math.isfinite(total) else None)
        if event is None:
            return
        error = LostRunError(f"step {step.step} (epoch {step.epoch}): {event.text}", step=step.step)
        if self._stop_on_collapse:
            self._lose(error, step)
        self.note(error.event, step.step, step.epoch, str(error))

    def _lose(self, error: LostRunError, step: _UnreadStep) -> None:
        self.note(error.event, step.step, step.epoch, str(error))
        raise error
