import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_masks

import maskperf.evaluation.scores as scores_module
from maskperf.data.coco.categories import match_categories
from maskperf.errors import ConfigError, DataError
from maskperf.evaluation.results import Results, ResultTable, box_and_mask_results
from maskperf.evaluation.scores import GroundTruth, agree, score, stat_names

GOLDEN = Path(__file__).parent.parent / "golden" / "data_path"
UNSEEN, UNFOUND = 44, 90  # category without ground truth; category without detections
CATEGORY_IDS = (3, 7, 8, UNSEEN, UNFOUND)
HEIGHT, WIDTH = 170, 210


def rectangle(box_xywh) -> list[float]:
    x, y, width, height = map(float, box_xywh)
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def uncompressed_code(mask: np.ndarray) -> dict:
    """Return COCO's uncompressed run-length code: lengths of runs down the columns, the first one of zeros."""
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F")])))
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}


def synthetic_annotation(generator: np.random.Generator, identifier: int, image_id: int) -> dict:
    corner = generator.uniform(0, [WIDTH - 45, HEIGHT - 45])
    sides = np.minimum(generator.uniform(6, 170, 2), [WIDTH - corner[0], HEIGHT - corner[1]])
    box = [*corner.round(2).tolist(), *sides.round(2).tolist()]
    parts = [[box[0], box[1], box[2] / 3, box[3]], [box[0] + box[2] / 2, box[1], box[2] / 2, box[3] / 2]]
    entry = {
        "id": identifier,
        "image_id": image_id,
        "category_id": int(generator.choice([3, 7, 8, UNFOUND])),
        "bbox": box,
        "iscrowd": 0,
        "segmentation": [rectangle(part) for part in (parts if generator.random() < 0.4 else [box])],
        "area": round(box[2] * box[3] * 0.9, 2),
    }
    if generator.random() < 0.15:
        region = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        x, y = int(box[0]), int(box[1])
        region[y : y + int(box[3]), x : x + int(box[2])] = 1
        entry |= {"iscrowd": 1, "segmentation": uncompressed_code(region)}
    return entry


def synthetic_data_set(seed: int) -> dict:
    """Return a COCO data set with shuffled ids, crowds, multi-part objects, empty images, and an annotation id 0."""
    generator = np.random.default_rng(seed)
    image_ids = generator.choice(900000, 25, replace=False).tolist()
    owners = generator.choice(image_ids[:-2], 90).tolist()
    identifiers = generator.permutation(90).tolist()
    return {
        "images": [{"id": image_id, "height": HEIGHT, "width": WIDTH} for image_id in image_ids],
        "categories": [{"id": identifier, "name": f"kind {identifier}"} for identifier in CATEGORY_IDS],
        "annotations": [
            synthetic_annotation(generator, identifier, owner)
            for identifier, owner in zip(identifiers, owners, strict=True)
        ],
    }


def synthetic_results(data_set: dict, seed: int) -> tuple[list[dict], list[dict]]:
    """Return moved copies of the truth and false alarms, with many equal scores."""
    generator = np.random.default_rng(seed + 1000)
    boxes, masks = [], []
    for annotation in data_set["annotations"] * 3:
        if annotation["category_id"] == UNFOUND:
            continue
        moved = np.array(annotation["bbox"]) + generator.normal(0, 1.5, 4)
        moved = np.clip(moved, [0, 0, 2, 2], [WIDTH - 3, HEIGHT - 3, WIDTH, HEIGHT]).astype(np.float32).tolist()
        category_id = annotation["category_id"] if generator.random() < 0.8 else UNSEEN
        owner = {"image_id": annotation["image_id"], "category_id": category_id}
        found_score = round(float(generator.uniform(0.05, 1)), 1)
        boxes.append({**owner, "bbox": moved, "score": found_score})
        masks.append({**owner, "segmentation": mask_code(moved, (HEIGHT, WIDTH)), "score": found_score})
    return boxes, masks


def one_object(identifier: int = 1, **changes) -> dict:
    """Return a data set of one image of 40 x 50 with one object of 10 x 20 pixels."""
    annotation = {"id": identifier, "image_id": 6, "category_id": 3, "area": 200.0, "iscrowd": 0}
    annotation |= {"bbox": [5.0, 8.0, 10.0, 20.0], "segmentation": [rectangle([5, 8, 10, 20])]}
    annotation = {key: value for key, value in (annotation | changes).items() if value is not None}
    return {
        "images": [{"id": 6, "height": 40, "width": 50}],
        "categories": [{"id": 3, "name": "cup"}, {"id": 9, "name": "fork"}],
        "annotations": [annotation],
    }


