"""What is refused, each with its entry, field and value."""

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
    triangle,
    with_annotation,
    write_json,
)
from pycocotools import mask

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.errors import DataError

AREA = HEIGHT * WIDTH
NAN, INFINITY = float("nan"), float("inf")


def with_image(**changes: Any) -> dict[str, Any]:
    document = good_document()
    document["images"].append({"id": 42, "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH, **changes})
    document["annotations"].append(annotation(917, 42))
    return document


@pytest.mark.parametrize(
    "document", [good_document(), with_annotation(area=...), with_annotation(iscrowd=...), with_image()]
)
@pytest.mark.parametrize("training", [True, False])
def test_good_documents_are_read_as_they_are(tmp_path, document, training):
    assert read_coco(write_json(tmp_path, document), tmp_path, training=training).is_plain


@pytest.mark.parametrize(
    ("name", "kind", "copied"),
    [("images", "image", 20), ("annotations", "annotation", 101), ("categories", "category", 9)],
)
@pytest.mark.parametrize("value", ["the same", 2**63, -(2**63) - 1, 10**30, 3.5, True, [1], {"id": 1}, None])
def test_ids_are_whole_numbers_and_different(tmp_path, name, kind, copied, value):
    document = good_document()
    twin = {**document[name][0], "name": "other", "id": copied if value == "the same" else value}
    document[name].append(twin)
    if (name, value) == ("annotations", None):  # nothing refers to them
        assert len(read_coco(write_json(tmp_path, document), tmp_path, training=True).labels) == 4
        return
    problem = only_problem(tmp_path, document)
    if value == "the same":
        assert (problem.where, problem.field, problem.value) == (f"{kind} id {copied}", "id", str(copied))
        assert f"Two entries have this {kind} id" in problem.message
    else:
        assert problem.where == f"{kind} number {len(document[name]) - 1} of its list (from 0)"
        assert problem.field == "id" and "whole number" in problem.message


@pytest.mark.parametrize("value", [None, "", "  ", 5])
def test_a_category_without_a_name_is_refused_even_where_bad_entries_are_left_out(tmp_path, value):
    document = good_document()
    document["categories"].append({"id": 11, "name": value})
    problem = only_problem(tmp_path, document)
    assert (problem.where, problem.field) == ("category id 11", "name") and "no name" in problem.message
    with pytest.raises(DataError, match="no name"):
        read_coco(write_json(tmp_path, document), tmp_path, training=True, data=DataConfig(skip_bad=True))


def test_two_categories_with_annotations_need_two_names(tmp_path):
    document = with_annotation(category_id=11)
    document["categories"].append({"id": 11, "name": "dog"})
    problem = only_problem(tmp_path, document)
    assert (problem.where, problem.value) == ("category id 11", "'dog'") and "same name" in problem.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("image_id", value) for value in (None, [20], True, {"id": 20})),
        *(("category_id", value) for value in (8, 2**70, "8", "dog", None, 7.5)),
        *(("iscrowd", value) for value in (2, -1, "no", 0.5, [0], {})),
        *(("bbox", value) for value in ([1, 2, 3], [1, 2, 3, 4, 5], {"x": 1}, "1 2 3 4", 5)),
    ],
)
def test_a_field_of_an_annotation_that_cannot_be_used_is_named(tmp_path, field, value):
    problem = only_problem(tmp_path, with_annotation(**{field: value}))
    assert (problem.where, problem.field) == ("annotation id 918", field)
    assert problem.value == ("missing" if value is None else repr(value))


@pytest.mark.parametrize(
    ("box", "field", "fact"),
    [
        ([1, 2, -3, 4], "bbox[2]", "width is negative"),
        ([1, 2, 3, -0.5], "bbox[3]", "height is negative"),
        ([NAN, 2, 3, 4], "bbox[0]", "finite"),
        ([1, -INFINITY, 3, 4], "bbox[1]", "finite"),
        ([1, 2, 3, "four"], "bbox[3]", "finite"),
        ([1, 2, True, 4], "bbox[2]", "finite"),
        ([1, 2, 3, 10**400], "bbox[3]", "finite"),
        ([1e8, 2, 3, 4], "bbox[0]", "far outside"),
    ],
)
def test_a_box_that_cannot_be_used_is_named_with_its_number(tmp_path, box, field, fact):
    problem = only_problem(tmp_path, with_annotation(bbox=box))
    assert (problem.where, problem.field) == ("annotation id 918", field) and fact in problem.message


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("polygon", "fact"),
    [
        ([1, 2, 3, 4, 5, 6, 7], "odd count of numbers (7)"),
        ([1, 2, 3, 4, 5, NAN], "finite"),
        ([1, 2, 3, 4, -INFINITY, 6], "finite"),
        ([1, 2, 3, 4, 5, 1e300], "far outside"),
        ([1, 2, 3, -1e8, 5, 6], "far outside"),
    ],
)
def test_a_polygon_that_cannot_be_used_is_named_with_its_position(tmp_path, polygon, fact, training):
    document = with_annotation(segmentation=[triangle(1, 1), polygon])
    problem = only_problem(tmp_path, document, training=training)
    assert (problem.where, problem.field, problem.value) == ("annotation id 918", "segmentation[1]", repr(polygon))
    assert fact in problem.message


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "outline",
    [5, [1, 2, 3, 4, 5, 6], [["one", "two"]], [None], [[1, 2], [3, 4], [5, 6]], "polygon", [[[1, 2], [3, 4]]]],
)
@pytest.mark.parametrize("box", [[5, 5, 10, 10], None])
def test_an_outline_that_cannot_be_read_is_named(tmp_path, outline, box, training):
    problem = problems_of(tmp_path, with_annotation(segmentation=outline, bbox=box), training=training)[0]
    assert (problem.where, problem.field) == ("annotation id 918", "segmentation")
    assert "[[x1, y1" in problem.fix


