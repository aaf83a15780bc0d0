"""What a command shows: consoles, tables, aligned columns, and how far a work is."""

import sys
import time
from collections.abc import Callable, Sequence
from threading import Event, RLock, Thread

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_COLUMNS = 200  # of a file or a pipe
PLAIN_SECONDS = 10.0  # between two lines of progress in a file or a pipe
LIVE_SECONDS = 0.2
PULSE_SECONDS = 1.0  # between two looks at a clock on a terminal


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that shows text as it is; a file or a pipe gets long lines without colours."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_COLUMNS
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width)


def make_table(console: Console, headings: Sequence[str]) -> Table:
    """Return a table, without lines in a file or a pipe."""
    return Table(*headings, box=box.SIMPLE_HEAD if console.is_terminal else None)


def columns(rows: Sequence[Sequence[str]], align: Callable[[str, int], str] = str.ljust) -> list[str]:
    """Return each row as one line, its cells padded to the width of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(align(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def duration_text(seconds: float) -> str:
    """Return hours, minutes and seconds as 1:02:03."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class LiveLine:
    """One line, or a few, that are renewed on a terminal; elsewhere each line stays. Threads may share it."""

    def __init__(self, console: Console, style: str = ""):
        self._console, self._style = console, style
        self.is_live = console.is_terminal and not console.is_dumb_terminal
        self.shown_at = time.monotonic()  # when something was shown last
        self._live: Live | None = None
        self._lock = RLock()

    def show(self, text: RenderableType) -> None:
        if not self.is_live:
            self.say(str(text))
            return
        with self._lock:
            self.shown_at = time.monotonic()
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            if isinstance(text, str):
                text = Text(text, self._style, no_wrap=True, overflow="ellipsis")
            self._live.update(text, refresh=True)

    def say(self, text: str) -> None:
        """Show a line that stays, above the live one."""
        with self._lock:
            self.shown_at = time.monotonic()
            self._console.out(text, highlight=False)

    def stop(self) -> None:
        """Take the line of a terminal away."""
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None


class Pulse:
    """A thread that shows a text whenever a line has been quiet for long: the reader sees that work goes on."""

    def __init__(self, line: LiveLine, text: Callable[[], RenderableType]):
        self._line, self._text = line, text
        self._seconds = PULSE_SECONDS if line.is_live else PLAIN_SECONDS - PULSE_SECONDS
        self._ended = Event()
        self._thread = Thread(target=self._beat, name="maskperf-pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; nothing more is shown."""
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(PULSE_SECONDS / 4):
            if time.monotonic() - self._line.shown_at >= self._seconds:
                self._line.show(self._text())


class Progress:
    """Messages, and how far the work is: one live line on a terminal, a plain line now and then elsewhere."""

    def __init__(self, unit: str, *, scale: float = 1.0, console: Console | None = None):
        self._unit, self._scale = unit, scale
        self._line = LiveLine(console or make_console())
        self._what = ""
        self._start = (0.0, 0)  # time and amount when `_what` began

    def say(self, text: str) -> None:
        """Show a message that stays, above the live line."""
        self._line.stop()
        self._line.say(text)
        self._what = ""

    def advance(self, what: str, done: int, total: int) -> None:
        """Show how much of `total` is done, if the last line is old enough; `total` 0 is unknown."""
        now = time.monotonic()
        if what != self._what or done < self._start[1]:
            self._what, self._start, self._line.shown_at = what, (now, done), now
        if now - self._line.shown_at >= (LIVE_SECONDS if self._line.is_live else PLAIN_SECONDS):
            rate = (done - self._start[1]) / max(now - self._start[0], 1e-9)
            self._line.show(self.text(what, done, total, rate=rate))

    def text(self, what: str, done: int, total: int, *, rate: float) -> str:
        """Return a line such as "val2017.zip  120.0 of 800.0 MB  15%  10.0 MB/s  0:01:08 left"."""
        digits = 0 if self._scale == 1 else 1
        amounts = [f"{amount / self._scale:,.{digits}f}" for amount in ((done, total) if total else (done,))]
        parts = [what, f"{' of '.join(amounts)} {self._unit}"]
        parts += [f"{done / total:.0%}"] if total else []
        parts.append(f"{rate / self._scale:,.1f} {self._unit}/s")
        parts += [f"{duration_text((total - done) / rate)} left"] if total and rate > 0 else []
        return "  ".join(parts)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._line.stop()
