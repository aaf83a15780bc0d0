import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pycocotools import mask as coco_masks

import maskperf.evaluation.predict
import maskperf.evaluation.scores
import maskperf.evaluation.table
from maskperf import errors
from maskperf.cli import console
from maskperf.cli import evaluate as evaluate_module
from maskperf.cli.convert import class_count_problems
from maskperf.cli.main import main
from maskperf.demo.dataset import write_demo_dataset
from maskperf.demo.shapes import CATEGORIES
from maskperf.engine.build import build_model
from maskperf.evaluation.scores import GroundTruth, score, stat_names
from maskperf.evaluation.table import score_entries
from maskperf.model.weights import save_model_weights, save_reference_state
from maskperf.overrides import to_json_text, with_overrides
from maskperf.recipes import demo

NUM_IMAGES = 5
SIZES = [
    *("model.stem_channels=4", "model.stage_channels=8,8,16,16", "model.stage_blocks=1,1,1,1"),
    *("model.fpn_channels=8", "model.box_head_channels=16", "model.mask_head_channels=8", "model.mask_head_convs=1"),
    *("model.detections_per_image=20", "data.short_side=64", "data.long_side=96", "evaluation.batch_size=2"),
]
ONE_THREAD = "system.threads=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set without its training split, and a small random model of the recipe demo in both forms."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_demo_dataset(folder / "demo", train_images=1, val_images=NUM_IMAGES, seed=3)
    (folder / "demo" / "annotations" / "instances_train2017.json").unlink()
    config = with_overrides(demo(), [*SIZES, f"data.root={folder / 'demo'}", "optimizer.max_steps=7"])
    model, _ = build_model(config.model, seed=1)
    metadata = {
        "recipe": "demo",
        "category_ids": [entry.id for entry in CATEGORIES],
        "category_names": [entry.name for entry in CATEGORIES],
        "config": to_json_text(config),
    }
    save_model_weights(model, folder / "model.safetensors", metadata)
    save_reference_state(model, folder / "model.pth")
    return folder


@pytest.fixture
def known_results(monkeypatch, folder):
    """Replace the model's results by some of known quality: every second box moved, every third category wrong."""
    truth = json.loads(val_json(folder).read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    boxes, masks = [], []
    for index, entry in enumerate(entry for entry in truth["annotations"] if not entry["iscrowd"]):
        code = coco_masks.merge(coco_masks.frPyObjects(entry["segmentation"], *sizes[entry["image_id"]]))
        category_id = CATEGORIES[0].id if index % 3 == 2 else entry["category_id"]
        owner = {"image_id": entry["image_id"], "category_id": category_id, "score": 1 / (index + 2)}
        x, *rest = entry["bbox"]
        boxes.append({**owner, "bbox": [x + 0.15 * rest[1] * (index % 2), *rest]})
        masks.append({**owner, "segmentation": {**code, "counts": code["counts"].decode()}})
    monkeypatch.setattr(maskperf.evaluation.predict, "predict", lambda *arguments: (boxes, masks))
    return boxes, masks


def val_json(folder):
    return folder / "demo" / "annotations" / "instances_val2017.json"


def arguments(folder, *more):
    return ["evaluate", "--weights", str(folder / "model.safetensors"), ONE_THREAD, *more]


def results_file(name="evaluation.json"):
    return json.loads(Path(name).read_text())


def test_table_and_file_hold_the_numbers_of_the_score_function(folder, known_results, capsys):
    assert main(arguments(folder, "--per-class")) == 0
    expected = score(GroundTruth(val_json(folder)), *known_results, engine="fast")
    assert 0 < expected.box_ap < expected.mask_ap < 1
    found = results_file()
    assert {name: found[name] for name in score_entries(expected)} == score_entries(expected)
    shown = capsys.readouterr().out.splitlines()
    for name, *pair in zip(stat_names(100), expected.box_stats, expected.mask_stats, strict=True):
        assert [name, *(f"{number:.4f}" for number in pair)] in [line.strip().rsplit(maxsplit=2) for line in shown]
    for entry in CATEGORIES:
        pair = expected.box_ap_per_category[entry.name], expected.mask_ap_per_category[entry.name]
        cells = [entry.name, *("-" if number is None else f"{number:.4f}" for number in pair)]
        assert cells in [line.split() for line in shown]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "cp437", "shift_jis"])
