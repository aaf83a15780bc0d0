import json

import pytest
from synthetic_logs import SEED, log_records, log_text, record

from maskperf.errors import DataError
from maskperf.mlperf.read import read_log

PUBLISHED = (
    ':::MLLOG {"namespace": "", "time_ms": 1684009117172, "event_type": "POINT_IN_TIME", "key": "tracked_stats", '
    '"value": {"time": 0.030, "data": 0.0016, "loss": 2.2956, "loss_classifier": 0.89, "loss_box_reg": 0.055, '
    '"loss_mask": 0.82, "loss_objectness": 0.40, "loss_rpn_box_reg": 0.119, "throughput": 8511.65}, '
    '"metadata": {"file": "x.py", "lineno": 560, "step": 50}}\n'
)
WHOLE = log_text(log_records())
SEED_LINE, START_LINE = log_text([record("seed", 5, 0)]), log_text([record("run_start", None, 0)])
STOP_LINE = log_text([record("run_stop", None, 2, status="success")])


def test_all_values_of_a_log(log_of):
    log = log_of(log_records(minutes=19.3, epochs=14, recipe="coco_batch_96", targets=(0.3, 0.2)))
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
    without_own = log_of(WHOLE)
    assert without_own.targets == (0.377, 0.339) and without_own.recipe is None


def test_tracked_lines_of_a_published_log(log_of):
    start = START_LINE.replace("1700000000000", "1684009057172")
    (entry,) = log_of("0: " + start + "3: " + PUBLISHED).tracked
    assert entry.step == 50 and entry.minutes == pytest.approx(1.0)
    assert entry.values["loss"] == 2.2956 and entry.values["throughput"] == 8511.65
    (entry,) = log_of(PUBLISHED.replace("2.2956", "NaN").replace("0.89", "null")).tracked
    assert entry.values["loss"] is None and entry.values["loss_classifier"] is None
    assert entry.values["loss_mask"] == 0.82


def test_lines_of_several_processes_count_once(log_of):
    repeated = ("init_start", "cache_clear", "eval_accuracy")
    log = log_of([entry for entry in log_records() for _ in range(3 if entry["key"] in repeated else 1)])
    assert len(log.evaluations) == 14 and log.init_seconds == pytest.approx(120)


@pytest.mark.parametrize("broken", [b"\xff\xfe epoch \xe9\n", "progress \u2028 50 %\r".encode(), b"\x00\x85\n"])
def test_other_text_of_any_kind_is_passed_over(tmp_path, broken):
    path = tmp_path / "log.txt"
    path.write_bytes(WHOLE.encode().replace(b":::MLLOG", broken + b"12: :::MLLOG"))
    log = read_log(path)
    assert log.problems == () and log.status == "success" and len(log.evaluations) == 14


@pytest.mark.parametrize("cut", range(1, 250, 7))
def test_a_log_torn_anywhere_near_its_end_can_be_read(log_of, cut):
    log = log_of(WHOLE[:-cut])
    assert len(log.problems) <= 1 and len(log.evaluations) == 14
    if cut == 29:
        assert log.status == "unfinished" and log.run_seconds is None
        assert "torn" in log.problems[0] and f"line {WHOLE.count(chr(10))}" in log.problems[0]


@pytest.mark.parametrize(
    ("text", "keys", "named"),
    [
        (START_LINE[:-1] + STOP_LINE, ["run_start", "run_stop"], ["line 1: 2 records on one line"]),
        (f":::MLLOG {json.dumps(record('seed', 5, 0), indent=1)}\n" + START_LINE, ["seed", "run_start"], ["lines"]),
        (SEED_LINE.replace("\n", " and more\n"), ["seed"], ["and more"]),
        (
            ':::MLLOG {"key": "seed", "value": "1x", "time_ms": "late", "metadata": 3}\n:::MLLOG {"key": "y"}',
            ["seed", "y"],
            ["not an object", "not a number", "no time_ms", "'1x'"],
        ),
    ],
)
def test_records_that_are_not_in_the_official_form_are_read_and_named(log_of, text, keys, named):
    log = log_of(text)
    assert [entry.key for entry in log.records] == keys
    assert all(text in problem for text, problem in zip(named, log.problems, strict=True))


@pytest.mark.parametrize("text", [None, "", "hello\n", ":::MLLOG\n", ":::MLLOG {\n", ":::MLLOG " + "[" * 100000])
def test_a_file_that_is_not_there_or_has_no_record_is_refused(tmp_path, text):
    path = tmp_path / "log.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=r"log\.txt.*Fix: "):
        read_log(path)


def test_blocks_stand_in_for_epochs(log_of):
    start = record("block_start", None, 1, first_epoch_num=1, epoch_count=2)
    (epoch,) = log_of([record("run_start", None, 0), start, record("block_stop", None, 4, first_epoch_num=1)]).epochs
    assert (epoch.epoch, epoch.count, epoch.start_minutes, epoch.stop_minutes) == (1, 2, 1.0, 4.0)


def test_a_run_without_a_start_has_no_times(log_of):
    log = log_of([entry for entry in log_records() if entry["key"] != "run_start"])
    assert log.run_seconds is None and log.evaluations[0].minutes is None and log.status == "success"


@pytest.mark.parametrize(
    ("targets", "expected"), [((0, 0), "done"), ((0.0, 0.0), "done"), ((0.3, 0), "success"), ((0, 0.3), "success")]
)
def test_a_success_without_targets_is_done(log_of, targets, expected):
    assert log_of(log_records(targets=targets)).status == expected
    assert log_of(log_records(targets=targets, status="aborted")).status == "aborted"
