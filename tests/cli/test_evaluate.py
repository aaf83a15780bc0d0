import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from pycocotools import mask as coco_masks
from small_weights import NAMES, SIZES, write_small_weights

from maskperf import errors
from maskperf.cli import evaluate as evaluate_module
from maskperf.demo.shapes import CATEGORIES
from maskperf.engine.build import build_model
from maskperf.evaluation.scores import GroundTruth, score, score_entries, stat_names
from maskperf.model.weights import read_tensor_file, save_reference_state, write_tensor_file
from maskperf.overrides import to_json_text, with_overrides
from maskperf.predict import validation
from maskperf.recipes import demo
from maskperf.run import console

NUM_IMAGES = 5
ONE_THREAD = "system.threads=1"
DETECTION_FILES = ("detections_bbox.json", "detections_segm.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set without its training split, and a model in both forms."""
    folder = tmp_path_factory.mktemp("evaluate")
    _, config = write_small_weights(folder, images=NUM_IMAGES)
    (folder / "demo" / "annotations" / "instances_train2017.json").unlink()
    save_reference_state(build_model(config.model, seed=1)[0], folder / "model.pth")
    return folder


def write_with_stored(path, folder, stored):
    """Write the weights of the folder with another configuration stored in them."""
    tensors, metadata = read_tensor_file(folder / "model.safetensors")
    write_tensor_file(tensors, path, {**metadata, "config": json.dumps(stored)})


@pytest.fixture
def val_json(folder):
    return folder / "demo" / "annotations" / "instances_val2017.json"


@pytest.fixture
def evaluate(maskperf, folder):
    """Return a function that evaluates weights, by default those of the folder on their own data set."""

    def run(*more, weights=folder / "model.safetensors"):
        return maskperf("evaluate", "--weights", weights, ONE_THREAD, *more)

    return run


@pytest.fixture
def known_results(monkeypatch, val_json):
    """Replace the model's results by some of known quality: every second box moved, every third category wrong."""
    truth = json.loads(val_json.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    boxes, masks = [], []
    for index, entry in enumerate(entry for entry in truth["annotations"] if not entry["iscrowd"]):
        code = coco_masks.merge(coco_masks.frPyObjects(entry["segmentation"], *sizes[entry["image_id"]]))
        category_id = CATEGORIES[0].id if index % 3 == 2 else entry["category_id"]
        owner = {"image_id": entry["image_id"], "category_id": category_id, "score": 1 / (index + 2)}
        x, *rest = entry["bbox"]
        boxes.append({**owner, "bbox": [x + 0.15 * rest[1] * (index % 2), *rest]})
        masks.append({**owner, "segmentation": {**code, "counts": code["counts"].decode()}})
    monkeypatch.setattr(validation, "predict", lambda *arguments: (boxes, masks))
    return boxes, masks


def results_file(name="evaluation.json"):
    return json.loads(Path(name).read_text())


def detections(folder="."):
    return tuple(json.loads(Path(folder, name).read_text()) for name in DETECTION_FILES)


def assert_scores(expected, results):
    """Check that a file of results has these values, of scores or by their names."""
    expected = expected if isinstance(expected, dict) else score_entries(expected)
    assert {name: results[name] for name in expected} == expected


def test_table_and_file_hold_the_numbers_of_the_score_function(evaluate, val_json, known_results):
    shown = evaluate("--per-class")
    expected = score(GroundTruth(val_json), *known_results, engine="fast")
    assert shown.code == 0 and 0 < expected.box_ap < expected.mask_ap < 1
    assert_scores(expected, results_file())
    lines = shown.out.splitlines()
    for name, *pair in zip(stat_names(100), expected.box_stats, expected.mask_stats, strict=True):
        assert [name, *(f"{number:.4f}" for number in pair)] in [line.strip().rsplit(maxsplit=2) for line in lines]
    for name in NAMES.values():
        pair = expected.box_ap_per_category[name], expected.mask_ap_per_category[name]
        assert [name, *("-" if ap is None else f"{ap:.4f}" for ap in pair)] in [line.split() for line in lines]
    assert CATEGORIES[0].name not in evaluate("--overwrite").out


def test_the_report_shows_numbers_errors_and_images(evaluate, known_results):
    shown = evaluate("--report", "page.html")
    assert shown.code == 0 and "written: page.html" in shown.out
    page = Path("page.html").read_text(encoding="utf-8")
    for part in ('id="numbers"', 'id="errors"', 'id="pictures"', "Box AP", "Evaluated", "data:image/jpeg;base64,"):
        assert part in page
    assert 'id="losses"' not in page


@pytest.fixture
def evaluate_own(evaluate, folder, val_json):
    """Return a function that evaluates on the data set after `change` was made to its document."""

    def run(name, change, *more, **options):
        document = json.loads(val_json.read_text())
        change(document)
        Path(name).write_text(json.dumps(document))
        return evaluate("--val-json", name, "--val-images", folder / "demo" / "val2017", *more, **options)

    return run


def test_the_numbers_are_in_their_file_before_the_terminal_can_fail(evaluate, known_results, monkeypatch):
    def broken(*arguments, **named):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("maskperf.cli.score_table.show_scores", broken)
    assert evaluate("--save-detections", "found").code == errors.EXIT_BUG
    assert results_file()["images"] == NUM_IMAGES
    assert sorted(path.name for path in Path("found").iterdir()) == sorted(DETECTION_FILES)


def test_the_file_holds_what_was_evaluated_and_how(evaluate, folder, val_json, known_results):
    assert evaluate("model.score_threshold=0.1", "--output", "numbers.json").code == 0
    found, weights = results_file("numbers.json"), folder / "model.safetensors"
    expected = {"weights": str(weights), "val_json": str(val_json), "val_images": str(folder / "demo" / "val2017")}
    for key, path in (("weights_sha256", weights), ("val_json_sha256", val_json)):
        expected[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    expected |= {"recipe": "demo", "engine": "fast", "images": NUM_IMAGES}
    expected |= {"overrides": [ONE_THREAD, "model.score_threshold=0.1"]}
    assert_scores(expected, found)
    assert found["images_per_second"] > 0


def test_the_model_predicts_every_image_and_its_detections_give_the_same_numbers_again(evaluate, val_json, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    shown = evaluate("--save-detections", "found/here", "--engine", "official")
    assert shown.code == 0 and f"{NUM_IMAGES} images, " in shown.out
    progress = [line.split()[1] for line in shown.out.splitlines() if f" of {NUM_IMAGES} images " in line]
    assert progress == ["0", "2", "4", "5"]
    boxes, masks = detections("found/here")
    assert len({entry["image_id"] for entry in boxes}) == NUM_IMAGES
    assert len(boxes) == len(masks) >= NUM_IMAGES
    assert_scores(score(GroundTruth(val_json), boxes, masks, engine="official"), results_file())
    assert results_file()["engine"] == "official"


def test_bad_images_stop_before_the_evaluation_or_are_left_out_with_their_ground_truth(evaluate, folder, val_json):
    shutil.copytree(folder / "demo", "demo")
    broken, gone = sorted(Path("demo/val2017").iterdir())[:2]
    broken.write_bytes(broken.read_bytes()[:-300])
    gone.unlink()
    shown = evaluate("--data", "demo")
    assert shown.code == errors.EXIT_DATA and "2 problems in all" in shown.err and "images/s" not in shown.out
    shown = evaluate("--data", "demo", "data.skip_bad=true", "--save-detections", ".")
    assert shown.code == 0 and shown.out.count("1 images left out (data.skip_bad=true)") == 2
    assert results_file()["images"] == NUM_IMAGES - 2
    truth = json.loads(val_json.read_text())
    rest = {row["id"] for row in truth["images"] if row["file_name"] not in (broken.name, gone.name)}
    for name in ("images", "annotations"):
        truth[name] = [row for row in truth[name] if row.get("image_id", row["id"]) in rest]
    Path("rest.json").write_text(json.dumps(truth))
    boxes, masks = detections()
    assert {entry["image_id"] for entry in boxes} <= rest
    assert_scores(score(GroundTruth("rest.json"), boxes, masks, engine="fast"), results_file())


def test_own_data_needs_two_paths_only_and_other_values_can_be_overridden(evaluate, folder, val_json):
    own = ["--val-json", val_json, "--val-images", folder / "demo" / "val2017"]
    assert evaluate(*own, "model.detections_per_image=3", "--save-detections", ".").code == 0
    counts = Counter(entry["image_id"] for entry in detections()[0])
    assert len(counts) == NUM_IMAGES and set(counts.values()) == {3}


def test_a_file_of_the_reference_with_the_same_sizes_gives_the_same_detections(evaluate, folder):
    assert evaluate("--save-detections", "run").code == 0
    given = ["--recipe", "demo", "--data", folder / "demo", *SIZES, "--save-detections", "reference", "--overwrite"]
    shown = evaluate(*given, weights=folder / "model.pth")
    assert shown.code == 0 and "model.batch_norm=frozen" in shown.out
    # The epsilon went into the variances of the .pth, so results differ by rounding alone.
    for one, other in zip(detections("run")[0], detections("reference")[0], strict=True):
        assert one["category_id"] == other["category_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


def test_both_engines_must_find_the_same_numbers(evaluate, val_json, known_results, monkeypatch):
    shown = evaluate("--engine", "both")
    assert (shown.code, shown.err) == (0, "")
    assert (results_file()["engine"], results_file()["engine_differences"]) == ("both", [])

    def fast_engine_is_off(truth, boxes, masks, *, engine, **options):
        return score(truth, boxes[1:] if engine == "fast" else boxes, masks, engine=engine, **options)

    monkeypatch.setattr("maskperf.evaluation.scores.score", fast_engine_is_off)
    shown = evaluate("--engine", "both", "--overwrite")
    assert shown.code == errors.EXIT_BUG
    assert "box AR with 100 detections: " in shown.err and "mask" not in shown.err
    assert results_file()["engine_differences"] == shown.err.splitlines()[1:]
    assert results_file()["box_ap"] == score(GroundTruth(val_json), *known_results, engine="official").box_ap


def test_a_data_set_with_other_categories_is_refused_with_what_differs(evaluate_own):
    first, second, *_ = CATEGORIES

    def renamed(document):
        for entry in document["categories"]:
            entry["name"] = "quince" if entry["id"] == first.id else entry["name"]
        document["categories"].append({"id": 9999, "name": "extra"})

    shown = evaluate_own("other.json", renamed)
    assert shown.code == errors.EXIT_DATA and not Path("evaluation.json").exists()
    assert f"2 of 9 categories are not those of the weights: id {first.id} 'quince' is {first.name!r}" in shown.err
    assert "other.json: " in shown.err and "id 9999 'extra'" in shown.err and repr(second.name) not in shown.err


def numbers(results):
    return {key: results[key] for key in ("box_ap", "mask_ap", "box_stats", "mask_stats")}


def test_other_ids_are_matched_by_name_on_request_and_detections_have_those_of_the_file(
    evaluate, evaluate_own, known_results
):
    assert evaluate("--save-detections", "plain").code == 0
    plain = results_file()
    number_of = {number: 100 - number for number in NAMES}

    def renumbered(document):
        for entry in document["categories"]:
            entry["id"] = number_of[entry["id"]]
        for entry in document["annotations"]:
            entry["category_id"] = number_of[entry["category_id"]]

    options = ["--overwrite", "--save-detections", "own"]
    shown = evaluate_own("own.json", renumbered, *options)
    assert shown.code == errors.EXIT_DATA and "data.categories_by_name=true" in shown.err
    assert evaluate_own("own.json", renumbered, *options, "data.categories_by_name=true").code == 0
    assert numbers(results_file()) == numbers(plain)
    for before, after in zip(detections("plain"), detections("own"), strict=True):
        assert [number_of[entry["category_id"]] for entry in before] == [entry["category_id"] for entry in after]


def test_images_with_more_objects_than_count_are_reported_and_the_limit_can_be_set(evaluate_own, known_results):
    def crowded(document):
        first = document["annotations"][0]
        shape = {"segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0}
        document["annotations"] += [{**first, **shape, "id": 10**6 + number} for number in range(120)]

    for given, limit in ((20, 100), (110, 110)):
        pair = f"model.detections_per_image={given}"
        shown = evaluate_own("crowded.json", crowded, pair, "--engine", "both", "--overwrite")
        found, notice = results_file(), f"more than {given} objects (at most 12"
        assert shown.code == 0 and f"AR with {limit} detections" in shown.out and notice in shown.out
        assert any(notice in text for text in found["notices"]) and found["engine_differences"] == []
        assert found["max_detections"] == limit and f"AR with {limit} detections" in found["box_stats"]


@pytest.mark.parametrize(
    ("weights", "more", "named"),
    [
        # Without metadata the recipe coco is taken, and its 81 classes demanded.
        ("{folder}/model.pth", ["--data", "{folder}/demo"], "The model has 80 (model.num_classes=81"),
        ("{folder}/model.safetensors", ["--data", "nowhere"], "annotations/instances_val2017.json, val2017"),
    ],
)
def test_files_that_are_missing_or_do_not_fit_are_named(evaluate, folder, weights, more, named):
    shown = evaluate(*(text.format(folder=folder) for text in more), weights=weights.format(folder=folder))
    assert shown.code == errors.EXIT_DATA and named in shown.err and "train2017" not in shown.err


def test_numbers_go_to_a_file_that_is_not_taken_where_none_is_named(evaluate, monkeypatch):
    asked_for = []
    monkeypatch.setattr(evaluate_module, "_evaluate_weights", lambda options, files: asked_for.append(files) or 0)
    for taken in (None, "evaluation.json", "evaluation-2.json"):
        if taken:
            Path(taken).write_text("precious")
        assert evaluate().code == 0
    assert evaluate("--overwrite").code == 0
    names = ["evaluation.json", "evaluation-2.json", "evaluation-3.json", "evaluation.json"]
    assert asked_for == [[Path(name)] for name in names]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--output evaluation.json", "evaluation.json: exists already"),
        ("--output no/such/a.json", "the folder no/such does not exist"),
        ("--output .", "is a folder"),
        ("--output a.json --report page.html", "page.html: exists already"),
        ("--output a.json --save-detections taken", "taken/detections_segm.json: exists already"),
        ("--output a.json --save-detections evaluation.json", "the folder cannot be made"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_anything_is_loaded(evaluate, more, named, monkeypatch):
    Path("taken").mkdir()
    Path("taken/detections_segm.json").write_text("[]")
    Path("evaluation.json").write_text("precious")
    Path("page.html").write_text("precious")
    monkeypatch.setattr(evaluate_module, "_evaluate_weights", None)
    shown = evaluate(*more.split())
    assert shown.code == errors.EXIT_STORAGE and named in shown.err
    assert Path("evaluation.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("data.short_sde=2", "did you mean data.short_side?"),
        ("evaluation.batch_size=-1", "an integer >= 0"),
        ("--report page.htm", "give a name ending in .html"),
        ("--recipe dmo", "did you mean demo?"),
    ],
)
def test_values_of_the_configuration_that_cannot_be_used_are_refused(evaluate, more, named, tmp_path):
    shown = evaluate(*more.split())
    assert shown.code == errors.EXIT_USAGE and named in shown.err and list(tmp_path.iterdir()) == []


def test_a_stored_configuration_that_cannot_be_read_names_the_file_and_the_fix(evaluate, folder):
    write_with_stored("old.safetensors", folder, '{"recipe": "demo", "sead": 1}')
    shown = evaluate("--data", folder / "demo", weights="old.safetensors")
    assert shown.code == errors.EXIT_USAGE and "old.safetensors" in shown.err and "--recipe" in shown.err


def test_weights_of_before_a_key_was_added_are_evaluated_with_its_default_and_a_notice(evaluate, folder):
    stored = json.loads(to_json_text(with_overrides(demo(), SIZES)))
    del stored["data"]["skip_bad"], stored["seed"]
    write_with_stored("old.safetensors", folder, json.dumps(stored))
    shown = evaluate("--data", folder / "demo", weights="old.safetensors")
    assert shown.code == 0 and "written by an earlier version, without seed, data.skip_bad; " in shown.out


def test_two_processes_find_what_one_finds(evaluate, folder, new_process):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "maskperf"]
    command = ["evaluate", "--weights", folder / "model.safetensors", ONE_THREAD]
    finished = new_process(*torchrun, *command, "--save-detections", "two", "--output", "two.json")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("written: two.json") == 1
    assert evaluate("--save-detections", "one").code == 0
    for one, two in zip(detections("one"), detections("two"), strict=True):
        assert len(one) == len(two) > 0
        pairs = [{(entry["image_id"], entry["category_id"]) for entry in found} for found in (one, two)]
        assert pairs[0] == pairs[1]
    assert results_file("two.json")["box_stats"] == results_file()["box_stats"]
