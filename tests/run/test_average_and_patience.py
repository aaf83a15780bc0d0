"""Averages of weights are what is evaluated and saved, and nothing of training; patience ends a run."""

import pytest
from small_runs import NO_TARGETS, change_scores, read_results, small_run, step_lines, with_aps

from maskperf.errors import EXIT_DONE
from maskperf.model.weights import read_tensor_file


def weights(run):
    return {name: tensor.tolist() for name, tensor in read_tensor_file(run / "model.safetensors")[0].items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    assert small_run(folder, "optimizer.max_epochs=2", *NO_TARGETS) == EXIT_DONE
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(("decay", "is_equal"), [("1e-9", True), ("0.9", False)])
def test_averages_are_evaluated_and_training_is_that_without_them(plain, tmp_path, decay, is_equal):
    more = ("optimizer.max_epochs=2", f"optimizer.average_decay={decay}", *NO_TARGETS)
    assert small_run(tmp_path, *more) == EXIT_DONE
    totals = [[line.total for line in step_lines(run)] for run in (tmp_path / "run", plain)]
    assert totals[0] == totals[1]
    assert (weights(tmp_path / "run") == weights(plain)) is is_equal
    stats = [read_results(run)["box_stats"] for run in (tmp_path / "run", plain)]
    assert not is_equal or stats[0] == stats[1]


@pytest.mark.slow
@pytest.mark.parametrize(("patience", "epochs"), [(0, 5), (2, 4)])
def test_a_run_ends_when_its_patience_does_and_keeps_the_best(tmp_path, monkeypatch, patience, epochs):
    aps = (0.1, 0.4, 0.4, 0.3, 0.2)  # the first of two equal ones is the best
    change_scores(monkeypatch, lambda scores, engine, number: with_aps(scores, aps[number - 1], aps[number - 1]))
    more = ("optimizer.max_epochs=5", f"evaluation.patience={patience}", *NO_TARGETS)
    assert small_run(tmp_path, *more) == EXIT_DONE
    results = read_results(tmp_path / "run")
    assert (results["status"], results["epochs"], results["best"]["epoch"]) == ("done", epochs, 2)
    assert any("stopped early" in notice for notice in results["notices"]) is bool(patience)
