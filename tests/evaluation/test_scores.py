import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coco_rectangles import annotation, coco_document, coco_results, polygon
from pycocotools import mask as coco_masks

from maskperf.data.coco.categories import match_categories
from maskperf.errors import ConfigError, DataError
from maskperf.evaluation.results import Results, ResultTable, box_and_mask_results
from maskperf.evaluation.scores import GroundTruth, agree, score, stat_names

GOLDEN = Path(__file__).parent.parent / "golden" / "data_path"
UNSEEN, UNFOUND = 44, 90  # category without ground truth; category without detections
CATEGORY_IDS = (3, 7, 8, UNSEEN, UNFOUND)
HEIGHT, WIDTH = 170, 210
BOX = [5.0, 8.0, 10.0, 20.0]


def uncompressed_code(mask: np.ndarray) -> dict:
    """Return COCO's uncompressed run-length code: lengths of runs down the columns, the first one of zeros."""
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F")])))
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}


def synthetic_annotation(generator: np.random.Generator, identifier: int, image_id: int) -> dict:
    corner = generator.uniform(0, [WIDTH - 45, HEIGHT - 45])
    sides = np.minimum(generator.uniform(6, 170, 2), [WIDTH - corner[0], HEIGHT - corner[1]])
    x, y, width, height = box = [*corner.round(2).tolist(), *sides.round(2).tolist()]
    category_id = int(generator.choice([3, 7, 8, UNFOUND]))
    changes = {"area": round(width * height * 0.9, 2)}
    if generator.random() < 0.4:
        parts = [x, y, width / 3, height], [x + width / 2, y, width / 2, height / 2]
        changes["segmentation"] = [polygon(part) for part in parts]
    if generator.random() < 0.15:
        region = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        region[int(y) : int(y) + int(height), int(x) : int(x) + int(width)] = 1
        changes |= {"iscrowd": 1, "segmentation": uncompressed_code(region)}
    return annotation(identifier, image_id, category_id, box, **changes)


def synthetic_data_set(seed: int) -> dict:
    """Return a COCO data set with shuffled ids, crowds, multi-part objects, empty images, and an annotation id 0."""
    generator = np.random.default_rng(seed)
    image_ids = generator.choice(900000, 25, replace=False).tolist()
    owners = generator.choice(image_ids[:-2], 90).tolist()
    identifiers = generator.permutation(90).tolist()
    annotations = [synthetic_annotation(generator, *pair) for pair in zip(identifiers, owners, strict=True)]
    names = {identifier: f"kind {identifier}" for identifier in CATEGORY_IDS}
    return coco_document(annotations, names, (HEIGHT, WIDTH), image_ids=image_ids)


def synthetic_results(data_set: dict, seed: int) -> tuple[list[dict], list[dict]]:
    """Return moved copies of the truth and false alarms, with many equal scores."""
    generator = np.random.default_rng(seed + 1000)
    found = []
    for entry in data_set["annotations"] * 3:
        if entry["category_id"] == UNFOUND:
            continue
        moved = np.array(entry["bbox"]) + generator.normal(0, 1.5, 4)
        moved = np.clip(moved, [0, 0, 2, 2], [WIDTH - 3, HEIGHT - 3, WIDTH, HEIGHT]).astype(np.float32).tolist()
        category_id = entry["category_id"] if generator.random() < 0.8 else UNSEEN
        found.append((entry["image_id"], category_id, moved, round(float(generator.uniform(0.05, 1)), 1)))
    return coco_results(found, (HEIGHT, WIDTH))


def one_object(identifier: int = 1, **changes) -> dict:
    """Return a data set of one image of 40 x 50 with one object of 10 x 20 pixels."""
    return coco_document([annotation(identifier, 6, 3, BOX, **changes)], {3: "cup", 9: "fork"}, (40, 50))


def one_hit() -> tuple[list[dict], list[dict]]:
    return coco_results([(6, 3, BOX, 0.9)], (40, 50))


def as_entries(boxes: list[dict], masks: list[dict]) -> tuple[list[dict], list[dict]]:
    return boxes, masks


def as_columns(boxes: list[dict], masks: list[dict]) -> tuple[Results, Results]:
    def column(entries: list[dict], key: str, dtype: type) -> np.ndarray:
        return np.array([entry[key] for entry in entries], dtype)

    codes = [entry["segmentation"] for entry in masks]
    table = ResultTable(
        image_ids=column(boxes, "image_id", np.int64),
        category_ids=column(boxes, "category_id", np.int64),
        scores=column(boxes, "score", np.float64),
        boxes_xywh=column(boxes, "bbox", np.float64).reshape(-1, 4),
        mask_areas=np.array([coco_masks.area(code) for code in codes], dtype=np.int64),
        sizes_hw=column(codes, "size", np.int64).reshape(-1, 2),
        codes=column(codes, "counts", object),
    )
    return box_and_mask_results(table)


