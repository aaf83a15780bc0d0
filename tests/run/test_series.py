import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from default_signals import default_signals

from maskperf import errors
from maskperf.errors import (
    EXIT_BUG,
    EXIT_DATA,
    EXIT_DONE,
    EXIT_NOT_FINITE,
    EXIT_RULE,
    EXIT_STORAGE,
    EXIT_TARGET_MISSED,
    EXIT_USAGE,
    StorageError,
)
from maskperf.run import series
from maskperf.run.series import read_run, run_child, run_series, series_sentence
from maskperf.schema import SERIES_FILE

SOURCES = Path(errors.__file__).resolve().parents[1]
MISSED, UNTARGETED = "missed", "untargeted"  # outcomes beside minutes and exit codes


def read_series(folder):
    return json.loads((folder / SERIES_FILE).read_text())


@pytest.fixture
def run_synthetic(tmp_path, monkeypatch):
    """Return a function that has a series with these outcomes; it returns exit code, series.json and the commands.

    An outcome is the minutes of a successful run, MISSED, UNTARGETED (a run without targets came to its end), or the
    exit code of a run that left no results.
    """
    commands, seen = [], []

    def child(command):
        seen.append(read_series(tmp_path / "s"))
        commands.append(command)
        folder = Path(command[-1].removeprefix("run_dir="))
        outcome = waiting.pop(0)
        if isinstance(outcome, int):
            return outcome
        folder.mkdir()
        results = {"status": {MISSED: "aborted", UNTARGETED: "done"}.get(outcome, "success"), "epochs": 3}
        results["seconds"] = 600.0 if isinstance(outcome, str) else outcome * 60
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "config.json").write_text(json.dumps({"seed": 100 + len(commands)}))
        return EXIT_TARGET_MISSED if outcome == MISSED else EXIT_DONE

    waiting = []
    monkeypatch.setattr(series, "run_child", child)

    def run(outcomes, arguments=()):
        waiting.extend(outcomes)
        code = run_series("coco", list(arguments), runs=len(outcomes), run_dir=str(tmp_path / "s"))
        assert len(seen) < 2 or [len(found["runs"]) for found in seen[:2]] == [0, 1]  # renewed after every run
        return code, read_series(tmp_path / "s"), commands

    return run


def test_five_runs_have_a_score_and_a_table(run_synthetic, capsys):
    code, found, _ = run_synthetic([5.0, 1.0, 2.0, 3.0, 4.0])
    assert code == EXIT_DONE and set(found) == {"recipe", "runs", "score_minutes", "sentence"}
    assert found["recipe"] == "coco" and found["score_minutes"] == pytest.approx(3.0)
    known = {"folder": "run_1", "exit_code": 0, "status": "success", "minutes": 1.0, "epochs": 3, "seed": 102}
    assert found["runs"][1] == known
    text = capsys.readouterr().out
    assert "run 5 of 5" in text and "run_4" in text and "105" in text
    assert found["sentence"] in text and "score 3.000 minutes" in found["sentence"]


@pytest.mark.parametrize("failure", [MISSED, EXIT_BUG, EXIT_NOT_FINITE, EXIT_STORAGE, EXIT_DATA])
def test_one_failed_run_counts_as_the_slowest(run_synthetic, failure):
    code, found, commands = run_synthetic([4.0, 1.0, failure, 3.0, 2.0])
    assert code == EXIT_DONE and len(commands) == 5
    assert found["score_minutes"] == pytest.approx((2 + 3 + 4) / 3)
    assert "the failed run counts as the slowest" in found["sentence"]
    assert found["runs"][2]["status"] == ("aborted" if failure == MISSED else "failed")


def test_two_failed_runs_leave_no_score(run_synthetic, capsys):
    code, found, _ = run_synthetic([EXIT_BUG, 1.0, MISSED, 3.0, 2.0])
    assert code == EXIT_TARGET_MISSED
    assert found["score_minutes"] is None and "no score" in found["sentence"]
    unknown = dict.fromkeys(("minutes", "epochs", "seed"))
    assert found["runs"][0] == {"folder": "run_0", "exit_code": 1, "status": "failed", **unknown}
    assert found["runs"][2]["minutes"] == 10.0  # known, but no time to the targets
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["run_0", "failed", "1", "-", "-", "-"] in rows


