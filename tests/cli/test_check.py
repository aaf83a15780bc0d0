import re

import pytest
from synthetic_logs import later, log_records, log_text, up_to, write_log, write_logs, write_package, write_series

from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_RULE
from maskperf.mlperf import checkers

DEMO = {"recipe": "demo", "targets": (0.3, 0.3), "division": "open"}


@pytest.fixture
def check_in_processes(maskperf):
    """Return a function that checks paths, each checker in a process of its own."""
    return lambda *paths: maskperf("check", *paths)


@pytest.fixture
def check(check_in_processes, checkers_in_process):
    return check_in_processes


@pytest.fixture
def check_records(check, tmp_path):
    """Return a function that checks a log of these records and returns what was shown, and its row of the table."""

    def run(records):
        (tmp_path / "a.txt").write_text(log_text(records))
        shown = check(tmp_path / "a.txt")
        return shown, row_of(shown)

    return run


def row_of(shown):
    return next(line for line in shown.out.splitlines() if "a.txt  " in line).split()[1:]


def turned_back():
    records = log_records()
    records[-1]["time_ms"] -= 3_600_000
    return records


@pytest.mark.parametrize(
    ("records", "code", "row", "texts"),
    [
        (log_records(), EXIT_DONE, "accepted accepted success 19.300 14 0.3785 0.3420 4000000007", []),
        (
            log_records(opt_base_learning_rate=0.13, submission_org=""),
            EXIT_RULE,
            "refused",
            ["CHECK for 'opt_base_learning_rate' failed", "multiple of 0.02", "fix:", "mlperf.organization"],
        ),
        # What the official checker misses.
        (turned_back(), EXIT_RULE, "accepted refused", ["clock went backwards"]),
        # A head whose program died: the run behind it counts.
        (
            [*up_to(log_records(), "seed"), *later(log_records(), 4)],
            EXIT_DONE,
            "accepted accepted success 19.300",
            ["note: line 9: a second run begins"],
        ),
        # The form of a demo is checked as well, and a log cannot move the cursor.
        (
            log_records(**DEMO),
            EXIT_DONE,
            "",
            ["a demo is not a submission:", "open division:", "accepted in form only"],
        ),
        (log_records(submission_org="", **DEMO), EXIT_RULE, "", ["submission_org"]),
        (log_records(submission_status="\x1b[2J\x1b[31m"), EXIT_RULE, "", []),
    ],
)
def test_a_log_is_accepted_or_refused_with_its_numbers_and_an_explanation(check_records, records, code, row, texts):
    shown, found = check_records(records)
    assert shown.code == code and all(text in shown.out for text in texts) and "\x1b" not in shown.out
    assert found[: len(row.split())] == row.split()
    assert shown.out.splitlines()[-1].startswith("accepted" if code == EXIT_DONE else "refused")


def test_a_file_of_two_runs_is_shown_as_that_and_little_else(check_records):
    shown, row = check_records([*up_to(log_records(), "epoch_start", 2), *later(log_records(), 40)])
    assert shown.code == EXIT_RULE and row == ["refused", "refused", "several", "runs", *"----", "4000000007"]
    assert "line 30: a second run begins" in shown.out and "findings about the whole file not shown" in shown.out
    assert "lines 30 to the end alone: compliance checker accepted, maskperf's own checks accepted" in shown.out
    assert "with one value" not in shown.out and len(shown.out.splitlines()) <= 16


def test_findings_that_are_not_known_are_shown_whole(check_records, monkeypatch):
    monkeypatch.setattr(checkers, "_run", lambda *_: "WARNING -  The moon is full\nand red\nERROR - FAILED\n")
    shown, _ = check_records(log_records())
    assert shown.code == EXIT_RULE
    assert all(text in shown.out for text in ("The moon is full", "and red", "not known"))


def test_a_series_is_checked_as_one(tmp_path, check_in_processes):
    shown = check_in_processes(write_series(tmp_path / "series"))
    assert shown.code == EXIT_DONE
    assert "RCP checker          accepted" in shown.out and "seed checker         accepted" in shown.out
    assert "score: 19.500 minutes" in shown.out and "14.000 epochs on average" in shown.out


def epochs_of_runs(*epochs):
    return [{"epochs": number} for number in epochs]