@pytest.mark.parametrize(
    ("size", "counts", "field", "fact"),
    [
        ([HEIGHT, WIDTH], [1, 2, 3], "counts", "sum to 6"),
        ([HEIGHT, WIDTH], [AREA, 1], "counts", f"sum to {AREA + 1}"),
        ([HEIGHT, WIDTH], [-1, AREA + 1], "counts", "no run lengths"),
        ([HEIGHT, WIDTH], [0.5, AREA - 0.5], "counts", "no run lengths"),
        ([HEIGHT, WIDTH], None, "counts", "no run lengths"),
        ([HEIGHT, WIDTH], "oo", "counts", "no run lengths"),  # ends inside a number
        ([HEIGHT, WIDTH], "\u00e9", "counts", "no run lengths"),
        ([HEIGHT, WIDTH], "b'abc'", "counts", "as Python shows bytes"),
        ([WIDTH, HEIGHT], [AREA], "size", "swapped"),
        (None, [AREA], "size", "[height, width]"),
    ],
)
@pytest.mark.parametrize("changes", [{"iscrowd": 0}, {"iscrowd": 1}, {"iscrowd": 1, "bbox": None}])
def test_a_mask_whose_runs_do_not_fill_the_image_is_named(tmp_path, size, counts, field, fact, changes):
    document = with_annotation(segmentation={"size": size, "counts": counts}, **changes)
    for training in (True, False):
        problem = problems_of(tmp_path, document, training=training)[0]
        assert (problem.where, problem.field) == ("annotation id 918", f"segmentation.{field}")
        assert fact in problem.message


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_compressed_runs_are_read_as_pycocotools_writes_them(tmp_path, density):
    pixels = np.asfortranarray(np.random.default_rng(0).random((HEIGHT, WIDTH)) < density, np.uint8)
    counts = mask.encode(pixels)["counts"].decode()
    document = with_annotation(iscrowd=1, segmentation={"size": [HEIGHT, WIDTH], "counts": counts})
    assert read_coco(write_json(tmp_path, document), tmp_path, training=False).is_plain


@pytest.mark.parametrize("value", ["five", -1, NAN, [5], True])
def test_evaluation_alone_refuses_an_area_that_is_none(tmp_path, value):
    if value is not NAN:  # which is no JSON
        assert read_coco(write_json(tmp_path, with_annotation(area=value)), tmp_path, training=True)
    problem = only_problem(tmp_path, with_annotation(area=value), training=False)
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


@pytest.mark.parametrize("name", ["images", "categories", "annotations"])
def test_an_empty_list_is_named(tmp_path, name):
    document = good_document() | {name: []}
    problem = problems_of(tmp_path, document)[0]
    assert (problem.where, problem.field) == ("top level", name)
    if name == "annotations":
        assert len(read_coco(write_json(tmp_path, document), tmp_path, training=False).labels) == 0


@pytest.mark.parametrize(
    ("entry", "fact"),
    [({"caption": "a dog"}, "captions"), (annotation(0, 10, segmentation=[]), "none has an outline")],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_file_without_outlines_gets_one_problem(tmp_path, entry, fact, training):
    document = good_document()
    document["annotations"] = [{**entry, "id": number, "image_id": 10} for number in range(600)]
    problem = only_problem(tmp_path, document, training=training)
    assert (problem.field, problem.value) == ("segmentation", "600 annotations") and fact in problem.message


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
    document["images"].append({"id": 42, "file_name": "", "height": HEIGHT, "width": WIDTH})
    index = read_coco(write_json(tmp_path, document), tmp_path, training=True, data=DataConfig(skip_bad=True))
    np.testing.assert_array_equal(index.image_ids, [10, 20])
    assert len(index.labels) == 3
    for expected in (
        "1 images left out (data.skip_bad=true), file_name: This is no file name. (first ids: 42)",
        "1 annotations left out (data.skip_bad=true), bbox: The width is negative. (first ids: 918)",
        "1 annotations left out (data.skip_bad=true), bbox: The height is negative. (first ids: 919)",
        "1 annotations of images that were left out: left out too (first ids: 920)",
    ):
        assert expected in index.notices


def test_of_two_images_with_one_id_the_first_counts(tmp_path):
    document = good_document()
    document["images"].append({"id": 10, "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH + 1})
    index = read_coco(write_json(tmp_path, document), tmp_path, training=False, data=DataConfig(skip_bad=True))
    np.testing.assert_array_equal(index.sizes_hw, [[HEIGHT, WIDTH]] * 2)
    assert len(index.labels) == 3 and any("Two entries have this image id" in notice for notice in index.notices)


def test_where_only_bad_entries_are_found_nothing_remains(tmp_path):
    document = good_document() | {"annotations": [annotation(1, 10, bbox=[1, 2, -3, 4])]}
    with pytest.raises(DataError, match="Nothing is in the list"):
        read_coco(write_json(tmp_path, document), tmp_path, training=True, data=DataConfig(skip_bad=True))
