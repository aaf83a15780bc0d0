"""Small inputs as people have them: exit codes, and the facts that are reported. Skipped where they are absent."""

import json
import shutil
from pathlib import Path

import pytest
from small_runs import NO_TARGETS
from small_weights import SIZES

from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_RULE

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"
TINY = [
    *(*SIZES, *NO_TARGETS, "model.detections_per_image=100", "model.proposals_train=20", "model.proposals_test=10"),
    *("optimizer.batch_size=2", "optimizer.max_epochs=1", "optimizer.decay_steps=500,600"),
    *("system.threads=1", "seed=1"),
]

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the folder of inputs is not beside this checkout")


@pytest.fixture
def run(maskperf):
    """Return a function that trains one tiny epoch on a copy of a case's data set."""

    def train(case, *pairs):
        shutil.copytree(CASES / case, "data")
        layout = (("json", "{}.json"), ("images", "{}"))
        paths = [
            f"data.{split}_{kind}=data/{name.format(split)}" for split in ("train", "val") for kind, name in layout
        ]
        return maskperf("run", "demo", *TINY, "run_dir=run", *paths, *pairs)

    return train


SKIP = "data.skip_bad=true"
TRAINED = [
    ("00-good", "", []),
    ("01-brush-masks-all-crowd", "data.crowd_as_objects=true", ["12 annotations have iscrowd=1: read as objects"]),
    ("02-rle-single-objects", "", []),
    ("06-names-swapped-in-val", "data.categories_by_name=true", ["matched by name"]),
    ("08-backslash-paths", "", ["4 of 4 file names", "/ for each backslash", "pictures/yard_001.jpg"]),
    ("09-percent-encoded-names", "", ["4 of 4 file names", "percent-decoded"]),
    ("12-pictures-without-objects", "", ["2 images without an annotation: left out", "data.negatives=true"]),
    ("12-pictures-without-objects", "data.negatives=true", []),
    ("13-image-ids-are-names", "", []),
    ("14-outlines-without-boxes", "", ["12 annotations have no box: taken from their outline"]),
    ("17-very-large-picture", SKIP, ["1 images left out (data.skip_bad=true): The image is very large"]),
    ("21-picture-cut-short", SKIP, ["1 images left out (data.skip_bad=true): The image is cut short"]),
    ("22-boxes-as-corners", "", ["11 boxes do not fit their outlines", "corners (x1, y1, x2, y2)"]),
    ("26-pictures-missing", SKIP, ["26 images left out (data.skip_bad=true)"]),
    ("30-subset-of-the-pictures", "", ["24 annotations belong to images that are not in `images`: left out"]),
    ("35-faults-in-both-files", SKIP, ["1 annotations left out (data.skip_bad=true), bbox"]),
    ("41-names-not-ascii", "", []),
    ("42-more-than-100-objects", "", ["more than 100", "model.detections_per_image=150"]),
]


@pytest.mark.parametrize(("case", "pair", "reported"), TRAINED, ids=[f"{case} {pair}" for case, pair, _ in TRAINED])
def test_what_has_a_plain_meaning_is_trained_on_with_notices(case, pair, reported, run):
    shown = run(case, *filter(None, [pair]))
    assert shown.code == EXIT_DONE
    results = json.loads(Path("run/results.json").read_text())
    for text in reported:
        assert text in shown.out and any(text in notice for notice in results["notices"])
    known = {row["id"] for row in json.loads(Path("data/val.json").read_text())["images"]}
    has_names = case == "13-image-ids-are-names"
    assert not has_names or all(isinstance(identity, str) for identity in known)
    for kind in ("bbox", "segm"):
        found = json.loads(Path(f"run/detections_{kind}.json").read_text())
        assert {entry["image_id"] for entry in found} <= known and (found or not has_names)
    if pair == "data.negatives=true":
        assert '"train_samples", "value": 4' in Path("run/mlperf.log").read_text()


REFUSED = [
    ("01-brush-masks-all-crowd", ["All 12 annotations are crowd regions (iscrowd=1)", "data.crowd_as_objects=true"]),
    ("03-image-id-as-text-flat-outline", ["one flat list of numbers", 'image_id is text (such as "1")', "18 problems"]),
    ("06-names-swapped-in-val", ["id 2 'buoy' is 'cone' there", "data.categories_by_name=true"]),
    ("17-very-large-picture", ["very large", "178,956,970 pixels", "data.max_image_pixels=198800000"]),
    ("21-picture-cut-short", ["yard_011.jpg", "yard_102.jpg", "cut short", "2 problems in all"]),
    ("26-pictures-missing", ["and 25 more of this kind", "26 problems in all", "data.skip_bad=true", "in full:"]),
    ("35-faults-in-both-files", ["train.json: annotation id 1, field bbox[2]", "yard_102.jpg", "3 problems in all"]),
]


@pytest.mark.parametrize(("case", "reported"), REFUSED, ids=[case for case, _ in REFUSED])
def test_what_has_none_is_refused_before_the_first_step(case, reported, run):
    shown = run(case)
    assert shown.code == EXIT_DATA and "Traceback" not in shown.err
    assert all(text in shown.err for text in reported), shown.err
    assert not Path("run/metrics.jsonl").exists() or not Path("run/metrics.jsonl").read_text()
    files = list(Path().rglob("maskperf-errors-*.txt"))
    assert len(files) == ("more of this kind" in shown.err)  # what the message shows in full needs no file
    for path in files:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("note: ")]
        assert f"{len(lines)} problems in all" in shown.err and f"in full: {path.absolute()}" in shown.err


def test_a_test_set_gets_detections_and_no_ap(run, maskperf):
    assert run("16-test-set-without-annotations").code == EXIT_DONE

    def evaluate(*arguments):
        return maskperf("evaluate", "--weights", "run/model.safetensors", "--val-images", "data/val", *arguments)

    info = ["--val-json", "data/image_info.json"]
    shown = evaluate(*info)
    assert shown.code == EXIT_DATA and "--save-detections" in shown.err
    shown = evaluate(*info, "--save-detections", "found")
    assert shown.code == EXIT_DONE and "no ground truth, so no AP" in shown.out
    assert json.loads(Path("found/detections_bbox.json").read_text())
    assert "box_ap" not in json.loads(Path("evaluation.json").read_text())
    assert evaluate("--val-json", "data/val.json", "--save-detections", "again", "--overwrite").code == EXIT_DONE
    assert "box_ap" in json.loads(Path("evaluation.json").read_text())


@pytest.mark.parametrize(
    ("case", "code", "reported"),
    [
        ("00-good-log", EXIT_DONE, ["accepted"]),
        ("19-two-attempts-in-one-log", EXIT_RULE, ["line 30: a second run begins", "holds 2 runs", "Cut at line 30"]),
        ("20-train-samples-118287", EXIT_DONE, ["train_samples is 118287", "117,266"]),
    ],
)
def test_logs_as_people_have_them(case, code, reported, maskperf):
    shown = maskperf("check", CASES / case / "result_0.txt")
    assert shown.code == code and all(text in shown.out for text in reported), shown.out
