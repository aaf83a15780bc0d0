from typing import Any

import numpy as np
import pytest
from coco_folder import HEIGHT, WIDTH, annotation, good_document, triangle, write_json
from pycocotools import mask

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.errors import DataError

AREA = HEIGHT * WIDTH


def problems_of(folder, document, *, training: bool = True):
    path = write_json(folder, document)
    try:
        read_coco(path, folder, training=training)
    except DataError as error:
        for problem in error.problems:
            assert problem.file == str(path)
            assert all((problem.where, problem.field, problem.value, problem.message, problem.fix))
        return error.problems
    return []


def only_problem(folder, document, *, training: bool = True):
    problems = problems_of(folder, document, training=training)
    assert len(problems) == 1, problems
    return problems[0]


def with_annotation(**changes: Any) -> dict[str, Any]:
    """Return a document whose annotation 918, on an image with other objects, is the good one with changes."""
    document = good_document()
    document["annotations"].append(annotation(918, changes.pop("image_id", 20), **changes))
    return document


@pytest.mark.parametrize("training", [True, False])
def test_the_good_document_has_no_problems(tmp_path, training):
    assert problems_of(tmp_path, good_document(), training=training) == []


@pytest.mark.parametrize(
    ("name", "kind", "copied"),
    [("images", "image", 20), ("annotations", "annotation", 101), ("categories", "category", 9)],
)
def test_a_duplicate_id_is_named(tmp_path, name, kind, copied):
    document = good_document()
    twin = dict(document[name][0])
    if name == "categories":
        twin["name"] = "other"
    document[name].append(twin)
    problem = only_problem(tmp_path, document)
    assert (problem.where, problem.field, problem.value) == (f"{kind} id {copied}", "id", str(copied))
    assert problem.message == f"Two entries have this {kind} id."


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30, 3.5, True, [1], {"id": 1}])
def test_an_id_that_can_be_none_is_named(tmp_path, name, value):
    document = good_document()
    row = dict(document[name][0])
    row.update(id=value, name="other") if name == "categories" else row.update(id=value)
    document[name].append(row)
    if name == "categories":
        document["annotations"].append(annotation(105, 20, category_id=7))
    problem = only_problem(tmp_path, document)
    kind = {"images": "image", "annotations": "annotation", "categories": "category"}[name]
    assert problem.where == f"{kind} number {len(document[name]) - 1} of its list (from 0)"
    assert problem.field == "id"
    assert "whole number" in problem.message


@pytest.mark.parametrize("name", ["images", "categories"])
def test_an_id_that_is_missing_is_named(tmp_path, name):
    document = good_document()
    document[name].append({**document[name][0], "id": None, "name": "other"})
    problem = only_problem(tmp_path, document)
    assert (problem.field, problem.value) == ("id", "missing")


@pytest.mark.parametrize("value", [None, "", "  ", 5])
def test_a_category_without_a_name_is_named(tmp_path, value):
    document = good_document()
    document["categories"].append({"id": 11, "name": value})
    problem = only_problem(tmp_path, document)
    assert (problem.where, problem.field) == ("category id 11", "name")
    assert problem.message == "The category has no name."


def test_two_categories_of_one_name_are_named(tmp_path):
    document = good_document()
    document["categories"].append({"id": 11, "name": "dog"})
    document["annotations"].append(annotation(918, 20, category_id=11))
    problem = only_problem(tmp_path, document)
    assert (problem.where, problem.value) == ("category id 11", "'dog'")
    assert problem.message == "Two categories with annotations have the same name."


@pytest.mark.parametrize("value", [None, [20], True, {"id": 20}])
def test_an_annotation_whose_image_is_no_id_is_named(tmp_path, value):
    problem = only_problem(tmp_path, with_annotation(image_id=value))
    assert (problem.where, problem.field) == ("annotation id 918", "image_id")
    assert problem.value == ("missing" if value is None else repr(value))


@pytest.mark.parametrize("value", [8, 2**70, "8", "dog", None, 7.5])
def test_an_annotation_of_an_unknown_category_is_named(tmp_path, value):
    problem = only_problem(tmp_path, with_annotation(category_id=value))
    assert (problem.where, problem.field) == ("annotation id 918", "category_id")


@pytest.mark.parametrize("value", [2, -1, "no", 0.5, [0], {}])
def test_a_crowd_mark_that_is_neither_0_nor_1_is_named(tmp_path, value):
    problem = only_problem(tmp_path, with_annotation(iscrowd=value))
    assert (problem.where, problem.field) == ("annotation id 918", "iscrowd")


