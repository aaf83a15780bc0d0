"""Turns the step's results into metrics and the live line, with one read from the device per few steps."""

import math
import time
from dataclasses import dataclass

import torch

from maskperf.engine.step import StepResult
from maskperf.errors import NonFiniteError, UserError
from maskperf.records.metrics import MetricsWriter
from maskperf.records.progress import Progress
from maskperf.records.summary import EpochRecord
from maskperf.structures import LOSS_NAMES


@dataclass(frozen=True)
class _Pending:
    result: StepResult
    epoch: int
    step: int
    data_wait_seconds: float
    step_seconds: float


class StepRecorder:
    """Collects step results and, every few steps, reads them, checks them, and writes and shows them."""

    def __init__(self, metrics: MetricsWriter | None, progress: Progress, *, every_steps: int, world: int):
        self._metrics = metrics
        self._progress = progress
        self._every_steps = every_steps
        self._world = world
        self._pending: list[_Pending] = []
        self._last_time = time.monotonic()
        self._epoch_losses: list[float] = []
        self._epoch_images = 0
        self._epoch_seconds = 0.0

    def start_epoch(self) -> None:
        self._last_time = time.monotonic()
        self._epoch_losses, self._epoch_images, self._epoch_seconds = [], 0, 0.0

    def add(self, result: StepResult, *, epoch: int, step: int, data_wait_seconds: float) -> None:
        """Takes one step's result; time is counted from the end of the step before.

        Errors: NonFiniteError as soon as a loss is read that is not finite.
        """
        now = time.monotonic()
        self._pending.append(_Pending(result, epoch, step, data_wait_seconds, now - self._last_time))
        self._last_time = now
        if len(self._pending) >= self._every_steps:
            self.flush()

    def flush(self) -> None:
        """Reads everything collected so far from the device and writes it down."""
        if not self._pending:
            return
        losses = torch.stack([pending.result.losses for pending in self._pending]).tolist()
        dropped = torch.stack([pending.result.dropped_masks for pending in self._pending]).tolist()
        for pending, terms, num_dropped in zip(self._pending, losses, dropped, strict=True):
            self._write(pending, terms)
            _check(pending, terms, num_dropped)
        self._show(self._pending[-1])
        self._pending = []

    def epoch_summary(self) -> tuple[float, float]:
        """Returns the epoch's mean loss and its images/s over all processes, data waits included."""
        self.flush()
        speed = self._epoch_images * self._world / max(self._epoch_seconds, 1e-9)
        return sum(self._epoch_losses) / max(1, len(self._epoch_losses)), speed

    def evaluation(self, record: EpochRecord) -> None:
        """Writes and shows what an evaluation found."""
        self._progress.evaluation(record.epoch, record.box_ap, record.mask_ap, record.evaluation_seconds)
        if self._metrics is not None:
            self._metrics.evaluation(
                step=record.step,
                epoch=record.epoch,
                box_ap=record.box_ap,
                mask_ap=record.mask_ap,
                seconds=record.evaluation_seconds,
            )

    def close(self) -> None:
        self._progress.close()
        if self._metrics is not None:
            self._metrics.close()

    def _write(self, pending: _Pending, terms: list[float]) -> None:
        self._epoch_losses.append(sum(terms))
        self._epoch_images += pending.result.images
        self._epoch_seconds += pending.step_seconds
        if self._metrics is not None:
            self._metrics.step(
                step=pending.step,
                epoch=pending.epoch,
                losses=dict(zip(LOSS_NAMES, terms, strict=True)),
                learning_rate=pending.result.learning_rate,
                images_per_second=pending.result.images * self._world / max(pending.step_seconds, 1e-9),
                data_wait_seconds=pending.data_wait_seconds,
                step_seconds=pending.step_seconds,
            )

    def _show(self, last: _Pending) -> None:
        seconds = sum(pending.step_seconds for pending in self._pending)
        images = sum(pending.result.images for pending in self._pending) * self._world
        self._progress.step(
            epoch=last.epoch,
            step=last.step,
            loss=self._epoch_losses[-1],
            learning_rate=last.result.learning_rate,
            images_per_second=images / max(seconds, 1e-9),
        )


def _check(pending: _Pending, terms: list[float], num_dropped: int) -> None:
    if not all(math.isfinite(term) for term in terms):
        described = ", ".join(f"{name} {term:.4g}" for name, term in zip(LOSS_NAMES, terms, strict=True))
        raise NonFiniteError(
            f"step {pending.step} (epoch {pending.epoch}): the loss is not a finite number: {described}; "
            f"learning rate {pending.result.learning_rate:.6g}. "
            "Mend: lower optimizer.learning_rate or lengthen optimizer.warmup_steps."
        )
    if num_dropped:
        raise UserError(
            f"step {pending.step}: {num_dropped} positive RoIs found no place in the mask head. "
            "Mend: set model.mask_slots_per_image=0, which makes room for all of them."
        )