BOTH_ENGINES = pytest.mark.parametrize("engine", ["official", "fast"])
BOTH_FORMS = pytest.mark.parametrize("form", [as_entries, as_columns])
SEEDS = pytest.mark.parametrize("seed", range(6))


@pytest.fixture
def write_truth(tmp_path):
    def write(data_set: dict, **options) -> GroundTruth:
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(data_set))
        return GroundTruth(path, **options)

    return write


@pytest.fixture
def synthetic(write_truth):
    """Return a function that makes ground truth and results of a seed."""

    def make(seed: int) -> tuple[GroundTruth, tuple[list[dict], list[dict]]]:
        data_set = synthetic_data_set(seed)
        return write_truth(data_set), synthetic_results(data_set, seed)

    return make


def is_perfect(scores) -> bool:
    return (scores.box_ap, scores.mask_ap) == pytest.approx((1, 1), abs=1e-9)


@BOTH_ENGINES
@BOTH_FORMS
def test_golden_results_give_the_golden_numbers_and_nothing_is_printed(engine, form, capfd):
    golden = json.loads((GOLDEN / "results.json").read_text())
    found = form(golden["bbox"], golden["segm"])
    with np.load(GOLDEN / "expected.npz") as expected:
        scores = score(GroundTruth(GOLDEN / "instances.json"), *found, engine=engine)
        assert scores.box_stats == tuple(expected["stats/bbox"].tolist())
        assert scores.mask_stats == tuple(expected["stats/segm"].tolist())
    assert (len(scores.box_ap_per_category), scores.engine, scores.seconds > 0) == (80, engine, True)
    assert capfd.readouterr() == ("", "")


@SEEDS
@pytest.mark.parametrize("limit", [100, 11, 30, 101])
def test_both_engines_agree_exactly_and_columns_score_like_entries(synthetic, seed, limit):
    truth, results = synthetic(seed)
    fast, official, *of_columns = (
        replace(score(truth, *form(*results), engine=engine, max_detections=limit), seconds=0.0)
        for form in (as_entries, as_columns)
        for engine in ("fast", "official")
    )
    assert agree(fast, official) == []
    assert limit != 100 or min(official.box_stats + official.mask_stats) > 0
    assert fast.box_ap_per_category == official.box_ap_per_category
    assert fast.mask_ap_per_category == official.mask_ap_per_category
    assert of_columns == [fast, official]


def test_category_without_truth_is_left_out_of_the_mean_and_one_without_detections_counts_zero(synthetic):
    truth, results = synthetic(1)
    scores = score(truth, *results, engine="official")
    per_category = scores.box_ap_per_category
    assert list(per_category) == [f"kind {identifier}" for identifier in CATEGORY_IDS]
    assert per_category["kind 44"] is None and scores.mask_ap_per_category["kind 44"] is None
    assert per_category["kind 90"] == 0.0
    counted = [ap for ap in per_category.values() if ap is not None]
    assert scores.box_ap == pytest.approx(sum(counted) / 4)
    assert scores.box_ap == scores.box_stats[0] and scores.mask_ap == scores.mask_stats[0]


@BOTH_ENGINES
def test_scoring_again_gives_the_same_and_leaves_the_results_alone(synthetic, engine):
    truth, results = synthetic(2)
    before = copy.deepcopy(results)
    first, second = score(truth, *results, engine=engine), score(truth, *results, engine=engine)
    assert results == before
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)


@BOTH_ENGINES
@BOTH_FORMS
def test_no_detections_give_zero(write_truth, engine, form):
    scores = score(write_truth(one_object()), *form([], []), engine=engine)
    assert scores.box_ap == scores.mask_ap == 0.0
    assert scores.box_ap_per_category == {"cup": 0.0, "fork": None}
    assert agree(scores, score(write_truth(one_object()), [], [], engine="official")) == []


@BOTH_ENGINES
@pytest.mark.parametrize("identifier", [0, 17])
def test_a_match_to_annotation_id_zero_counts(write_truth, engine, identifier):
    assert is_perfect(score(write_truth(one_object(identifier)), *one_hit(), engine=engine))


@BOTH_ENGINES
def test_missing_area_and_iscrowd_are_filled_in_and_ignore_has_no_effect(write_truth, engine):
    complete = score(write_truth(one_object()), *one_hit(), engine=engine)
    fixed = score(write_truth(one_object(area=None, iscrowd=None, ignore=1)), *one_hit(), engine=engine)
    assert agree(complete, fixed) == []
    assert complete.box_stats[3] == pytest.approx(1, abs=1e-9)  # 200 pixels: a small object


