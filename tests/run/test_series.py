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


@pytest.fixture
def synthetic(monkeypatch):
    """Return a function that lets the runs of a series end as told, and the list of the commands they would be.

    An outcome is the minutes of a successful run, MISSED, UNTARGETED (a run without targets came to its end), or the
    exit code of a run that left no results.
    """
    commands, waiting = [], []

    def child(command):
        commands.append(command)
        folder = Path(command[-1].removeprefix("run_dir="))
        outcome = waiting.pop(0)
        if isinstance(outcome, int):
            return outcome
        folder.mkdir()
        is_missed = outcome == MISSED
        results = {"status": {MISSED: "aborted", UNTARGETED: "done"}.get(outcome, "success"), "epochs": 3}
        results["seconds"] = 600.0 if isinstance(outcome, str) else outcome * 60
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "config.json").write_text(json.dumps({"seed": 100 + len(commands)}))
        return EXIT_TARGET_MISSED if is_missed else EXIT_DONE

    monkeypatch.setattr(series, "run_child", child)

    def outcomes(*wanted):
        waiting.extend(wanted)
        return commands

    return outcomes


def read_series(folder):
    return json.loads((folder / SERIES_FILE).read_text())


def test_five_runs_have_a_score_and_a_table(tmp_path, synthetic, capsys):
    synthetic(5.0, 1.0, 2.0, 3.0, 4.0)
    assert run_series("coco", [], runs=5, run_dir=str(tmp_path / "s")) == EXIT_DONE
    found = read_series(tmp_path / "s")
    assert set(found) == {"recipe", "runs", "score_minutes", "sentence"}
    assert found["recipe"] == "coco" and found["score_minutes"] == pytest.approx(3.0)
    assert found["runs"][1] == {
        "folder": "run_1",
        "exit_code": 0,
        "status": "success",
        "minutes": 1.0,
        "epochs": 3,
        "seed": 102,
    }
    text = capsys.readouterr().out
    assert "run 5 of 5" in text and "run_4" in text and "105" in text
    assert found["sentence"] in text and "score 3.000 minutes" in found["sentence"]


@pytest.mark.parametrize("failure", [MISSED, EXIT_BUG, EXIT_NOT_FINITE, EXIT_STORAGE])
def test_one_failed_run_counts_as_the_slowest(tmp_path, synthetic, failure):
    commands = synthetic(4.0, 1.0, failure, 3.0, 2.0)
    assert run_series("coco", [], runs=5, run_dir=str(tmp_path / "s")) == EXIT_DONE
    assert len(commands) == 5
    found = read_series(tmp_path / "s")
    assert found["score_minutes"] == pytest.approx((2 + 3 + 4) / 3)
    assert "the failed run counts as the slowest" in found["sentence"]
    assert found["runs"][2]["status"] == ("aborted" if failure == MISSED else "failed")


def test_two_failed_runs_leave_no_score(tmp_path, synthetic, capsys):
    synthetic(EXIT_BUG, 1.0, MISSED, 3.0, 2.0)
    assert run_series("coco", [], runs=5, run_dir=str(tmp_path / "s")) == EXIT_TARGET_MISSED
    found = read_series(tmp_path / "s")
    assert found["score_minutes"] is None and "no score" in found["sentence"]
    assert found["runs"][0] == {
        "folder": "run_0",
        "exit_code": 1,
        "status": "failed",
        "minutes": None,
        "epochs": None,
        "seed": None,
    }
    assert found["runs"][2]["minutes"] == 10.0  # known, but no time to the targets
    assert "run_0  failed   1          -       -        -" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("outcomes", "code"), [((1.0, 2.0), EXIT_DONE), ((1.0, MISSED), EXIT_TARGET_MISSED), ((1.0,) * 6, EXIT_DONE)]
)
def test_without_five_runs_there_is_no_score_and_all_must_succeed(tmp_path, synthetic, outcomes, code):
    synthetic(*outcomes)
    assert run_series("coco", [], runs=len(outcomes), run_dir=str(tmp_path / "s")) == code
    found = read_series(tmp_path / "s")
    assert found["score_minutes"] is None and "a score needs 5 runs" in found["sentence"]


@pytest.mark.parametrize(
    ("outcomes", "code", "sentence"),
    [
        ([UNTARGETED] * 5, EXIT_DONE, "5 of 5 runs trained to their end; without targets there is no score."),
        ([UNTARGETED] * 2, EXIT_DONE, "2 of 2 runs trained to their end; without targets there is no score."),
        ([UNTARGETED, EXIT_BUG], EXIT_TARGET_MISSED, "1 of 2 runs trained to their end"),
    ],
)
def test_runs_without_targets_are_done_and_have_no_score(tmp_path, synthetic, outcomes, code, sentence):
    synthetic(*outcomes)
    assert run_series("coco", [], runs=len(outcomes), run_dir=str(tmp_path / "s")) == code
    found = read_series(tmp_path / "s")
    assert found["sentence"].startswith(sentence) and found["score_minutes"] is None


@pytest.mark.parametrize("code", [EXIT_USAGE, EXIT_DATA, EXIT_RULE])
def test_a_mistake_that_stops_the_first_run_ends_the_series(tmp_path, synthetic, code, capsys):
    commands = synthetic(code, 1.0, 1.0, 1.0, 1.0)
    assert run_series("coco", [], runs=5, run_dir=str(tmp_path / "s")) == code
    assert len(commands) == 1 and "the other runs would meet the same" in capsys.readouterr().out
    assert read_series(tmp_path / "s")["sentence"].startswith("1 of 5 runs are done")


def test_the_same_code_of_a_later_run_does_not(tmp_path, synthetic):
    commands = synthetic(1.0, EXIT_DATA, 1.0, 1.0, 1.0)
    assert run_series("coco", [], runs=5, run_dir=str(tmp_path / "s")) == EXIT_DONE
    assert len(commands) == 5


def test_each_run_is_a_fresh_python_with_a_folder_of_its_own(tmp_path, synthetic):
    commands = synthetic(1.0, 1.0)
    run_series("demo", ["optimizer.max_epochs=1", "processes=2"], runs=2, run_dir=str(tmp_path / "s"))
    for number, command in enumerate(commands):
        words = ["run", "demo", "optimizer.max_epochs=1", "processes=2", f"run_dir={tmp_path / 's'}/run_{number}"]
        assert command == [sys.executable, "-m", "maskperf", *words]


def test_the_file_of_the_series_is_renewed_after_every_run(tmp_path, synthetic, monkeypatch):
    synthetic(1.0, 2.0)
    child, seen = series.run_child, []

    def watched(command):
        seen.append(read_series(tmp_path / "s"))
        return child(command)

    monkeypatch.setattr(series, "run_child", watched)
    run_series("coco", [], runs=2, run_dir=str(tmp_path / "s"))
    assert [len(found["runs"]) for found in seen] == [0, 1]
    assert seen[1]["sentence"] == "1 of 2 runs are done, 1 of them met their targets."


def test_the_default_folder_is_named_after_the_recipe(tmp_path, synthetic, monkeypatch):
    monkeypatch.chdir(tmp_path)
    synthetic(1.0)
    run_series("coco", [], runs=1)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("coco-") and folder.name.endswith("-series")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, synthetic):
    (tmp_path / "precious.txt").write_text("mine")
    commands = synthetic(1.0)
    with pytest.raises(StorageError, match="not empty"):
        run_series("coco", [], runs=1, run_dir=str(tmp_path))
    assert commands == [] and [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


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
