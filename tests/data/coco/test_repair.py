"""Values that are not in COCO's form: refused with entry, field and value, or read with a notice."""

import json
from typing import Any

import numpy as np
import pytest
from coco_folder import (
    HEIGHT,
    WIDTH,
    annotation,
    good_document,
    only_problem,
    problems_of,
    read,
    triangle,
    with_annotation,
)
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from maskperf.data.coco.index import dataset_of

AREA = HEIGHT * WIDTH
NAN, INFINITY = float("nan"), float("inf")
SQUARE = [10.0, 8.0, 30.0, 8.0, 30.0, 28.0, 10.0, 28.0]
EDGE = [40.0, 5.0, 50.0, 5.0, 50.0, 30.0]
BOTH = pytest.mark.parametrize("training", [True, False])


def with_image(**changes: Any) -> dict[str, Any]:
    document = with_annotation(42, key=917)
    document["images"].append({"id": 42, "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH, **changes})
    return document


def with_categories(*categories: dict[str, Any], **changes: Any) -> dict[str, Any]:
    document = with_annotation(**changes) if changes else good_document()
    return document | {"categories": [*document["categories"], *categories]}


def with_image_ids(change) -> dict[str, Any]:
    """Return the good document with every image id changed, in images and annotations."""
    document = good_document()
    for rows, name in ((document["images"], "id"), (document["annotations"], "image_id")):
        for row in rows:
            row[name] = change(row[name])
    return document


def with_all_annotations(**changes: Any) -> dict[str, Any]:
    document = good_document()
    return document | {"annotations": [{**row, **changes} for row in document["annotations"]]}


def runs(counts: Any = None, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": size and list(size), "counts": counts}


def only_notice(index, fact: str) -> str:
    (found,) = (line for line in index.notices if fact in line)
    return found


def pixels_of(outline: Any) -> np.ndarray:
    """Return what pycocotools makes of one outline it takes."""
    truth = COCO()
    truth.imgs = {1: {"height": HEIGHT, "width": WIDTH}}
    return truth.annToMask({"image_id": 1, "segmentation": outline})


def compressed(pixels: np.ndarray) -> dict[str, Any]:
    return runs(coco_masks.encode(np.asfortranarray(pixels))["counts"].decode())


def uncompressed(pixels: np.ndarray) -> dict[str, Any]:
    flat = pixels.reshape(-1, order="F")
    ends = [*(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    return runs(np.diff([0, *([0] if flat[0] else []), *ends]).tolist())


MASK, OTHER = pixels_of([SQUARE]), pixels_of([EDGE])
FULL, NOISE = np.ones_like(MASK), (np.random.default_rng(0).random(MASK.shape) < 0.5).astype(np.uint8)


@BOTH
@pytest.mark.parametrize(
    "document",
    [
        *(good_document(), with_annotation(area=...), with_annotation(iscrowd=...), with_image()),
        *(with_annotation(iscrowd=1, segmentation=compressed(pixels)) for pixels in (MASK, NOISE, FULL)),
    ],
)
def test_documents_in_the_form_of_coco_are_read_as_they_are(tmp_path, document, training):
    index = read(tmp_path, document, training=training)
    assert index.is_plain
    assert dataset_of(index)["annotations"] == [{"iscrowd": 0, **row} for row in document["annotations"]]


POINTS = [[1, 2], [3, 4], [5, 6]]
REFUSED = [  # field, value, the wrong part of the value, fact
    *(("image_id", value, None, "No entry of `images`") for value in (None, [20], True, {"id": 20})),
    *(("category_id", value, None, "No entry of `categories`") for value in (8, 2**70, "8", "dog", None, 7.5)),
    *(("iscrowd", value, None, "neither 0") for value in (2, -1, "no", 0.5, [0], {})),
    *(("bbox", value, None, "width, height]") for value in ([1, 2, 3], [1, 2, 3, 4, 5], {"x": 1}, "1 2 3 4", 5)),
    ("bbox", [1, 2, -3, 4], 2, "width is negative"),
    ("bbox", [1, 2, 3, -0.5], 3, "height is negative"),
    ("bbox", [NAN, 2, 3, 4], 0, "finite"),
    ("bbox", [1, -INFINITY, 3, 4], 1, "finite"),
    ("bbox", [1, 2, 3, "four"], 3, "finite"),
    ("bbox", [1, 2, True, 4], 2, "finite"),
    ("bbox", [1, 2, 3, 10**400], 3, "finite"),
    ("bbox", [1e8, 2, 3, 4], 0, "far outside"),
    ("segmentation", [triangle(1, 1), [1, 2, 3, 4, 5, 6, 7]], 1, "odd count of numbers (7)"),
    ("segmentation", [triangle(1, 1), [1, 2, 3, 4, 5, NAN]], 1, "finite"),
    ("segmentation", [[1, 2, 3, 4, -INFINITY, 6]], 0, "finite"),
    ("segmentation", [triangle(1, 1), [1, 2, 3, 4, 5, 1e300]], 1, "far outside"),
    ("segmentation", [[1, 2, 3, -1e8, 5, 6]], 0, "far outside"),
    ("segmentation", [1, 2, 3, 4, 5, 6], None, "one flat list"),
    ("segmentation", POINTS, None, "list of points"),
    *(
        ("segmentation", value, None, "not a list of lists")
        for value in (5, [["one", "two"]], [None], "polygon", [POINTS])
    ),
    ("segmentation", runs([1, 2, 3]), "counts", "sum to 6"),
    ("segmentation", runs([AREA, 1]), "counts", f"sum to {AREA + 1}"),
    # "oo" ends inside a number
    *(
        ("segmentation", runs(counts), "counts", "no run lengths")
        for counts in ([-1, AREA + 1], [0.5], None, "oo", "\u00e9")
    ),
    ("segmentation", runs("b'abc'"), "counts", "as Python shows bytes"),
    ("segmentation", runs([AREA], (WIDTH, HEIGHT)), "size", "swapped"),
    ("segmentation", runs([AREA], None), "size", "[height, width]"),
]


@BOTH
@pytest.mark.parametrize(("field", "value", "at", "fact"), REFUSED)
def test_a_value_of_an_annotation_that_cannot_be_used_is_named(tmp_path, field, value, at, fact, training):
    part = value if at is None else value[at]
    problem = only_problem(tmp_path, with_annotation(**{field: value}), training=training)
    assert problem.where == "annotation id 918"
    assert problem.field == field + {type(None): "", int: f"[{at}]", str: f".{at}"}[type(at)]
    assert problem.value.startswith("missing" if part is None else repr(part)[:77]) and fact in problem.message
    assert field != "segmentation" or at in ("counts", "size") or "[[x1, y1" in problem.fix


@BOTH
@pytest.mark.parametrize("changes", [{"iscrowd": 1}, {"bbox": None}, {"iscrowd": 1, "bbox": None}])
@pytest.mark.parametrize("outline", [5, POINTS, [SQUARE[:-1]], runs([1, 2, 3]), runs("oo"), runs([AREA], None)])
def test_an_outline_of_a_crowd_or_beside_no_box_is_checked_too(tmp_path, outline, changes, training):
    problem = problems_of(tmp_path, with_annotation(segmentation=outline, **changes), training=training)[0]
    assert problem.where == "annotation id 918" and problem.field.startswith("segmentation")


@pytest.mark.parametrize("value", ["five", -1, NAN, [5], True])
def test_evaluation_alone_refuses_an_area_that_is_none(tmp_path, value):
    document = with_annotation(area=value)
    assert value is NAN or read(tmp_path, document)  # which is no JSON
    problem = only_problem(tmp_path, document, training=False)
    assert (problem.where, problem.field) == ("annotation id 918", "area")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((side, value) for side in ("height", "width") for value in (None, 0, -1, 640.5, "wide", 2**40, True)),
        *(("file_name", value) for value in (None, "", "  ", 5, "a\0.jpg")),
    ],
)
def test_an_image_without_a_size_or_a_name_is_named(tmp_path, field, value):
    problem = only_problem(tmp_path, with_image(**{field: value}))
    assert (problem.where, problem.field) == ("image id 42", field)


@pytest.mark.parametrize(("name", "copied"), [("images", 20), ("annotations", 101), ("categories", 9)])
@pytest.mark.parametrize("value", ["the same", 2**63, -(2**63) - 1, 10**30, 3.5, True, [1], {"id": 1}, None])
def test_ids_are_whole_numbers_and_different(tmp_path, name, copied, value):
    document = good_document()
    twin = {**document[name][0], "name": "other", "id": copied if value == "the same" else value}
    document[name].append(twin)
    if (name, value) == ("annotations", None):  # nothing refers to them
        assert len(read(tmp_path, document).labels) == 4
        return
    problem = only_problem(tmp_path, document)
    kind = {"images": "image", "annotations": "annotation", "categories": "category"}[name]
    if value == "the same":
        assert (problem.where, problem.field, problem.value) == (f"{kind} id {copied}", "id", str(copied))
        assert f"Two entries have this {kind} id" in problem.message
    else:
        assert problem.where == f"{kind} number {len(document[name]) - 1} of its list (from 0)"
        assert problem.field == "id" and "whole number" in problem.message


@pytest.mark.parametrize("options", [{}, {"skip_bad": True}])
@pytest.mark.parametrize(
    ("name", "used", "fact"),
    [*((name, {}, "no name") for name in (None, "", "  ", 5)), ("dog", {"category_id": 11}, "the same name")],
)
def test_a_category_needs_a_name_of_its_own_even_where_bad_entries_are_left_out(tmp_path, name, used, fact, options):
    problem = only_problem(tmp_path, with_categories({"id": 11, "name": name}, **used), **options)
    assert (problem.where, problem.field) == ("category id 11", "name") and fact in problem.message


@pytest.mark.parametrize("name", ["images", "categories", "annotations"])
def test_an_empty_list_is_named(tmp_path, name):
    document = good_document() | {name: []}
    problem = problems_of(tmp_path, document)[0]
    assert (problem.where, problem.field) == ("top level", name)
    assert name != "annotations" or len(read(tmp_path, document, training=False).labels) == 0


@BOTH
@pytest.mark.parametrize(
    ("entry", "field", "fact"),
    [
        ({"caption": "a dog", "image_id": 10}, "segmentation", "captions"),
        (annotation(0, 10, segmentation=[]), "segmentation", "none has an outline"),
        (annotation(0, 1010), "image_id", "No annotation belongs to an image"),
    ],
)
def test_a_file_of_another_kind_gets_one_problem(tmp_path, entry, field, fact, training):
    document = good_document() | {"annotations": [{**entry, "id": number} for number in range(600)]}
    problem = problems_of(tmp_path, document, training=training)[0]
    assert (problem.field, problem.value) == (field, "600 annotations") and fact in problem.message


def test_all_problems_come_in_one_pass(tmp_path):
    odd = [1, 2, 3, 4, 5, 6, 7]
    document = with_annotation(bbox=[1, 2, -3, -4], category_id=1, segmentation=[odd, triangle(1, 1), odd])
    document["categories"].append({"id": 12, "name": ""})
    document["images"].append({"id": 42, "file_name": "", "height": 0, "width": WIDTH})
    assert {(problem.where, problem.field) for problem in problems_of(tmp_path, document)} == {
        *(("image id 42", field) for field in ("height", "file_name")),
        ("category id 12", "name"),
        *(("annotation id 918", field) for field in ("category_id", "bbox[2]", "bbox[3]")),
        *(("annotation id 918", field) for field in ("segmentation[0]", "segmentation[2]")),
    }


def test_bad_entries_are_left_out_where_that_is_wanted(tmp_path):
    document = with_annotation(bbox=[1, 2, -3, 4])
    document["annotations"] += [annotation(919, 20, bbox=[1, 2, 3, -4]), annotation(920, 42)]
    document["images"] += [
        {"id": 42, "file_name": "", "height": HEIGHT, "width": WIDTH},
        {"id": 10, "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH + 1},  # of two with one id the first counts
    ]
    index = read(tmp_path, document, skip_bad=True)
    np.testing.assert_array_equal(index.image_ids, [10, 20])
    np.testing.assert_array_equal(index.sizes_hw, [[HEIGHT, WIDTH]] * 2)
    assert len(index.labels) == 3
    for expected in (
        "1 images left out (data.skip_bad=true), file_name: This is no file name. (first ids: 42)",
        "1 images left out (data.skip_bad=true), id: Two entries have this image id. (first ids: 10)",
        "1 annotations left out (data.skip_bad=true), bbox: The width is negative. (first ids: 918)",
        "1 annotations left out (data.skip_bad=true), bbox: The height is negative. (first ids: 919)",
        "1 annotations of images that were left out: left out too (first ids: 920)",
    ):
        assert expected in index.notices
    document = good_document() | {"annotations": [annotation(1, 10, bbox=[1, 2, -3, 4])]}
    assert "Nothing is in the list" in only_problem(tmp_path, document, skip_bad=True).message


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        lambda number: f"drone_{number}",
        lambda number: f"0{number}",
        lambda number: float(number),
        lambda number: "K\u00e4fer" if number == 10 else 20,
        lambda number: str(number),
        lambda number: "a b/c.jpg" if number == 10 else "-1",
    ],
)
def test_image_ids_of_any_kind_are_read_and_come_out_as_they_went_in(tmp_path, change, training):
    index = read(tmp_path, with_image_ids(change), training=training)
    assert sorted(index.labels.tolist()) == [1, 1, 2]
    names = {json.dumps(index.image_key(position)): index.file_names[position] for position in range(2)}
    assert names == {json.dumps(change(10)): "a.jpg", json.dumps(change(20)): "b.jpg"}
    assert change(10) != 10 or index.image_ids.tolist() == [10, 20]


def test_a_number_is_matched_with_text(tmp_path):
    document = with_image_ids(str)
    document["annotations"].append(annotation(918, 20))
    index = read(tmp_path, document)
    assert len(index.labels) == 4
    assert only_notice(index, "is a number (such as 20)").endswith("matched by value (first ids: 918)")
    assert len(read(tmp_path, with_annotation(20.0)).labels) == 4


def test_the_same_digits_as_number_and_as_text_are_two_images(tmp_path):
    document = with_annotation("20")
    document["images"].append({"id": "20", "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH})
    document["annotations"].append(annotation(919, 3))  # the place of an image in the list is no id
    index = read(tmp_path, document)
    names = {index.image_key(position): index.file_names[position] for position in range(3)}
    assert names == {20: "b.jpg", 10: "a.jpg", "20": "c.jpg"}
    assert only_notice(index, "not in `images`").endswith("(first ids: 919)")


@pytest.mark.parametrize(("key", "shown"), [("x", "x"), (None, "5"), (3.0, "3.0")])  # the fifth has no id
def test_annotation_ids_of_any_kind_are_shown_as_they_are(tmp_path, key, shown):
    notice = only_notice(read(tmp_path, with_annotation(key=key, bbox=[5, 5, 10, 0])), "zero width or height: left")
    assert notice.endswith(f"(first ids: {shown})")


@pytest.mark.parametrize("identity", ["7", 7.0, " 7"])
def test_a_category_id_that_stands_for_a_number_is_read(tmp_path, identity):
    document = good_document()
    document["categories"][1]["id"] = identity
    index = read(tmp_path, document)
    assert index.category_ids.tolist() == [7, 9] and len(index.labels) == 3


@BOTH
def test_sides_and_boxes_and_outlines_written_as_text_are_read(tmp_path, training):
    polygon = [str(value) for value in triangle(5, 5)]
    document = with_annotation(bbox=["5", "5.0", "10", " 10 "], segmentation=[polygon], area="50")
    document["images"][0].update(height=str(HEIGHT), width=float(WIDTH))
    index = read(tmp_path, document, training=training)
    np.testing.assert_array_equal(index.boxes[-1], [5, 5, 14, 14])
    np.testing.assert_array_equal(index.points[-3:].reshape(-1), triangle(5, 5))
    for fact in ("a height such as", "a width such as", "box whose numbers are text", "outline whose numbers are text"):
        assert only_notice(index, fact)


@BOTH
@pytest.mark.parametrize(
    ("outline", "expected"),
    [
        (compressed(MASK), MASK),
        (uncompressed(MASK), MASK),
        ([compressed(MASK)], MASK),
        ([uncompressed(MASK)], MASK),
        ([compressed(MASK), uncompressed(OTHER)], MASK | OTHER),
        ([EDGE, compressed(MASK)], MASK | OTHER),
        ({**uncompressed(MASK), "size": [float(HEIGHT), float(WIDTH)]}, MASK),
        ({**compressed(MASK), "size": [str(HEIGHT), str(WIDTH)]}, MASK),
        (runs([float(run) for run in uncompressed(MASK)["counts"]]), MASK),
        (uncompressed(FULL), FULL),
    ],
)
def test_run_lengths_of_every_form_are_masks(tmp_path, outline, expected, training):
    index = read(tmp_path, with_annotation(bbox=[10, 8, 20, 20], segmentation=outline), training=training)
    ends = index.run_ends[index.run_offsets[-2] : index.run_offsets[-1]]
    flat = np.zeros(AREA, np.uint8)
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        flat[start:end] = 1
    np.testing.assert_array_equal(flat.reshape((HEIGHT, WIDTH), order="F"), expected)
    np.testing.assert_array_equal(pixels_of(entry_of(index)["segmentation"]), expected)


def entry_of(index, key: int = 918) -> dict[str, Any]:
    return {entry["id"]: entry for entry in dataset_of(index)["annotations"]}[key]


IN_TEXT, NO_IMAGE = "image_id is text (such as", "annotations belong to images that are not in `images`: left out"
SHORT, NO_OUTLINE = "polygons of fewer than three points beside others", "no outline of three points or more: left out"
NO_BOX = "annotations have no box: taken from their outline"
OUTLINES = [[SQUARE], compressed(MASK), uncompressed(MASK)]
EMPTY = [..., None, [], "", [[]], [[1, 2, 3, 4]], [[1, 2], [3, 4, 5]], uncompressed(0 * MASK)]
READ = [  # changes, notice, whether the annotation stays in the list, some fields as they are read
    *(({"iscrowd": value}, "iscrowd=", True, {"iscrowd": 0}) for value in (None, False, 0.0, "0")),
    *(({"iscrowd": value}, "iscrowd=", True, {"iscrowd": 1}) for value in (True, "1", 1.0)),
    *(({"image_id": value}, f'{IN_TEXT} "{value}")', True, {"image_id": 20}) for value in ("20", " 20 ", "020")),
    *(({"image_id": value}, NO_IMAGE, False, {}) for value in (99, "99", 2**70, "nobody", 20.5)),
    *(({"segmentation": outline}, NO_OUTLINE, False, {}) for outline in EMPTY),
    *(
        ({"segmentation": [polygon, SQUARE]}, SHORT, True, {"segmentation": [SQUARE]})
        for polygon in ([], [1, 2], [1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4, 5])
    ),
    *(
        ({"bbox": missing, "segmentation": outline}, NO_BOX, True, {"bbox": [10, 8, 20, 20]})
        for missing in (..., None, [])
        for outline in OUTLINES
    ),
    ({"bbox": None, "segmentation": [SQUARE, triangle(1, 1)]}, NO_BOX, True, {"bbox": [1, 1, 29, 27]}),
]


@BOTH
@pytest.mark.parametrize(("changes", "fact", "stays", "fields"), READ)
def test_what_has_a_plain_meaning_is_read_with_a_count(tmp_path, changes, fact, stays, fields, training):
    index = read(tmp_path, with_annotation(**changes), training=training)
    assert only_notice(index, fact).endswith("(first ids: 918)")
    assert len(index.labels) == 3 + (stays and fields.get("iscrowd") != 1)
    assert [entry["id"] for entry in dataset_of(index)["annotations"]] == [101, 102, 103, 104] + stays * [918]
    assert not stays or entry_of(index).items() >= fields.items()


@pytest.mark.parametrize("outline", [*EMPTY, {}, 0, False])
def test_a_crowd_without_an_outline_is_no_matter_in_training(tmp_path, outline):
    index = read(tmp_path, with_annotation(iscrowd=1, segmentation=outline))
    assert len(index.labels) == 3 and index.notices[0].startswith("2 of 5 annotations are crowd regions")


THINGS = {"supercategory": "none"}


@BOTH
@pytest.mark.parametrize(
    ("extra", "is_placeholder"),
    [
        ([{"id": 0, "name": "cup", **THINGS}], True),  # an unused one with the name of a real one
        ([{"id": 0, "name": "things", **THINGS}], True),  # the supercategory of the real ones
        ([{"id": 0, "name": "_background_"}], True),
        ([{"id": 0, "name": "Background"}, {"id": 1, "name": "dog"}], True),
        ([{"id": 1, "name": "cat"}], False),
        ([{"id": 8, "name": "things", **THINGS}], False),  # used
    ],
)
def test_unused_placeholder_categories_are_left_out(tmp_path, extra, is_placeholder, training):
    is_used = extra[0]["id"] == 8
    document = with_annotation(category_id=8) if is_used else good_document()
    document["categories"] = [*extra, *({**row, "supercategory": "things"} for row in document["categories"])]
    index = read(tmp_path, document, training=training)
    ids = [entry["id"] for entry in dataset_of(index)["categories"]]
    if is_placeholder:
        assert index.category_names == ("dog", "cup") and ids == [9, 7]
        np.testing.assert_array_equal(index.labels, [1, 2, 1])
        assert only_notice(index, "placeholder").startswith(f"{len(extra)} categories")
    else:
        assert ids == [extra[0]["id"], 9, 7]
        text = f"1 of 3 categories have no annotation: {extra[0]['name']}"
        assert (text in index.notices) == (training and not is_used)


def test_many_crowds_name_the_likely_mistake_and_the_option(tmp_path):
    document = with_all_annotations(iscrowd=1)
    problem = only_problem(tmp_path, document)
    assert "All 4 annotations are crowd regions (iscrowd=1)" in problem.message and "brush" in problem.message
    assert "data.crowd_as_objects=true" in problem.fix
    document["annotations"][1]["iscrowd"] = 0
    index = read(tmp_path, document)
    assert index.image_ids.tolist() == [10]
    line = only_notice(index, "crowd regions and are not trained on")
    assert line.startswith("3 of 4 annotations") and "data.crowd_as_objects=true" in line


@BOTH
def test_crowds_are_read_as_objects_where_that_is_wanted(tmp_path, training):
    index = read(tmp_path, with_all_annotations(iscrowd=1), training=training, crowd_as_objects=True)
    assert len(index.labels) == 4
    assert only_notice(index, "read as objects").startswith("4 annotations")
    assert {entry["iscrowd"] for entry in dataset_of(index)["annotations"]} == {0}


@pytest.mark.parametrize("field", ["coco_url", "flickr_url"])
def test_a_url_takes_the_place_of_a_missing_file_name(tmp_path, field):
    document = good_document()
    document["images"][0] |= {field: "http://images.example.org/train2017/b%20c.jpg", "file_name": None}
    index = read(tmp_path, document)
    assert index.file_names[1] == document["images"][0][field]
    assert "URL" in only_notice(index, "no file_name")


def test_a_test_set_may_lack_annotations_and_categories(tmp_path):
    document = {"images": good_document()["images"]}
    index = read(tmp_path, document, training=False, is_test_set=True)
    assert (len(index.image_ids), len(index.labels), len(index.category_ids)) == (2, 0, 0)
    assert any("--save-detections" in problem.fix for problem in problems_of(tmp_path, document, training=False))
