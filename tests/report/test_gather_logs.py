import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_logs import LEFT_OUT, later, log_records, log_text, record, up_to, write_log

from maskperf.mlperf.read import read_log
from maskperf.report.course import phases_of_log, thin
from maskperf.report.gather import gather
from maskperf.schema import StepLine

START = 1.0  # minutes, of run_start


def published_records(losses, *, evaluations=(), status="success", decay=(100, 200), is_maskperf=False):
    """Return records of ten minutes in the form of published logs, or of maskperf's.

    losses: the mean of every 50 steps; published logs have means over all steps so far. evaluations: (epoch, APs).
    """
    records = [record("maskperf_recipe", "coco_batch_96", 0.0)] if is_maskperf else []
    records += [record("global_batch_size", 96, 0.2), record("opt_learning_rate_decay_steps", list(decay), 0.2)]
    records += [record("run_start", None, START), record("train_samples", 40000, START)]
    so_far = 0.0
    for number, loss in enumerate(losses, start=1):
        so_far = so_far if loss is None else (so_far * (number - 1) + loss) / number
        shown = loss if is_maskperf else so_far
        values = {"time": 0.03, "loss": shown, "loss_mask": shown / 2, "loss_rpn_box_reg": shown / 10}
        values |= {"throughput": 800.0 + number, "learning_rate": 0.1 * number}
        records.append(record("tracked_stats", values, START + 10 * number / (len(losses) + 1), step=50 * number))
    for epoch, box_ap, mask_ap in evaluations:
        at = START + 10 * epoch / (len(evaluations) + 1)
        records.append(record("eval_accuracy", {"BBOX": box_ap, "SEGM": mask_ap}, at, epoch_num=epoch))
    records.append(record("run_stop", None, START + 10, status=status))
    return sorted(records, key=lambda entry: entry["time_ms"])


def write(path, records):
    path.write_text(log_text(records))
    return path


def page_of(path):
    return gather([path], []).runs[0]


@pytest.mark.parametrize(("is_maskperf", "ranks"), [(False, 1), (False, 2), (True, 1)])
def test_losses_are_means_of_windows_also_where_a_published_log_has_cumulative_ones(tmp_path, is_maskperf, ranks):
    losses = [2.0, 1.0, 1.6, 0.5, 0.7]
    records = published_records(losses, is_maskperf=is_maskperf)
    records = [entry for entry in records for _ in range(ranks if entry["key"] == "tracked_stats" else 1)]
    page = page_of(write(tmp_path / "result_0.txt", records))
    numbers = [[p.step, p.total, p.mask, p.rpn_box, p.learning_rate] for p in page.losses]
    expected = [[25, 75, 125, 175, 225], *np.outer([1, 0.5, 0.1], losses), [0.1, 0.2, 0.3, 0.4, 0.5]]
    np.testing.assert_allclose(np.transpose(numbers), expected, rtol=1e-6)
    assert page.images_per_second == 803.0 and page.losses[0].images_per_second == 801.0
    assert page.recipe == ("coco_batch_96" if is_maskperf else "")


def test_a_collapse_in_a_published_log_is_named(tmp_path):
    losses = [1.0 + 0.01 * (number % 3) for number in range(20)] + [2.0] + [None] * 10
    evaluations = [(epoch, 0.2 if epoch < 3 else 0.0, 0.2 if epoch < 3 else 0.0) for epoch in range(1, 6)]
    page = page_of(write(tmp_path / "log.txt", published_records(losses, evaluations=evaluations, status="aborted")))
    assert [entry.event for entry in page.guard] == ["collapse", "collapse", "summary"]
    assert 1050 <= page.guard[0].step <= 1100 and page.guard[1].epoch == 3
    assert page.verdict.state == "missed" and f"collapsed at step {page.guard[0].step}" in page.verdict.sentence
    assert page.losses[-1].total is None and page.losses[20].total == pytest.approx(2.0)


