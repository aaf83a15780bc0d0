import hashlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlperf_logging.compliance_checker import mlp_compliance
from small_runs import (
    NO_TARGETS,
    change_scores,
    log_events,
    read_results,
    run_on_two_processes,
    small_run,
    small_run_arguments,
    step_lines,
    with_aps,
)

from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_NOT_FINITE, DataError, Problem
from maskperf.mlperf.attempts import find_attempts
from maskperf.mlperf.read import read_log
from maskperf.mlperf.traps import check_traps
from maskperf.model.weights import read_header
from maskperf.run import evaluations
from maskperf.run import loop as run
from maskperf.run.black_box import load_black_box
from maskperf.schema import GuardEvent
from maskperf.structures import LOSS_NAMES

TESTS = Path(__file__).parents[1]
TARGETS = ("evaluation.box_target=0.3", "evaluation.mask_target=0.3")
FROZEN = ("model.batch_norm=frozen", "model.frozen_stages=2", "optimizer.learning_rate=0.0001")
STEPS = 3  # of an epoch; the device is read after the second and after the last
AT_THE_END = 10**9


def _watched(monkeypatch, *, aps=(), known_from=AT_THE_END, change=lambda update, result: result):
    """Let the n-th evaluation have the n-th of `aps`, known from an update on or waited for at the end of the epoch.

    `change` may have another result of a step. Returns what happened, in order: steps, and digests of saved weights.
    """
    honest_step, honest_save, honest_is_known = run.train_step, run.save_model, evaluations.Evaluation.is_known
    happened = []

    def score(scores, engine, number):
        return with_aps(scores, *[aps[number - 1]] * 2) if number <= len(aps) else scores

    def train_step(*arguments, update, **options):
        happened.append(update)
        return change(update, honest_step(*arguments, update=update, **options))

    def save_model(session, *arguments):
        honest_save(session, *arguments)
        session.writer.wait()
        happened.append(_weights(session.folder / "model.safetensors"))

    def is_known(evaluation):
        if happened[-1] < known_from:
            return False
        while not honest_is_known(evaluation):
            time.sleep(0.01)
        return True

    change_scores(monkeypatch, score)
    monkeypatch.setattr(run, "train_step", train_step)
    monkeypatch.setattr(run, "save_model", save_model)
    monkeypatch.setattr(evaluations.Evaluation, "is_known", is_known)
    return happened


def _weights(path):
    """Return the digest of the tensors in a file."""
    return read_header(path)["tensors_sha256"]


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(("known_from", "stops_after"), [(5, 5), (AT_THE_END, 6)])
def test_a_success_found_while_the_next_epoch_trains_is_that_of_the_epoch_before(
    tmp_path, monkeypatch, capsys, known_from, stops_after
):
    alone = tmp_path / "alone"
    assert small_run(alone, *NO_TARGETS, *FROZEN) == EXIT_DONE  # the same first epoch, and no second one
    happened = _watched(monkeypatch, aps=[0.5], known_from=known_from)
    assert small_run(tmp_path, *TARGETS, *FROZEN, "optimizer.max_epochs=3") == EXIT_DONE
    folder, reference = tmp_path / "run", alone / "run"

    saved = [entry for entry in happened if isinstance(entry, str)]
    assert happened == [1, 2, 3, *saved, *range(4, stops_after + 1)] and len(saved) == 1
    line = f"discarded: the steps beyond epoch 1, trained while it was scored ({stops_after - STEPS})"
    assert capsys.readouterr().out.count(line) == 1
    for name in ("model.safetensors", "model_best.safetensors"):
        assert _weights(folder / name) == saved[0] == _weights(reference / name)
    written = torch.load(folder / "model.pth", weights_only=True)["model"]
    expected = torch.load(reference / "model.pth", weights_only=True)["model"]
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], value) for key, value in expected.items())
    for name in ("detections_bbox.json", "detections_segm.json"):
        assert _sha256(folder / name) == _sha256(reference / name)

    results, (row,) = read_results(folder), read_results(folder)["epochs_table"]
    assert (results["status"], results["epochs"], results["box_ap"]) == ("success", 1, 0.5)
    assert (row["epoch"], row["step"]) == (1, STEPS)
    assert row["mean_loss"] == read_results(reference)["epochs_table"][0]["mean_loss"]
    account = results["time_account"]
    assert sum(account.values()) <= results["seconds"] * 1.001 and account["evaluation"] > 0
    assert "**Targets reached.** Both targets met in epoch 1" in (folder / "report.md").read_text()


@pytest.mark.parametrize("known_from", [5, pytest.param(AT_THE_END, marks=pytest.mark.slow)])
def test_the_log_of_such_a_run_is_accepted_and_counts_the_evaluated_epoch(tmp_path, monkeypatch, capsys, known_from):
    _watched(monkeypatch, aps=[0.1, 0.5], known_from=known_from + STEPS)
    assert small_run(tmp_path, *TARGETS, "optimizer.max_epochs=4") == EXIT_DONE
    path = tmp_path / "run" / "mlperf.log"
    checker = mlp_compliance.make_checker("training", "3.1.0", quiet=False, werror=False)
    valid, *_ = mlp_compliance.main(str(path), "training_3.1.0/common.yaml", checker)
    assert valid, capsys.readouterr().out
    log = read_log(path)
    traps = check_traps(log)
    assert traps.accepted and not traps.findings
    attempts = find_attempts(log.records)
    assert len(attempts.runs) == 1 and not attempts.resumed and attempts.mixed is None
    assert log.status == "success" and [entry.epoch for entry in log.evaluations] == [1, 2]
    assert [entry.epoch for entry in log.epochs] == [1, 2, 3]
    keys = [(record.key, record.metadata.get("epoch_num")) for record in log.records]
    for epoch in (1, 2):
        order = [(key, epoch) for key in ("epoch_start", "epoch_stop", "eval_start", "eval_accuracy", "eval_stop")]
        order.insert(3, ("epoch_start", epoch + 1))
        positions = [keys.index(key) for key in order]
        assert positions == sorted(positions), keys
    assert keys.count(("epoch_stop", 3)) == (known_from == AT_THE_END)
    assert log.records[-1].key == "run_stop"
    times = [record.time_ms for record in log.records]
    assert times == sorted(times)


