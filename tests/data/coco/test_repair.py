"""What is read although it is not in COCO's form, each with its notice, and the neighbours that are not."""

import json
from typing import Any

import numpy as np
import pytest
from coco_folder import HEIGHT, WIDTH, annotation, good_document, triangle, with_annotation, write_json
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from maskperf.config import DataConfig
from maskperf.data.coco.index import dataset_of, read_annotations, read_coco
from maskperf.errors import DataError

SQUARE = [10.0, 8.0, 30.0, 8.0, 30.0, 28.0, 10.0, 28.0]


@pytest.fixture
def read(tmp_path):
    def read_document(document, *, training: bool = True, **options: Any):
        return read_coco(write_json(tmp_path, document), tmp_path, training=training, data=DataConfig(**options))

    return read_document


def with_ids(change) -> dict[str, Any]:
    """Return the good document with every image id changed, in both places."""
    document = good_document()
    for row in document["images"]:
        row["id"] = change(row["id"])
    for row in document["annotations"]:
        row["image_id"] = change(row["image_id"])
    return document


def only_notice(index, fact: str) -> str:
    (found,) = (line for line in index.notices if fact in line)
    return found


def pixels_of(outline: Any) -> np.ndarray:
    """Return what pycocotools makes of one outline it takes."""
    truth = COCO()
    truth.imgs = {1: {"height": HEIGHT, "width": WIDTH}}
    return truth.annToMask({"image_id": 1, "segmentation": outline})


def compressed(pixels: np.ndarray) -> dict[str, Any]:
    code = coco_masks.encode(np.asfortranarray(pixels))
    return {"size": code["size"], "counts": code["counts"].decode()}


def uncompressed(pixels: np.ndarray) -> dict[str, Any]:
    flat = pixels.reshape(-1, order="F")
    ends = [*(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *([0] if flat[0] else []), *ends]).tolist()}


@pytest.mark.parametrize("training", [True, False])
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
def test_image_ids_of_any_kind_are_read_and_come_out_as_they_went_in(read, change, training):
    index = read(with_ids(change), training=training)
    assert sorted(index.labels.tolist()) == [1, 1, 2]
    names = {json.dumps(index.image_key(position)): index.file_names[position] for position in range(2)}
    assert names == {json.dumps(change(10)): "a.jpg", json.dumps(change(20)): "b.jpg"}
    if change(10) == 10:
        np.testing.assert_array_equal(index.image_ids, [10, 20])


@pytest.mark.parametrize(
    ("document", "fact"),
    [
        *((with_annotation(reference), "image_id is text") for reference in ("20", " 20 ", "020")),
        (with_annotation(20.0), None),
        (with_ids(str) | {"annotations": [*with_ids(str)["annotations"], annotation(918, 20)]}, "is a number"),
    ],
)
def test_a_reference_by_another_kind_of_value_is_matched(read, document, fact):
    index = read(document)
    assert len(index.labels) == 4
    if fact:
        notice = only_notice(index, "matched by value")
        assert fact in notice and notice.endswith("(first ids: 918)")
        assert f"such as {json.dumps(document['annotations'][-1]['image_id'])}" in notice


