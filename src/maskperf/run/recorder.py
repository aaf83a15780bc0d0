"""From the results of steps to metrics.jsonl, the progress line, the windows of the log and the collapse guard."""

import time

import msgspec
import torch

from maskperf.engine.step import BAD_PARTS
from maskperf.engine.under_way import Step
from maskperf.errors import LostRunError, NonFiniteError, UserError
from maskperf.run.collapse import CollapseGuard
from maskperf.run.progress import Progress, memory_now_gib
from maskperf.run.session import Session
from maskperf.run.trackers import Trackers
from maskperf.schema import (
    METRICS_FILE,
    WINDOW_STEPS,
    EpochRow,
    EvaluationLine,
    GuardEvent,
    GuardLine,
    MetricsLine,
    RecorderState,
    StepLine,
    StepSums,
)
from maskperf.structures import LOSS_NAMES

MOST_STEPS_UNREAD = 10  # the host knows of a problem at most this many steps after it happened


class StepRecorder:
    """Collects step results and, every few steps, reads them from the device, checks, writes and shows them.

    The same numbers reach every process, so all of them decide alike and stop at the same step; the first one writes.
    """

    def __init__(self, session: Session, steps_per_epoch: int):
        config, folder = session.config, session.folder
        self._guard = CollapseGuard()
        self.counted = RecorderState(guard=self._guard.state)
        self.progress = Progress(config, steps_per_epoch, enabled=session.topology.is_first)
        self._trackers = Trackers(config, folder, session.say) if folder is not None else None
        self._stream = (folder / METRICS_FILE).open("ab") if folder is not None else None
        self._account, self._log, self._world = session.account, session.log, session.topology.world
        self._read_every = min(config.system.log_every_steps, MOST_STEPS_UNREAD)
        self._stop_on_collapse = config.system.on_collapse == "stop"
        self._unread: list[tuple[Step, float]] = []  # each with the seconds since the end of the step before
        self._last_time = time.monotonic()
        session.resources.callback(self.close)

    def start_epoch(self) -> None:
        self._last_time = time.monotonic()
        self.counted.epoch = StepSums()

    def state(self) -> RecorderState:
        """Return what is counted, after all steps were read. The next step does not include what follows."""
        self._flush()
        self._last_time = time.monotonic()
        self.counted.metrics_bytes = self._stream.tell() if self._stream is not None else 0
        return self.counted

    def restore(self, state: RecorderState) -> None:
        """Go on from a checkpoint, in the middle of an epoch perhaps."""
        self.counted, self._guard = state, CollapseGuard(state.guard)
        self._last_time = time.monotonic()

    def add(self, step: Step) -> bool:
        """Take a step; its time is counted from the end of the step before, the wait for data included.

        Return whether the device was waited for and read, which happens at the same steps in every process.
        Errors: LostRunError as soon as a problem or a collapse is read.
        """
        now = time.monotonic()
        self._unread.append((step, now - self._last_time))
        self._last_time = now
        self.progress.under_way(step.epoch, step.update)
        if len(self._unread) < self._read_every:
            return False
        self._flush()
        return True

    def epoch_summary(self) -> tuple[float, float]:
        """Return the epoch's mean loss and its images/s over all processes, data waits included."""
        self._flush()
        epoch = self.counted.epoch
        totals = [sum(losses) for losses in epoch.losses]
        return sum(totals) / max(1, len(totals)), epoch.images_per_second

    def evaluation(self, row: EpochRow) -> None:
        """Write and show what an evaluation found."""
        self.counted.rows.append(row)
        self.progress.evaluation(row)
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
        self.counted.events.append(GuardEvent(event=event, step=step, epoch=epoch, text=text))
        self._write(GuardLine(step=step, epoch=epoch, event=event, text=text))
        self.progress.message(f"{event}: {text}")

    def close(self) -> None:
        self.progress.close()
        if self._stream is not None:
            self._stream.close()
        if self._trackers is not None:
            self._trackers.close()

    def _flush(self) -> None:
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        losses, problems, dropped = (
            torch.stack([getattr(step.result, name) for step, _ in unread]).tolist()
            for name in ("losses", "not_finite", "dropped_masks")
        )
        shown, waited = StepSums(), 0.0
        for (step, seconds), terms, problem, num_dropped in zip(unread, losses, problems, dropped, strict=True):
            line = self._record(step, seconds, terms)
            waited += line.data_wait_seconds or 0
            self.counted.steps_checked += 1
            self._check_dropped_masks(step, num_dropped)
            self._check_finite(step, terms, problem)
            self._check_collapse(step, sum(terms))
            shown.add(terms, step.result.images * self._world, seconds)
        wait_share = waited / max(shown.seconds, 1e-9)
        self.progress.step(line, images_per_second=shown.images_per_second, wait_share=wait_share)

    def _record(self, step: Step, step_seconds: float, terms: list[float]) -> StepLine:
        phases = step.result.stopwatch.seconds()
        # On a GPU the step's phases run while the host waits for data: only what they leave counts as waiting.
        waited = min(step.wait_seconds, max(0.0, step_seconds - sum(phases.values())))
        for phase, seconds in {**phases, "data wait": waited}.items():
            self._account.add(phase, seconds)
        images = step.result.images * self._world
        for sums in (self.counted.epoch, self.counted.window):
            sums.add(terms, images, step_seconds)
        if len(self.counted.window.losses) == WINDOW_STEPS:
            self._finish_window(step)
        line = StepLine(
            step=step.update,
            epoch=step.epoch,
            **dict(zip(LOSS_NAMES, terms, strict=True)),
            total=sum(terms),
            learning_rate=step.result.learning_rate,
            images_per_second=images / max(step_seconds, 1e-9),
            data_wait_seconds=waited,
            step_seconds=step_seconds,
            memory_gib=memory_now_gib(),
            **{f"{phase}_seconds": seconds for phase, seconds in phases.items()},
        )
        self._write(line)
        return line

    def _finish_window(self, last: Step) -> None:
        window, self.counted.window = self.counted.window, StepSums()
        means = [sum(values) / WINDOW_STEPS for values in zip(*window.losses, strict=True)]
        self._log.tracked_stats(
            last.update,
            last.epoch,
            dict(zip(LOSS_NAMES, means, strict=True)),
            learning_rate=last.result.learning_rate,
            images_per_second=window.images_per_second,
        )

    def _write(self, line: MetricsLine) -> None:
        if self._stream is not None:
            self._stream.write(msgspec.json.encode(line) + b"\n")  # msgspec writes NaN and infinity as null
            self._stream.flush()
        if self._trackers is not None:
            self._trackers.write(line)

    def _check_dropped_masks(self, step: Step, num_dropped: int) -> None:
        if num_dropped:
            raise UserError(
                f"step {step.update}: {num_dropped} positive RoIs found no slot in the mask head. "
                "Fix: set model.mask_slots_per_image=0, which makes room for all of them."
            )

    def _check_finite(self, step: Step, terms: list[float], problems: list[list[float]]) -> None:
        found = [
            f"{part} of process {rank}"
            for rank, parts in enumerate(problems)
            for part, count in zip(BAD_PARTS, parts, strict=True)
            if count > 0
        ]
        if found:
            losses = ", ".join(f"{name} {term:.4g}" for name, term in zip(LOSS_NAMES, terms, strict=True))
            text = (
                f"step {step.update} (epoch {step.epoch}): not a finite number: {', '.join(found)}. "
                f"Losses: {losses}. Learning rate: {step.result.learning_rate:.6g}."
            )
            self._lose(NonFiniteError(text, step=step.update), step.epoch, stop=True)

    def _check_collapse(self, step: Step, total: float) -> None:
        event = self._guard.add(step.update, total)
        if event is not None:
            error = LostRunError(f"step {step.update} (epoch {step.epoch}): {event.text}", step=step.update)
            self._lose(error, step.epoch, stop=self._stop_on_collapse)

    def _lose(self, error: LostRunError, epoch: int, *, stop: bool) -> None:
        self.note(error.event, error.step, epoch, str(error))
        if stop:
            raise error
