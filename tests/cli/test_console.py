import io

import pytest
from rich.console import Console

from maskperf.cli.console import Progress, columns


@pytest.fixture
def clocked():
    """Return a function that makes a progress in MB on a stream; `now` holds the time its clock shows."""

    def make(*, is_terminal):
        stream, now = io.StringIO(), [100.0]
        console = Console(file=stream, force_terminal=is_terminal, width=100, markup=False, highlight=False)
        return Progress("MB", scale=1e6, console=console, clock=lambda: now[0]), stream, now

    return make


@pytest.mark.parametrize(
    ("progress", "amounts", "rate", "expected"),
    [
        (Progress("MB", scale=1e6), (120_000_000, 800_000_000), 10e6, "120.0 of 800.0 MB  15%  10.0 MB/s  1:08 left"),
        (Progress("MB", scale=1e6), (0, 19_000_000_000), 1e6, "0.0 of 19,000.0 MB  0%  1.0 MB/s  5:16:40 left"),
        (Progress("MB", scale=1e6), (5_000_000, 0), 0.0, "5.0 MB  0.0 MB/s"),
        (Progress("images"), (1234, 5000), 3.5, "1,234 of 5,000 images  25%  3.5 images/s  17:56 left"),
    ],
)
def test_progress_has_amount_share_rate_and_time_left(progress, amounts, rate, expected):
    assert progress.text("a.zip", *amounts, rate=rate) == f"a.zip  {expected}"


def test_a_file_gets_a_plain_line_every_few_seconds(clocked):
    progress, stream, now = clocked(is_terminal=False)
    with progress:
        for second in range(31):
            now[0] = 100.0 + second
            progress.advance("a.zip", 50_000_000 + 1_000_000 * second, 100_000_000)  # the first 50 came earlier
        progress.say("[bold] done")
    assert stream.getvalue().splitlines() == [
        "a.zip  60.0 of 100.0 MB  60%  1.0 MB/s  0:40 left",
        "a.zip  70.0 of 100.0 MB  70%  1.0 MB/s  0:30 left",
        "a.zip  80.0 of 100.0 MB  80%  1.0 MB/s  0:20 left",
        "[bold] done",
    ]


def test_a_terminal_gets_one_live_line_that_goes_away(clocked):
    progress, stream, now = clocked(is_terminal=True)
    with progress:
        for _ in range(5):
            now[0] += 1
            progress.advance("a.zip", int(now[0]) * 1_000_000, 200_000_000)
        progress.say("done")
    text = stream.getvalue()
    assert "a.zip  105.0 of 200.0 MB" in text and text.rstrip().endswith("done")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden and comes back


def test_columns_are_aligned():
    assert columns([("a", "bcd"), ("efg", "h")]) == ["a    bcd", "efg  h"]
    assert columns([("a", "bcd"), ("efg", "h")], align=str.rjust) == ["  a  bcd", "efg    h"]