def mask_code(box_xywh, size_hw=(40, 50)) -> dict:
    code = coco_masks.frPyObjects([rectangle(box_xywh)], *size_hw)[0]
    return {"size": list(size_hw), "counts": code["counts"].decode()}


def one_hit() -> tuple[list[dict], list[dict]]:
    owner, box = {"image_id": 6, "category_id": 3, "score": 0.9}, [5.0, 8.0, 10.0, 20.0]
    return [{**owner, "bbox": box}], [{**owner, "segmentation": mask_code(box)}]


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
    def write(data_set: dict) -> GroundTruth:
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(data_set))
        return GroundTruth(path)

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
def test_golden_results_give_the_golden_numbers(engine, form):
    results = json.loads((GOLDEN / "results.json").read_text())
    found = form(results["bbox"], results["segm"])
    with np.load(GOLDEN / "expected.npz") as expected:
        scores = score(GroundTruth(GOLDEN / "instances.json"), *found, engine=engine)
        assert scores.box_stats == tuple(expected["stats/bbox"].tolist())
        assert scores.mask_stats == tuple(expected["stats/segm"].tolist())
    assert (len(scores.box_ap_per_category), scores.engine, scores.seconds > 0) == (80, engine, True)


@SEEDS
@pytest.mark.parametrize("limit", [100, 11, 30, 101])
def test_both_engines_agree_exactly(synthetic, seed, limit):
    truth, results = synthetic(seed)
    fast, official = (score(truth, *results, engine=engine, max_detections=limit) for engine in ("fast", "official"))
    assert agree(fast, official) == []
    assert limit != 100 or min(official.box_stats + official.mask_stats) > 0
    assert fast.box_ap_per_category == official.box_ap_per_category
    assert fast.mask_ap_per_category == official.mask_ap_per_category


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
        "polygons": [rectangle([20, 10, 30, 40]), rectangle([35, 10, 35, 40])],
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
    assert annotation["segmentation"] == [rectangle([5, 8, 10, 20])]


@BOTH_ENGINES
def test_nothing_is_printed(write_truth, engine, capfd):
    score(write_truth(one_object()), *one_hit(), engine=engine)
    assert capfd.readouterr() == ("", "")