def test_a_plateau_in_a_published_log_is_named_where_it_could_first_be(tmp_path):
    evaluations = [(epoch, 0.3 if epoch < 13 else 0.375, 0.345) for epoch in range(1, 30)]
    records = published_records([], evaluations=evaluations, status="aborted", decay=(12000, 14000))
    page = page_of(write(tmp_path / "log.txt", records))
    plateau, summary = page.guard
    assert (plateau.event, summary.event) == ("plateau", "summary")
    assert 13 < plateau.epoch < 25 and "box AP is 0.00200 short of 0.377" in plateau.text
    parts = ("29 epochs (10.0 minutes)", "epoch 13: box AP 0.0020 short", f"as of epoch {plateau.epoch}")
    assert all(part in page.verdict.sentence for part in parts)


def test_a_sound_log_has_no_event_and_phases_that_sum_to_its_wall_clock(tmp_path):
    page = page_of(write_log(tmp_path / "log.txt", tracked_every=50, minutes=19.3))
    assert [entry.event for entry in page.guard] == ["summary"] and page.guard[0].text.endswith("no collapse.")
    assert page.notes == ()
    shares = {"training": 0.99 * 0.9, "evaluation": 0.99 * 0.05, "other": 1 - 0.99 * 0.95}
    assert page.phases == pytest.approx({name: 19.3 * 60 * share for name, share in shares.items()}, rel=1e-3)
    assert sum(page.phases.values()) == pytest.approx(19.3 * 60, rel=1e-6)


def log_of(tmp_path, *intervals, stop=10.0):
    """Return a log from START on; intervals: (key without _start, epoch, start, stop in minutes or None)."""
    records = [record("run_start", None, START)]
    for key, epoch, begin, end in intervals:
        records.append(record(f"{key}_start", None, START + begin, epoch_num=epoch))
        if end is not None:
            records.append(record(f"{key}_stop", None, START + end, epoch_num=epoch))
    if stop is not None:
        records.append(record("run_stop", None, START + stop, status="success"))
    return read_log(write(tmp_path / "log.txt", sorted(records, key=lambda entry: entry["time_ms"])))


OPEN_ENDS = [("epoch", 1, 0.0, 4.0), ("eval", 1, 4.0, 5.0), ("epoch", 2, 5.0, None), ("eval", 2, 6.0, None)]


@pytest.mark.parametrize(
    ("intervals", "stop", "minutes"),
    [
        # An evaluation beside the training is taken out of it once.
        ([("epoch", 1, 0.0, 8.0), ("eval", 1, 4.0, 5.0), ("eval", 2, 8.0, 9.0)], 10.0, [7.0, 2.0, 1.0]),
        # Evaluations that overlap count once.
        ([("epoch", 1, 0.0, 8.0), ("eval", 1, 4.0, 6.0), ("eval", 2, 5.0, 7.0)], 10.0, [5.0, 3.0, 2.0]),
        # What lies outside the run does not count.
        ([("epoch", 1, 1.0, 9.0), ("eval", 1, 9.0, 12.0)], 10.0, [8.0, 1.0, 1.0]),
        # A log that ends early is accounted for to its last line.
        ([*OPEN_ENDS, ("eval", 3, 7.0, 8.0)], None, [5.0, 3.0, 0.0]),
        # Without epochs there is one phase.
        ([], 10.0, [10.0]),
    ],
)
def test_training_evaluation_and_the_rest_have_their_minutes(tmp_path, intervals, stop, minutes):
    phases = phases_of_log(log_of(tmp_path, *intervals, stop=stop))
    assert [round(seconds / 60, 6) for seconds in phases.values()] == minutes
    assert list(phases)[-1] == "other"
    without_run = write(tmp_path / "log.txt", [record("init_start", None, 0.0)])
    assert phases_of_log(read_log(without_run)) == {}


INTERVAL = st.tuples(st.floats(0, 10), st.floats(0, 4))


@settings(max_examples=60)
@given(epochs=st.lists(INTERVAL, max_size=5), evaluations=st.lists(INTERVAL, max_size=5))
def test_phases_sum_to_the_wall_clock_whatever_overlaps(epochs, evaluations, tmp_path_factory):
    rows = [("epoch", number, begin, begin + length) for number, (begin, length) in enumerate(epochs)]
    rows += [("eval", number, begin, begin + length) for number, (begin, length) in enumerate(evaluations)]
    phases = phases_of_log(log_of(tmp_path_factory.mktemp("log"), *rows))
    assert sum(phases.values()) == pytest.approx(600.0, rel=1e-6)
    assert min(phases.values()) >= -1e-6


