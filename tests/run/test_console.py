"""What a command shows while it works, on a terminal and in a file."""

import io
import re
import sys
import time
from contextlib import closing
from threading import Event

import pytest

from maskperf.config import EvaluationConfig, OptimizerConfig, RunConfig, SystemConfig
from maskperf.run import console, progress
from maskperf.run.console import PLAIN_SECONDS, columns, duration_text
from maskperf.schema import EpochRow, StepLine
from maskperf.structures import LOSS_NAMES


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def output_to(monkeypatch):
    """Return a function that makes a stream of this kind standard output."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def run(kind):
        monkeypatch.setattr(sys, "stdout", kind())
        return sys.stdout

    return run


@pytest.fixture
def now(monkeypatch):
    """Return a list with the time that the clock shows."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def progress_of(epochs, steps_per_epoch=10, *, max_steps=720_000, targets=(0.0, 0.0), every_steps=10, **options):
    config = RunConfig(
        recipe="demo",
        optimizer=OptimizerConfig(max_epochs=epochs, max_steps=max_steps),
        evaluation=EvaluationConfig(box_target=targets[0], mask_target=targets[1]),
        system=SystemConfig(log_every_steps=every_steps),
    )
    return progress.Progress(config, steps_per_epoch, **options)


def take_steps(shown, steps, steps_per_epoch=10):
    for step in steps:
        terms = dict.fromkeys(LOSS_NAMES, 0.2 / step)
        epoch = (step - 1) // steps_per_epoch + 1
        line = StepLine(step=step, epoch=epoch, total=1.0 / step, learning_rate=0.0125, **terms)
        shown.step(line, images_per_second=8.25, wait_share=0.031)


def row(epoch, box_ap, mask_ap, seconds=12.34):
    numbers = {"mean_loss": 1.0, "images_per_second": 8.0, "seconds_since_start": 60.0, "evaluation_seconds": seconds}
    return EpochRow(epoch=epoch, step=10 * epoch, box_ap=box_ap, mask_ap=mask_ap, **numbers)


@pytest.mark.parametrize(
    ("unit", "scale", "amounts", "rate", "expected"),
    [
        ("MB", 1e6, (120_000_000, 800_000_000), 10e6, "120.0 of 800.0 MB  15%  10.0 MB/s  0:01:08 left"),
        ("MB", 1e6, (0, 19_000_000_000), 1e6, "0.0 of 19,000.0 MB  0%  1.0 MB/s  5:16:40 left"),
        ("MB", 1e6, (5_000_000, 0), 0.0, "5.0 MB  0.0 MB/s"),
        ("images", 1.0, (1234, 5000), 3.5, "1,234 of 5,000 images  25%  3.5 images/s  0:17:56 left"),
    ],
)
def test_progress_has_amount_share_rate_and_time_left(unit, scale, amounts, rate, expected):
    shown = console.Progress(unit, scale=scale)
    assert shown.text("a.zip", *amounts, rate=rate) == f"a.zip  {expected}"


def test_a_file_gets_a_plain_line_every_few_seconds(output_to, now):
    file = output_to(io.StringIO)
    with console.Progress("MB", scale=1e6) as shown:
        for second in range(31):
            now[0] = 100.0 + second
            shown.advance("a.zip", 50_000_000 + 1_000_000 * second, 100_000_000)  # the first 50 came earlier
        shown.say("[bold] done")
    assert file.getvalue().splitlines() == [
        "a.zip  60.0 of 100.0 MB  60%  1.0 MB/s  0:00:40 left",
        "a.zip  70.0 of 100.0 MB  70%  1.0 MB/s  0:00:30 left",
        "a.zip  80.0 of 100.0 MB  80%  1.0 MB/s  0:00:20 left",
        "[bold] done",
    ]


def test_a_terminal_gets_one_live_line_that_goes_away(output_to, now):
    terminal = output_to(Terminal)
    with console.Progress("MB", scale=1e6) as shown:
        for _ in range(5):
            now[0] += 1
            shown.advance("a.zip", int(now[0]) * 1_000_000, 200_000_000)
        shown.say("done")
    text = terminal.getvalue()
    assert "a.zip  105.0 of 200.0 MB" in text and text.rstrip().endswith("done")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden and comes back


def test_a_line_of_a_run_has_all_that_a_person_asks_for(output_to, now):
    file = output_to(io.StringIO)
    with closing(progress_of(2, every_steps=5)) as shown:
        for step in (4, 5):
            take_steps(shown, [step])
            now[0] += 2
    # 15 of 20 steps are left, at two seconds a step.
    parts = (r"epoch 1/2  step 5/20", r"loss 0\.2000", r"lr 0\.012500", r"8\.2 images/s", "wait 3%")
    expected = "  ".join([*parts, r"[0-9.]+ GiB( GPU)?", "ETA 0:00:30"])
    line = file.getvalue().splitlines()[-1]
    assert re.fullmatch(expected, line) and " 0.0 GiB" not in line


def test_plain_lines_come_at_the_first_step_every_n_steps_and_at_the_end(output_to):
    file = output_to(io.StringIO)
    with closing(progress_of(1, 12, every_steps=5)) as shown:
        take_steps(shown, range(1, 13), steps_per_epoch=12)
    assert [int(step) for step in re.findall(r"step (\d+)", file.getvalue())] == [1, 5, 10, 12]
    assert file.getvalue().splitlines()[0].endswith("ETA -")


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(3, 1000, "epoch 1/3  step 1/30"), (10, 25, "epoch 1/3  step 1/25"), (0, 720_000, "epoch 1/72000  step 1/720000")],
    ids=["epochs end it", "steps end it", "steps alone"],
)
def test_the_end_is_the_limit_that_comes_first(output_to, epochs, max_steps, expected):
    file = output_to(io.StringIO)
    with closing(progress_of(epochs, max_steps=max_steps)) as shown:
        take_steps(shown, [1])
    assert file.getvalue().startswith(f"{expected}  loss ")