@pytest.mark.slow
def test_what_an_evaluation_sees_does_not_depend_on_when_its_verdict_comes(tmp_path, monkeypatch):
    found = []
    for name, known_from in (("early", 0), ("late", AT_THE_END)):
        with monkeypatch.context() as patch:
            happened = _watched(patch, known_from=known_from)
            arguments = (*NO_TARGETS, "optimizer.max_epochs=3", "model.score_threshold=0.001")
            assert small_run(tmp_path / name, *arguments) == EXIT_DONE
        folder = tmp_path / name / "run"
        table = [
            {key: value for key, value in row.items() if "second" not in key}
            for row in read_results(folder)["epochs_table"]
        ]
        assert [row["epoch"] for row in table] == [1, 2, 3]
        assert (folder / "detections_bbox.json").read_text() != "[]"  # so there is something to compare
        detections = [_sha256(folder / f"detections_{kind}.json") for kind in ("bbox", "segm")]
        found.append(
            (happened, [[getattr(line, name) for name in LOSS_NAMES] for line in step_lines(folder)], table, detections)
        )
    assert found[0] == found[1]


def _lost_at(lost_update):
    def change(update, result):
        return replace(result, not_finite=result.not_finite + (update == lost_update))

    return change


def test_a_problem_beyond_the_evaluated_epoch_takes_no_success_away(tmp_path, monkeypatch):
    _watched(monkeypatch, aps=[0.5], change=_lost_at(4))
    assert small_run(tmp_path, *TARGETS, "optimizer.max_epochs=3") == EXIT_DONE
    results = read_results(tmp_path / "run")
    assert (results["status"], results["epochs"]) == ("success", 1)
    assert [(event["event"], event["step"]) for event in results["guard"]["events"]] == [("non-finite", 4)]
    assert not (tmp_path / "run" / "black_box").exists()
    last = log_events(tmp_path / "run")[-1]
    assert last["key"] == "run_stop" and last["metadata"]["status"] == "success"


def test_a_problem_while_an_epoch_is_scored_waits_for_its_verdict_and_is_then_lost(tmp_path, monkeypatch):
    _watched(monkeypatch, aps=[0.1], change=_lost_at(4))
    assert small_run(tmp_path, *TARGETS, "optimizer.max_epochs=3") == EXIT_NOT_FINITE
    folder = tmp_path / "run"
    results = read_results(folder)
    assert results["status"] == "aborted" and "step 4" in results["reason"]
    assert [row["epoch"] for row in results["epochs_table"]] == [1] and results["best"]["epoch"] == 1
    keys = [event["key"] for event in log_events(folder)]
    assert keys[-4:] == ["eval_accuracy", "eval_stop", "maskperf_stop", "run_stop"]
    assert load_black_box(folder / "black_box").facts.update == 4


def test_aps_that_fell_are_met_in_the_middle_of_the_next_epoch(tmp_path, monkeypatch):
    _watched(monkeypatch, aps=[0.1], known_from=5)
    fallen = GuardEvent(event="collapse", text="box AP fell to nothing")
    monkeypatch.setattr(evaluations, "evaluation_collapse", lambda points: fallen)
    assert small_run(tmp_path, *TARGETS, "optimizer.max_epochs=3") == EXIT_NOT_FINITE
    folder = tmp_path / "run"
    facts = load_black_box(folder / "black_box").facts
    assert (facts.update, facts.epoch, facts.weights_are_from_before_the_step) == (5, 2, False)
    assert "step 3 (epoch 1): box AP fell to nothing" in read_results(folder)["reason"]


def test_an_error_of_the_scoring_thread_ends_the_run(tmp_path, monkeypatch, capsys):
    def broken(*arguments, **options):
        where = {"file": "box results", "where": "result 3", "field": "bbox", "value": "nan"}
        raise DataError([Problem(**where, message="The box is not finite.", fix="Find out why.")])

    monkeypatch.setattr(evaluations, "score", broken)
    assert small_run(tmp_path, *NO_TARGETS, "optimizer.max_epochs=2") == EXIT_DATA
    assert "The box is not finite" in capsys.readouterr().err
    assert log_events(tmp_path / "run")[-1]["metadata"]["status"] == "aborted"


@pytest.mark.slow
def test_two_processes_stop_at_one_step(tmp_path):
    arguments = small_run_arguments(tmp_path, *TARGETS, "optimizer.max_epochs=3", "system.log_every_steps=1")
    done = run_on_two_processes("run/patched_run.py", "success", "0", "0", str(tmp_path), *arguments)
    assert done.returncode == 0, done.stderr
    last = [int((tmp_path / f"last_update_{rank}").read_text()) for rank in (0, 1)]
    assert last[0] == last[1] and last[0] in (5, 6)
    results = read_results(tmp_path / "run")
    assert (results["status"], results["epochs"], results["box_ap"]) == ("success", 1, 0.5)
    assert [row["step"] for row in results["epochs_table"]] == [STEPS]