@pytest.mark.parametrize(
    ("runs", "common", "code", "texts"),
    [
        (epochs_of_runs(12, 12, 13, 13, 13), {"batch_size": 8}, EXIT_DONE, ["times 1.0066", "score: 19.628 minutes"]),
        # 16.2119 are enough today, 16.4302 were asked for in round v3.1; these have 16 1/3.
        (epochs_of_runs(16, 16, 16, 17, 17), {"batch_size": 256}, EXIT_DONE, ["by the tool of round v3.1: failed"]),
        ([{"status": "aborted"}, {}, {}, {}, {}], {}, EXIT_DONE, ["run_0/mlperf.log", "score: 19.600 minutes"]),
        ([{"status": "aborted"}] * 2 + [{}] * 3, {}, EXIT_RULE, ["score: none"]),
        ([{}] * 5, {"batch_size": 128, "epochs": 13}, EXIT_RULE, ["Too few epochs"]),
    ],
)
def test_a_series_is_scored_or_refused(tmp_path, check, runs, common, code, texts):
    shown = check(write_series(tmp_path / "series", runs, **common))
    assert shown.code == code and all(text in shown.out for text in texts)
    assert (code == EXIT_DONE) == (re.search(r"score: \d", shown.out) is not None)
    assert ("without a time that counts: " in shown.out) == any("status" in run for run in runs)


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_lost_run_of_a_series_is_named_after_the_others_were_checked(tmp_path, check, has_folder):
    series = write_series(tmp_path / "series")
    (series / "run_3" / "mlperf.log").unlink()
    if not has_folder:
        (series / "run_3").rmdir()
    shown = check(series)
    assert shown.code == EXIT_DATA and "run_4/mlperf.log" in shown.out
    assert "run_3/mlperf.log" in shown.err and "left no log" in shown.err


@pytest.mark.parametrize(
    ("runs", "common", "text"),
    [
        ([{}] * 3, {}, "3 logs: 5 are needed"),
        ([{}] * 5, {"division": "open"}, "no comparison with the reference"),
        ([{}, {"division": "open"}, {}], {}, "result_1.txt: open division"),  # what holds for some only names them
    ],
)
def test_several_logs_are_checked_one_by_one(tmp_path, check, runs, common, text):
    shown = check(*write_logs(tmp_path, runs, **common))
    assert shown.code == EXIT_DONE and text in shown.out
    assert ("score: 19.500 minutes" in shown.out) == (len(runs) == 5)
    assert shown.out.count("open division") == ("open" in str((runs, common)))


def test_a_package_is_checked_as_a_whole(tmp_path, check):
    shown = check(write_package(tmp_path / "p"))
    assert shown.code == EXIT_DONE
    for part in ("system description checker", "seed checker", "RCP checker", "package checker", "repository checker"):
        assert any(line.split() == [*part.split(), "accepted"] for line in shown.out.splitlines()), part
    shown = check(write_package(tmp_path / "q", [{}] * 4))
    assert shown.code == EXIT_RULE and "4 files named result_" in shown.out


def test_a_package_with_a_trap_in_one_log_is_refused(tmp_path, check):
    folder = write_package(tmp_path / "p")
    records = sorted(log_records(), key=lambda entry: entry["key"] == "eval_accuracy")
    (folder / "results/synthetic_system/maskrcnn/result_0.txt").write_text(log_text(records))
    shown = check(folder)
    assert shown.code == EXIT_RULE and "stands behind run_stop" in shown.out


def test_a_run_folder_is_checked_by_its_log(tmp_path, check):
    write_log(tmp_path / "run" / "mlperf.log")
    shown = check(tmp_path / "run")
    assert shown.code == EXIT_DONE and "mlperf.log" in shown.out


@pytest.mark.parametrize("name", ["none", "empty", "picture.png", "series/series.json"])
def test_what_cannot_be_read_is_an_error_of_the_user(tmp_path, check, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "picture.png").write_bytes(bytes(range(256)))
    (write_series(tmp_path / "series") / "series.json").write_text('{"runs": [{"fol')
    shown = check(tmp_path / name.partition("/")[0])
    assert shown.code == EXIT_DATA and name in shown.err and "Fix: " in shown.err
