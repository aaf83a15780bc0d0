from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from small_runs import log_events, read_results, run_on_two_processes, small_run, small_run_arguments

from maskperf.cli.main import main
from maskperf.errors import EXIT_DONE, EXIT_NOT_FINITE, EXIT_TARGET_MISSED
from maskperf.overrides import from_json_text, to_json_text
from maskperf.run import evaluations
from maskperf.run import loop as run_module
from maskperf.run.black_box import load_black_box
from maskperf.schema import GuardEvent

HUGE_RATE = ("optimizer.learning_rate=1e30", "optimizer.warmup_steps=0")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    assert small_run(folder, *HUGE_RATE) == EXIT_NOT_FINITE
    assert (folder / "run" / "report.md").exists()
    return folder / "run"


def test_a_lost_run_is_aborted_with_its_reason_and_its_model_never_evaluated_nor_saved(stopped):
    events = log_events(stopped)
    assert [event["key"] for event in events[-2:]] == ["maskperf_stop", "run_stop"]
    assert not [event for event in events if event["key"] in ("eval_start", "eval_accuracy")]
    assert events[-1]["metadata"]["status"] == "aborted"
    reason = events[-2]
    assert reason["metadata"]["step"] == 2 and len(reason["metadata"]["image_ids"]) == 8
    for part in ("step 2", "objectness nan", "Learning rate: 1e+30", "Image ids: "):
        assert part in reason["value"]
    assert not (stopped / "model.safetensors").exists()
    results = read_results(stopped)
    assert results["status"] == "aborted" and results["box_ap"] is None
    assert [event["event"] for event in results["guard"]["events"]] == ["non-finite"]


def test_replay_meets_the_problem_again_from_the_weights_before_the_step(stopped, capsys):
    box = load_black_box(stopped / "black_box")
    assert box.facts.update == 2 and box.facts.weights_are_from_before_the_step
    weights = {name: value for name, value in box.weights.items() if "running" not in name}  # without statistics
    assert all(value.isfinite().all() for value in weights.values())  # only huge, after one such step
    assert main(["replay", str(stopped / "black_box")]) == EXIT_NOT_FINITE
    shown = capsys.readouterr().out
    assert "not finite again" in shown and "nan" in shown
    assert all(str(image_id) in shown for ids in box.facts.image_ids for image_id in ids)


def test_replay_is_calm_where_the_step_is_finite(stopped, tmp_path, capsys):
    for path in (stopped / "black_box").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = from_json_text((tmp_path / "config.json").read_text())
    fresh = run_module.build_model(config.model, 3)[0].state_dict()
    save_file({name: value.contiguous() for name, value in fresh.items()}, tmp_path / "weights.safetensors")
    zeros = {name: torch.zeros_like(value) for name, value in load_black_box(tmp_path).optimizer.items()}
    save_file(zeros, tmp_path / "optimizer.safetensors")
    calm = replace(config, optimizer=replace(config.optimizer, learning_rate=0.001))
    (tmp_path / "config.json").write_text(to_json_text(calm))
    assert main(["replay", str(tmp_path), "--device", "cpu"]) == EXIT_DONE
    assert "every number is finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("problem", "rank"),
    [
        pytest.param("loss", 0, marks=pytest.mark.slow),
        ("gradient", 1),
        pytest.param("weight", 1, marks=pytest.mark.slow),
    ],
)
def test_a_problem_in_one_of_two_processes_stops_both_and_names_it(tmp_path, problem, rank):
    arguments = (problem, str(rank), "2", str(tmp_path), *small_run_arguments(tmp_path))
    done = run_on_two_processes("run/patched_run.py", *arguments)
    assert done.returncode != 0
    message = read_results(tmp_path / "run")["reason"]
    assert f"{problem} of process {rank}" in message and "step 2" in message
    assert problem == "weight" or f"of process {1 - rank}" not in message
    assert (
        f"exitcode  : {EXIT_NOT_FINITE}" in done.stderr and done.stderr.count("error: step 2") == 1
    )  # once, not once a process
    assert log_events(tmp_path / "run")[-1]["metadata"]["status"] == "aborted"
    box = load_black_box(tmp_path / "run" / "black_box")
    assert box.facts.processes == 2 and len(box.micro_batches) == 2
    assert sorted(map(len, box.facts.image_ids)) == [4, 4]


def test_a_model_whose_scores_fell_to_nothing_is_lost(tmp_path, monkeypatch):
    honest, seen = evaluations.evaluation_collapse, []

    def after_a_good_start(points):
        seen.append(points)
        return honest([(0, 0.3, 0.3), *((epoch, 0.0, 0.0) for epoch, _, _ in points)])

    monkeypatch.setattr(evaluations, "evaluation_collapse", after_a_good_start)
    assert small_run(tmp_path, "optimizer.max_epochs=3") == EXIT_NOT_FINITE
    assert len(seen) == 1  # no second evaluation of a lost model
    results = read_results(tmp_path / "run")
    assert results["status"] == "aborted" and "fell to 0.0000" in results["reason"]


def test_a_plateau_is_noted_once_and_does_not_stop_the_run(tmp_path, monkeypatch):
    plateau = GuardEvent(event="plateau", text="box AP is 0.0015 short")
    monkeypatch.setattr(evaluations, "find_plateau", lambda points, **limits: plateau)
    assert small_run(tmp_path, "optimizer.max_epochs=2", "evaluation.box_target=0.99") == EXIT_TARGET_MISSED
    results = read_results(tmp_path / "run")
    assert [(event["event"], event["epoch"]) for event in results["guard"]["events"]] == [("plateau", 1)]
