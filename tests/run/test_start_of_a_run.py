"""What a run shows at its start, and what a start that fails leaves behind."""

import json
from dataclasses import replace

import pytest

from maskperf.cli.main import main
from maskperf.cli.run import resolve
from maskperf.demo.dataset import write_demo_dataset
from maskperf.errors import EXIT_DATA, EXIT_DONE
from maskperf.run.run_folder import create_run_folder, current_run_folder, discard_run_folder
from maskperf.run.session import MOST_CHANGE_LINES, changes_of

SHORT_RUN = ["run", "demo", "seed=1", "system.threads=1", "optimizer.max_steps=1", "optimizer.batch_size=2"]
SHORT_RUN += ["data.short_side=64", "data.long_side=96", "evaluation.box_target=0", "evaluation.mask_target=0"]


def test_the_start_is_short_and_the_layers_are_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*SHORT_RUN, "data.generate_images=4,2"]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    first_step = next(number for number, line in enumerate(lines) if line.startswith("epoch 1/1  step 1/1  loss "))
    assert first_step <= 25
    assert "configuration: the recipe demo but for (all of it in config.json):" in lines
    assert any("system.threads=1" in line for line in lines[:first_step])
    (folder,) = (tmp_path / "runs").iterdir()
    assert "backbone" in (folder / "layers.txt").read_text() and not any("backbone.stem" in line for line in lines)
    assert json.loads((folder / "config.json").read_text())["optimizer"]["momentum"] == 0.9


def test_changes_are_those_from_the_recipe_and_at_most_a_few_lines():
    assert changes_of(resolve("demo", ["seed=7", "run_dir=x"])) == [
        "configuration: that of the recipe demo (all of it in config.json)"
    ]
    changed = changes_of(resolve("demo", ["optimizer.max_epochs=2", "seed=7"]))
    assert changed[1:] == ["  optimizer.max_epochs=2"]
    config = resolve("coco_batch_96", [])
    many = changes_of(replace(config, recipe="demo"))
    assert len(many) == MOST_CHANGE_LINES + 2 and many[-1].endswith(" values in all)") and max(map(len, many)) <= 80


def test_layers_are_shown_on_demand_and_nothing_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "demo", "--layers"]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert "backbone" in shown and "parameters: " in shown and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run_dir", ["", "own/deep", "there"])
def test_a_start_that_fails_on_its_data_leaves_no_folder_behind(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_demo_dataset(tmp_path / "data", train_images=2, val_images=2)
    path = tmp_path / "data" / "annotations" / "instances_train2017.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["bbox"] = [0, 0, -1, 5]
    path.write_text(json.dumps(document))
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    data = []
    for split in ("train", "val"):
        data.append(f"data.{split}_json={tmp_path / 'data' / 'annotations' / f'instances_{split}2017.json'}")
        data.append(f"data.{split}_images={tmp_path / 'data' / f'{split}2017'}")
    assert main([*SHORT_RUN, *data, *([f"run_dir={run_dir}"] if run_dir else [])]) == EXIT_DATA
    assert "bbox" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_discarded_folder_takes_its_new_parents_along_but_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    folder = create_run_folder("there/a/b", "demo")
    (folder / "config.json").write_text("{}")
    (tmp_path / "there" / "mine.txt").write_text("mine")
    discard_run_folder(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "mine.txt"] and current_run_folder() is None
    (tmp_path / "empty").mkdir()
    folder = create_run_folder("empty", "demo")
    (folder / "config.json").write_text("{}")
    discard_run_folder(folder)
    assert list((tmp_path / "empty").iterdir()) == []
