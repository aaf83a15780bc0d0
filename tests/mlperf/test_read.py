import json

import pytest
from synthetic_logs import SEED, log_records, log_text, record, write_log

from maskperf.errors import DataError
from maskperf.mlperf.read import read_log

PUBLISHED = (
    ':::MLLOG {"namespace": "", "time_ms": 1684009117172, "event_type": "POINT_IN_TIME", "key": "tracked_stats", '
    '"value": {"time": 0.030, "data": 0.0016, "loss": 2.2956, "loss_classifier": 0.89, "loss_box_reg": 0.055, '
    '"loss_mask": 0.82, "loss_objectness": 0.40, "loss_rpn_box_reg": 0.119, "throughput": 8511.65}, '
    '"metadata": {"file": "x.py", "lineno": 560, "step": 50}}\n'
)


def _read(path, text):
    path.write_text(text, encoding="utf-8")
    return read_log(path)


def test_a_log_tells_who_what_how_long_and_how_well(tmp_path):
    log = read_log(write_log(tmp_path / "a.txt", minutes=19.3, epochs=14, recipe="coco_batch_96", targets=(0.3, 0.2)))
    assert (log.benchmark, log.organization, log.division) == ("maskrcnn", "Made Up", "closed")
    assert log.platform == "synthetic_system" and log.recipe == "coco_batch_96" and log.targets == (0.3, 0.2)
    assert log.settings["global_batch_size"] == 96 and log.settings["opt_learning_rate_decay_steps"] == [12000, 16000]
    assert "seed" not in log.settings and log.seeds == (SEED,)
    assert log.run_seconds == pytest.approx(19.3 * 60) and log.init_seconds == pytest.approx(120)
    assert log.status == "success" and log.problems == ()
    assert [evaluation.epoch for evaluation in log.evaluations] == list(range(1, 15))
    assert (log.evaluations[-1].box_ap, log.evaluations[-1].mask_ap) == (0.3785, 0.342)
    assert 0 < log.evaluations[0].minutes < log.evaluations[-1].minutes < 19.3
    assert log.epochs[0].start_minutes < log.epochs[0].stop_minutes < log.epochs[1].start_minutes


def test_without_own_targets_those_of_the_benchmark_hold(tmp_path):
    log = read_log(write_log(tmp_path / "a.txt"))
    assert log.targets == (0.377, 0.339) and log.recipe is None


def test_tracked_lines_of_a_published_log(tmp_path):
    start = log_text([record("run_start", None, 0)]).replace("1700000000000", "1684009057172")
    log = _read(tmp_path / "a.txt", "0: " + start + "3: " + PUBLISHED)
    (entry,) = log.tracked
    assert entry.step == 50 and entry.minutes == pytest.approx(1.0)
    assert entry.values["loss"] == 2.2956 and entry.values["throughput"] == 8511.65


def test_numbers_that_are_not_finite_are_unknown(tmp_path):
    log = _read(tmp_path / "a.txt", PUBLISHED.replace("2.2956", "NaN").replace("0.89", "null"))
    assert log.tracked[0].values["loss"] is None and log.tracked[0].values["loss_classifier"] is None
    assert log.tracked[0].values["loss_mask"] == 0.82


def test_lines_of_several_processes_count_once(tmp_path):
    records = log_records()
    repeated = [entry for entry in records for _ in range(3 if entry["key"] in ("init_start", "cache_clear") else 1)]
    repeated += [entry for entry in records if entry["key"] == "eval_accuracy"]
    log = _read(tmp_path / "a.txt", log_text(repeated))
    assert len(log.evaluations) == 14 and log.init_seconds == pytest.approx(120)


@pytest.mark.parametrize("broken", [b"\xff\xfe epoch \xe9\n", "progress \u2028 50 %\r".encode(), b"\x00\x85\n"])
def test_other_text_of_any_kind_is_passed_over(tmp_path, broken):
    text = write_log(tmp_path / "a.txt").read_bytes().replace(b":::MLLOG", broken + b"12: :::MLLOG")
    (tmp_path / "b.txt").write_bytes(text)
    log = read_log(tmp_path / "b.txt")
    assert log.problems == () and log.status == "success" and len(log.evaluations) == 14


