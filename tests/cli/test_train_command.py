"""`maskperf train`: a folder becomes a run, and every mistake is an error before anything is made."""

import json
import re
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from own_data import KINDS, write_own_data

import maskperf as api
from maskperf.cli.arguments import CommandParser
from maskperf.cli.train_data import prepare_training
from maskperf.engine.build import build_model
from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_REQUEUE, EXIT_USAGE, ConfigError
from maskperf.model.conventions import CONVENTIONS
from maskperf.model.families import FAMILIES, from_maskperf
from maskperf.model.weights import read_metadata
from maskperf.overrides import from_json_text
from maskperf.recipes import demo
from maskperf.run.checkpoint import Checkpoints

TINY = ("data.short_side=64", "data.long_side=96", "batch=4", "system.threads=1", "system.device=cpu", "seed=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_own_data(tmp_path_factory.mktemp("own"), images=12, seed=3)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run of one epoch in this process, its test part the images of another file."""
    test = write_own_data(tmp_path_factory.mktemp("test"), images=3, seed=4)
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    return api.train(folder, f"run_dir={run_dir}", *TINY, test=test, epochs=1)


def test_one_line_trains_and_leaves_weights_report_and_test(run):
    assert (run.results.status, run.results.box_target) == ("done", 0)
    files = {path.name for path in run.folder.iterdir()}
    assert {"model.safetensors", "model_best.safetensors", "report.html", "config.json", "test.json"} <= files
    assert read_metadata(run.folder / "model.safetensors")["category_names"] == list(KINDS)
    assert json.loads((run.folder / "test.json").read_text())["images"] == 3
    assert any("2 of 12 images are held out" in notice for notice in run.results.notices)


def test_the_configuration_of_a_run_repeats_it(run, tmp_path, maskperf):
    again = tmp_path / "again"
    assert maskperf("run", run.folder / "config.json", f"run_dir={again}").code == EXIT_DONE
    losses = [
        [json.loads(line).get("total") for line in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (run.folder, again)
    ]
    assert losses[0] == losses[1]


@pytest.fixture
def train(maskperf):
    """Return a function that trains on a folder, checks the exit code and returns what was shown."""

    def run(folder, *more, code=EXIT_DONE):
        shown = maskperf("train", folder, *more)
        assert shown.code == code, shown.err
        return shown

    return run


def stored_config(run):
    return from_json_text((run / "config.json").read_text())


def test_weights_of_a_run_are_a_start_for_other_classes(run, folder, tmp_path, train):
    document = json.loads((folder / "annotations.json").read_text())
    for number, category in enumerate(document["categories"]):
        category["name"] = f"part {number}"
    (tmp_path / "images").symlink_to(folder / "images")
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    weights = run.folder / run.results.best.weights
    said = train(tmp_path, "--weights", weights, "optimizer.max_steps=1", "run_dir=run", *TINY).out
    assert "predictors of box and mask begin anew" in said and "roi_heads.mask.predictor.mask_fcn_logits.weight" in said
    assert stored_config(tmp_path / "run").model.reset_predictors
    stored = from_json_text(read_metadata(tmp_path / "run" / "model.safetensors")["config"])
    assert not stored.model.reset_predictors  # what is saved has predictors of its own
    assert stored.data.short_side == 64


@pytest.mark.parametrize(
    "name", ["torchvision", *(pytest.param(name, marks=pytest.mark.slow) for name in ("detectron2", "mmdetection"))]
)
def test_weights_of_another_family_are_a_start_with_their_conventions(folder, tmp_path, name, train, maskperf):
    family = next(family for family in FAMILIES if family.name == name)
    config = replace(demo().model, batch_norm="frozen", conventions=family.conventions, num_classes=6)
    state = from_maskperf(build_model(config, seed=0)[0].state_dict(), family)
    torch.save(state, tmp_path / "weights.pth")
    said = train(folder, "--weights", "weights.pth", "optimizer.max_steps=1", "run_dir=run", *TINY).out
    assert "predictors of box and mask begin anew, for the 3 classes of this data" in said
    rules = CONVENTIONS[family.conventions]
    found = stored_config(tmp_path / "run")
    assert (found.model.conventions, found.model.batch_norm) == (family.conventions, "frozen")
    assert (found.data.resize, found.data.pixel_means_bgr) == (rules.resize, pytest.approx(rules.means_bgr))
    # What was trained says by itself how it is to be used.
    assert maskperf("evaluate", "--weights", "run/model.safetensors", "--output", "scores.json").code == EXIT_DONE
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 2


@pytest.mark.parametrize(
    "how", ["auto", *(pytest.param(how, marks=pytest.mark.slow) for how in ("the command that was named", "folder"))]
)
def test_a_training_on_own_data_that_was_interrupted_goes_on(folder, tmp_path, monkeypatch, how, train, maskperf):
    monkeypatch.setenv("HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "asked", lambda self, *, was_read: signal.SIGTERM)
        said = train(folder, "optimizer.max_epochs=2", *TINY, code=EXIT_REQUEUE).out
    command = re.search(r"go on: maskperf (run .*)", said)
    (run_dir,) = (tmp_path / "runs").iterdir()
    more = {"auto": ["resume=auto"], "folder": [f"resume=~/runs/{run_dir.name}", "minutes=9"]}
    if how in more:
        train(folder, *TINY, "--test", write_own_data(tmp_path / "test", images=3, seed=4), *more[how])
        assert (run_dir / "test.json").exists()
    else:
        assert maskperf(*command[1].split()).code == EXIT_DONE
    assert json.loads((run_dir / "results.json").read_text())["resumed_at_steps"] == [1]
    assert (run_dir / "report.html").exists() and len(list((tmp_path / "runs").iterdir())) == 1


def test_only_a_training_on_the_same_data_with_the_same_values_goes_on(run, folder, tmp_path, train):
    target = tmp_path / "runs" / "train-1"
    (target / "checkpoint" / "step_000000001").mkdir(parents=True)
    shutil.copy(run.folder / "config.json", target)
    refused = train(folder, "resume=auto", *TINY, "data.short_side=96", code=EXIT_USAGE)
    assert "data.short_side=96, and the run has 64" in refused.err
    assert "holds no config.json" in train(folder, f"resume={tmp_path}", code=EXIT_USAGE).err
    other = write_own_data(tmp_path / "other", images=10, seed=5)
    said = train(other, "resume=auto", "optimizer.max_steps=1", *TINY).out
    assert "no training on this data is unfinished; a new one starts" in said


@pytest.mark.slow
def test_two_processes_train_and_leave_what_one_leaves(folder, tmp_path, new_process):
    """In the folder that was asked for; a mistake that only they can see leaves none."""
    command = ["-m", "maskperf", "train", folder, "processes=2", *TINY, "run_dir=run"]
    (tmp_path / "R-50.pkl").write_bytes(b"no pickle")
    refused = new_process(*command, "--backbone", "R-50.pkl")
    assert refused.returncode == EXIT_DATA and "R-50.pkl" in refused.stderr, refused.stderr
    assert not (tmp_path / "run").exists()
    test = write_own_data(tmp_path / "test", images=3, seed=4)
    done = new_process(*command, "optimizer.max_steps=2", "--test", test)
    assert done.returncode == EXIT_DONE, done.stderr
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model_best.safetensors", "report.html", "config.json", "test.json", "predictions.png"} <= files
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    assert done.stdout.count("next to nothing") == 1


def prepared_for(folder, *settings):
    return prepare_training(CommandParser("train").read([str(folder), *settings]))


def test_minutes_are_planned_from_a_measurement(folder, capsys):
    prepared = prepared_for(folder, "minutes=0.5", "optimizer.warmup_steps=1", *TINY)
    said = capsys.readouterr().out
    optimizer = prepared.config.optimizer
    assert f"the plan is {optimizer.max_epochs} epochs, {optimizer.max_steps:,} steps" in said
    longer = prepared_for(folder, "minutes=60", *TINY).config.optimizer
    assert longer.max_steps > 10 * optimizer.max_steps and longer.warmup_steps > optimizer.warmup_steps == 1


def test_an_automatic_batch_is_measured_and_said(folder, capsys):
    settings = [setting for setting in TINY if setting != "batch=4"]
    config = prepared_for(folder, "batch=auto", *settings).config
    assert config.optimizer.batch_size == 2  # of ten images: a power of two, at most a quarter of them
    assert "batch=auto: 2; an image needs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none"], EXIT_DATA, ("none", "There is no such folder or file")),
        (["DATA", "lrr=1"], EXIT_USAGE, ("lrr",)),
        (["DATA", "minutes=soon"], EXIT_USAGE, ("minutes=soon", "a number > 0")),
        (["DATA", "minutes=5", "epochs=2"], EXIT_USAGE, ("two lengths",)),
        (["DATA", "data.root=/x"], EXIT_USAGE, ("data.root", "--val")),
        (["DATA", "--weights", "w", "--backbone", "b"], EXIT_USAGE, ("two starts",)),
        (["DATA", "--weights", "w", "--model", "r50"], EXIT_USAGE, ("exclude each other",)),
        (["DATA", "--weights", "none.safetensors"], EXIT_DATA, ("none.safetensors",)),
        (["DATA", "--val", "none.json"], EXIT_DATA, ("none.json",)),
        (["DATA", "runs=2"], EXIT_USAGE, ("runs",)),
        (["DATA", "data.holdout=0"], EXIT_USAGE, ("data.holdout",)),
    ],
)
def test_a_mistake_is_named_and_nothing_is_made(folder, tmp_path, train, arguments, code, words):
    refused = train(*(folder if word == "DATA" else word for word in arguments), code=code).err
    assert all(word in refused for word in words), refused
    assert "Traceback" not in refused and list(tmp_path.iterdir()) == []


def test_the_function_has_the_errors_of_the_command(folder):
    with pytest.raises(ConfigError, match="processes=2"):
        api.train(folder, *TINY, processes=2)
    with pytest.raises(ConfigError, match="model='large'"):
        api.train(folder, model="large")
