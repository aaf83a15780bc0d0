"""Curves, kinds of errors, calibration and confusions: against pycocotools, and against cases counted by hand."""

import json

import numpy as np
import pytest
from coco_rectangles import annotation, coco_document, coco_results
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskperf.evaluation.analysis import ERROR_KINDS, analyze
from maskperf.evaluation.scores import GroundTruth

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZE_HW, SIDE = (100, 400), 20
CAT, DOG, OWL = 3, 7, 9


def truth_file(folder, objects):
    """Write images 1, 2, ... with squares of these categories at these places: (category, x)."""
    annotations = [
        annotation(10 * image + at, image, category, [x, 10, SIDE, SIDE])
        for image, entries in enumerate(objects, start=1)
        for at, (category, x) in enumerate(entries)
    ]
    path = folder / "val.json"
    path.write_text(json.dumps(coco_document(annotations, {CAT: "cat", DOG: "dog", OWL: "owl"}, SIZE_HW)))
    return path


def results_of(detections):
    """Return box and mask results of squares: (image, category, x, score)."""
    return coco_results([(image, kind, [x, 10, SIDE, SIDE], score) for image, kind, x, score in detections], SIZE_HW)


def random_case(seed):
    """Return objects and detections of which some are shifted, some of another category, some duplicates."""
    random = np.random.default_rng(seed)
    objects = [[(int(random.choice([CAT, DOG])), 10 + 60 * at) for at in range(5)] for _ in range(8)]
    detections = [
        (image, category if random.uniform() < 0.8 else DOG, x + int(random.integers(0, 12)), float(random.uniform()))
        for image, entries in enumerate(objects, start=1)
        for category, x in entries * 2
    ]
    return objects, detections


@pytest.mark.parametrize("seed", [0, 1])
def test_the_mean_of_a_curve_is_the_ap_that_pycocotools_finds(tmp_path, seed):
    objects, detections = random_case(seed)
    path, found = truth_file(tmp_path, objects), results_of(detections)
    analysis = analyze(GroundTruth(path), *found)
    for kind, iou_type, entries in zip((analysis.boxes, analysis.masks), ("bbox", "segm"), found, strict=True):
        truth = COCO(path)
        official = COCOeval(truth, truth.loadRes(entries), iou_type)
        official.evaluate()
        official.accumulate()
        official.summarize()
        assert len(kind.precision_50) == 101
        assert np.mean(kind.precision_50) == pytest.approx(official.stats[1], abs=1e-12)
        assert np.mean(kind.precision_75) == pytest.approx(official.stats[2], abs=1e-12)


@pytest.fixture
def by_hand(tmp_path):
    """One error of each kind: places 10, 70 ... 310 hold objects, all else is background."""
    objects = [[(CAT, 10), (CAT, 70), (CAT, 130), (DOG, 190), (DOG, 310)]]
    detections = [
        (1, CAT, 10, 0.95),  # right
        (1, CAT, 11, 0.85),  # duplicate
        (1, DOG, 70, 0.75),  # wrong category
        (1, CAT, 141, 0.65),  # poor place: IoU 9 / 31
        (1, OWL, 201, 0.55),  # both wrong
        (1, CAT, 250, 0.52),  # background
        (1, DOG, 370, 0.15),  # background; not sure, so no confusion
    ]
    return analyze(GroundTruth(truth_file(tmp_path, objects)), *results_of(detections))


def test_each_kind_of_error_is_counted(by_hand):
    for kind in (by_hand.boxes, by_hand.masks):
        assert [entry.kind for entry in kind.errors] == list(ERROR_KINDS)
        counts = {entry.kind: entry.count for entry in kind.errors}
        assert counts == {"Cls": 1, "Loc": 1, "Both": 1, "Dupe": 1, "Bkg": 2, "Miss": 2}
        assert all(entry.ap_lost is not None for entry in kind.errors)


def test_confusions_are_those_of_sure_detections(by_hand):
    assert by_hand.categories == ("cat", "dog", "owl")
    cat, dog, owl, none = range(4)
    expected = {(cat, cat): 1, (cat, dog): 1, (cat, none): 1, (dog, none): 2, (none, cat): 3, (none, owl): 1}
    assert {(true, found): count for true, found, count in by_hand.confusions} == expected


def test_calibration_compares_scores_with_the_share_of_right_detections(by_hand):
    bins = by_hand.boxes.calibration
    assert [entry.count for entry in bins] == [0, 1, 0, 0, 0, 2, 1, 1, 1, 1]
    assert (bins[9].confidence, bins[9].accuracy) == (pytest.approx(0.95), 1.0)
    assert (bins[5].confidence, bins[5].accuracy) == (pytest.approx(0.535), 0.0) and bins[0].confidence is None
    gaps = [0.05, 0.85, 0.75, 0.65, 0.55, 0.52, 0.15]
    assert by_hand.boxes.calibration_error == pytest.approx(sum(gaps) / 7)


def test_nothing_found_is_analyzed_too(tmp_path):
    analysis = analyze(GroundTruth(truth_file(tmp_path, [[(CAT, 10)]])), [], [])
    assert analysis.confusions == ((0, 3, 1),) and analysis.boxes.calibration_error is None
    assert set(analysis.boxes.precision_50) == {0.0}
