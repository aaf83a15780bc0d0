import io
import re
import sys
import time
from contextlib import closing
from itertools import count

import pytest

from maskperf.run.progress import Progress, duration_text, memory_text


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def known_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def shown(capsys):
    """Return a function that returns the lines on standard output, which is no terminal, since the last call."""
    return lambda: capsys.readouterr().out.splitlines()


def take_steps(progress, steps, steps_per_epoch=10):
    for step in steps:
        epoch = (step - 1) // steps_per_epoch + 1
        progress.step(epoch=epoch, step=step, loss=1.0 / step, learning_rate=0.0125, images_per_second=8.25)


def test_a_plain_line_has_all_that_a_person_asks_for(shown, monkeypatch):
    seconds = count(0.0, 2.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    with closing(Progress(2, 10, every_steps=5)) as progress:
        take_steps(progress, [4, 5])
    line = shown()[-1]
    # 15 of 20 steps are left, at two seconds a step.
    expected = r"epoch 1/2  step 5/20  loss 0\.2000  lr 0\.012500  8\.2 images/s  [0-9.]+ GiB( GPU)?  ETA 0:00:30"
    assert re.fullmatch(expected, line)


@pytest.mark.parametrize(
    ("total_epochs", "steps", "expected"),
    [(1, range(1, 13), [1, 5, 10, 12]), (0, [4, 8, 12, 16], [4, 8, 12, 16])],
    ids=["every step", "only some steps"],
)
def test_plain_lines_come_at_the_first_step_every_n_steps_and_at_the_end(shown, total_epochs, steps, expected):
    with closing(Progress(total_epochs, 12, every_steps=5)) as progress:
        take_steps(progress, steps, steps_per_epoch=12)
    assert [int(step) for step in re.findall(r"step (\d+)", "\n".join(shown()))] == expected


def test_messages_and_evaluations_are_plain_lines_never_wrapped_or_coloured(shown):
    with closing(Progress(1, 10)) as progress:
        progress.message("[red]x[/red] " + "long " * 60 + ":smile: 123")
        progress.evaluation(2, 0.37701, 0.339, 12.34)
    first, second = shown()
    assert first == "[red]x[/red] " + "long " * 60 + ":smile: 123"
    assert second == "epoch 2  box AP 0.3770  mask AP 0.3390  (evaluated in 12.3 s)"


def test_without_a_known_end_no_arrival_is_promised(shown):
    with closing(Progress(0, 10, every_steps=1)) as progress:
        take_steps(progress, [1, 2])
    last = shown()[-1]
    assert last.startswith("epoch 1  step 2  loss") and last.endswith("ETA -")


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_process_that_is_not_the_first_shows_nothing(kind, monkeypatch):
    monkeypatch.setattr(sys, "stdout", kind())
    with closing(Progress(2, 10, enabled=False)) as progress:
        take_steps(progress, range(1, 21))
        progress.evaluation(1, 0.1, 0.1, 1.0)
        progress.message("text")
    assert sys.stdout.getvalue() == ""


def test_in_a_terminal_the_line_is_renewed_at_every_step_and_gone_at_the_end(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    progress = Progress(1, 10, every_steps=100)
    take_steps(progress, [1, 2, 3])
    assert "\x1b[?25l" in stream.getvalue()  # cursor hidden
    assert re.findall(r"step (\d+)/10", stream.getvalue()) == ["1", "2", "3"]
    before_message = len(stream.getvalue())
    progress.message("stays")
    assert "stays\n" in stream.getvalue()[before_message:]
    progress.close()
    progress.close()
    shown = stream.getvalue()
    assert shown.endswith("\x1b[1A\x1b[2K")  # the line is taken away
    assert "\x1b[?25h" in shown  # cursor back
    take_steps(progress, [4])
    assert stream.getvalue() == shown


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    with closing(Progress(1, 10, every_steps=5)) as progress:
        take_steps(progress, range(1, 11))
    assert len(stream.getvalue().splitlines()) == 3
    assert "\x1b[?25l" not in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00:00"), (59.6, "0:01:00"), (3723.0, "1:02:03"), (-1.0, "0:00:00")]
)
def test_durations_are_hours_minutes_and_seconds(seconds, text):
    assert duration_text(seconds) == text


def test_the_memory_of_this_process_is_not_nothing():
    amount = re.match(r"([0-9.]+) GiB", memory_text())
    assert amount is not None and float(amount[1]) > 0
