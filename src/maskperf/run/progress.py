"""The progress of a run: a live display in a terminal, plain lines in a file or a pipe."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from maskperf.config import RunConfig
from maskperf.machine.sources import peak_memory_bytes
from maskperf.run.console import LiveLine, Pulse, duration_text, make_console
from maskperf.schema import EpochRow, StepLine
from maskperf.structures import LOSS_NAMES

GIB = 2**30
BAR_COLUMNS = 20
SHORT = {"rpn_box": "rpn box", "classification": "class"}  # so that all losses fit 80 columns
T = TypeVar("T")


class Progress:
    """Shows steps, evaluations and messages on standard output, or nothing where `enabled` is False.

    In a terminal every call of `step` renews the live display; elsewhere a plain line is written for the first call,
    whenever `system.log_every_steps` more steps are done, and whenever there was none for `PLAIN_SECONDS`.
    """

    def __init__(self, config: RunConfig, steps_per_epoch: int, *, enabled: bool = True):
        optimizer, evaluation = config.optimizer, config.evaluation
        self._epochs = min(optimizer.max_epochs or optimizer.max_steps, -(-optimizer.max_steps // steps_per_epoch))
        self._steps = min(optimizer.max_steps, self._epochs * steps_per_epoch)
        self._targets = evaluation.box_target, evaluation.mask_target
        self._every_steps, self._enabled = config.system.log_every_steps, enabled
        self._first: tuple[int, float] | None = None  # step and time of the first call
        self._last_line = -1  # number of whole `every_steps` at the last plain line
        self._at = (1, 0)  # epoch and step under way
        self._read: tuple[StepLine, float, float] | None = None  # what was read last: step, images/s, share of waiting
        self._row: EpochRow | None = None  # the last evaluation
        self._doing = ""
        self._done: tuple[int, int] | None = None  # images of what is being done
        self._line = LiveLine(make_console(), "cyan")
        self._closed = False
        self._pulse = Pulse(self._line, self._display) if enabled else None

    def under_way(self, epoch: int, step: int) -> None:
        """Take note of the step that was begun; shown where nothing else is for some time."""
        self._at = epoch, step

    def step(self, line: StepLine, *, images_per_second: float, wait_share: float) -> None:
        """Show a step, which counts from 1 over the whole run, with the speed and the wait of those since the last."""
        now = time.monotonic()
        self._first = self._first or (line.step, now)
        self._at, self._read = (line.epoch, line.step), (line, images_per_second, wait_share)
        if not self._enabled or self._closed:
            return
        if not self._line.is_live and line.step // self._every_steps <= self._last_line and line.step != self._steps:
            return
        self._last_line = line.step // self._every_steps
        self._line.show(self._display())

    def evaluation(self, row: EpochRow) -> None:
        self._row = row
        self.message(
            f"epoch {row.epoch}  box AP {row.box_ap:.4f}  mask AP {row.mask_ap:.4f}  "
            f"(evaluated in {row.evaluation_seconds:.1f} s)"
        )

    def message(self, text: str) -> None:
        """Show a line that stays, above the live display."""
        if self._enabled:
            self._line.say(text)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show that something other than training is done inside the `with` block."""
        before, self._doing, self._done = self._doing, what, None
        try:
            yield
        finally:
            self._doing, self._done = before, None

    def counted(self, batches: Iterator[T], images: int, total: int) -> Iterator[T]:
        """Yield the batches of `images` each, and show how many of `total` images are done."""
        for number, batch in enumerate(batches):
            self._done = min(number * images, total), total
            yield batch

    def close(self) -> None:
        """Take the live display away. Nothing but messages is shown after it."""
        self._closed = True
        if self._pulse is not None:
            self._pulse.close()
        self._line.stop()

    def _display(self) -> RenderableType:
        return self._live() if self._line.is_live else self._plain()

    def _plain(self) -> str:
        parts = [f"epoch {self._at[0]}/{self._epochs}  step {self._at[1]}/{self._steps}"]
        if self._read is not None:
            line, speed, waiting = self._read
            parts.append(f"loss {_number(line.total)}  lr {line.learning_rate or 0:.6f}")
            parts.append(f"{speed:.1f} images/s  wait {waiting:.0%}")
        parts += [memory_text(), f"ETA {self._eta()}", *([self._activity()] if self._doing else [])]
        return "  ".join(parts)

    def _live(self) -> RenderableType:
        epoch, step = self._at
        bar = ProgressBar(total=max(1, self._steps), completed=step, width=BAR_COLUMNS)
        head = Table.grid(padding=(0, 2))
        tail = f"step {step}/{self._steps}  {step / max(1, self._steps):.0%}  ETA {self._eta()}"
        head.add_row(Text(f"epoch {epoch}/{self._epochs}"), bar, Text(tail, no_wrap=True, overflow="ellipsis"))
        lines = []
        if self._read is not None:
            line, speed, waiting = self._read
            terms = [f"{SHORT.get(name, name)} {_number(getattr(line, name), 3)}" for name in LOSS_NAMES]
            lines.append("  ".join([f"loss {_number(line.total, 3)}", *terms]))
            lines.append(
                f"{speed:.1f} images/s  data wait {waiting:.0%}  {memory_text()}  lr {line.learning_rate or 0:.6f}"
            )
        lines.append(self._aps())
        lines += [self._activity()] if self._doing else []
        return Group(head, *(Text(text, "cyan", no_wrap=True, overflow="ellipsis") for text in lines))

    def _aps(self) -> str:
        """Return the APs so far beside their targets, at which the run ends."""
        found = (self._row.box_ap, self._row.mask_ap) if self._row else (None, None)
        parts = [
            f"{name} AP {'-' if ap is None else f'{ap:.4f}'}" + (f" (ends at {target:g})" if target else "")
            for name, ap, target in zip(("box", "mask"), found, self._targets, strict=True)
        ]
        return "  ".join([*parts, f"after epoch {self._row.epoch}" if self._row else "not evaluated yet"])

    def _activity(self) -> str:
        return self._doing + (f", {self._done[0]:,} of {self._done[1]:,} images" if self._done else "")

    def _eta(self) -> str:
        """Return the time until the limits of the run; with targets it may end before."""
        if self._first is None or self._read is None or self._read[0].step <= self._first[0]:
            return "-"
        first_step, first_time = self._first
        step = self._read[0].step
        left = (self._steps - step) * (time.monotonic() - first_time) / (step - first_step)
        return duration_text(left) + (" at most" if any(self._targets) else "")


@contextmanager
def working(what: str, *, enabled: bool) -> Iterator[None]:
    """Show for how long the work inside the `with` block has gone on, where it takes long."""
    line, start = LiveLine(make_console()), time.monotonic()
    pulse = Pulse(line, lambda: f"{what}, {duration_text(time.monotonic() - start)}") if enabled else None
    try:
        yield
    finally:
        if pulse is not None:
            pulse.close()
        line.stop()


def memory_text() -> str:
    memory_gib = memory_now_gib()
    if memory_gib is None:
        return "- GiB"
    return f"{memory_gib:.1f} GiB{' GPU' if torch.cuda.is_initialized() else ''}"


def memory_now_gib() -> float | None:
    """Return the memory in use: of the GPU where this process uses one, else of the process; None where unknown."""
    if torch.cuda.is_initialized():
        return torch.cuda.memory_allocated() / GIB
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / GIB
    except OSError:
        return None


def peak_memory_gib() -> dict[str, float | None]:
    """Return the peak memory of the process and of its GPU (None without one)."""
    device = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_initialized() else None
    return {"process": peak_memory_bytes() / GIB, "device": device}


def _number(value: float | None, digits: int = 4) -> str:
    return "nan" if value is None else f"{value:.{digits}f}"