BAD_VALUES = [
    *(("image_id", 7), ("category_id", 4), ("score", math.nan), ("score", math.inf)),
    *(("bbox", [0.0, math.nan, 1.0, 1.0]), ("bbox", [0.0, math.inf, 1.0, 1.0])),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_a_bad_box_result_is_named(write_truth, field, value):
    boxes, masks = one_hit()
    boxes.append({**boxes[0], field: value})
    masks.insert(0, {**masks[0], "image_id": 8})
    with pytest.raises(DataError) as caught:
        score(write_truth(one_object()), boxes, masks, engine="fast")
    first, second = caught.value.problems  # all of them at once
    assert (first.file, first.field) == ("box results", field)
    assert first.where.startswith("result 1 ")
    assert (second.file, second.where, second.field) == ("mask results", "result 0 (image id 8)", "image_id")


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


@BOTH_ENGINES
@pytest.mark.parametrize("seed", range(4))
def test_columns_score_like_entries(synthetic, seed, engine):
    truth, results = synthetic(seed)
    entries = score(truth, *results, engine=engine)
    columns = score(truth, *as_columns(*results), engine=engine)
    assert min(entries.box_stats + entries.mask_stats) > 0
    assert replace(columns, seconds=0.0) == replace(entries, seconds=0.0)
    assert agree(columns, score(truth, *results, engine="official")) == []


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


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_a_bad_row_is_named_as_an_entry_is(write_truth, field, value):
    boxes, masks = ([entry] * 3 for (entry,) in one_hit())
    boxes[1] = {**boxes[1], field: value}
    if field != "bbox":
        masks[1] = {**masks[1], field: value}
    truth = write_truth(one_object())
    with pytest.raises(DataError) as of_entries:
        score(truth, boxes, masks, engine="fast")
    with pytest.raises(DataError) as of_columns:
        score(truth, *as_columns(boxes, masks), engine="fast")
    assert of_columns.value.problems[0].field == field
    assert of_columns.value.problems[0].where.startswith("result 1 ")
    assert [problem.line() for problem in of_columns.value.problems] == [
        problem.line() for problem in of_entries.value.problems
    ]


def many_objects(count: int) -> tuple[dict, tuple[list[dict], list[dict]]]:
    """Return a data set of one image with so many objects, and results that find each of them exactly."""
    places = [[12.0 * (number % 20), 12.0 * (number // 20), 10.0, 10.0] for number in range(count)]
    document = one_object()
    document["images"] = [{"id": 6, "height": 240, "width": 240}]
    plain = {"image_id": 6, "category_id": 3, "iscrowd": 0, "area": 100.0}
    document["annotations"] = [
        {**plain, "id": number, "bbox": place, "segmentation": [rectangle(place)]}
        for number, place in enumerate(places, start=1)
    ]
    owner = {"image_id": 6, "category_id": 3}
    boxes = [{**owner, "bbox": place, "score": 0.9} for place in places]
    masks = [{**owner, "segmentation": mask_code(place, (240, 240)), "score": 0.9} for place in places]
    return document, (boxes, masks)


@BOTH_ENGINES
@pytest.mark.parametrize(("objects", "limit"), [*((150, limit) for limit in (100, 150, 120, 400, 11)), (40, 20)])
def test_only_the_best_detections_of_an_image_count(write_truth, engine, objects, limit):
    document, results = many_objects(objects)
    recall, recall_of_ten = min(limit, objects) / objects, 10 / objects
    scores = score(write_truth(document), *results, engine=engine, max_detections=limit)
    assert scores.max_detections == limit and stat_names(limit)[8] == f"AR with {limit} detections"
    for stats in (scores.box_stats, scores.mask_stats):
        assert stats[8] == pytest.approx(recall) and stats[7] == pytest.approx(recall_of_ten)
        assert stats[6] == pytest.approx(1 / objects)
        points = np.linspace(0, 1, 101)  # precision is 1 up to the recall that is reached
        assert stats[0] == stats[1] == stats[2] == stats[3] == pytest.approx((points <= recall + 1e-12).mean())
        assert stats[4] == stats[5] == -1.0


@SEEDS
@BOTH_ENGINES
def test_the_own_summary_is_that_of_the_engines(synthetic, monkeypatch, seed, engine):
    truth, results = synthetic(seed)
    theirs = score(truth, *results, engine=engine)
    monkeypatch.setattr(scores_module, "COCO_DETECTIONS", 0)  # no number is theirs now
    own = score(truth, *results, engine=engine, max_detections=100)
    assert own.box_stats == theirs.box_stats and own.mask_stats == theirs.mask_stats
    assert len(set(own.box_stats)) > 8


TRAINED = {1: "cat", 3: "kind 3", 7: "kind 7", 8: "kind 8", UNSEEN: f"kind {UNSEEN}", UNFOUND: f"kind {UNFOUND}"}


@BOTH_ENGINES
@SEEDS
def test_categories_without_ground_truth_change_no_number(tmp_path, write_truth, engine, seed):
    data_set = synthetic_data_set(seed)
    results = synthetic_results(data_set, seed)
    plain = score(write_truth(data_set), *results, engine=engine)
    own = {entry["id"]: entry["name"] for entry in data_set["categories"] if entry["id"] != UNSEEN}
    data_set["categories"] = [{"id": identity, "name": name} for identity, name in own.items()]
    (tmp_path / "fewer.json").write_text(json.dumps(data_set))
    match = match_categories(TRAINED, own, source="weights", file="fewer.json", by_name=False)
    truth = GroundTruth(tmp_path / "fewer.json", categories=match)
    more = [[*of_kind, {**of_kind[0], "category_id": 1, "score": 0.99}] for of_kind in results]
    fewer = score(truth, *more, engine=engine)
    assert fewer.box_stats == plain.box_stats and fewer.mask_stats == plain.mask_stats
    assert fewer.box_ap_per_category == {"cat": None, **plain.box_ap_per_category}


@BOTH_ENGINES
def test_ground_truth_matched_by_name_gives_the_same_numbers(tmp_path, write_truth, engine):
    data_set = synthetic_data_set(2)
    results = synthetic_results(data_set, 2)
    plain = score(write_truth(data_set), *results, engine=engine)
    trained = {entry["id"]: entry["name"] for entry in data_set["categories"]}
    number_of = dict(zip(trained, (7, 3, UNFOUND, 8, 1), strict=True))
    for entry in data_set["categories"]:
        entry["id"] = number_of[entry["id"]]
    for entry in data_set["annotations"]:
        entry["category_id"] = number_of[entry["category_id"]]
    found = {entry["id"]: entry["name"] for entry in data_set["categories"]}
    (tmp_path / "moved.json").write_text(json.dumps(data_set))
    match = match_categories(trained, found, source="weights", file="moved.json", by_name=True)
    moved = score(GroundTruth(tmp_path / "moved.json", categories=match), *results, engine=engine)
    assert moved.box_stats == plain.box_stats and moved.mask_ap_per_category == plain.mask_ap_per_category
