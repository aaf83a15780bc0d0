"""`maskperf run`: own data, several runs and processes, and what is refused before anything is made."""

import json
from pathlib import Path

import pytest
from small_runs import NO_TARGETS, small_run_arguments
from small_weights import SIZES

from maskperf.cli.run import read_start, resolve
from maskperf.demo.dataset import write_demo_dataset
from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_RULE, EXIT_STORAGE, EXIT_TARGET_MISSED, EXIT_USAGE
from maskperf.overrides import FIELDS

TINY = ("data.generate_images=4,2", "optimizer.batch_size=4", "optimizer.max_steps=1", "system.threads=1")
TINY_COCO = (
    *(*SIZES, "model.backbone_weights=", "model.batch_norm=trainable", "model.frozen_stages=0"),
    *("optimizer.max_steps=2", "optimizer.warmup_steps=0", "seed=1", "system.threads=1"),
)


def own_data(root: Path, *, lost=None) -> Path:
    """Return a folder in COCO's layout that the demo's generator did not write; its category `lost` has no id."""
    (generated(root) / "demo.json").unlink()
    for split in ("train2017", "val2017"):
        path = root / "annotations" / f"instances_{split}.json"
        document = json.loads(path.read_text())
        document["categories"] = [entry for entry in document["categories"] if entry["name"] != lost]
        known = {entry["id"] for entry in document["categories"]}
        document["annotations"] = [entry for entry in document["annotations"] if entry["category_id"] in known]
        path.write_text(json.dumps(document))
    return root


def generated(root: Path) -> Path:
    write_demo_dataset(root, train_images=4, val_images=2, seed=3)
    return root


@pytest.mark.parametrize(
    ("make", "pairs", "expected"),
    [
        (own_data, [], (False, 0)),
        (own_data, ["model.num_classes=9"], (False, 9)),
        (own_data, ["data.generate_images=5,3"], (False, 0)),
        (generated, ["data.generate_images=0,0"], (False, 0)),
        (generated, [], (True, 9)),
        (lambda root: root, [], (True, 9)),
    ],
)
def test_the_demo_generates_nothing_where_data_root_holds_own_data(tmp_path, make, pairs, expected):
    config = resolve("demo", [f"data.root={make(tmp_path / 'root')}", *pairs])
    assert (config.data.is_generated, config.model.num_classes) == expected


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], (True, 81)),
        (["data.root=/my"], (False, 0)),
        ([" data.root=/my"], (False, 0)),
        (["data.root=/my", "data.check_counts=true"], (True, 0)),
        (["data.root=/my", "model.num_classes=81"], (False, 81)),
        (["data.root=/my", "mlperf.division=closed"], (True, 81)),
        (["data.root=/my", "mlperf.division=open"], (False, 0)),
        (["data.train_json=/my.json", "data.train_images=/my"], (False, 0)),
    ],
)
@pytest.mark.parametrize("recipe", ["coco", "coco_batch_96"])
def test_classes_and_counts_follow_data_root_outside_the_closed_division(recipe, pairs, expected):
    config = resolve(recipe, pairs)
    assert (config.data.check_counts, config.model.num_classes) == expected


def test_a_demo_run_on_own_data_reports_it_and_follows_its_categories(tmp_path, maskperf):
    own_data(tmp_path / "data", lost="apple")
    before = sorted(tmp_path.rglob("*"))
    shown = maskperf(*small_run_arguments(tmp_path, *NO_TARGETS))
    assert shown.code == EXIT_DONE
    (notice,) = [line for line in shown.out.splitlines() if line.startswith(f"{tmp_path / 'data'}: holds a data set")]
    assert "7 cat" in notice
    assert notice in json.loads((tmp_path / "run" / "results.json").read_text())["notices"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"]["generate_images"], config["model"]["num_classes"]) == ([0, 0], 8)
    assert sorted(path for path in tmp_path.rglob("*") if tmp_path / "run" not in (path, *path.parents)) == before


def test_own_data_without_its_validation_part_is_named(tmp_path, maskperf):
    own_data(tmp_path / "data")
    (tmp_path / "data" / "annotations" / "instances_val2017.json").unlink()
    shown = maskperf(*small_run_arguments(tmp_path))
    assert shown.code == EXIT_DATA and "instances_val2017.json" in shown.err


def test_a_coco_recipe_trains_on_another_data_root_and_reports_that_it_is_not_coco(tmp_path, maskperf):
    pairs = [f"data.root={own_data(tmp_path / 'data')}", f"run_dir={tmp_path / 'run'}", *TINY_COCO, *NO_TARGETS]
    shown = maskperf("run", "coco", *pairs)
    assert shown.code == EXIT_DONE
    assert "not COCO 2017: " in shown.out and "instances_train2017.json has " in shown.out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"]["check_counts"], config["model"]["num_classes"]) == (False, 9)
    assert "not COCO 2017" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize("more", [(), ("runs=2",)])
@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("model.initial_weights=none.pth", EXIT_DATA),
        ("model.backbone_weights=none.pkl", EXIT_DATA),
        ("run_dir=full", EXIT_STORAGE),
    ],
)
def test_a_start_that_is_refused_generates_no_images_and_leaves_nothing_behind(tmp_path, maskperf, setting, code, more):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    shown = maskperf("run", "demo", "data.generate_images=1,1", setting, *more)
    assert shown.code == code and setting.partition("=")[2] in shown.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def start(new_process, tmp_path):
    """Return a function that starts a tiny run or series, which draws its own seed, in a process of its own."""
    arguments = small_run_arguments(tmp_path, *TINY)
    arguments.remove("seed=7")
    return lambda *more: new_process("-m", "maskperf", *arguments, *more)


