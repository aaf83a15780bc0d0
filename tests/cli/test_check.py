import json

import pytest
from official_checkers import run_in_process
from synthetic_logs import later, log_records, log_text, up_to, write_log, write_logs, write_package, write_series

from maskperf.cli.main import execute
from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_RULE, DataError
from maskperf.mlperf import checkers


@pytest.fixture(autouse=True)
def in_process(request, monkeypatch):
    if "slow_way" not in request.fixturenames:
        monkeypatch.setattr(checkers, "_run", run_in_process)


@pytest.fixture
def slow_way():
    """Leave each checker in a process of its own."""


def _check(capsys, *paths):
    """Return the exit code and everything shown."""
    code = execute(["check", *map(str, paths)])
    return code, capsys.readouterr().out


def test_a_good_log_is_accepted_with_its_numbers(tmp_path, capsys):
    code, shown = _check(capsys, write_log(tmp_path / "a.txt"))
    assert code == EXIT_DONE and shown.rstrip().endswith("accepted")
    row = next(line for line in shown.splitlines() if "a.txt  " in line)
    words = ["accepted", "accepted", "success", "19.300", "14", "0.3785", "0.3420", "4000000007"]
    assert row.split()[1:] == words


def test_a_bad_log_is_refused_in_the_checkers_words_and_in_ours(tmp_path, capsys):
    code, shown = _check(capsys, write_log(tmp_path / "a.txt", opt_base_learning_rate=0.13, submission_org=""))
    assert code == EXIT_RULE and "refused" in shown
    assert "CHECK for 'opt_base_learning_rate' failed" in shown and "multiple of 0.02" in shown
    assert "fix:" in shown and "mlperf.organization=NAME" in shown


def test_a_trap_that_the_official_checker_misses_is_refused(tmp_path, capsys):
    path = tmp_path / "a.txt"
    records = log_records()
    records[-1]["time_ms"] -= 3_600_000
    path.write_text(log_text(records))
    code, shown = _check(capsys, path)
    row = next(line for line in shown.splitlines() if "a.txt  " in line)
    assert code == EXIT_RULE and row.split()[1:3] == ["accepted", "refused"] and "clock went backwards" in shown


