import base64
import io
import json

import msgspec
import numpy as np
import pytest
from coco_rectangles import annotation, coco_document, coco_results
from PIL import Image

from maskperf.data.coco.document import parse_document
from maskperf.errors import DataError
from maskperf.pictures import drawing
from maskperf.pictures.choice import (
    LARGEST_JPEG_BYTES,
    ImageMatch,
    Predictions,
    choose_best_and_worst,
    choose_images,
)

# pycocotools' decode predates numpy 2 and says so.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZE_HW = (60, 80)
CATEGORIES = {3: "cat", 7: "dog"}


def truth(annotation_id, image_id, x, *, crowd=False):
    """Return a cat of 20 by 20 pixels, or a crowd of cats over the whole image."""
    whole = {"iscrowd": 1, "segmentation": {"size": SIZE_HW, "counts": [0, SIZE_HW[0] * SIZE_HW[1]]}} if crowd else {}
    return annotation(annotation_id, image_id, 3, [x, 10, 20, 20], **whole)


def found(image_id, x, *, score=0.9, category_id=3):
    """Return a detection of 20 by 20 pixels."""
    return image_id, category_id, [x, 10, 20, 20], score


def predictions_of(folder, annotations, detections, *, images=1, size_hw=SIZE_HW):
    """Return the predictions for noisy images 1 ... `images`."""
    content = coco_document(annotations, CATEGORIES, size_hw, image_ids=range(1, images + 1))
    for row in content["images"]:
        pixels = np.random.default_rng(row["id"]).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / row["file_name"])
    path = folder / "val.json"
    path.write_text(json.dumps(content))
    return Predictions(parse_document(path, path.read_text())[0], folder, *coco_results(detections, size_hw))


def entries_of(folder, *arguments, count=4, **options):
    """Return the best and the worst images as they stand in pictures.json."""
    return [msgspec.to_builtins(entry) for entry in predictions_of(folder, *arguments, **options).best_and_worst(count)]


CAT, CROWD = truth(1, 1, 5), truth(2, 1, 0, crowd=True)


@pytest.mark.parametrize(
    ("annotations", "detections", "score", "overlaps", "wrong"),
    [
        pytest.param([CAT], [found(1, 5)], 1, 1, 0, id="perfect"),
        pytest.param([CAT], [found(1, 15)], 1 / 3, 1, 0, id="the overlap counts, 200 of 600 pixels"),
        pytest.param([CAT, truth(2, 1, 50)], [found(1, 5), found(1, 28)], 1 / 3, 1, 1, id="one missed, one wrong"),
        pytest.param([CAT], [found(1, 5), found(1, 6), found(1, 7)], 1 / 3, 1, 2, id="found three times"),
        pytest.param([CAT], [found(1, 5, category_id=7)], 0, 0, 1, id="wrong category"),
        pytest.param([CAT], [found(1, 5, score=0.49)], 0, 0, 0, id="not sure"),
        pytest.param([CAT], [found(1, 10, score=0.99), found(1, 5, score=0.5)], 0.5, 1, 1, id="larger overlap"),
        pytest.param([CAT], [found(1, 23)], 0, 0, 1, id="by chance, 40 of 760 pixels"),
        pytest.param(
            [CAT, CROWD], [found(1, 5), found(1, 50), found(1, 50, category_id=7)], 0.5, 1, 1, id="in a crowd"
        ),
    ],
)
def test_the_score_of_an_image(tmp_path, annotations, detections, score, overlaps, wrong):
    (match,) = predictions_of(tmp_path, annotations, detections).matches()
    assert match.score == pytest.approx(score) and (len(match.overlaps), len(match.wrong)) == (overlaps, wrong)
    assert match.objects == sum(not annotation["iscrowd"] for annotation in annotations)


def test_images_without_objects_are_left_out(tmp_path):
    annotations = [CAT, truth(2, 2, 0, crowd=True)]
    entries = entries_of(tmp_path, annotations, [found(1, 5), found(3, 5)], images=3)
    assert [(entry["kind"], entry["title"]) for entry in entries] == [("best", "1.png")]


def test_the_best_come_first_then_the_worst_each_with_its_score_in_words(tmp_path):
    annotations = [truth(number, number, 5) for number in range(1, 7)] + [truth(7, 1, 50)]
    detections = [found(number, 5 + 2 * (number - 1)) for number in range(1, 7)] + [found(1, 50), found(6, 50)]
    entries = entries_of(tmp_path, annotations, detections, images=6, count=2)
    shown = [(entry["kind"], entry["title"]) for entry in entries]
    assert shown == [("best", "1.png"), ("best", "2.png"), ("worst", "6.png"), ("worst", "5.png")]
    assert entries[0]["caption"] == "score 1.00: 2 of 2 objects found, mean mask overlap 1.00, no wrong detection"
    assert entries[2]["caption"] == "score 0.17: 1 of 1 object found, mean mask overlap 0.33, 1 wrong detection"