def test_a_missing_crowd_mark_means_one_object(tmp_path):
    document = with_annotation(iscrowd=...)
    index = read_coco(write_json(tmp_path, document), tmp_path, training=True)
    assert len(index.labels) == 4


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, 4, 5], {"x": 1}, "1 2 3 4", 5])
def test_a_box_that_is_not_four_numbers_is_named(tmp_path, box):
    problem = only_problem(tmp_path, with_annotation(bbox=box))
    assert (problem.where, problem.field) == ("annotation id 918", "bbox")


@pytest.mark.parametrize(
    ("box", "field", "word"),
    [
        ([1, 2, -3, 4], "bbox[2]", "width is negative"),
        ([1, 2, 3, -0.5], "bbox[3]", "height is negative"),
        ([float("nan"), 2, 3, 4], "bbox[0]", "finite"),
        ([1, float("-inf"), 3, 4], "bbox[1]", "finite"),
        ([1, 2, 3, "four"], "bbox[3]", "finite"),
        ([1, 2, True, 4], "bbox[2]", "finite"),
        ([1, 2, 3, 10**400], "bbox[3]", "finite"),
        ([1e8, 2, 3, 4], "bbox[0]", "far outside"),
    ],
)
def test_a_box_that_cannot_be_used_is_named_with_its_number(tmp_path, box, field, word):
    problem = only_problem(tmp_path, with_annotation(bbox=box))
    assert (problem.where, problem.field) == ("annotation id 918", field)
    assert word in problem.message


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("ring", "word"),
    [
        ([1, 2, 3, 4, 5, 6, 7], "odd count of numbers (7)"),
        ([1, 2, 3, 4, 5, float("nan")], "finite"),
        ([1, 2, 3, 4, float("-inf"), 6], "finite"),
        ([1, 2, 3, 4, 5, 1e300], "far outside"),
        ([1, 2, 3, -1e8, 5, 6], "far outside"),
    ],
)
def test_a_polygon_that_cannot_be_used_is_named_with_its_place(tmp_path, ring, word, training):
    document = with_annotation(segmentation=[triangle(1, 1), ring])
    problem = only_problem(tmp_path, document, training=training)
    assert (problem.where, problem.field) == ("annotation id 918", "segmentation[1]")
    assert word in problem.message
    assert problem.value == repr(ring)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "outline",
    [5, [1, 2, 3, 4, 5, 6], [["one", "two"]], [None], [[1, 2], [3, 4], [5, 6]], "polygon", [[[1, 2], [3, 4]]]],
)
def test_an_outline_that_cannot_be_read_is_named(tmp_path, outline, training):
    problem = only_problem(tmp_path, with_annotation(segmentation=outline), training=training)
    assert (problem.where, problem.field) == ("annotation id 918", "segmentation")
    assert "[[x1, y1" in problem.fix


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("size", "counts", "field", "word"),
    [
        ([HEIGHT, WIDTH], [1, 2, 3], "segmentation.counts", "sum to 6"),
        ([HEIGHT, WIDTH], [AREA, 1], "segmentation.counts", f"sum to {AREA + 1}"),
        ([HEIGHT, WIDTH], [-1, AREA + 1], "segmentation.counts", "no run lengths"),
        ([HEIGHT, WIDTH], [0.5, AREA - 0.5], "segmentation.counts", "no run lengths"),
        ([HEIGHT, WIDTH], None, "segmentation.counts", "no run lengths"),
        ([HEIGHT, WIDTH], "oo", "segmentation.counts", "no run lengths"),  # ends inside a number
        ([HEIGHT, WIDTH], "\u00e9", "segmentation.counts", "no run lengths"),
        ([WIDTH, HEIGHT], [AREA], "segmentation.size", "[height, width]"),
        (None, [AREA], "segmentation.size", "[height, width]"),
    ],
)
@pytest.mark.parametrize("iscrowd", [0, 1])
def test_a_mask_whose_runs_do_not_fill_the_image_is_named(tmp_path, size, counts, field, word, training, iscrowd):
    document = with_annotation(iscrowd=iscrowd, segmentation={"size": size, "counts": counts})
    problem = only_problem(tmp_path, document, training=training)
    assert (problem.where, problem.field) == ("annotation id 918", field)
    assert word in problem.message


def test_compressed_runs_are_read_as_pycocotools_writes_them(tmp_path):
    generator = np.random.default_rng(0)
    for density in (0.02, 0.5, 1.0):
        pixels = np.asfortranarray(generator.random((HEIGHT, WIDTH)) < density, np.uint8)
        counts = mask.encode(pixels)["counts"].decode()
        document = with_annotation(iscrowd=1, segmentation={"size": [HEIGHT, WIDTH], "counts": counts})
        assert problems_of(tmp_path, document, training=False) == []


def test_a_missing_area_is_left_to_evaluation(tmp_path):
    assert problems_of(tmp_path, with_annotation(area=...), training=False) == []