def test_with_targets_the_time_left_is_the_most_there_is(output_to, now):
    file = output_to(io.StringIO)
    with closing(progress_of(2, every_steps=1, targets=(0.5, 0.0))) as shown:
        take_steps(shown, [1])
        now[0] += 2
        take_steps(shown, [2])
    assert file.getvalue().endswith("  ETA 0:00:36 at most\n")


def test_a_file_gets_a_line_when_nothing_was_shown_for_long(output_to, now):
    file = output_to(io.StringIO)
    with closing(progress_of(1, 100, every_steps=50)) as shown:
        take_steps(shown, [1])
        shown.under_way(1, 2)
        now[0] += PLAIN_SECONDS
        wait_for(lambda: "step 2/100" in file.getvalue())
        with shown.doing("evaluating epoch 1"):
            assert next(shown.counted(iter(["a batch"]), 8, 200)) == "a batch"
            now[0] += PLAIN_SECONDS
            wait_for(lambda: file.getvalue().endswith("  evaluating epoch 1, 0 of 200 images\n"))
    assert len(file.getvalue().splitlines()) == 3
    with progress.working("opening the data", enabled=True):
        now[0] += 2 * PLAIN_SECONDS
        wait_for(lambda: file.getvalue().endswith("opening the data, 0:00:20\n"))


def wait_for(is_there):
    for _ in range(3000):
        if is_there():
            return
        Event().wait(0.02)
    raise AssertionError("nothing was shown")


def test_messages_and_evaluations_are_plain_lines_never_wrapped_or_coloured(output_to):
    file = output_to(io.StringIO)
    text = "[red]x[/red] " + "long " * 60 + ":smile: 123"
    with closing(progress_of(1)) as shown:
        shown.message(text)
        shown.evaluation(row(2, 0.37701, 0.339))
    evaluation = "epoch 2  box AP 0.3770  mask AP 0.3390  (evaluated in 12.3 s)"
    assert file.getvalue().splitlines() == [text, evaluation]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_process_that_is_not_the_first_shows_nothing(output_to, kind):
    stream = output_to(kind)
    with closing(progress_of(2, enabled=False)) as shown:
        take_steps(shown, range(1, 21))
        shown.evaluation(row(1, 0.1, 0.1))
        shown.message("text")
    assert stream.getvalue() == ""


def test_in_a_terminal_the_line_is_renewed_at_every_step_and_gone_at_the_end(output_to):
    terminal = output_to(Terminal)
    shown = progress_of(1, every_steps=100)
    take_steps(shown, [1, 2, 3])
    assert "\x1b[?25l" in terminal.getvalue()  # cursor hidden
    assert re.findall(r"step (\d+)/10", terminal.getvalue()) == ["1", "2", "3"]
    before_message = len(terminal.getvalue())
    shown.message("stays")
    assert "stays\n" in terminal.getvalue()[before_message:]
    for _ in range(2):
        shown.close()
    text = terminal.getvalue()
    assert text.endswith("\x1b[1A\x1b[2K") and "\x1b[?25h" in text  # the line is taken away, the cursor is back
    take_steps(shown, [4])
    assert terminal.getvalue() == text


def test_a_live_display_has_all_losses_aps_and_targets_in_80_columns(output_to, monkeypatch):
    terminal = output_to(Terminal)
    monkeypatch.setenv("COLUMNS", "80")
    with closing(progress_of(9, 12345, targets=(0.377, 0.339))) as shown:
        shown.evaluation(row(1, 0.1234, 0.0567))
        take_steps(shown, [1])
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    lines = [line.strip("\r") for line in text.split("\n")]
    assert max(map(len, lines)) <= 80 and not any(line.endswith("\u2026") for line in lines)
    assert lines[-3] == "loss 1.000  objectness 0.200  rpn box 0.200  class 0.200  box 0.200  mask 0.200"
    assert re.fullmatch(r"8\.2 images/s  data wait 3%  [0-9.]+ GiB( GPU)?  lr 0\.012500", lines[-2])
    assert lines[-1] == "box AP 0.1234 (ends at 0.377)  mask AP 0.0567 (ends at 0.339)  after epoch 1"
    assert lines[-4].startswith("epoch 1/9 ") and "step 1/111105  0%  ETA -" in lines[-4]


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(output_to, monkeypatch):
    terminal = output_to(Terminal)
    monkeypatch.setenv("TERM", "dumb")
    with closing(progress_of(1, every_steps=5)) as shown:
        take_steps(shown, range(1, 11))
    assert len(terminal.getvalue().splitlines()) == 3 and "\x1b[?25l" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00:00"), (59.6, "0:01:00"), (3723.0, "1:02:03"), (-1.0, "0:00:00")]
)
def test_durations_are_hours_minutes_and_seconds(seconds, text):
    assert duration_text(seconds) == text


def test_columns_are_aligned():
    assert columns([("a", "bcd"), ("efg", "h")]) == ["a    bcd", "efg  h"]
    assert columns([("a", "bcd"), ("efg", "h")], align=str.rjust) == ["  a  bcd", "efg    h"]