def test_names_in_other_scripts_are_shown_on_any_terminal(folder, known_results, monkeypatch, encoding, tmp_path):
    document = json.loads(val_json(folder).read_text())
    names = {entry.id: f"\u0938{entry.name}\u7bb1" for entry in CATEGORIES}
    for entry in document["categories"]:
        entry["name"] = names[entry["id"]]
    (tmp_path / "val.json").write_text(json.dumps(document))
    metadata = {"recipe": "demo", "category_ids": list(names), "category_names": list(names.values())}
    config = with_overrides(demo(), SIZES)
    model, _ = build_model(config.model, seed=1)
    save_model_weights(model, tmp_path / "named.safetensors", {**metadata, "config": to_json_text(config)})
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # its errors are strict
    monkeypatch.setattr(sys, "stdout", terminal)
    given = ["--val-json", "val.json", "--val-images", str(folder / "demo" / "val2017"), "--per-class", ONE_THREAD]
    assert main(["evaluate", "--weights", "named.safetensors", *given]) == 0
    shown = terminal.buffer.getvalue().decode(encoding)
    assert all(f"\\u0938{entry.name}" in shown for entry in CATEGORIES)
    assert set(results_file()["box_ap_per_category"]) == set(names.values())


def test_the_numbers_are_in_their_file_before_the_terminal_can_fail(folder, known_results, monkeypatch):
    def broken(*arguments, **named):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(maskperf.evaluation.table, "show_scores", broken)
    assert main(arguments(folder, "--save-detections", "found")) == errors.EXIT_BUG
    assert results_file()["images"] == NUM_IMAGES
    assert sorted(path.name for path in Path("found").iterdir()) == ["detections_bbox.json", "detections_segm.json"]


def test_the_file_says_what_was_evaluated_and_how(folder, known_results):
    assert main(arguments(folder, "model.score_threshold=0.1", "--output", "numbers.json")) == 0
    found = results_file("numbers.json")
    assert found["weights"] == str(folder / "model.safetensors")
    assert found["weights_sha256"] == sha256_by_tool(folder / "model.safetensors")
    assert found["val_json_sha256"] == sha256_by_tool(val_json(folder))
    assert (found["val_json"], found["val_images"]) == (str(val_json(folder)), str(folder / "demo" / "val2017"))
    assert (found["recipe"], found["engine"], found["images"]) == ("demo", "fast", NUM_IMAGES)
    assert found["overrides"] == [ONE_THREAD, "model.score_threshold=0.1"]
    assert found["images_per_second"] > 0


