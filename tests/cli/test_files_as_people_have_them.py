"""Small inputs as people have them: exit codes, and the facts that are reported. Skipped where they are absent."""

import json
import shutil
from pathlib import Path

import pytest

from maskperf.cli.main import main
from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_RULE

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"
TINY = [
    *("data.short_side=48", "data.long_side=64", "optimizer.batch_size=2", "optimizer.max_epochs=1"),
    *("optimizer.decay_steps=500,600", "evaluation.batch_size=2", "evaluation.box_target=0"),
    *("evaluation.mask_target=0", "system.threads=1", "seed=1", "model.anchor_sizes=8,16,32,64,96"),
    *("model.stem_channels=8", "model.stage_channels=16,24,32,48", "model.fpn_channels=16"),
    *("model.box_head_channels=32", "model.mask_head_channels=16", "model.proposals_train=20"),
    *("model.proposals_test=10", "model.candidates_per_level_train=20", "model.candidates_per_level_test=20"),
    "model.roi_samples_per_image=16",
]

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the folder of inputs is not beside this checkout")


def run(case: str, *pairs: str) -> int:
    """Train one tiny epoch on a copy of a case's data set."""
    here = Path("data")
    if not here.exists():
        shutil.copytree(CASES / case, here)
    paths = [f"data.{split}_{kind}={here / name}" for split in ("train", "val") for kind, name in
             (("json", f"{split}.json"), ("images", split))]  # fmt: skip
    return main(["run", "demo", *TINY, f"run_dir={Path('run')}", *paths, *pairs])


