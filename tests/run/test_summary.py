import io
import math

import pytest

from maskperf.run.evaluations import best_row
from maskperf.run.summary import final_table, met_targets, verdict_lines, where_to_look
from maskperf.schema import EpochRow, Results

TARGETS = {"box_target": 0.377, "mask_target": 0.339}


def record(epoch, box_ap, mask_ap, **changes):
    values = {
        "epoch": epoch,
        "step": 100 * epoch,
        "mean_loss": 2.0 / epoch,
        "box_ap": box_ap,
        "mask_ap": mask_ap,
        "images_per_second": 10.0 * epoch,
        "seconds_since_start": 90.0 * epoch,
        "evaluation_seconds": 4.0 * epoch,
    }
    return EpochRow(**{**values, **changes})


RECORDS = [record(1, 0.2, 0.1), record(2, 0.377, 0.338), record(3, 0.3771, 0.339)]


def results_of(records, status, seconds=275.0, **targets):
    return Results(status=status, seconds=seconds, epochs_table=tuple(records), **(targets or TARGETS))


def table_text(records, status, folder, stream=None):
    stream = stream or io.StringIO()
    final_table(results_of(records, status), folder, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("aps", "targets", "expected"),
    [
        ((0.377, 0.339), (0.377, 0.339), "both"),
        ((0.377, math.nextafter(0.339, 0)), (0.377, 0.339), "box"),
        ((math.nextafter(0.377, 0), 0.339), (0.377, 0.339), "mask"),
        ((0.0, 0.0), (0.377, 0.339), "-"),
        ((math.nan, math.nan), (0.377, 0.339), "-"),
        ((0.377, 0.339), (0.377, 0), "box"),
        ((0.377, 0.339), (0.378, 0), "-"),
        ((0.377, 0.339), (0, 0.339), "mask"),
        ((0.377, 0.339), (0, 0), "-"),
        ((0.377, 0.339), (0, 1), "-"),
    ],
)
def test_targets_are_met_by_equal_or_more_without_rounding_and_0_is_none(aps, targets, expected):
    assert met_targets(record(1, *aps), *targets) == expected


def test_the_plain_table_has_one_row_an_epoch_in_columns(tmp_path):
    lines = table_text(RECORDS, "success", tmp_path).splitlines()
    assert lines[0].split() == ["epoch", "steps", "loss", "box", "AP", "mask", "AP", "targets", "images/s", "minutes"]
    assert [line.split() for line in lines[1:4]] == [
        ["1", "100", "2.0000", "0.2000", "0.1000", "-", "10.0", "1.50"],
        ["2", "200", "1.0000", "0.3770", "0.3380", "box", "20.0", "3.00"],
        ["3", "300", "0.6667", "0.3771", "0.3390", "both", "30.0", "4.50"],
    ]
    assert len({len(line) for line in lines[:4]}) == 1


def test_a_reached_target_is_said_with_its_epoch_and_time(tmp_path):
    text = table_text(RECORDS, "success", tmp_path)
    assert (
        "target reached in epoch 3: box AP 0.3771 (target 0.3770), mask AP 0.3390 (target 0.3390)\n"
        "time to target: 0:04:35\n"
        "best weights: epoch 3, box AP 0.3771, mask AP 0.3390\n"
        "training speed: 20.0 images/s; an evaluation took 8.0 s\n"
    ) in text


def test_a_missed_target_is_said_with_the_nearest_epoch():
    lines = verdict_lines(results_of([RECORDS[1], RECORDS[0]], "aborted", 3600.0))
    assert lines[0].startswith("target missed, nearest in epoch 2: box AP 0.3770")
    assert lines[1] == "time spent: 1:00:00"


def test_a_run_without_targets_is_done_and_says_its_last_and_its_best_epoch():
    records = [record(1, 0.2, 0.1), record(2, 0.3, 0.3), record(3, 0.25, 0.25)]
    lines = verdict_lines(results_of(records, "done", 60.0, box_target=0, mask_target=0))
    assert lines[:3] == [
        "done, without targets: epoch 3, box AP 0.2500, mask AP 0.2500",
        "time spent: 0:01:00",
        "best weights: epoch 2, box AP 0.3000, mask AP 0.3000",
    ]


def test_one_target_alone_decides_which_epoch_is_nearest():
    records = [record(1, 0.9, 0.1), record(2, 0.1, 0.3)]
    lines = verdict_lines(results_of(records, "aborted", 60.0, box_target=0, mask_target=0.339))
    assert lines[0] == ("target missed, nearest in epoch 2: box AP 0.1000 (no target), mask AP 0.3000 (target 0.3390)")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0.1, 0.1)], 1),
        ([(0.1, 0.1), (0.2, 0.1)], 2),
        ([(0.2, 0.1), (0.1, 0.1)], 1),
        ([(0.1, 0.2), (0.2, 0.1)], 1),  # equal sums: the first
        ([(0.5, 0.0), (0.2, 0.25), (0.3, 0.3)], 3),
        ([(0.0, 0.0), (0.0, 0.0)], 1),
    ],
)
def test_the_best_epoch_has_the_highest_sum_of_both_aps(pairs, expected):
    records = [record(epoch, *pair) for epoch, pair in enumerate(pairs, start=1)]
    assert best_row(records).epoch == expected


def test_a_run_without_an_epoch_is_said_to_have_missed(tmp_path):
    text = table_text([], "aborted", tmp_path)
    assert "target missed: no epoch was evaluated\ntime spent: 0:04:35\nwhere to look" in text


def test_the_files_of_the_run_folder_are_listed(tmp_path):
    for name in ("metrics.jsonl", "config.json", ".hidden"):
        (tmp_path / name).write_text("")
    (tmp_path / "pictures").mkdir()
    expected = [f"where to look: {tmp_path}", "  config.json", "  metrics.jsonl", "  pictures/"]
    assert where_to_look(tmp_path) == expected
    assert table_text(RECORDS, "success", tmp_path).splitlines()[-4:] == expected


def test_a_plain_stream_gets_no_colours_and_no_wrapped_lines(tmp_path, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    text = table_text(RECORDS, "success", folder)
    assert "\x1b" not in text
    assert text.isascii()
    assert f"where to look: {folder}\n" in text


def test_a_terminal_gets_the_same_numbers_with_colour(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        """A stream that says it is a terminal."""

        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = table_text(RECORDS, "success", tmp_path, Terminal())
    assert "\x1b[32m" in text
    assert "0.3771" in text
    assert "target reached in epoch 3" in text
