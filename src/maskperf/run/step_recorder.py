"""Turns the step's results into metrics, the live line and the guard's decisions, with few reads from the device."""

import math
import time
from dataclasses import dataclass

import torch

from maskperf.engine.finite import BAD_PARTS
from maskperf.engine.step import StepResult
from maskperf.errors import LostRunError, NonFiniteError, UserError
from maskperf.run.collapse import CollapseGuard
from maskperf.run.loss_windows import LossWindows
from maskperf.run.memory import memory_now_gib
from maskperf.run.metrics import MetricsWriter
from maskperf.run.progress import Progress
from maskperf.run.summary import EpochRecord
from maskperf.run.time_account import TimeAccount
from maskperf.schema import LossWindow
from maskperf.structures import LOSS_NAMES

MOST_STEPS_UNREAD = 10  # a problem is known to the host at most so many steps after it happened


@dataclass(frozen=True)
class GuardEvent:
    """Something that the guard of the run noticed."""

    event: str  # "non-finite", "collapse" or "plateau"
    step: int
    epoch: int
    text: str


@dataclass(frozen=True)
class _Pending:
    result: StepResult
    epoch: int
    step: int
    data_wait_seconds: float
    step_seconds: float


class StepRecorder:
    """Collects step results and, every few steps, reads them, checks them, and writes and shows them.

    The same numbers reach every process, so all of them decide alike and stop at the same step.
    """

    def __init__(
        self,
        metrics: MetricsWriter,
        progress: Progress,
        account: TimeAccount,
        *,
        every_steps: int,
        world: int,
        stop_on_collapse: bool,
    ):
        self.account = account
        self.records: list[EpochRecord] = []
        self.events: list[GuardEvent] = []
        self.steps_checked = 0
        self._metrics = metrics
        self._progress = progress
        self._read_every = min(every_steps, MOST_STEPS_UNREAD)
        self._world = world
        self._stop_on_collapse = stop_on_collapse
        self._guard = CollapseGuard()
        self._windows = LossWindows(world)
        self._pending: list[_Pending] = []
        self._last_time = time.monotonic()
        self._epoch_losses: list[float] = []
        self._epoch_images = 0
        self._epoch_seconds = 0.0

    def start_epoch(self) -> None:
        self._last_time = time.monotonic()
        self._epoch_losses, self._epoch_images, self._epoch_seconds = [], 0, 0.0

    def add(self, result: StepResult, *, epoch: int, step: int, data_wait_seconds: float) -> bool:
        """Take one step's result; time is counted from the end of the step before, its wait for data included.

        Returns whether the device was waited for and read, which happens at the same steps in every process.
        Errors: LostRunError as soon as a problem or a collapse is read.
        """
        now = time.monotonic()
        self._pending.append(_Pending(result, epoch, step, data_wait_seconds, now - self._last_time))
        self._last_time = now
        if len(self._pending) < self._read_every:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Read everything collected so far from the device and writes it down."""
        if not self._pending:
            return
        pending_steps, self._pending = self._pending, []
        losses = torch.stack([pending.result.losses for pending in pending_steps]).tolist()
        problems = torch.stack([pending.result.not_finite for pending in pending_steps]).tolist()
        dropped = torch.stack([pending.result.dropped_masks for pending in pending_steps]).tolist()
        for pending, terms, problem, num_dropped in zip(pending_steps, losses, problems, dropped, strict=True):
            self._write(pending, terms)
            self.steps_checked += 1
            _refuse_dropped_masks(pending.step, num_dropped)
            self._check_finite(pending, terms, problem)
            self._check_collapse(pending, sum(terms))
        self._show(pending_steps)

    def take_windows(self) -> list[LossWindow]:
        """Return the windows of steps that were completed since the last call."""
        return self._windows.take()

    def epoch_summary(self) -> tuple[float, float]:
        """Return the epoch's mean loss and its images/s over all processes, data waits included."""
        self.flush()
        speed = self._epoch_images * self._world / max(self._epoch_seconds, 1e-9)
        return sum(self._epoch_losses) / max(1, len(self._epoch_losses)), speed

    def evaluation(self, record: EpochRecord) -> None:
        """Write and shows what an evaluation found."""
        self.records.append(record)
        self._progress.evaluation(record.epoch, record.box_ap, record.mask_ap, record.evaluation_seconds)
        self._metrics.evaluation(
            step=record.step,
            epoch=record.epoch,
            box_ap=record.box_ap,
            mask_ap=record.mask_ap,
            evaluation_seconds=record.evaluation_seconds,
            minutes=record.seconds_since_start / 60,
        )
        self._last_time = time.monotonic()  # what an evaluation took is no part of the next step

    def note(self, event: GuardEvent) -> None:
        """Keep, writes and shows what the guard noticed."""
        self.events.append(event)
        self._metrics.guard(step=event.step, epoch=event.epoch, event=event.event, text=event.text)
        self._progress.message(f"{event.event}: {event.text}")

    def close(self) -> None:
        self._progress.close()
        self._metrics.close()

    def _write(self, pending: _Pending, terms: list[float]) -> None:
        result = pending.result
        self._epoch_losses.append(sum(terms))
        self._epoch_images += result.images
        self._epoch_seconds += pending.step_seconds
        phases = result.stopwatch.seconds()
        for phase, seconds in phases.items():
            self.account.add(phase, seconds)
        # On a GPU the step's phases run while the host waits for data: only what they leave counts as waiting.
        waited = min(pending.data_wait_seconds, max(0.0, pending.step_seconds - sum(phases.values())))
        self.account.add("data wait", waited)
        losses = dict(zip(LOSS_NAMES, terms, strict=True))
        speed = result.images * self._world / max(pending.step_seconds, 1e-9)
        self._windows.add(
            pending.step, pending.epoch, losses, result.learning_rate, result.images, pending.step_seconds
        )
        self._metrics.step(
            step=pending.step,
            epoch=pending.epoch,
            losses=losses,
            learning_rate=result.learning_rate,
            images_per_second=speed,
            data_wait_seconds=waited,
            step_seconds=pending.step_seconds,
            memory_gib=memory_now_gib(),
            **{f"{phase}_seconds": seconds for phase, seconds in phases.items()},
        )

    def _show(self, steps: list[_Pending]) -> None:
        seconds = sum(pending.step_seconds for pending in steps)
        images = sum(pending.result.images for pending in steps) * self._world
        self._progress.step(
            epoch=steps[-1].epoch,
            step=steps[-1].step,
            loss=self._epoch_losses[-1],
            learning_rate=steps[-1].result.learning_rate,
            images_per_second=images / max(seconds, 1e-9),
        )

    def _check_finite(self, pending: _Pending, terms: list[float], problems: list[list[float]]) -> None:
        found = [
            f"{part} of process {rank}"
            for rank, parts in enumerate(problems)
            for part, count in zip(BAD_PARTS, parts, strict=True)
            if count > 0
        ]
        if not found:
            return
        described = ", ".join(f"{name} {term:.4g}" for name, term in zip(LOSS_NAMES, terms, strict=True))
        text = (
            f"step {pending.step} (epoch {pending.epoch}): not a finite number: {', '.join(found)}. "
            f"Losses: {described}. Learning rate: {pending.result.learning_rate:.6g}."
        )
        self._lose(NonFiniteError(text, step=pending.step), pending)

    def _check_collapse(self, pending: _Pending, total: float) -> None:
        event = self._guard.add(pending.step, total if math.isfinite(total) else None)
        if event is None:
            return
        error = LostRunError(f"step {pending.step} (epoch {pending.epoch}): {event.text}", step=pending.step)
        if self._stop_on_collapse:
            self._lose(error, pending)
        self.note(GuardEvent(error.event, pending.step, pending.epoch, str(error)))

    def _lose(self, error: LostRunError, pending: _Pending) -> None:
        self.note(GuardEvent(error.event, pending.step, pending.epoch, str(error)))
        raise error


def _refuse_dropped_masks(step: int, num_dropped: int) -> None:
    if num_dropped:
        raise UserError(
            f"step {step}: {num_dropped} positive RoIs found no place in the mask head. "
            "Fix: set model.mask_slots_per_image=0, which makes room for all of them."
        )
