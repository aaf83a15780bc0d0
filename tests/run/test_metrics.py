import json
import math

import pytest

from maskperf.run.metrics import MetricsWriter, read_metrics
from maskperf.structures import LOSS_NAMES

LOSSES = dict(zip(LOSS_NAMES, (0.5, 0.25, 1.0, 0.125, 2.0), strict=True))


def write_step(writer, step, losses=None):
    writer.step(
        step=step,
        epoch=1,
        losses=losses or LOSSES,
        learning_rate=0.02,
        images_per_second=12.5,
        data_wait_seconds=0.001,
        step_seconds=0.16,
    )


def test_a_step_is_one_line_with_every_value_by_its_name(tmp_path):
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        write_step(writer, 7)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "kind": "step",
        "step": 7,
        "epoch": 1,
        "objectness": 0.5,
        "rpn_box": 0.25,
        "classification": 1.0,
        "box": 0.125,
        "mask": 2.0,
        "total": 3.875,
        "learning_rate": 0.02,
        "images_per_second": 12.5,
        "data_wait_seconds": 0.001,
        "step_seconds": 0.16,
    }


def test_an_evaluation_is_a_line_of_its_own_kind(tmp_path):
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        write_step(writer, 1)
        writer.evaluation(step=1, epoch=1, box_ap=0.3775, mask_ap=0.3391, evaluation_seconds=42.0)
    step, evaluation = read_metrics(tmp_path / "metrics.jsonl")
    assert step["kind"] == "step"
    assert evaluation == {
        "kind": "evaluation",
        "step": 1,
        "epoch": 1,
        "box_ap": 0.3775,
        "mask_ap": 0.3391,
        "evaluation_seconds": 42.0,
    }


def test_a_line_can_be_read_at_once_while_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for step in (1, 2, 3):
        write_step(writer, step)
        assert [line["step"] for line in read_metrics(path)] == list(range(1, step + 1))
    writer.close()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(number, tmp_path):
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        write_step(writer, 1, {**LOSSES, "mask": number})
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["mask"] is None
    assert line["total"] is None
    assert line["box"] == 0.125
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_loss_that_is_missing_is_not_passed_over(tmp_path):
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer, pytest.raises(KeyError, match="mask"):
        write_step(writer, 1, {name: 1.0 for name in LOSS_NAMES if name != "mask"})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_older_lines_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        with MetricsWriter(path) as writer:
            write_step(writer, step)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        write_step(writer, 1)
        write_step(writer, 2)
    path.write_bytes(path.read_bytes()[:-20])
    assert [line["step"] for line in read_metrics(path)] == [1]
