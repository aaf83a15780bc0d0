import inspect
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from mlperf_logging.compliance_checker import mlp_compliance
from permissions import modes, umask
from PIL import Image
from small_runs import NO_TARGETS, change_scores, log_events, read_results, small_run, with_aps

from maskperf import errors
from maskperf.cli.main import main
from maskperf.demo.dataset import write_demo_dataset
from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_INTERRUPTED, EXIT_RULE, EXIT_TARGET_MISSED
from maskperf.mlperf.read import read_log
from maskperf.model.weights import read_metadata
from maskperf.overrides import from_json_text
from maskperf.run import evaluations
from maskperf.run import loop as run
from maskperf.run.session import save_model
from maskperf.schema import EvaluationLine, read_metrics
from maskperf.structures import LOSS_NAMES

PACKAGE = Path(errors.__file__).parent
UNUSUAL_UMASK = 0o026  # so that no file has these permissions by chance
EPOCH_KEYS = ("epoch_start", "epoch_stop", "eval_start", "eval_accuracy", "eval_stop")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a run without targets that is done after one epoch of three steps."""
    folder = tmp_path_factory.mktemp("finished")
    with umask(UNUSUAL_UMASK):
        assert small_run(folder, *NO_TARGETS) == EXIT_DONE
    return folder / "run"


def test_a_run_leaves_all_its_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *("config.json", "environment.json", "layers.txt", "metrics.jsonl", "results.json", "mlperf.log"),
        *("detections_bbox.json", "detections_segm.json", "model.safetensors", "model_best.safetensors"),
        *("analysis.json", "pictures.json", "predictions.png", "report.html", "report.md"),
    }
    with Image.open(finished / "predictions.png") as page:
        assert page.width > 300 and np.asarray(page).std() > 10


def test_every_file_of_a_run_and_its_data_has_the_permissions_of_the_umask(finished):
    found = modes(finished.parent)
    assert len(found) > 40
    assert {name: mode for name, mode in found.items() if mode != f"{0o666 & ~UNUSUAL_UMASK:o}"} == {}


def test_metrics_have_every_step_with_five_losses(finished):
    *steps, last = read_metrics(finished / "metrics.jsonl")
    assert [line.step for line in steps] == [1, 2, 3]  # 23 images with objects, 8 a step, one step over
    for line in steps:
        losses = [getattr(line, name) for name in LOSS_NAMES]
        assert min(losses) > 0 and line.total == pytest.approx(sum(losses))
        assert line.images_per_second > 0 and line.data_wait_seconds >= 0 and line.learning_rate > 0
    assert isinstance(last, EvaluationLine)


def test_results_report_and_config_have_what_was_run(finished):
    results, report = read_results(finished), (finished / "report.md").read_text()
    assert results["status"] == "done" and results["reason"] == "" and results["epochs"] == 1
    assert results["engine_differences"] == []
    assert any("left out of training" in notice for notice in results["notices"])
    assert any("are crowd regions and are not trained on" in notice for notice in results["notices"])
    assert all(notice.split(": ", 1)[1] in report for notice in results["notices"])
    assert results["best"]["epoch"] == 1 and results["best"]["weights"] == "model_best.safetensors"
    assert len(results["box_stats"]) == 12 and len(results["mask_stats"]) == 12
    config = from_json_text((finished / "config.json").read_text())
    assert config.seed == 7 and config.data.generate_images == (24, 8)
    metadata = read_metadata(finished / "model.safetensors")
    assert metadata["category_ids"] == [1, 2, 4, 7, 8, 11, 13, 16] and "apple" in metadata["category_names"]
    assert read_log(finished / "mlperf.log").status == "done"
    assert "Targets: box AP none, mask AP none." in report and "missed" not in report
    assert 'class="badge state-done"' in (finished / "report.html").read_text()


def test_the_log_has_the_benchmarks_sequence(finished):
    events = log_events(finished)
    keys = [event["key"] for event in events]
    order = "submission_benchmark cache_clear init_start seed global_batch_size opt_base_learning_rate init_stop"
    order += " run_start train_samples eval_samples epoch_start epoch_stop eval_start eval_accuracy eval_stop run_stop"
    positions = [keys.index(key) for key in order.split()]
    assert positions == sorted(positions)
    accuracy = events[keys.index("eval_accuracy")]
    assert set(accuracy["value"]) == {"BBOX", "SEGM"} and accuracy["metadata"]["epoch_num"] == 1
    assert events[keys.index("run_stop")]["metadata"]["status"] == "success"
    times = [event["time_ms"] for event in events]
    assert times == sorted(times)


def test_the_official_checker_accepts_the_form_of_the_log(finished, capsys):
    checker = mlp_compliance.make_checker("training", "3.1.0", quiet=False, werror=False)
    valid, *_ = mlp_compliance.main(str(finished / "mlperf.log"), "training_3.1.0/common.yaml", checker)
    assert valid, capsys.readouterr().out


@pytest.mark.parametrize(
    ("targets", "code", "outcome"),
    [
        pytest.param((0, 0.9), EXIT_TARGET_MISSED, ("aborted", 2), marks=pytest.mark.slow),
        ((0, 0.3), EXIT_DONE, ("success", 1)),
        pytest.param((0.3, 0), EXIT_DONE, ("success", 1), marks=pytest.mark.slow),
    ],
)
def test_with_one_target_the_other_ap_does_not_count(tmp_path, monkeypatch, capsys, targets, code, outcome):
    change_scores(monkeypatch, lambda scores, *_: with_aps(scores, *(0.5 if target else 0.0 for target in targets)))
    arguments = [f"evaluation.{kind}_target={target}" for kind, target in zip(("box", "mask"), targets, strict=True)]
    assert small_run(tmp_path, *arguments, "optimizer.max_epochs=2") == code
    results = read_results(tmp_path / "run")
    assert (results["status"], results["epochs"]) == outcome
    assert log_events(tmp_path / "run")[-1]["metadata"]["status"] == outcome[0]
    assert ("target missed" in capsys.readouterr().out) == (code == EXIT_TARGET_MISSED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every_epochs", "limit", "evaluated"),
    [
        (1, "optimizer.max_epochs=3", {1: 3, 2: 6, 3: 9}),
        (2, "optimizer.max_epochs=4", {2: 6, 4: 12}),
        (2, "optimizer.max_epochs=3", {2: 6, 3: 9}),
        (3, "optimizer.max_steps=5", {2: 5}),
    ],
)
def test_every_so_many_epochs_are_evaluated_and_always_the_last(tmp_path, every_epochs, limit, evaluated):
    arguments = (f"evaluation.every_epochs={every_epochs}", "optimizer.max_epochs=0", limit)
    assert small_run(tmp_path, *NO_TARGETS, *arguments) == EXIT_DONE
    events = log_events(tmp_path / "run")
    logged = {key: [event["metadata"]["epoch_num"] for event in events if event["key"] == key] for key in EPOCH_KEYS}
    assert logged["eval_start"] == logged["eval_accuracy"] == logged["eval_stop"] == list(evaluated)
    results = read_results(tmp_path / "run")
    assert logged["epoch_start"] == logged["epoch_stop"] == list(range(1, results["epochs"] + 1))
    assert {row["epoch"]: row["step"] for row in results["epochs_table"]} == evaluated


def test_weights_are_saved_before_an_evaluation_that_is_killed(tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluations, "detect_all", killed)
    assert small_run(tmp_path, *NO_TARGETS) == EXIT_INTERRUPTED
    assert read_metadata(tmp_path / "run" / "model.safetensors")["recipe"] == "demo"
    assert log_events(tmp_path / "run")[-1]["metadata"]["status"] == "aborted"


@pytest.mark.parametrize("has_links", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_best_weights_are_saved_beside_the_last(tmp_path, monkeypatch, has_links):
    def refuse(*arguments):
        raise OSError("no links here")

    def saving(session, *arguments):
        save_model(session, *arguments)
        session.writer.wait()
        saved.append((session.folder / "model.safetensors").read_bytes())

    saved, folder = [], tmp_path / "run"
    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    change_scores(monkeypatch, lambda scores, engine, number: with_aps(scores, *[(0.1, 0.4, 0.3)[number - 1]] * 2))
    monkeypatch.setattr(run, "save_model", saving)
    assert small_run(tmp_path, *NO_TARGETS, "optimizer.max_epochs=3") == EXIT_DONE
    assert (folder / "model.safetensors").read_bytes() == saved[2]
    assert (folder / "model_best.safetensors").read_bytes() == saved[1] and len(set(saved)) == 3
    best = read_results(folder)["best"]
    assert (best["epoch"], best["box_ap"]) == (2, 0.4)
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_a_run_is_no_success_when_the_engines_differ(tmp_path, monkeypatch, capsys):
    folder, at_confirmation = tmp_path / "run", []

    def differing(scores, engine, number):
        if engine == "fast":
            return scores
        at_confirmation.extend(log_events(folder))
        return replace(scores, box_stats=(0.123, *scores.box_stats[1:]))

    change_scores(monkeypatch, differing)
    assert small_run(tmp_path, *NO_TARGETS) == EXIT_TARGET_MISSED
    before, *after = at_confirmation[-1], *log_events(folder)[-2:]
    assert [event["key"] for event in (before, *after)] == ["run_stop"] * 3  # the clock had stopped
    assert [event["metadata"]["status"] for event in (before, *after)] == ["success", "success", "aborted"]
    assert after[0]["time_ms"] == after[1]["time_ms"] and "do not agree" in after[1]["value"]
    results = read_results(folder)
    assert results["status"] == "aborted" and "do not agree" in results["reason"]
    shown = capsys.readouterr().out
    assert "not done: epoch 1" in shown
    assert all("0.123" in text for text in (shown, *results["engine_differences"], (folder / "report.md").read_text()))
    assert main(["check", str(folder)]) == EXIT_RULE
    shown = capsys.readouterr().out
    assert "the success of line" in shown and "found 2 with different values" in shown  # own checks and MLPerf's


def test_a_confirmation_that_is_cut_short_leaves_no_success(tmp_path, monkeypatch):
    def interrupted(scores, engine, number):
        if engine == "official":
            raise KeyboardInterrupt
        return scores

    change_scores(monkeypatch, interrupted)
    assert small_run(tmp_path, *NO_TARGETS) == EXIT_INTERRUPTED
    log = read_log(tmp_path / "run" / "mlperf.log")
    assert log.status == "aborted" and "nobody has confirmed" in log.records[-1].value


@pytest.mark.parametrize(
    ("arguments", "engines"),
    [
        (NO_TARGETS, ["fast", "official"]),
        pytest.param((*NO_TARGETS, "evaluation.engine=official"), ["official"], marks=pytest.mark.slow),
        pytest.param(("evaluation.box_target=0.99",), ["fast"], marks=pytest.mark.slow),
    ],
)
def test_the_official_engine_is_asked_once_where_a_run_ends_well(tmp_path, monkeypatch, arguments, engines):
    asked = change_scores(monkeypatch, lambda scores, *_: scores)
    small_run(tmp_path, *arguments)
    assert asked == engines


def _own_data(folder, number_of, splits=("train", "val")):
    """Return the arguments of a run on the demo's images; in these splits the categories have other ids.

    Categories without a new id are not in these splits.
    """
    write_demo_dataset(folder / "source", train_images=24, val_images=8, seed=3)
    arguments = [*NO_TARGETS, "model.score_threshold=0.01"]
    for split in ("train", "val"):
        path = folder / "source" / "annotations" / f"instances_{split}2017.json"
        arguments += [f"data.{split}_json={path}", f"data.{split}_images={folder / 'source' / f'{split}2017'}"]
        if split in splits:
            document = json.loads(path.read_text())
            for name, key in (("categories", "id"), ("annotations", "category_id")):
                document[name] = [
                    {**entry, key: number_of[entry[key]]} for entry in document[name] if entry[key] in number_of
                ]
            path.write_text(json.dumps(document))
    return arguments


def _detected_categories(folder, kind="bbox"):
    """Return the categories of the detections of a run, of which there are some."""
    found = {entry["category_id"] for entry in json.loads((folder / f"detections_{kind}.json").read_text())}
    assert found
    return found


def test_own_data_with_its_own_ids(tmp_path):
    ids = {identity: 10**12 + 7 * identity for identity in (1, 2, 4, 7, 8, 11, 13, 16)}
    assert small_run(tmp_path, *_own_data(tmp_path, ids)) == EXIT_DONE
    metadata = read_metadata(tmp_path / "run" / "model.safetensors")
    assert metadata["category_ids"] == list(ids.values())
    assert _detected_categories(tmp_path / "run") <= set(ids.values())


def test_a_validation_file_with_fewer_categories_is_evaluated_with_a_notice(tmp_path):
    folder, number_of = tmp_path / "run", {identity: identity for identity in (2, 4, 7, 8, 11, 13)}
    assert small_run(tmp_path, *_own_data(tmp_path, number_of, ["val"])) == EXIT_DONE
    results = read_results(folder)
    assert sum("2 of the 8 categories of " in notice for notice in results["notices"]) == 1
    assert sum(ap is None for ap in results["box_ap_per_category"].values()) >= 2
    assert _detected_categories(folder) <= {1, 2, 4, 7, 8, 11, 13, 16}
    assert (folder / "predictions.png").exists() and (folder / "pictures.json").exists()


def test_categories_matched_by_name_are_written_with_the_files_own_ids(tmp_path, capsys):
    number_of = {16: 1, 13: 2, 11: 4, 2: 90, 4: 91, 8: 92}  # 1 and 7 are left out
    arguments = _own_data(tmp_path, number_of, ["val"])
    assert small_run(tmp_path, *arguments) == EXIT_DATA
    message = capsys.readouterr().err
    assert "data.categories_by_name=true" in message and "problems in all" not in message
    assert not (tmp_path / "run").exists()
    assert small_run(tmp_path, *arguments, "data.categories_by_name=true") == EXIT_DONE
    found = _detected_categories(tmp_path / "run", "segm")
    assert found <= {1, 2, 4, 90, 91, 92, 7, 93}  # 93 is training's 1
    for text in ("get the id 93 in files", "matched by name"):
        assert sum(text in notice for notice in read_results(tmp_path / "run")["notices"]) == 1
    assert read_metadata(tmp_path / "run" / "model.safetensors")["category_ids"] == [1, 2, 4, 7, 8, 11, 13, 16]


def _break_images(tmp_path):
    """Return the folder of a data set with images missing and cut short in both splits, and with one wrong box."""
    root = tmp_path / "data"
    write_demo_dataset(root, train_images=24, val_images=8, seed=0)
    train, val = (sorted((root / split).iterdir()) for split in ("train2017", "val2017"))
    for path in (*train[:2], val[0]):
        path.unlink()
    for path in (train[5], val[3]):
        path.write_bytes(path.read_bytes()[:-300])
    return root


def test_every_bad_image_of_both_splits_is_named_before_training(tmp_path, capsys):
    root = _break_images(tmp_path)
    assert small_run(tmp_path) == EXIT_DATA
    message = capsys.readouterr().err
    assert "5 problems in all" in message and "and 1 more of this kind" in message
    assert all(f"{root}/annotations/instances_{split}2017.json: image id" in message for split in ("train", "val"))
    assert all(f"{root}/{split}2017/" in message for split in ("train", "val"))
    assert "data.skip_bad=true" in message and "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_a_problem_of_the_annotations_is_named_beside_those_of_images(tmp_path, capsys):
    root = _break_images(tmp_path)
    json_path = root / "annotations" / "instances_train2017.json"
    document = json.loads(json_path.read_text())
    document["annotations"][0]["bbox"] = [1, 2]
    json_path.write_text(json.dumps(document))
    for argument in ("model.num_classes=9", "model.num_classes=0"):
        assert small_run(tmp_path, argument, f"run_dir={tmp_path / argument}") == EXIT_DATA
        message = capsys.readouterr().err
        assert "field bbox" in message
        assert "6 problems in all" in message  # with three images of this split and two of the other


def test_a_run_goes_on_without_bad_images_where_this_was_asked_for(tmp_path, capsys):
    _break_images(tmp_path)
    assert small_run(tmp_path, *NO_TARGETS, "data.skip_bad=true") == EXIT_DONE
    output = capsys.readouterr().out
    assert output.count("images left out (data.skip_bad=true)") == 4
    assert "1 images left out (data.skip_bad=true): The image is cut short or broken (first ids: " in output
    events = {event["key"]: event["value"] for event in log_events(tmp_path / "run")}
    assert events["eval_samples"] == 6
    found = json.loads((tmp_path / "run" / "detections_bbox.json").read_text())
    assert len({entry["image_id"] for entry in found}) <= 6


def test_a_class_count_that_does_not_fit_the_data_is_refused(tmp_path, capsys):
    assert small_run(tmp_path, "model.num_classes=5") == EXIT_DATA
    assert "model.num_classes=9" in capsys.readouterr().err


def test_six_calls_and_six_files_lead_from_the_command_to_a_loss_formula(tmp_path, monkeypatch):
    seen = []
    formula = F.binary_cross_entropy_with_logits

    def watched(*arguments, **options):
        frames = [frame for frame in inspect.stack() if Path(frame.filename).is_relative_to(PACKAGE)]
        seen.append([(frame.filename, frame.function) for frame in reversed(frames)])
        return formula(*arguments, **options)

    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", watched)
    small_run(tmp_path)
    path = next(frames for frames in seen if any(function == "train_step" for _, function in frames))
    assert path[0][1] == "main" and path[-1][1] == "rpn_losses"
    calls = [entry for index, entry in enumerate(path) if index == 0 or entry != path[index - 1]]
    assert len(calls) - 1 <= 6, calls
    assert len({file for file, _ in calls}) <= 6, calls
