import json
from pathlib import Path

import pytest
from small_runs import small_run

from maskperf.cli.main import main
from maskperf.cli.run import resolve
from maskperf.demo.dataset import write_demo_dataset
from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_STORAGE

SPLITS = ("train2017", "val2017")
NO_TARGETS = ("evaluation.box_target=0", "evaluation.mask_target=0")
TINY_COCO = (
    *("model.stem_channels=8", "model.stage_channels=16,24,32,48", "model.stage_blocks=1,1,1,1"),
    *("model.fpn_channels=16", "model.box_head_channels=32", "model.mask_head_channels=16", "model.mask_head_convs=1"),
    *("model.backbone_weights=", "model.batch_norm=trainable", "model.frozen_stages=0", "model.proposals_train=20"),
    *("data.short_side=64", "data.long_side=96", "optimizer.max_steps=2", "optimizer.warmup_steps=0", "seed=1"),
    "system.threads=1",
)


def own_data(root: Path, *, lost=None) -> Path:
    """Return a folder in COCO's layout that the demo's generator did not write; its category `lost` has no id."""
    write_demo_dataset(root, train_images=4, val_images=2, seed=3)
    (root / "demo.json").unlink()
    for split in SPLITS:
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


def interrupted(root: Path) -> Path:
    (generated(root) / "demo.json").rename(root / "demo.partial")
    return root


def with_other_files(root: Path) -> Path:
    root.mkdir()
    (root / "mine.txt").write_text("mine")
    return root


@pytest.mark.parametrize(
    ("make", "pairs", "expected"),
    [
        (own_data, [], (False, 0)),
        (own_data, ["model.num_classes=9"], (False, 9)),
        (own_data, ["data.generate=true"], (True, 9)),
        (own_data, ["data.generate=false"], (False, 0)),
        (generated, [], (True, 9)),
        (interrupted, [], (True, 9)),
        (with_other_files, [], (True, 9)),
        (lambda root: root, [], (True, 9)),
        (lambda root: root.mkdir() or root, [], (True, 9)),
    ],
)
def test_the_demo_generates_nothing_where_data_root_holds_own_data(tmp_path, make, pairs, expected):
    config = resolve("demo", [f"data.root={make(tmp_path / 'root')}", *pairs])
    assert (config.data.generate, config.model.num_classes) == expected


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


def test_a_demo_run_on_own_data_says_so_and_follows_its_categories(tmp_path, capsys):
    own_data(tmp_path / "data", lost="apple")
    before = sorted(tmp_path.rglob("*"))
    assert small_run(tmp_path, *NO_TARGETS) == EXIT_DONE
    notice = f"{tmp_path / 'data'}: holds a data set that this program did not write; it is trained on, with its 7 cat"
    assert notice in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert any(text.startswith(notice) for text in results["notices"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"]["generate"], config["model"]["num_classes"]) == (False, 8)
    assert sorted(path for path in tmp_path.rglob("*") if tmp_path / "run" not in (path, *path.parents)) == before


def test_nobody_is_told_to_remove_own_files(tmp_path, capsys):
    with_other_files(tmp_path / "data")
    assert small_run(tmp_path) == EXIT_STORAGE
    message = capsys.readouterr().err
    assert "or remove" not in message and "data.train_json" in message and "Set data.root to a folder" in message
    assert (tmp_path / "data" / "mine.txt").read_text() == "mine"


def test_own_data_without_its_validation_part_is_named(tmp_path, capsys):
    own_data(tmp_path / "data")
    (tmp_path / "data" / "annotations" / "instances_val2017.json").unlink()
    assert small_run(tmp_path) == EXIT_DATA
    assert "instances_val2017.json" in capsys.readouterr().err


def test_a_coco_recipe_trains_on_another_data_root_and_says_that_it_is_not_coco(tmp_path, capsys):
    words = [f"data.root={own_data(tmp_path / 'data')}", f"run_dir={tmp_path / 'run'}", *TINY_COCO, *NO_TARGETS]
    assert main(["run", "coco", *words]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert "not COCO 2017: " in shown and "instances_train2017.json has " in shown and "6 counts differ." in shown
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"]["check_counts"], config["model"]["num_classes"]) == (False, 9)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "not COCO 2017" in report