@pytest.mark.parametrize(
    ("outcomes", "code", "sentence"),
    [
        ([1.0, 2.0], EXIT_DONE, "a score needs 5 runs"),
        ([1.0, MISSED], EXIT_TARGET_MISSED, "a score needs 5 runs"),
        ([1.0] * 6, EXIT_DONE, "a score needs 5 runs"),
        ([UNTARGETED] * 5, EXIT_DONE, "5 of 5 runs trained to their end; without targets there is no score."),
        ([UNTARGETED, EXIT_BUG], EXIT_TARGET_MISSED, "1 of 2 runs trained to their end"),
    ],
)
def test_other_series_have_no_score_and_all_their_runs_must_end_well(run_synthetic, outcomes, code, sentence):
    found_code, found, _ = run_synthetic(outcomes)
    assert found_code == code and found["score_minutes"] is None and sentence in found["sentence"]


@pytest.mark.parametrize("code", [EXIT_USAGE, EXIT_DATA, EXIT_RULE])
def test_a_mistake_that_stops_the_first_run_ends_the_series(run_synthetic, code, capsys):
    found_code, found, commands = run_synthetic([code, 1.0, 1.0, 1.0, 1.0])
    assert found_code == code and len(commands) == 1
    assert "the other runs would meet the same" in capsys.readouterr().out
    assert found["sentence"].startswith("1 of 5 runs are done")


def test_each_run_is_a_fresh_python_with_a_folder_of_its_own(tmp_path, run_synthetic):
    given = ["optimizer.max_epochs=1", "processes=2"]
    _, _, commands = run_synthetic([1.0, 1.0], given)
    for number, command in enumerate(commands):
        arguments = ["run", "coco", *given, f"run_dir={tmp_path / 's'}/run_{number}"]
        assert command == [sys.executable, "-m", "maskperf", *arguments]


def test_the_default_folder_is_named_after_the_recipe_and_a_folder_in_use_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(series, "run_child", lambda command: EXIT_BUG)
    run_series("coco", [], runs=1)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("coco-") and folder.name.endswith("-series")
    monkeypatch.setattr(series, "run_child", None)  # not called
    with pytest.raises(StorageError, match="not empty"):
        run_series("coco", [], runs=1, run_dir=str(folder))


def test_a_run_that_fell_over_after_its_success_is_a_failed_one(tmp_path):
    (tmp_path / "results.json").write_text('{"status": "success", "epochs": 2, "seconds": 30.0}')
    run = read_run(tmp_path, EXIT_BUG)
    assert (run.status, run.minutes, run.epochs, run.seed) == ("failed", 0.5, 2, None)
    assert series_sentence([run], 1).startswith("0 of 1 runs")


def test_a_child_gives_its_exit_code_and_that_of_a_shell_where_it_was_killed():
    assert run_child([sys.executable, "-c", "import sys; sys.exit(6)"]) == 6
    assert run_child([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


# A stand-in for Python that is started for each run: it says that it runs, and tidies up when it is interrupted.
CHILD = """#!{python}
import pathlib, time
folder = pathlib.Path({folder!r})
try:
    (folder / "started").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)  # a second interrupt would break this off
    (folder / "tidy").touch()
    raise SystemExit(130)
"""
PARENT = """
import sys
from maskperf.run import series
series.SECONDS_TO_END_ALONE = {seconds}
sys.executable = {child!r}
try:
    series.run_series("demo", [], runs=2, run_dir={run_dir!r})
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("stop", "code"), [("ctrl-c in a terminal", 130), ("interrupt of one process", 130), ("terminate", 143)]
)
def test_a_series_that_is_stopped_ends_its_run_and_starts_no_other(tmp_path, stop, code):
    child = tmp_path / "child"
    child.write_text(CHILD.format(python=sys.executable, folder=str(tmp_path)))
    child.chmod(0o755)
    seconds = 20.0 if stop == "ctrl-c in a terminal" else 0.1
    text = PARENT.format(seconds=seconds, child=str(child), run_dir=str(tmp_path / "s"))
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with default_signals():
        parent = subprocess.Popen([sys.executable, "-c", text], env=environment, start_new_session=True)
    try:
        while not (tmp_path / "started").exists():
            assert parent.poll() is None
            time.sleep(0.05)
        if stop == "ctrl-c in a terminal":
            os.killpg(parent.pid, signal.SIGINT)
        else:
            parent.send_signal(signal.SIGINT if "interrupt" in stop else signal.SIGTERM)
        assert parent.wait(300) == code
    finally:
        parent.kill()
    assert (tmp_path / "tidy").exists()
    assert read_series(tmp_path / "s")["runs"] == []
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(parent.pid, 0)