@pytest.mark.slow
def test_each_run_of_a_series_draws_its_own_seed(tmp_path, start):
    finished = start("runs=2", *NO_TARGETS)
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


@pytest.mark.slow
def test_several_processes_give_the_exit_code_of_the_run_and_its_evaluated_epochs(tmp_path, start):
    epochs = ("optimizer.max_epochs=3", "optimizer.max_steps=9", "evaluation.every_epochs=2")
    finished = start("processes=2", "evaluation.box_target=0.99", *epochs)
    assert (finished.returncode, finished.stderr) == (EXIT_TARGET_MISSED, "")
    assert "2 process(es)" in finished.stdout and "target missed" in finished.stdout
    assert finished.stdout.count("\n1 thread: system.threads=1\n") == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "aborted" and [row["epoch"] for row in results["epochs_table"]] == [2, 3]
    assert (tmp_path / "run" / results["best"]["weights"]).exists()


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "parts"),
    [
        # A broken rule, of one run and of a series.
        ("demo mlperf.division=closed data.root=data", {}, EXIT_RULE, ["data.generate_images=1000,200"]),
        ("demo mlperf.division=closed runs=5", {}, EXIT_RULE, ["data.generate_images=1000,200"]),
        # Two processes have one image each at batch 2, and then 2000 proposals are too many.
        ("coco mlperf.division=closed processes=2", {}, EXIT_RULE, ["model.proposals_train=2000", "here 1000"]),
        ("coco mlperf.division=closed", {"WORLD_SIZE": "2"}, EXIT_RULE, ["model.proposals_train=2000", "here 1000"]),
        # A closed run that obeys the rules goes on to its files.
        ("coco mlperf.division=closed data.root=.", {}, EXIT_DATA, ["instances_train2017.json"]),
        ("demo runs=2 seed=7", {}, EXIT_USAGE, ["seed=7", "runs=2", "leave seed out"]),
        ("demo runs=2", {"WORLD_SIZE": "2"}, EXIT_USAGE, ["runs=2", "WORLD_SIZE is set"]),
        ("demo processes=2", {"WORLD_SIZE": "2"}, EXIT_USAGE, ["processes=2", "WORLD_SIZE is set"]),
        *(
            (f"demo {count}", {}, EXIT_USAGE, [f"{count}: ", "an integer"])
            for count in ("runs=0", "runs=-1", "runs=", "runs=five", "processes=1.5", "runs")
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_made(
    arguments, variables, code, parts, monkeypatch, maskperf, tmp_path
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = maskperf("run", *arguments.split())
    assert shown.code == code and all(part in shown.err for part in ["Fix: ", *parts]), shown.err
    assert code == EXIT_DATA or list(tmp_path.iterdir()) == []


def test_counts_are_taken_out_of_the_settings_and_the_rest_stays_in_order():
    found = read_start(["seed=-1", "runs=3", "resume=a", "optimizer.max_steps=9", "processes=4", "runs=5", "resume=b "])
    assert found == (["seed=-1", "optimizer.max_steps=9"], "b", {"runs": 5, "processes": 4})


def test_the_help_lists_recipes_counts_and_every_key_with_default_and_purpose(maskperf):
    lines = maskperf("run", "--help").out.splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert all(part in text for part in ("runs=N", "processes=N", "  coco_batch_96 ", "optimizer.max_epochs=0"))
    for key in FIELDS.keys() - {"recipe"}:
        (line,) = [line for line in lines if line.startswith(f"  {key}=")]
        assert len(line.split()) > 2, f"{key} has no help"