def sha256_by_tool(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def test_the_model_predicts_every_image_and_its_detections_give_the_same_numbers_again(folder, capsys):
    assert main(arguments(folder, "--save-detections", "found/here", "--engine", "official")) == 0
    boxes, masks = (json.loads(Path(f"found/here/detections_{kind}.json").read_text()) for kind in ("bbox", "segm"))
    assert len({entry["image_id"] for entry in boxes}) == NUM_IMAGES
    assert len(boxes) == len(masks) >= NUM_IMAGES
    expected = score_entries(score(GroundTruth(val_json(folder)), boxes, masks, engine="official"))
    found = results_file()
    assert {name: found[name] for name in expected} == expected
    assert found["engine"] == "official"
    assert f"{NUM_IMAGES} images, " in capsys.readouterr().out


def test_progress_is_shown_while_the_images_are_evaluated(folder, capsys, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    assert main(arguments(folder)) == 0
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines() if f" of {NUM_IMAGES} images " in line]
    assert shown == ["0", "2", "4", "5"]  # batches of two


def test_bad_images_stop_before_the_evaluation_or_are_left_out_with_their_ground_truth(folder, capsys):
    shutil.copytree(folder / "demo", "demo")
    broken, gone = sorted(Path("demo/val2017").iterdir())[:2]
    broken.write_bytes(broken.read_bytes()[:-300])
    gone.unlink()
    assert main(arguments(folder, "--data", "demo")) == errors.EXIT_DATA
    shown = capsys.readouterr()
    assert "2 problems in all" in shown.err and "images/s" not in shown.out
    assert main(arguments(folder, "--data", "demo", "data.skip_bad=true", "--save-detections", ".")) == 0
    shown = capsys.readouterr().out
    assert shown.count("1 images left out (data.skip_bad=true)") == 2
    assert results_file()["images"] == NUM_IMAGES - 2
    truth = json.loads(val_json(folder).read_text())
    rest = {row["id"] for row in truth["images"] if row["file_name"] not in (broken.name, gone.name)}
    for name in ("images", "annotations"):
        truth[name] = [row for row in truth[name] if row.get("image_id", row["id"]) in rest]
    Path("rest.json").write_text(json.dumps(truth))
    boxes, masks = (json.loads(Path(f"detections_{kind}.json").read_text()) for kind in ("bbox", "segm"))
    assert {entry["image_id"] for entry in boxes} <= rest
    expected = score_entries(score(GroundTruth("rest.json"), boxes, masks, engine="fast"))
    assert {name: results_file()[name] for name in expected} == expected


def test_own_data_needs_two_paths_only_and_other_values_can_be_overridden(folder):
    Path("instances.json").symlink_to(val_json(folder))
    Path("pictures").symlink_to(folder / "demo" / "val2017")
    own = ["--val-json", "instances.json", "--val-images", "pictures"]
    assert main(arguments(folder, *own, "model.detections_per_image=3", "--save-detections", ".")) == 0
    boxes = json.loads(Path("detections_bbox.json").read_text())
    counts = Counter(entry["image_id"] for entry in boxes)
    assert len(counts) == NUM_IMAGES and set(counts.values()) == {3}
    assert results_file()["val_json"] == "instances.json"


def test_a_file_of_the_reference_with_the_same_sizes_gives_the_same_detections(folder, capsys):
    assert main(arguments(folder, "--save-detections", "run")) == 0
    command = ["evaluate", "--weights", str(folder / "model.pth"), "--recipe", "demo", "--data", str(folder / "demo")]
    assert main([*command, *SIZES, ONE_THREAD, "--save-detections", "reference", "--overwrite"]) == 0
    assert "model.batch_norm=frozen" in capsys.readouterr().out
    own, reference = (json.loads(Path(name, "detections_bbox.json").read_text()) for name in ("run", "reference"))
    # The epsilon went into the variances of the .pth, so results differ by rounding alone.
    assert len(own) == len(reference)
    for one, other in zip(own, reference, strict=True):
        assert one["category_id"] == other["category_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


def test_without_metadata_the_recipe_coco_is_taken_and_its_81_classes_demanded(folder, capsys):
    code = main(["evaluate", "--weights", str(folder / "model.pth"), "--data", str(folder / "demo")])
    assert code == errors.EXIT_DATA
    shown = capsys.readouterr().err
    assert "8 entries" in shown and "The model has 80 (model.num_classes=81" in shown


def test_both_engines_must_find_the_same_numbers(folder, known_results, capsys):
    assert main(arguments(folder, "--engine", "both")) == 0
    assert results_file()["engine"] == "both"
    assert results_file()["engine_differences"] == []
    assert capsys.readouterr().err == ""


def test_engines_that_differ_fail_the_command_and_the_numbers_are_named(folder, known_results, capsys, monkeypatch):
    honest = maskperf.evaluation.scores.score

    def fast_engine_is_off(truth, boxes, masks, *, engine, **options):
        return honest(truth, boxes[1:] if engine == "fast" else boxes, masks, engine=engine, **options)

    monkeypatch.setattr(maskperf.evaluation.scores, "score", fast_engine_is_off)
    assert main(arguments(folder, "--engine", "both")) == errors.EXIT_BUG
    shown = capsys.readouterr()
    assert "the two engines do not agree" in shown.err
    assert "box AR with 100 detections: " in shown.err and "mask" not in shown.err
    assert results_file()["engine_differences"] == shown.err.splitlines()[1:]
    official = honest(GroundTruth(val_json(folder)), *known_results, engine="official")
    assert results_file()["box_ap"] == official.box_ap


def test_a_data_set_with_other_categories_is_refused_with_what_differs(folder, tmp_path, capsys):
    document = json.loads(val_json(folder).read_text())
    first, second, *_ = CATEGORIES
    for entry in document["categories"]:
        if entry["id"] == first.id:
            entry["name"] = "quince"
    document["categories"].append({"id": 9999, "name": "extra"})
    Path("other.json").write_text(json.dumps(document))
    code = main(arguments(folder, "--val-json", "other.json", "--val-images", str(folder / "demo" / "val2017")))
    assert code == errors.EXIT_DATA
    shown = capsys.readouterr().err
    assert "other.json: the list of categories, field categories[].name, value" in shown
    assert f"2 of 9 categories are not those of the weights: id {first.id} 'quince' is {first.name!r} there" in shown
    assert "id 9999 'extra' is not there" in shown and "problems in all" not in shown
    assert repr(second.name) not in shown
    assert not Path("evaluation.json").exists()


@pytest.mark.parametrize(("num_classes", "count"), [(3, 0), (2, 1), (4, 1), (81, 1)])
def test_weights_that_name_no_categories_must_have_as_many_as_the_data(num_classes, count):
    problems = class_count_problems("a.json", {3: "cup", 7: "dog"}, num_classes=num_classes)
    assert len(problems) == count
    assert all(f"model.num_classes={num_classes}" in problem.message for problem in problems)


def write_own_val(folder, path, change):
    """Return the arguments that evaluate the weights on the data set after `change` was made to its document."""
    document = json.loads(val_json(folder).read_text())
    change(document)
    Path(path).write_text(json.dumps(document))
    return arguments(folder, "--val-json", path, "--val-images", str(folder / "demo" / "val2017"))


def numbers(results):
    return {key: results[key] for key in ("box_ap", "mask_ap", "box_stats", "mask_stats")}


def test_a_data_set_with_fewer_categories_gives_the_same_numbers_and_a_notice(folder, known_results, capsys):
    used = {entry["category_id"] for entry in json.loads(val_json(folder).read_text())["annotations"]}
    absent = CATEGORIES[-1].id

    def without_one(document):
        document["annotations"] = [entry for entry in document["annotations"] if entry["category_id"] != absent]

    def unlisted(document):
        without_one(document)
        document["categories"] = [entry for entry in document["categories"] if entry["id"] != absent]

    assert absent in used
    assert main(write_own_val(folder, "listed.json", without_one)) == 0
    listed = results_file()
    capsys.readouterr()
    assert main([*write_own_val(folder, "unlisted.json", unlisted), "--overwrite", "--engine", "both"]) == 0
    assert numbers(results_file()) == numbers(listed)
    notice = f"unlisted.json: 1 of the 8 categories of the weights are not in this file (id {absent} "
    assert notice in capsys.readouterr().out
    assert any(text.startswith(notice) for text in results_file()["notices"])


def test_other_ids_are_matched_by_name_on_request_and_detections_carry_the_files_own(folder, known_results, capsys):
    assert main([*arguments(folder), "--save-detections", "plain"]) == 0
    plain = results_file()
    number_of = {category.id: 100 - category.id for category in CATEGORIES}

    def renumbered(document):
        for entry in document["categories"]:
            entry["id"] = number_of[entry["id"]]
        for entry in document["annotations"]:
            entry["category_id"] = number_of[entry["category_id"]]

    command = [*write_own_val(folder, "own.json", renumbered), "--overwrite", "--save-detections", "own"]
    assert main(command) == errors.EXIT_DATA
    shown = capsys.readouterr().err
    assert "data.categories_by_name=true" in shown and "8 of 8 categories" in shown
    assert main([*command, "data.categories_by_name=true"]) == 0
    assert numbers(results_file()) == numbers(plain)
    for name in ("detections_bbox.json", "detections_segm.json"):
        before, after = (json.loads((Path(run) / name).read_text()) for run in ("plain", "own"))
        assert [number_of[entry["category_id"]] for entry in before] == [entry["category_id"] for entry in after]


def test_an_own_limit_of_detections_is_in_the_table_and_the_file(folder, known_results, capsys):
    limit = ["evaluation.max_detections=11", "model.detections_per_image=11"]
    assert main([*arguments(folder), "--engine", "both", *limit]) == 0
    assert "AR with 11 detections" in capsys.readouterr().out
    found = results_file()
    assert found["max_detections"] == 11 and "AR with 11 detections" in found["box_stats"]
    assert found["engine_differences"] == []


def test_images_with_more_objects_than_count_are_notified(folder, known_results, capsys):
    def crowded(document):
        first = document["annotations"][0]
        copies = [{**first, "id": 10**6 + number, "iscrowd": 0} for number in range(120)]
        shape = {"segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "bbox": [1, 1, 8, 8], "area": 64}
        document["annotations"] += [{**entry, **shape} for entry in copies]

    assert main(write_own_val(folder, "crowded.json", crowded)) == 0
    notice = "crowded.json: 1 image has more than 100 objects (at most 12"
    assert notice in capsys.readouterr().out
    assert any(text.startswith(notice) for text in results_file()["notices"])


@pytest.mark.parametrize("name", ["none.safetensors", "none.pth"])
def test_missing_weights_are_named(folder, name, capsys):
    code = main(["evaluate", "--weights", name, "--recipe", "demo", "--data", str(folder / "demo"), ONE_THREAD])
    assert code == errors.EXIT_DATA
    assert f"{name}: whole file, field path" in capsys.readouterr().err


def test_a_missing_data_set_is_named_with_both_its_parts(folder, capsys):
    assert main(arguments(folder, "--data", "nowhere")) == errors.EXIT_DATA
    shown = capsys.readouterr().err
    assert "nowhere/annotations/instances_val2017.json" in shown and "nowhere/val2017" in shown
    assert "train2017" not in shown
    assert "--data" in shown


def test_results_are_written_over_on_request_only(folder, known_results, capsys):
    Path("evaluation.json").write_text("precious")
    assert main(arguments(folder)) == errors.EXIT_STORAGE
    assert "--overwrite" in capsys.readouterr().err
    assert Path("evaluation.json").read_text() == "precious"
    assert main(arguments(folder, "--overwrite")) == 0
    assert results_file()["images"] == NUM_IMAGES


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--output", "no/such/a.json"], "the folder no/such does not exist"),
        (["--output", "."], "is a folder"),
        (["--save-detections", "taken"], "taken/detections_segm.json: exists already"),
        (["--save-detections", "taken/detections_segm.json"], "the folder cannot be made"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_anything_is_loaded(folder, more, named, capsys, monkeypatch):
    Path("taken").mkdir()
    Path("taken/detections_segm.json").write_text("[]")
    monkeypatch.setattr(evaluate_module, "_evaluate", None)
    assert main(arguments(folder, *more)) == errors.EXIT_STORAGE
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--val-json", "a.json"], "--val-json and --val-images go together"),
        (["--data", "a", "--val-json", "b", "--val-images", "c"], "name two data sets"),
        (["data.root=a"], "Fix: give --data instead"),
        (["recipe=demo"], "Fix: give --recipe instead"),
        (["evaluation.engine=fast"], "Fix: give --engine instead"),
        (["optimizer.max_steps=2"], "has no effect on an evaluation"),
        (["data.generate=true"], "has no effect on an evaluation"),
        (["data.short_sde=2"], "did you mean data.short_side?"),
        (["evaluation.batch_size=-1"], "an integer >= 0"),
        (["--recipe", "dmo"], "did you mean demo?"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(folder, more, named, capsys):
    assert main(arguments(folder, *more)) == errors.EXIT_USAGE
    shown = capsys.readouterr()
    assert named in shown.err
    assert list(Path().iterdir()) == []


def test_a_stored_configuration_that_cannot_be_read_names_the_file_and_the_way_out(folder, tmp_path, capsys):
    model, _ = build_model(with_overrides(demo(), SIZES).model, seed=1)
    metadata = {
        "recipe": "demo",
        "category_ids": [1],
        "category_names": ["a"],
        "config": '{"recipe": "demo", "sead": 1}',
    }
    save_model_weights(model, tmp_path / "old.safetensors", metadata)
    assert main(["evaluate", "--weights", "old.safetensors", "--data", str(folder / "demo")]) == errors.EXIT_USAGE
    shown = capsys.readouterr().err
    assert "old.safetensors" in shown and "--recipe" in shown


@pytest.mark.parametrize("lacks", ["data.skip_bad", "evaluation.max_detections", "model.detections_per_image", "seed"])
def test_weights_of_before_a_key_was_added_are_evaluated_with_its_default_and_a_notice(lacks, folder, tmp_path, capsys):
    config = with_overrides(demo(), [pair for pair in SIZES if "detections_per_image" not in pair])
    model, _ = build_model(config.model, seed=1)
    stored = json.loads(to_json_text(config))
    section, _, name = lacks.rpartition(".")
    del (stored[section] if section else stored)[name]
    names = {entry.id: entry.name for entry in CATEGORIES}
    metadata = {"recipe": "demo", "category_ids": list(names), "category_names": list(names.values())}
    save_model_weights(model, tmp_path / "old.safetensors", {**metadata, "config": json.dumps(stored)})
    given = ["--weights", "old.safetensors", "--data", str(folder / "demo"), ONE_THREAD]
    assert main(["evaluate", *given]) == 0
    assert f"configuration: written by an earlier version, without {lacks}; " in capsys.readouterr().out
    assert main(["evaluate", *given, "--overwrite", "evaluation.batch_size=1"]) == 0


def test_two_processes_find_what_one_finds(folder, new_process):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "maskperf"]
    finished = new_process(*torchrun, *arguments(folder, "--save-detections", "two", "--output", "two.json"))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("written: two.json") == 1
    assert main(arguments(folder, "--save-detections", "one")) == 0
    for kind in ("bbox", "segm"):
        one, two = (json.loads(Path(name, f"detections_{kind}.json").read_text()) for name in ("one", "two"))
        assert len(one) == len(two) > 0
        pairs = [{(entry["image_id"], entry["category_id"]) for entry in found} for found in (one, two)]
        assert pairs[0] == pairs[1]
    assert results_file("two.json")["box_stats"] == results_file()["box_stats"]
