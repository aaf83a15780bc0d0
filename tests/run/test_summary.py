import math
import sys

import pytest
from test_console import Terminal

from maskperf.config import has_targets, meets_targets
from maskperf.run.evaluations import best_row
from maskperf.run.summary import final_table, met_targets, verdict_lines, where_to_look
from maskperf.schema import EpochRow, Results

TARGETS = {"box_target": 0.377, "mask_target": 0.339}


def record(epoch, box_ap, mask_ap):
    return EpochRow(
        epoch=epoch,
        step=100 * epoch,
        mean_loss=2.0 / epoch,
        box_ap=box_ap,
        mask_ap=mask_ap,
        images_per_second=10.0 * epoch,
        seconds_since_start=90.0 * epoch,
        evaluation_seconds=4.0 * epoch,
    )


RECORDS = [record(1, 0.2, 0.1), record(2, 0.377, 0.338), record(3, 0.3771, 0.339)]


def results_of(records, status, seconds=275.0, **targets):
    return Results(status=status, seconds=seconds, epochs_table=tuple(records), **(targets or TARGETS))


@pytest.mark.parametrize(
    ("aps", "targets", "met"),
    [
        ((0.377, 0.339), (0.377, 0.339), "both"),
        ((0.377, math.nextafter(0.339, 0)), (0.377, 0.339), "box"),
        ((math.nextafter(0.377, 0), 0.339), (0.377, 0.339), "mask"),
        ((math.nan, math.nan), (0.377, 0.339), "-"),
        ((0.377, 0.0), (0.377, 0), "box"),
        ((0.376, 1.0), (0.377, 0), "-"),
        ((0.0, 0.339), (0, 0.339), "mask"),
        ((1.0, 1.0), (0, 0), "-"),
    ],
)
def test_targets_are_met_by_equal_or_more_without_rounding_and_0_is_none(aps, targets, met):
    assert met_targets(record(1, *aps), *targets) == met
    is_met = met == "both" or (0 in targets and met != "-")
    assert meets_targets(*aps, box_target=targets[0], mask_target=targets[1]) == is_met


@pytest.mark.parametrize(
    ("targets", "expected"), [((0.3, 0), True), ((0, 0.3), True), ((0, 0), False), ((None, None), True)]
)
def test_a_target_of_0_is_none_and_an_unknown_one_may_be_one_that_any_ap_meets(targets, expected):
    assert has_targets(*targets) == expected
    for box_ap, mask_ap, is_met in ((0.1, 0.4, True), (0.9, 0.3, False)):
        assert meets_targets(box_ap, mask_ap, box_target=None, mask_target=0.339) == is_met


def test_the_plain_table_has_one_row_an_epoch_the_verdict_and_the_files(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    folder = tmp_path / ("long" * 40)
    (folder / "pictures").mkdir(parents=True)
    for name in ("metrics.jsonl", "config.json", ".hidden"):
        (folder / name).write_text("")
    final_table(results_of(RECORDS, "success"), folder)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["epoch", "steps", "loss", "box", "AP", "mask", "AP", "targets", "images/s", "minutes"]
    assert [line.split() for line in lines[1:4]] == [
        ["1", "100", "2.0000", "0.2000", "0.1000", "-", "10.0", "1.50"],
        ["2", "200", "1.0000", "0.3770", "0.3380", "box", "20.0", "3.00"],
        ["3", "300", "0.6667", "0.3771", "0.3390", "both", "30.0", "4.50"],
    ]
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[4:8] == [
        "target reached in epoch 3: box AP 0.3771 (target 0.3770), mask AP 0.3390 (target 0.3390)",
        "time to target: 0:04:35",
        "best weights: epoch 3, box AP 0.3771, mask AP 0.3390",
        "training speed: 20.0 images/s; an evaluation took 8.0 s",
    ]
    assert lines[8:] == [f"where to look: {folder}", "  config.json", "  metrics.jsonl", "  pictures/"]
    assert lines[8:] == where_to_look(folder) and "\x1b" not in "".join(lines)


def test_a_terminal_gets_the_same_numbers_with_colour(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    final_table(results_of(RECORDS, "success"), tmp_path)
    text = sys.stdout.getvalue()
    assert "\x1b[32m" in text and "0.3771" in text and "target reached in epoch 3" in text


@pytest.mark.parametrize(
    ("aps", "status", "targets", "verdict"),
    [
        ([], "aborted", TARGETS, "target missed: no epoch"),
        (
            [(0.377, 0.338), (0.2, 0.1)],
            "aborted",
            TARGETS,
            "steps used up, target missed; nearest in epoch 1: box AP",
        ),
        (  # one target alone decides which is nearest
            [(0.9, 0.1), (0.1, 0.3)],
            "aborted",
            {"box_target": 0, "mask_target": 0.339},
            "steps used up, target missed; nearest in epoch 2: box AP 0.1000 (no target), mask AP 0.3000 (target 0.",
        ),
        (
            [(0.2, 0.1), (0.3, 0.3), (0.25, 0.25)],
            "done",
            {"box_target": 0, "mask_target": 0},
            "done, without targets: epoch 3, box AP 0.2500, mask AP 0.2500",
        ),
    ],
)
def test_the_verdict_of_a_run_that_met_no_targets(aps, status, targets, verdict):
    records = [record(epoch, *pair) for epoch, pair in enumerate(aps, start=1)]
    lines = verdict_lines(results_of(records, status, 3600.0, **targets))
    assert lines[0].startswith(verdict) and lines[1] == "time spent: 1:00:00"
    assert len(lines) == (4 if aps else 2)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0.1, 0.1)], 1),
        ([(0.1, 0.1), (0.2, 0.1)], 2),
        ([(0.1, 0.2), (0.2, 0.1)], 1),  # equal sums: the first
        ([(0.5, 0.0), (0.2, 0.25), (0.3, 0.3)], 3),
        ([(0.0, 0.0), (0.0, 0.0)], 1),
    ],
)
def test_the_best_epoch_has_the_highest_sum_of_both_aps(pairs, expected):
    records = [record(epoch, *pair) for epoch, pair in enumerate(pairs, start=1)]
    assert best_row(records).epoch == expected