def test_a_torn_last_line_is_named_and_the_rest_read(tmp_path):
    text = log_text(log_records())
    log = _read(tmp_path / "a.txt", text[:-30])
    assert log.status == "unfinished" and log.run_seconds is None and len(log.evaluations) == 14
    (problem,) = log.problems
    assert "torn" in problem and f"line {text.count(chr(10))}" in problem


@pytest.mark.parametrize("cut", range(1, 250, 7))
def test_a_log_torn_anywhere_near_its_end_can_be_read(tmp_path, cut):
    log = _read(tmp_path / "a.txt", log_text(log_records())[:-cut])
    assert len(log.problems) <= 1 and len(log.evaluations) == 14


def test_two_records_on_one_line_are_both_read_and_named(tmp_path):
    text = log_text([record("run_start", None, 0), record("run_stop", None, 2, status="success")])
    log = _read(tmp_path / "a.txt", text.replace("\n", "", 1))
    assert log.run_seconds == 120 and log.status == "success"
    assert len(log.problems) == 1 and "2 records on one line" in log.problems[0]


def test_a_record_of_several_lines_is_read_and_named(tmp_path):
    entry = json.dumps(record("seed", 5, 0), indent=1)
    log = _read(tmp_path / "a.txt", f":::MLLOG {entry}\n" + log_text([record("run_start", None, 0)]))
    assert log.seeds == (5,) and len(log.records) == 2
    assert len(log.problems) == 1 and "lines" in log.problems[0]


def test_text_behind_a_record_is_named(tmp_path):
    log = _read(tmp_path / "a.txt", log_text([record("seed", 5, 0)]).replace("\n", " and more\n"))
    assert log.seeds == (5,) and "and more" in log.problems[0]


def test_records_without_their_parts_are_named(tmp_path):
    lines = [':::MLLOG {"key": "seed", "value": "1x", "time_ms": "late", "metadata": 3}', ':::MLLOG {"key": "y"}']
    log = _read(tmp_path / "a.txt", "\n".join(lines))
    assert [part in " ".join(log.problems) for part in ("not a number", "no time_ms", "not an object", "'1x'")] == [
        True
    ] * 4


@pytest.mark.parametrize("text", ["", "hello\n", ":::MLLOG\n", ":::MLLOG {\n", ":::MLLOG " + "[" * 100000])
def test_a_file_without_a_record_is_refused(tmp_path, text):
    with pytest.raises(DataError, match=r"a\.txt.*Fix: "):
        _read(tmp_path / "a.txt", text)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no.txt"):
        read_log(tmp_path / "no.txt")


def test_blocks_stand_in_for_epochs(tmp_path):
    blocks = [record("run_start", None, 0), record("block_start", None, 1, first_epoch_num=1, epoch_count=2)]
    blocks += [record("block_stop", None, 4, first_epoch_num=1)]
    (epoch,) = _read(tmp_path / "a.txt", log_text(blocks)).epochs
    assert (epoch.epoch, epoch.start_minutes, epoch.stop_minutes) == (1, 1.0, 4.0)


def test_an_aborted_run_and_one_without_a_start(tmp_path):
    assert read_log(write_log(tmp_path / "a.txt", status="aborted")).status == "aborted"
    without = [entry for entry in log_records() if entry["key"] != "run_start"]
    log = _read(tmp_path / "b.txt", log_text(without))
    assert log.run_seconds is None and log.evaluations[0].minutes is None and log.status == "success"


@pytest.mark.parametrize(
    ("targets", "status", "expected"),
    [
        ((0, 0), "success", "done"),
        ((0.0, 0.0), "success", "done"),
        ((0, 0), "aborted", "aborted"),
        ((0.3, 0), "success", "success"),
        ((0, 0.3), "success", "success"),
        ((0.3, 0.3), "aborted", "aborted"),
    ],
)
def test_a_success_without_targets_is_done(tmp_path, targets, status, expected):
    assert read_log(write_log(tmp_path / "a.txt", targets=targets, status=status)).status == expected