SKIP, MANY = ("data.skip_bad=true",), "model.detections_per_image=300"
TRAINED = [
    ("00-good", (), []),
    ("01-brush-masks-all-crowd", ("data.crowd_as_objects=true",), ["12 annotations have iscrowd=1: read as objects"]),
    ("02-rle-single-objects", (), []),
    ("06-names-swapped-in-val", ("data.categories_by_name=true",), ["matched by name"]),
    ("08-backslash-paths", (), ["4 of 4 file names", "/ for each backslash", "pictures/yard_001.jpg"]),
    ("09-percent-encoded-names", (), ["4 of 4 file names", "percent-decoded"]),
    ("12-pictures-without-objects", (), ["2 images without an annotation: left out", "data.negatives=true"]),
    ("12-pictures-without-objects", ("data.negatives=true",), []),
    ("13-image-ids-are-names", (), []),
    ("14-outlines-without-boxes", (), ["12 annotations have no box: taken from their outline"]),
    ("17-very-large-picture", SKIP, ["1 images left out (data.skip_bad=true): The image is very large"]),
    ("21-picture-cut-short", SKIP, ["1 images left out (data.skip_bad=true): The image is cut short"]),
    ("22-boxes-as-corners", (), ["11 boxes do not fit their outlines", "corners (x1, y1, x2, y2)"]),
    ("26-pictures-missing", ("data.skip_bad=true",), ["26 images left out (data.skip_bad=true)"]),
    ("30-subset-of-the-pictures", (), ["24 annotations belong to images that are not in `images`: left out"]),
    ("35-faults-in-both-files", ("data.skip_bad=true",), ["1 annotations left out (data.skip_bad=true), bbox"]),
    ("41-names-not-ascii", (), []),
    ("42-more-than-100-objects", (MANY,), ["more than 100 objects", "evaluation.max_detections=150"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "pairs", "reported"), TRAINED, ids=[f"{case} {' '.join(pairs)}" for case, pairs, _ in TRAINED]
)
def test_what_has_a_plain_meaning_is_trained_on_with_notices(case, pairs, reported, capsys):
    assert run(case, *pairs) == EXIT_DONE
    output = capsys.readouterr().out
    results = json.loads(Path("run/results.json").read_text())
    for text in reported:
        assert text in output
        assert any(text in notice for notice in results["notices"])
    document = json.loads(Path("data/val.json").read_text())
    found = json.loads(Path("run/detections_bbox.json").read_text())
    assert {entry["image_id"] for entry in found} <= {row["id"] for row in document["images"]}


REFUSED = [
    ("01-brush-masks-all-crowd", ["All 12 annotations are crowd regions (iscrowd=1)", "data.crowd_as_objects=true"]),
    ("03-image-id-as-text-flat-outline", ["one flat list of numbers", 'image_id is text (such as "1")', "18 problems"]),
    ("06-names-swapped-in-val", ["id 2 'buoy' is 'cone' there", "data.categories_by_name=true"]),
    ("17-very-large-picture", ["very large", "178,956,970 pixels", "data.max_image_pixels=198800000"]),
    ("21-picture-cut-short", ["yard_011.jpg", "yard_102.jpg", "cut short", "2 problems in all"]),
    ("26-pictures-missing", ["and 25 more of this kind", "26 problems in all", "data.skip_bad=true", "in full:"]),
    ("35-faults-in-both-files", ["train.json: annotation id 1, field bbox[2]", "yard_102.jpg", "3 problems in all"]),
]  # fmt: skip


@pytest.mark.parametrize(("case", "reported"), REFUSED, ids=[case for case, _ in REFUSED])
def test_what_has_none_is_refused_before_the_first_step(case, reported, capsys):
    assert run(case) == EXIT_DATA
    message = capsys.readouterr().err
    assert all(text in message for text in reported), message
    assert "Traceback" not in message
    assert not Path("run/metrics.jsonl").exists() or not Path("run/metrics.jsonl").read_text()
    listed = list(Path().rglob("maskperf-errors-*.txt"))
    if "problems" in message:
        (path,) = listed
        assert f"{len(path.read_text().splitlines()) - path.read_text().count('note: ')} problems" in message


def test_image_ids_that_are_names_come_out_as_they_went_in():
    assert run("13-image-ids-are-names") == EXIT_DONE
    known = {row["id"] for row in json.loads(Path("data/val.json").read_text())["images"]}
    assert all(isinstance(identity, str) for identity in known)
    for kind in ("bbox", "segm"):
        found = json.loads(Path(f"run/detections_{kind}.json").read_text())
        assert {entry["image_id"] for entry in found} <= known and found


def test_negatives_are_counted_as_training_images():
    assert run("12-pictures-without-objects", "data.negatives=true") == EXIT_DONE
    assert '"train_samples", "value": 4' in Path("run/mlperf.log").read_text()


def test_a_test_set_gets_detections_and_no_ap(capsys):
    case = "16-test-set-without-annotations"
    assert run(case) == EXIT_DONE
    evaluate = ["evaluate", "--weights", "run/model.safetensors", "--val-images", "data/val", "--val-json"]
    assert main([*evaluate, "data/image_info.json"]) == EXIT_DATA
    assert "--save-detections" in capsys.readouterr().err
    assert main([*evaluate, "data/image_info.json", "--save-detections", "found"]) == EXIT_DONE
    assert "no ground truth, so no AP" in capsys.readouterr().out
    assert json.loads(Path("found/detections_bbox.json").read_text())
    assert "box_ap" not in json.loads(Path("evaluation.json").read_text())
    assert main([*evaluate, "data/val.json", "--save-detections", "again", "--overwrite"]) == EXIT_DONE
    assert "box_ap" in json.loads(Path("evaluation.json").read_text())


LOGS = [
    ("00-good-log", EXIT_DONE, ["accepted"]),
    (
        "19-two-attempts-in-one-log",
        EXIT_RULE,
        ["line 30: a second run begins; this file holds 2 runs", "Cut at line 30"],
    ),
    ("20-train-samples-118287", EXIT_DONE, ["train_samples is 118287", "117,266"]),
]


@pytest.mark.parametrize(("case", "code", "reported"), LOGS, ids=[case for case, _, _ in LOGS])
def test_logs_as_people_have_them(case, code, reported, capsys):
    assert main(["check", str(CASES / case / "result_0.txt")]) == code
    output = capsys.readouterr().out
    assert all(text in output for text in reported), output