@pytest.mark.parametrize("kind", ["polygons", "uncompressed", "compressed"])
def test_a_missing_area_is_that_of_the_mask(write_truth, kind):
    # A mask of 40 x 50 in an image of 100 x 100 is of medium size; its two polygons overlap by half.
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[10:50, 20:70] = 1
    code = coco_masks.encode(np.asfortranarray(mask))
    segmentation = {
        "polygons": [polygon([20, 10, 30, 40]), polygon([35, 10, 35, 40])],
        "uncompressed": uncompressed_code(mask),
        "compressed": {"size": code["size"], "counts": code["counts"].decode()},
    }[kind]
    data_set = one_object(segmentation=segmentation, area=None)
    data_set["images"][0] |= {"height": 100, "width": 100}
    truth = write_truth(data_set)
    assert next(iter(truth.official.anns.values()))["area"] == 2000.0


@BOTH_ENGINES
def test_detections_on_a_crowd_are_neither_right_nor_wrong(write_truth, engine):
    data_set = one_object()
    region = np.zeros((40, 50), dtype=np.uint8)
    region[:, 25:] = 1
    crowd = one_object(2, iscrowd=1, bbox=[25, 0, 25, 40], area=1000, segmentation=uncompressed_code(region))
    data_set["annotations"] += crowd["annotations"]
    boxes, masks = one_hit()
    code = coco_masks.encode(np.asfortranarray(region))
    boxes.append({**boxes[0], "score": 0.95, "bbox": [30.0, 5.0, 10.0, 10.0]})
    masks.append({**masks[0], "score": 0.95, "segmentation": {"size": [40, 50], "counts": code["counts"].decode()}})
    assert is_perfect(score(write_truth(data_set), boxes, masks, engine=engine))


@BOTH_ENGINES
def test_a_box_inside_mask_results_changes_nothing(synthetic, engine):
    truth, (boxes, masks) = synthetic(3)
    with_boxes = [{**mask, "bbox": [0.0, 0.0, 1.0, 1.0]} for mask in masks]
    plain = score(truth, boxes, masks, engine=engine)
    assert agree(plain, score(truth, boxes, with_boxes, engine=engine)) == []


def test_the_fast_engine_sees_the_file_s_annotations_after_the_official_one_has_run(write_truth):
    truth = write_truth(one_object())
    score(truth, *one_hit(), engine="official")
    (annotation,) = truth.fast.dataset["annotations"]
    assert annotation["segmentation"] == [polygon(BOX)]


BAD_VALUES = [
    *(("image_id", 7), ("category_id", 4), ("score", math.nan), ("score", math.inf)),
    *(("bbox", [0.0, math.nan, 1.0, 1.0]), ("bbox", [0.0, math.inf, 1.0, 1.0])),
]


@BOTH_FORMS
@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_every_bad_result_is_named(write_truth, form, field, value):
    boxes, masks = ([entry] * 3 for (entry,) in one_hit())
    boxes[1] = {**boxes[1], field: value}
    masks[1] = {**masks[1], field: value} if field != "bbox" else masks[1]
    with pytest.raises(DataError) as caught:
        score(write_truth(one_object()), *form(boxes, masks), engine="fast")
    kinds = ["box results", "mask results"] if field != "bbox" else ["box results"]
    assert [problem.file for problem in caught.value.problems] == kinds  # all of them at once
    for problem in caught.value.problems:
        image_id = value if field == "image_id" else 6
        assert (problem.where, problem.field) == (f"result 1 (image id {image_id})", field)
        assert problem.value == repr(value)


@pytest.mark.parametrize("field", ["image_id", "category_id", "score", "segmentation"])
def test_a_missing_field_is_named(write_truth, field):
    boxes, masks = one_hit()
    del masks[0][field]
    with pytest.raises(DataError, match=f"mask results: result 0 .*field {field}"):
        score(write_truth(one_object()), boxes, masks, engine="official")


@BOTH_FORMS
def test_a_mask_of_another_size_is_refused(write_truth, form):
    boxes, masks = one_hit()
    masks[0]["segmentation"]["size"] = [50, 40]
    with pytest.raises(DataError, match="mask results: result 0 .*field segmentation"):
        score(write_truth(one_object()), *form(boxes, masks), engine="fast")


@pytest.mark.parametrize("data_set", [one_object(iscrowd=1), {**one_object(), "annotations": []}])
def test_truth_without_objects_is_refused(write_truth, data_set):
    with pytest.raises(DataError, match="no object to find"):
        write_truth(data_set)


def test_an_unknown_engine_is_refused(write_truth):
    with pytest.raises(ConfigError, match="use one of fast, official"):
        score(write_truth(one_object()), [], [], engine="quick")


