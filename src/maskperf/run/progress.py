"""The progress of a run: one live line in a terminal, plain lines in a file or a pipe."""

import resource
import time

import torch

from maskperf.run.console import LiveLine, duration_text, make_console

GIB = 2**30


class Progress:
    """Shows steps, evaluations and messages on standard output, or nothing where `enabled` is False.

    `total_epochs` 0 means that the end of the run is unknown. In a terminal every call of `step` renews the live line;
    elsewhere a plain line is written for the first call and whenever `every_steps` more steps are done.
    """

    def __init__(self, total_epochs: int, steps_per_epoch: int, *, enabled: bool = True, every_steps: int = 10):
        self._total_epochs = total_epochs
        self._total_steps = total_epochs * steps_per_epoch
        self._every_steps = every_steps
        self._enabled = enabled
        self._first: tuple[int, float] | None = None  # step and time of the first call
        self._last_line = -1  # number of whole `every_steps` at the last plain line
        self._line = LiveLine(make_console(), "cyan")
        self._closed = False

    def step(self, *, epoch: int, step: int, loss: float, learning_rate: float, images_per_second: float) -> None:
        """Show a step; `epoch` and `step` count from 1, `step` over the whole run."""
        if not self._enabled or self._closed:
            return
        now = time.monotonic()
        self._first = self._first or (step, now)
        if not self._line.is_live and step // self._every_steps <= self._last_line and step != self._total_steps:
            return
        self._last_line = step // self._every_steps
        self._line.show(
            f"{_of('epoch', epoch, self._total_epochs)}  {_of('step', step, self._total_steps)}  loss {loss:.4f}  "
            f"lr {learning_rate:.6f}  {images_per_second:.1f} images/s  {memory_text()}  "
            f"ETA {self._eta(*self._first, step, now)}"
        )

    def evaluation(self, epoch: int, box_ap: float, mask_ap: float, seconds: float) -> None:
        self.message(f"epoch {epoch}  box AP {box_ap:.4f}  mask AP {mask_ap:.4f}  (evaluated in {seconds:.1f} s)")

    def message(self, text: str) -> None:
        """Show a line that stays, above the live line."""
        if self._enabled:
            self._line.console.out(text, highlight=False)

    def close(self) -> None:
        """Take the live line away. Nothing but messages is shown after it."""
        self._closed = True
        self._line.stop()

    def _eta(self, first_step: int, first_time: float, step: int, now: float) -> str:
        if step <= first_step or not self._total_steps:
            return "-"
        return duration_text((self._total_steps - step) * (now - first_time) / (step - first_step))


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
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB  # Linux counts in KiB
    device = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_initialized() else None
    return {"process": process, "device": device}


def _of(name: str, number: int, total: int) -> str:
    return f"{name} {number}/{total}" if total else f"{name} {number}"