@pytest.mark.parametrize(
    ("scores", "count", "expected"),
    [
        ([(0.5, 1), (0.9, 1), (0.1, 1)], 4, [("best", 2), ("best", 1), ("worst", 3)]),
        ([(0.0, 1), (0.0, 5)], 1, [("worst", 2)]),
        ([], 4, []),
    ],
)
def test_no_image_is_best_and_worst_and_a_score_of_0_never_best(scores, count, expected):
    entries = [
        ImageMatch(image_id=number, overlaps={0: score}, missed=frozenset(range(1, objects)), wrong=frozenset())
        for number, (score, objects) in enumerate(scores, start=1)
    ]
    assert [(kind, entry.image_id) for kind, entry in choose_best_and_worst(entries, count)] == expected


def test_the_truth_is_on_the_left_and_what_was_found_on_the_right(tmp_path):
    (entry,) = entries_of(tmp_path, [CAT], [found(1, 40, category_id=7)])
    with Image.open(io.BytesIO(base64.b64decode(entry["jpeg_base64"]))) as page:
        assert page.format == "JPEG" and page.width <= 930
        pixels = np.asarray(page.convert("RGB")).astype(int)
    middle = pixels.shape[1] // 2
    cat, dog = (np.abs(pixels - colour).max(axis=-1) < 25 for colour in ((230, 57, 70), (251, 120, 20)))
    assert cat[:, :middle].sum() > 100 > cat[:, middle:].sum()
    assert dog[:, middle:].sum() > 100 > dog[:, :middle].sum()


def test_a_noisy_image_stays_small(tmp_path):
    (entry,) = entries_of(tmp_path, [CAT], [], size_hw=(400, 460))
    assert 20_000 < len(base64.b64decode(entry["jpeg_base64"])) <= 1.5 * LARGEST_JPEG_BYTES  # at the lowest quality


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    predictions = predictions_of(tmp_path, [CAT], [])
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png"):
        predictions.best_and_worst()
    with pytest.raises(DataError, match=r"1\.png"):
        predictions.write_grid(tmp_path / "page.png")


def test_results_that_do_not_belong_together_are_refused(tmp_path):
    document, (boxes, masks) = predictions_of(tmp_path, [CAT], []).document, coco_results([found(1, 5)], SIZE_HW)
    with pytest.raises(ValueError, match="same detections"):
        Predictions(document, tmp_path, boxes, [{**masks[0], "image_id": 2}])


@pytest.fixture
def panels(monkeypatch):
    """Collect the overlays of each panel that is drawn."""
    seen, draw_panel = [], drawing.draw_panel
    monkeypatch.setattr(drawing, "draw_panel", lambda *panel: seen.append(panel[1]) or draw_panel(*panel))
    return seen


def test_truth_and_a_perfect_detection_are_drawn_alike_on_the_page(tmp_path, panels):
    detections = [found(1, 5), found(1, 40, score=0.3)]  # the second is left out
    predictions_of(tmp_path, [CAT, CROWD], detections).write_grid(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as page:
        assert page.format == "PNG"
    (cat, crowd), (detected,) = panels
    assert (cat.label, crowd.label, detected.label) == ("cat", "cat, crowd", "cat 0.90")
    assert list(cat.box) == list(detected.box) and cat.colour == detected.colour == crowd.colour
    np.testing.assert_array_equal(cat.mask, detected.mask)
    assert cat.mask.sum() == 400 and crowd.mask.all()


def test_missed_false_and_loose_ones_are_marked_and_right_ones_are_not(tmp_path, panels):
    cats = [CAT, truth(2, 1, 30), truth(3, 1, 58)]
    detections = [found(1, 5), found(1, 42, score=0.8), found(1, 58, score=0.7, category_id=7)]
    (entry,) = predictions_of(tmp_path, cats, detections).samples()
    assert entry.kind == "sample" and "2 of 3 objects found" in entry.caption and "1 wrong" in entry.caption
    assert [{overlay.label: overlay.is_error for overlay in panel} for panel in panels] == [
        {"cat": False, "missed: cat": True},
        {"cat 0.90": False, "loose: cat 0.80": True, "false: dog 0.70": True},
    ]


@pytest.fixture
def document(tmp_path):
    """Images 1 to 17 have a cat, image 3 a crowd as well, image 18 nothing."""
    annotations = [truth(number, number, 5) for number in range(1, 18)] + [truth(18, 3, 0, crowd=True)]
    return predictions_of(tmp_path, annotations, [], images=18).document


@pytest.mark.parametrize("count", [1, 2, 5, 17, 1000])
def test_a_crowd_is_among_the_images_and_empty_ones_are_not(document, count):
    chosen = [row.id for row in choose_images(document, count)]
    assert len(chosen) == min(count, 17) and chosen == sorted(set(chosen))
    assert 3 in chosen and 18 not in chosen


def test_the_choice_is_spread_over_the_split(document):
    document.annotations = [row for row in document.annotations if not row.iscrowd]
    assert [row.id for row in choose_images(document, 4)] == [3, 7, 11, 15]
    document.annotations = []
    assert len(choose_images(document, 3)) == 3