def test_the_same_digits_as_number_and_as_text_are_two_images(read):
    document = with_annotation("20")
    document["images"].append({"id": "20", "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH})
    index = read(document)
    names = {index.image_key(position): index.file_names[position] for position in range(3)}
    assert names == {20: "b.jpg", 10: "a.jpg", "20": "c.jpg"}


@pytest.mark.parametrize(("key", "shown"), [("x", "x"), (None, "5"), (3.0, "3.0")])  # the fifth has no id
def test_annotation_ids_of_any_kind_are_shown_as_they_are(read, key, shown):
    notice = only_notice(read(with_annotation(key=key, bbox=[5, 5, 10, 0])), "zero width or height: left")
    assert notice.endswith(f"(first ids: {shown})")


@pytest.mark.parametrize("identity", ["7", 7.0, " 7"])
def test_a_category_id_that_stands_for_a_number_is_read(read, identity):
    document = good_document()
    document["categories"][1]["id"] = identity
    index = read(document)
    np.testing.assert_array_equal(index.category_ids, [7, 9])
    assert len(index.labels) == 3


@pytest.mark.parametrize(
    ("value", "is_object"), [(None, 1), (False, 1), (0.0, 1), ("0", 1), (True, 0), ("1", 0), (1.0, 0)]
)
def test_crowd_marks_of_plain_meaning_are_read(read, value, is_object):
    index = read(with_annotation(iscrowd=value))
    assert len(index.labels) == 3 + is_object
    assert "iscrowd=" in only_notice(index, "read as")


@pytest.mark.parametrize("training", [True, False])
def test_sides_and_boxes_and_outlines_written_as_text_are_read(read, training):
    polygon = [str(value) for value in triangle(5, 5)]
    document = with_annotation(bbox=["5", "5.0", "10", " 10 "], segmentation=[polygon], area="50")
    document["images"][0].update(height=str(HEIGHT), width=float(WIDTH))
    index = read(document, training=training)
    assert len(index.labels) == 4
    np.testing.assert_array_equal(index.boxes[-1], [5, 5, 14, 14])
    np.testing.assert_array_equal(index.points[-3:].reshape(-1), triangle(5, 5))
    for fact in ("a height such as", "a width such as", "box whose numbers are text", "outline whose numbers are text"):
        assert only_notice(index, fact)


MASK = pixels_of([SQUARE])
OTHER = pixels_of([[40.0, 5.0, 50.0, 5.0, 50.0, 30.0]])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("outline", "expected"),
    [
        (compressed(MASK), MASK),
        (uncompressed(MASK), MASK),
        ([compressed(MASK)], MASK),
        ([uncompressed(MASK)], MASK),
        ([compressed(MASK), uncompressed(OTHER)], MASK | OTHER),
        ([[40.0, 5.0, 50.0, 5.0, 50.0, 30.0], compressed(MASK)], MASK | OTHER),
        ({"size": [float(HEIGHT), float(WIDTH)], "counts": uncompressed(MASK)["counts"]}, MASK),
        ({"size": [str(HEIGHT), str(WIDTH)], "counts": compressed(MASK)["counts"]}, MASK),
        ({"size": [HEIGHT, WIDTH], "counts": [float(run) for run in uncompressed(MASK)["counts"]]}, MASK),
        (uncompressed(np.ones((HEIGHT, WIDTH), np.uint8)), np.ones((HEIGHT, WIDTH), np.uint8)),
    ],
)
def test_run_lengths_of_every_form_are_masks(read, outline, expected, training):
    index = read(with_annotation(bbox=[10, 8, 20, 20], segmentation=outline), training=training)
    ends = index.run_ends[index.run_offsets[-2] : index.run_offsets[-1]]
    flat = np.zeros(HEIGHT * WIDTH, np.uint8)
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        flat[start:end] = 1
    np.testing.assert_array_equal(flat.reshape((HEIGHT, WIDTH), order="F"), expected)
    if not training:
        (entry,) = (entry for entry in dataset_of(index)["annotations"] if entry["id"] == 918)
        np.testing.assert_array_equal(pixels_of(entry["segmentation"]), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("polygon", [[], [1, 2], [1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4, 5]])
def test_a_short_polygon_beside_good_ones_is_dropped_with_a_count(read, polygon, training):
    index = read(with_annotation(segmentation=[polygon, triangle(5, 5)]), training=training)
    assert np.diff(index.polygon_offsets).tolist() == [1, 2, 1, 1]
    assert only_notice(index, "fewer than three points beside").endswith("(first ids: 918)")
    (row,) = (row for row in read_annotations(index).annotations if row.id == 918)
    assert json.loads(bytes(row.segmentation)) == [triangle(5, 5)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        *(
            ({"segmentation": outline}, "no outline")
            for outline in (..., None, [], "", [[]], [[1, 2, 3, 4]], [[1, 2], [3, 4, 5]], uncompressed(0 * MASK))
        ),
        *(({"image_id": reference}, "not in `images`") for reference in (99, "99", 2**70, "nobody", 20.5)),
    ],
)
def test_an_annotation_without_outline_or_image_is_left_out_with_a_count(read, changes, fact, training):
    index = read(with_annotation(**changes), training=training)
    assert len(index.labels) == 3
    assert only_notice(index, fact).endswith("left out (first ids: 918)")
    assert [entry["id"] for entry in dataset_of(index)["annotations"]] == [101, 102, 103, 104]


@pytest.mark.parametrize("missing", [..., None, []])
@pytest.mark.parametrize("outline", [[SQUARE], compressed(MASK), uncompressed(MASK), [SQUARE, triangle(1, 1)]])
def test_a_missing_box_is_derived_from_the_outline(read, outline, missing):
    index = read(with_annotation(bbox=missing, segmentation=outline))
    low = (1.0, 1.0) if len(outline) == 2 and isinstance(outline, list) else (10.0, 8.0)
    np.testing.assert_array_equal(index.boxes[-1], [*low, 29, 27])
    assert only_notice(index, "no box").endswith("(first ids: 918)")


def test_annotations_of_other_images_alone_are_an_error(read):
    document = good_document()
    for row in document["annotations"]:
        row["image_id"] += 1000
    with pytest.raises(DataError, match="No annotation belongs to an image"):
        read(document)


@pytest.mark.parametrize(
    ("extra", "is_placeholder"),
    [
        ([{"id": 0, "name": "cup", "supercategory": "none"}], True),  # an unused one with the name of a real one
        ([{"id": 0, "name": "things", "supercategory": "none"}], True),  # the supercategory of the real ones
        ([{"id": 0, "name": "_background_"}], True),
        ([{"id": 0, "name": "Background"}, {"id": 1, "name": "dog"}], True),
        ([{"id": 1, "name": "cat"}], False),
        ([{"id": 8, "name": "things", "supercategory": "none"}], False),  # used
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_unused_placeholder_categories_are_left_out(read, extra, is_placeholder, training):
    document = good_document()
    for row in document["categories"]:
        row["supercategory"] = "things"
    document["categories"] = [*extra, *document["categories"]]
    if extra[0]["id"] == 8:
        document["annotations"].append(annotation(918, 20, category_id=8))
    index = read(document, training=training)
    ids = [entry["id"] for entry in dataset_of(index)["categories"]]
    if is_placeholder:
        assert index.category_names == ("dog", "cup") and ids == [9, 7]
        np.testing.assert_array_equal(index.labels, [1, 2, 1])
        assert only_notice(index, "placeholder").startswith(f"{len(extra)} categories")
    else:
        assert ids == [extra[0]["id"], 9, 7]
        text = f"1 of 3 categories have no annotation: {extra[0]['name']}"
        assert (text in index.notices) == (training and extra[0]["id"] == 1)


def all_crowds() -> dict[str, Any]:
    document = good_document()
    for row in document["annotations"]:
        row["iscrowd"] = 1
    return document


def test_many_crowds_name_the_likely_mistake_and_the_option(read):
    with pytest.raises(DataError) as caught:
        read(all_crowds())
    (problem,) = caught.value.problems
    assert "All 4 annotations are crowd regions (iscrowd=1)" in problem.message and "brush" in problem.message
    assert "data.crowd_as_objects=true" in problem.fix
    document = all_crowds()
    document["annotations"][1]["iscrowd"] = 0
    index = read(document)
    assert index.image_ids.tolist() == [10]
    line = only_notice(index, "crowd regions and are not trained on")
    assert line.startswith("3 of 4 annotations") and "data.crowd_as_objects=true" in line


@pytest.mark.parametrize("training", [True, False])
def test_crowds_are_read_as_objects_where_that_is_wanted(read, training):
    index = read(all_crowds(), training=training, crowd_as_objects=True)
    assert len(index.labels) == 4
    assert only_notice(index, "read as objects").startswith("4 annotations")
    assert {entry["iscrowd"] for entry in dataset_of(index)["annotations"]} == {0}


@pytest.mark.parametrize("field", ["coco_url", "flickr_url"])
def test_a_url_takes_the_place_of_a_missing_file_name(read, field):
    document = good_document()
    row = document["images"][0]
    row[field] = "http://images.example.org/train2017/b%20c.jpg"
    del row["file_name"]
    index = read(document)
    assert index.file_names[1] == row[field]
    assert "URL" in only_notice(index, "no file_name")


def test_the_annotations_of_a_plain_file_are_those_of_the_json(read):
    index = read(good_document(), training=False)
    assert index.is_plain
    assert dataset_of(index)["annotations"] == good_document()["annotations"]


def test_a_test_set_may_lack_annotations_and_categories(tmp_path):
    path = write_json(tmp_path, {"images": good_document()["images"]})
    index = read_coco(path, tmp_path, training=False, is_test_set=True)
    assert (len(index.image_ids), len(index.labels), len(index.category_ids)) == (2, 0, 0)
    with pytest.raises(DataError, match="--save-detections"):
        read_coco(path, tmp_path, training=False)
