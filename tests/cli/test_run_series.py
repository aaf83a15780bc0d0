import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import small_run_words

from maskperf import errors
from maskperf.cli.main import main
from maskperf.cli.run import read_counts
from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_RULE, EXIT_TARGET_MISSED, EXIT_USAGE

SOURCES = Path(errors.__file__).resolve().parents[1]
TINY = (
    *("data.generate_images=4,2", "optimizer.batch_size=4"),
    *("optimizer.max_steps=1", "system.threads=1"),
)
NO_TARGETS = ("evaluation.box_target=0", "evaluation.mask_target=0")


def start(folder, *more):
    """Return the finished process of a tiny run or series, which draws its own seed."""
    words = small_run_words(folder, *TINY)
    words.remove("seed=7")
    command = [sys.executable, "-m", "maskperf", *words, *more]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_each_run_of_a_series_draws_its_own_seed(tmp_path):
    finished = start(tmp_path, "runs=2", *NO_TARGETS)
    assert finished.returncode == EXIT_DONE, finished.stderr
    found = json.loads((tmp_path / "run" / "series.json").read_text())
    assert [run["status"] for run in found["runs"]] == ["done"] * 2
    seeds = [run["seed"] for run in found["runs"]]
    assert len(set(seeds)) == 2 and min(seeds) >= 0
    for run in found["runs"]:
        folder = tmp_path / "run" / run["folder"]
        assert json.loads((folder / "config.json").read_text())["seed"] == run["seed"]
        assert run["minutes"] == json.loads((folder / "results.json").read_text())["seconds"] / 60
        assert f'"key": "seed", "value": {run["seed"]},' in (folder / "mlperf.log").read_text()
    assert found["score_minutes"] is None
    assert "run 2 of 2" in finished.stdout and "epoch 1" in finished.stdout and found["sentence"] in finished.stdout


def test_several_processes_give_the_exit_code_of_the_run_and_no_traceback(tmp_path):
    finished = start(tmp_path, "processes=2", "evaluation.box_target=0.99")
    assert finished.returncode == EXIT_TARGET_MISSED, finished.stderr
    assert finished.stderr == ""
    assert "2 process(es)" in finished.stdout and "target missed" in finished.stdout
    assert finished.stdout.count("\n1 thread: system.threads=1\n") == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "aborted"


def test_several_processes_evaluate_every_second_epoch_and_the_last(tmp_path):
    epochs = ("optimizer.max_epochs=3", "optimizer.max_steps=9", "evaluation.every_epochs=2")
    finished = start(tmp_path, "processes=2", *NO_TARGETS, *epochs)
    assert (finished.returncode, finished.stderr) == (EXIT_DONE, "")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "done" and [row["epoch"] for row in results["epochs_table"]] == [2, 3]
    assert (tmp_path / "run" / results["best"]["weights"]).exists()


def test_a_broken_rule_is_refused_before_anything_is_made(tmp_path, capsys):
    words = ["run", "demo", "mlperf.division=closed", f"run_dir={tmp_path / 'run'}", f"data.root={tmp_path / 'data'}"]
    assert main(words) == EXIT_RULE
    assert "data.generate=true" in capsys.readouterr().err
    assert main([*words, "runs=5"]) == EXIT_RULE
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_loads_no_torch(tmp_path):
    code = (
        "import sys; from maskperf.cli.main import main; code = main(['run', 'demo', 'mlperf.division=closed']); "
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=300, check=False)
    assert finished.returncode == EXIT_RULE
    assert list(tmp_path.iterdir()) == []


def test_a_closed_run_that_keeps_the_rules_goes_on_to_its_files(tmp_path, capsys):
    words = ["run", "coco", "mlperf.division=closed", f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    assert main(words) == EXIT_DATA
    assert "instances_train2017.json" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["word", "torchrun"])
def test_the_rules_count_the_processes(tmp_path, monkeypatch, capsys, how):
    """Two processes have one image each at batch 2, and then 2000 proposals are too many."""
    words = ["run", "coco", "mlperf.division=closed", f"run_dir={tmp_path / 'run'}"]
    if how == "torchrun":
        monkeypatch.setenv("WORLD_SIZE", "2")
    else:
        words.append("processes=2")
    assert main(words) == EXIT_RULE
    message = capsys.readouterr().err
    assert "model.proposals_train=2000" in message and "here 1000" in message
    assert message.count("the rule '") == 1


def test_a_seed_is_refused_for_several_runs(tmp_path, capsys):
    words = ["run", "demo", "runs=2", f"run_dir={tmp_path / 'run'}"]
    assert main([*words, "seed=7"]) == EXIT_USAGE
    message = capsys.readouterr().err
    assert "seed=7" in message and "runs=2" in message and "Fix: leave seed out" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("word", ["runs=2", "processes=2"])
def test_under_torchrun_there_is_one_run_on_the_processes_that_are_there(monkeypatch, capsys, word):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", "demo", word]) == EXIT_USAGE
    message = capsys.readouterr().err
    assert message.count(word) == 1 and "WORLD_SIZE is set" in message and "Fix:" in message


@pytest.mark.parametrize("word", ["runs=0", "runs=-1", "runs=", "runs=five", "processes=1.5", "runs"])
def test_a_count_that_is_none_is_refused(capsys, word):
    assert main(["run", "demo", word]) == EXIT_USAGE
    message = capsys.readouterr().err
    assert message.startswith(f"error: {word}: ") and "a whole number" in message


def test_counts_are_taken_out_of_the_words_and_the_rest_stays_in_order():
    words = read_counts(["coco", "seed=-1", "runs=3", "optimizer.max_steps=9", "processes=4", "runs=5"])
    assert (words.recipe, words.runs, words.processes) == ("coco", 5, 4)
    assert words.pairs == ["seed=-1", "optimizer.max_steps=9"]


def test_the_help_shows_both_words_and_an_example(capsys):
    assert main(["run", "demo", "--help"]) == EXIT_DONE
    text = capsys.readouterr().out
    assert "maskperf run demo runs=5" in text and "processes=N" in text and "coco_batch_96" in text