def test_a_file_of_two_runs_is_shown_as_that_and_little_else(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text(log_text([*up_to(log_records(), "epoch_start", 2), *later(log_records(), 40)]))
    code, shown = _check(capsys, path)
    row = next(line for line in shown.splitlines() if "a.txt  " in line)
    assert code == EXIT_RULE and row.split()[1:] == ["refused", "refused", "several", "runs", *"----", "4000000007"]
    assert "line 30: a second run begins" in shown and "findings about the whole file not shown" in shown
    assert "lines 30 to the end alone: compliance checker accepted, maskperf's own checks accepted" in shown
    assert "with one value" not in shown and len(shown.splitlines()) <= 16


def test_a_file_with_a_head_in_front_keeps_its_numbers_and_its_exit_code(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text(log_text([*up_to(log_records(), "seed"), *later(log_records(), 4)]))
    code, shown = _check(capsys, path)
    row = next(line for line in shown.splitlines() if "a.txt  " in line)
    assert code == EXIT_DONE and row.split()[1:5] == ["accepted", "accepted", "success", "19.300"]
    assert "note: line 9: a second run begins" in shown


def test_a_run_folder_stands_for_its_log(tmp_path, capsys):
    write_log(tmp_path / "run" / "mlperf.log")
    code, shown = _check(capsys, tmp_path / "run")
    assert code == EXIT_DONE and "mlperf.log" in shown


def test_a_demo_is_called_one_and_its_form_still_judged(tmp_path, capsys):
    choices = {"recipe": "demo", "targets": (0.3, 0.3), "division": "open"}
    code, shown = _check(capsys, write_log(tmp_path / "a.txt", **choices))
    assert code == EXIT_DONE and "a demo is not a submission:" in shown and "open division:" in shown
    assert shown.splitlines()[-1].startswith("accepted in form only")
    code, shown = _check(capsys, write_log(tmp_path / "a.txt", submission_org="", **choices))
    assert code == EXIT_RULE and "submission_org" in shown


def test_a_series_is_judged_together(tmp_path, capsys, slow_way):
    code, shown = _check(capsys, write_series(tmp_path / "series"))
    assert code == EXIT_DONE
    assert "RCP checker          accepted" in shown and "seed checker         accepted" in shown
    assert "score: 19.500 minutes" in shown and "14.000 epochs on average" in shown


def test_a_scaling_factor_is_in_the_score(tmp_path, capsys):
    runs = [{"epochs": epochs} for epochs in (12, 12, 13, 13, 13)]
    code, shown = _check(capsys, write_series(tmp_path / "series", runs, batch_size=8))
    assert code == EXIT_DONE and "times 1.0066" in shown and "score: 19.628 minutes" in shown


def test_one_refused_run_of_five_is_dropped(tmp_path, capsys):
    series = write_series(tmp_path / "series", [{"status": "aborted"}, {}, {}, {}, {}])
    code, shown = _check(capsys, series)
    assert code == EXIT_DONE and "run_0/mlperf.log" in shown.split("without a time that counts:")[1].splitlines()[0]
    assert "score: 19.600 minutes" in shown


@pytest.mark.parametrize(
    ("runs", "common", "words"),
    [
        ([{"seed": 1}, {"seed": 1}, {}, {}, {}], {}, "Two runs have the seed 1"),
        ([{"status": "aborted"}] * 2 + [{}] * 3, {}, "score: none"),
        ([{}] * 5, {"batch_size": 128, "epochs": 13}, "Too few epochs"),
        ([{"batch_size": 128}, {}, {}, {}, {}], {}, "same global batch size"),
    ],
)
def test_a_series_that_breaks_a_rule_is_refused(tmp_path, capsys, runs, common, words):
    code, shown = _check(capsys, write_series(tmp_path / "series", runs, **common))
    assert code == EXIT_RULE and words in shown and "score: 1" not in shown


def test_what_the_tool_of_round_v3_1_would_have_said_is_shown_where_it_differs(tmp_path, capsys):
    # 16.2119 are enough today, 16.4302 were asked for in round v3.1; these have 16 1/3.
    runs = [{"epochs": epochs} for epochs in (16, 16, 16, 17, 17)]
    code, shown = _check(capsys, write_series(tmp_path / "series", runs, batch_size=256))
    assert code == EXIT_DONE and "by the tool of round v3.1: failed" in shown


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_lost_run_of_a_series_is_named_after_the_others_were_judged(tmp_path, capsys, has_folder):
    series = write_series(tmp_path / "series")
    (series / "run_3" / "mlperf.log").unlink()
    if not has_folder:
        (series / "run_3").rmdir()
    with pytest.raises(DataError, match=r"run_3/mlperf\.log.*left no log.*new series") as caught:
        execute(["check", str(series)])
    assert caught.value.exit_code == EXIT_DATA
    assert "run_4/mlperf.log" in capsys.readouterr().out


def test_a_series_whose_list_is_torn_is_an_error_of_the_user(tmp_path):
    series = write_series(tmp_path / "series")
    (series / "series.json").write_text('{"runs": [{"fol')
    with pytest.raises(DataError, match=r"series.json.*cannot be used"):
        execute(["check", str(series)])


def test_what_holds_for_some_logs_only_names_them(tmp_path, capsys):
    _, shown = _check(capsys, *write_logs(tmp_path, [{}, {"division": "open"}, {}]))
    assert f"{tmp_path / 'result_1.txt'}: open division" in shown and shown.count("open division") == 1


def test_three_logs_are_judged_one_by_one(tmp_path, capsys):
    code, shown = _check(capsys, *write_logs(tmp_path, [{}] * 3))
    assert code == EXIT_DONE and "3 logs: 5 are needed" in shown


def test_five_logs_of_the_open_division_have_a_score_without_a_comparison(tmp_path, capsys):
    code, shown = _check(capsys, *write_logs(tmp_path, division="open"))
    assert code == EXIT_DONE and "no comparison with the reference" in shown and "score: 19.500 minutes" in shown


def test_a_package_is_judged_as_a_whole(tmp_path, capsys):
    code, shown = _check(capsys, write_package(tmp_path / "p"))
    assert code == EXIT_DONE
    for part in ("system description checker", "seed checker", "RCP checker", "package checker", "repository checker"):
        assert any(line.split() == [*part.split(), "accepted"] for line in shown.splitlines()), part
    code, shown = _check(capsys, write_package(tmp_path / "q", [{}] * 4))
    assert code == EXIT_RULE and "4 files named result_" in shown


def test_a_package_with_a_trap_in_one_log_is_refused(tmp_path, capsys):
    folder = write_package(tmp_path / "p")
    path = folder / "results/synthetic_system/maskrcnn/result_0.txt"
    records = log_records()
    path.write_text(log_text(sorted(records, key=lambda entry: entry["key"] == "eval_accuracy")))
    code, shown = _check(capsys, folder)
    assert code == EXIT_RULE and "stands behind run_stop" in shown


def test_findings_that_nobody_knows_are_shown_whole(tmp_path, capsys, monkeypatch):
    words = "WARNING -  The moon is full\nand red\nERROR - FAILED\n"
    monkeypatch.setattr(checkers, "_run", lambda *_: words)
    code, shown = _check(capsys, write_log(tmp_path / "a.txt"))
    assert code == EXIT_RULE and "The moon is full" in shown and "and red" in shown and "not known" in shown


def test_a_log_cannot_move_the_cursor(tmp_path, capsys):
    code, shown = _check(capsys, write_log(tmp_path / "a.txt", submission_status="\x1b[2J\x1b[31m"))
    assert code == EXIT_RULE and "\x1b" not in shown


@pytest.mark.parametrize("name", ["none", "empty", "picture.png"])
def test_what_is_no_log_is_an_error_of_the_user(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "picture.png").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match=f"{name}.*Fix: "):
        execute(["check", str(tmp_path / name)])


def test_the_series_file_of_the_test_logs_is_whole(tmp_path):
    series = json.loads(
        (write_series(tmp_path / "s", [{"seed": 3}, {"status": "aborted"}]) / "series.json").read_text()
    )
    assert [run["seed"] for run in series["runs"]] == [3, 4000001007]
    assert [run["status"] for run in series["runs"]] == ["success", "aborted"]