def test_a_clock_that_went_back_is_named_and_accounts_for_nothing(tmp_path):
    records = log_records(minutes=19.3)
    head = up_to(records, "eval_stop")
    page = page_of(write(tmp_path / "log.txt", [*head, *later(records[len(head) :], -60)]))
    (note,) = [note for note in page.notes if note.startswith("The wall clock moved")]
    assert 3590 < float(re.search(r"is ([0-9.]+) s before", note).group(1)) <= 3600
    assert page.verdict.minutes is None and page.phases == {}


def test_a_published_log_has_a_band_a_place_and_the_submitters_name(tmp_path):
    contents = gather([write_log(tmp_path / "result_0.txt", batch_size=96, minutes=19.35)], [])
    own = next(place for place in contents.places if place.is_this)
    assert own.name == "Made Up: synthetic_system" and own.minutes == pytest.approx(19.35, abs=1e-4)
    assert contents.title == "Mask R-CNN: Made Up: synthetic_system"
    assert contents.band.batch_size == 96 and len(contents.band.epochs) >= 13
    assert contents.runs[0].name == "result_0.txt" and contents.runs[0].rules == ()
    band = gather([write_log(tmp_path / "result_0.txt", batch_size=100)], []).band
    assert band.batch_size == 96 and "nothing was published with batch 100" in band.sentence


def test_a_run_that_missed_has_no_place_and_a_log_without_a_batch_size_no_band(tmp_path):
    contents = gather([write_log(tmp_path / "log.txt", status="aborted")], [])
    assert contents.places == () and "no run reached the targets" in contents.places_note
    assert contents.runs[0].verdict.state == "missed"
    contents = gather([write_log(tmp_path / "other.txt", global_batch_size=LEFT_OUT)], [])
    assert contents.band is None and len(contents.places) == 24


def test_a_torn_line_and_an_ap_that_is_no_number_are_left_out_with_notes(tmp_path):
    records = log_records(epochs=3)
    next(entry for entry in records if entry["key"] == "eval_accuracy")["value"]["BBOX"] = float("nan")
    path = write(tmp_path / "log.txt", records)
    with path.open("a") as stream:
        stream.write(':::MLLOG {"torn')
    page = page_of(path)
    assert [point.epoch for point in page.evaluations] == [2, 3]
    assert any(note.startswith("log.txt: ") and "torn" in note for note in page.notes)
    assert any(note.startswith("An evaluation is left out: epoch 1") for note in page.notes)


def test_a_package_has_the_number_of_accelerators(tmp_path):
    path = write_log(tmp_path / "results" / "big" / "maskrcnn" / "result_0.txt", minutes=2.0)
    (tmp_path / "systems").mkdir()
    description = {"number_of_nodes": "4", "accelerators_per_node": 8, "accelerator_model_name": "Chip"}
    (tmp_path / "systems" / "big.json").write_text(json.dumps(description))
    contents = gather([path], [])
    own = next(place for place in contents.places if place.is_this)
    assert (own.accelerators, own.accelerator) == (32, "Chip")
    assert own.minutes_times_accelerators == pytest.approx(64.0, abs=0.01)
    assert ("accelerator", "Chip") in contents.runs[0].system


def point(step, total):
    return StepLine(step=step, epoch=1, total=total, mask=total, images_per_second=1.0)


def test_thinned_points_are_means_of_their_windows_and_few_points_stay():
    few = [point(step, 1.0) for step in range(1, 401)]
    assert thin(few) == tuple(few) and thin([]) == ()
    points = thin([point(step, float(step)) for step in range(1, 1001)], 100)
    assert len(points) == 100
    assert (points[0].total, points[0].mask, points[0].step) == (5.5, 5.5, 6)
    assert (points[-1].total, points[-1].images_per_second, points[-1].learning_rate) == (995.5, 1.0, None)


def test_points_that_are_not_finite_are_never_averaged_away():
    points = [point(step, None if 500 <= step < 600 or step == 700 else 1.0) for step in range(1, 1001)]
    thinned = thin(points, 100)
    assert [entry.step for entry in thinned if entry.total is None] == [500, 599, 700]
    assert len(thinned) < 110