@pytest.mark.parametrize("value", ["five", -1, float("nan"), [5], True])
def test_evaluation_refuses_an_area_that_is_none(tmp_path, value):
    document = with_annotation(area=value)
    problem = only_problem(tmp_path, document, training=False)
    assert (problem.where, problem.field) == ("annotation id 918", "area")


@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize("value", [None, 0, -1, 640.5, "wide", 2**40, True])
def test_an_image_without_a_proper_size_is_named(tmp_path, side, value):
    document = good_document()
    extra = {"id": 42, "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH}
    extra[side] = value
    document["images"].append(extra)
    document["annotations"].append(annotation(918, 42))
    problem = only_problem(tmp_path, document)
    assert (problem.where, problem.field) == ("image id 42", side)
    assert problem.value == ("missing" if value is None else repr(value))


@pytest.mark.parametrize("name", [None, "", " ", 7, "a\0b.jpg"])
def test_an_image_without_a_file_name_is_named(tmp_path, name):
    document = good_document()
    document["images"].append({"id": 42, "file_name": name, "height": HEIGHT, "width": WIDTH})
    assert only_problem(tmp_path, document).message == "This is no file name."


@pytest.mark.parametrize("name", ["images", "categories", "annotations"])
def test_an_empty_list_is_named(tmp_path, name):
    document = good_document()
    document[name] = []
    problems = problems_of(tmp_path, document)
    assert (problems[0].where, problems[0].field, problems[0].message) == ("top level", name, "Nothing is in the list.")


def test_evaluation_does_without_annotations(tmp_path):
    document = good_document()
    document["annotations"] = []
    assert problems_of(tmp_path, document, training=False) == []


def test_captions_are_told_apart_in_one_message(tmp_path):
    document = good_document()
    document["annotations"] = [{"id": k, "image_id": 10, "caption": "a dog"} for k in range(5)]
    assert "captions" in only_problem(tmp_path, document).message


def test_a_file_of_boxes_alone_gets_one_sentence(tmp_path):
    document = good_document()
    document["annotations"] = [annotation(k, 10, segmentation=[]) for k in range(6000)]
    for training in (True, False):
        problem = only_problem(tmp_path, document, training=training)
        assert (problem.field, problem.value) == ("segmentation", "6000 annotations")
        assert "none has an outline" in problem.message


def test_all_problems_come_in_one_pass(tmp_path):
    odd = [1, 2, 3, 4, 5, 6, 7]
    document = with_annotation(bbox=[1, 2, -3, -4], category_id=1, segmentation=[odd, triangle(1, 1), odd])
    document["categories"].append({"id": 12, "name": ""})
    document["images"].append({"id": 42, "file_name": "", "height": 0, "width": WIDTH})
    found = {(problem.where, problem.field) for problem in problems_of(tmp_path, document)}
    assert found == {
        ("image id 42", "height"),
        ("image id 42", "file_name"),
        ("category id 12", "name"),
        ("annotation id 918", "category_id"),
        ("annotation id 918", "bbox[2]"),
        ("annotation id 918", "bbox[3]"),
        ("annotation id 918", "segmentation[0]"),
        ("annotation id 918", "segmentation[2]"),
    }


def test_bad_entries_are_left_out_where_that_is_wanted(tmp_path):
    document = with_annotation(bbox=[1, 2, -3, 4])
    document["annotations"] += [annotation(919, 20, bbox=[1, 2, 3, -4]), annotation(920, 42)]
    document["images"].append({"id": 42, "file_name": "", "height": HEIGHT, "width": WIDTH})
    index = read_coco(write_json(tmp_path, document), tmp_path, training=True, data=DataConfig(skip_bad=True))
    np.testing.assert_array_equal(index.image_ids, [10, 20])
    assert len(index.labels) == 3
    text = "\n".join(index.notices)
    for expected in (
        "1 images left out (data.skip_bad=true), file_name: This is no file name. (first ids: 42)",
        "1 annotations left out (data.skip_bad=true), bbox: The width is negative. (first ids: 918)",
        "1 annotations left out (data.skip_bad=true), bbox: The height is negative. (first ids: 919)",
        "1 annotations of images that were left out: left out too (first ids: 920)",
    ):
        assert expected in text


def test_where_only_bad_entries_are_found_nothing_remains(tmp_path):
    document = good_document()
    document["annotations"] = [annotation(1, 10, bbox=[1, 2, -3, 4])]
    with pytest.raises(DataError, match="Nothing is in the list"):
        read_coco(write_json(tmp_path, document), tmp_path, training=True, data=DataConfig(skip_bad=True))


def test_a_category_at_problem_is_never_left_out(tmp_path):
    document = good_document()
    document["categories"].append({"id": 12, "name": ""})
    with pytest.raises(DataError, match="no name"):
        read_coco(write_json(tmp_path, document), tmp_path, training=True, data=DataConfig(skip_bad=True))