def test_categories_of_one_name_are_distinguished(write_truth):
    data_set = one_object()
    data_set["categories"][1]["name"] = "cup"
    assert list(write_truth(data_set).category_names.values()) == ["cup (3)", "cup (9)"]


def test_every_number_that_differs_is_listed(write_truth):
    scores = score(write_truth(one_object()), *one_hit(), engine="fast")
    moved = tuple(np.nextafter(number, 2) for number in scores.mask_stats)
    lines = agree(scores, replace(scores, mask_stats=moved, engine="official"))
    assert len(lines) == len(stat_names(100))
    assert lines[1].startswith("mask AP at IoU 0.50: ") and "(fast)" in lines[1] and "(official)" in lines[1]
    assert agree(scores, scores) == []


@pytest.mark.parametrize("kind", ["image_id", "category_id"])
def test_ids_beyond_the_exact_floating_point_numbers_are_kept(write_truth, kind):
    number = 2**53 + 1  # 2**53 as a floating-point number
    data_set, (boxes, masks) = one_object(), one_hit()
    if kind == "image_id":
        data_set["images"] = [{**data_set["images"][0], "id": number}, {**data_set["images"][0], "id": number - 1}]
    else:
        data_set["categories"] = [{"id": number, "name": "cup"}, {"id": number - 1, "name": "fork"}]
    data_set["annotations"][0][kind] = boxes[0][kind] = masks[0][kind] = number
    assert is_perfect(score(write_truth(data_set), *as_columns(boxes, masks), engine="fast"))


def many_objects(count: int) -> tuple[dict, tuple[list[dict], list[dict]]]:
    """Return a data set of one image with so many objects, and results that find each of them exactly."""
    places = [[12.0 * (number % 20), 12.0 * (number // 20), 10.0, 10.0] for number in range(count)]
    annotations = [annotation(number, 6, 3, place) for number, place in enumerate(places, start=1)]
    data_set = coco_document(annotations, {3: "cup"}, (240, 240))
    return data_set, coco_results([(6, 3, place, 0.9) for place in places], (240, 240))


@BOTH_ENGINES
@pytest.mark.parametrize(("objects", "limit"), [*((150, limit) for limit in (100, 150, 120, 400, 11)), (40, 20)])
def test_only_the_best_detections_of_an_image_count(write_truth, engine, objects, limit):
    data_set, found = many_objects(objects)
    recall, recall_of_ten = min(limit, objects) / objects, 10 / objects
    scores = score(write_truth(data_set), *found, engine=engine, max_detections=limit)
    assert scores.max_detections == limit and stat_names(limit)[8] == f"AR with {limit} detections"
    for stats in (scores.box_stats, scores.mask_stats):
        assert stats[8] == pytest.approx(recall) and stats[7] == pytest.approx(recall_of_ten)
        assert stats[6] == pytest.approx(1 / objects)
        points = np.linspace(0, 1, 101)  # precision is 1 up to the recall that is reached
        assert stats[0] == stats[1] == stats[2] == stats[3] == pytest.approx((points <= recall + 1e-12).mean())
        assert stats[4] == stats[5] == -1.0


@BOTH_ENGINES
@pytest.mark.parametrize(("seed", "by_name"), [(0, False), (1, False), (2, False), (2, True)])
def test_the_categories_of_a_file_are_those_of_the_training(write_truth, engine, seed, by_name):
    data_set = synthetic_data_set(seed)
    found, trained = synthetic_results(data_set, seed), {entry["id"]: entry["name"] for entry in data_set["categories"]}
    plain = score(write_truth(data_set), *found, engine=engine)
    if by_name:  # other ids
        number_of = dict(zip(trained, (7, 3, UNFOUND, 8, 1), strict=True))
    else:  # one without ground truth is not in the file, another only in the training
        number_of = {identity: identity for identity in trained if identity != UNSEEN}
        trained = {1: "cat", **trained}
        found = [[*of_kind, {**of_kind[0], "category_id": 1, "score": 0.99}] for of_kind in found]
    own = {number: trained[identity] for identity, number in number_of.items()}
    annotations = [{**entry, "category_id": number_of[entry["category_id"]]} for entry in data_set["annotations"]]
    categories = [{"id": identity, "name": name} for identity, name in own.items()]
    match = match_categories(trained, own, source="weights", file="instances.json", by_name=by_name)
    truth = write_truth({**data_set, "annotations": annotations, "categories": categories}, categories=match)
    scores = score(truth, *found, engine=engine)
    assert scores.box_stats == plain.box_stats and scores.mask_stats == plain.mask_stats
    added = {} if by_name else {"cat": None}
    assert scores.box_ap_per_category == {**added, **plain.box_ap_per_category}
    assert scores.mask_ap_per_category == {**added, **plain.mask_ap_per_category}
