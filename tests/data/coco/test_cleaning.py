"""What is read although it is not in COCO's form, each with its notice, and the neighbours that are not."""

import json
from typing import Any

import numpy as np
import pytest
from coco_folder import HEIGHT, WIDTH, annotation, good_document, triangle, write_json
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from maskperf.config import DataConfig
from maskperf.data.coco.index import dataset_of, read_annotations, read_coco
from maskperf.errors import DataError

AREA = HEIGHT * WIDTH
SQUARE = [10.0, 8.0, 30.0, 8.0, 30.0, 28.0, 10.0, 28.0]


def read(folder, document, *, training: bool = True, **switches: Any):
    return read_coco(write_json(folder, document), folder, training=training, data=DataConfig(**switches))


def with_ids(change) -> dict[str, Any]:
    """Return the good document with every image id changed, in both places."""
    document = good_document()
    for row in document["images"]:
        row["id"] = change(row["id"])
    for row in document["annotations"]:
        row["image_id"] = change(row["image_id"])
    return document


def only_notice(index, word: str) -> str:
    (found,) = (line for line in index.notices if word in line)
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
    ("change", "keys"),
    [
        (lambda number: f"drone_{number}", ["drone_10", "drone_20"]),
        (lambda number: f"0{number}", ["010", "020"]),
        (lambda number: float(number), [10.0, 20.0]),
        (lambda number: "K\u00e4fer" if number == 10 else 20, ["K\u00e4fer", 20]),
        (lambda number: str(number), ["10", "20"]),
        (lambda number: "a b/c.jpg" if number == 10 else "-1", ["a b/c.jpg", "-1"]),
    ],
)
def test_image_ids_of_any_kind_are_read_and_come_out_as_they_went_in(tmp_path, change, keys, training):
    index = read(tmp_path, with_ids(change), training=training)
    assert sorted(index.labels.tolist()) == [1, 1, 2]
    assert {json.dumps(index.image_key(position)) for position in range(2)} == {json.dumps(key) for key in keys}
    names = {index.image_key(position): index.file_names[position] for position in range(2)}
    assert names == {change(10): "a.jpg", change(20): "b.jpg"}


def test_whole_numbers_keep_their_ids_and_their_order(tmp_path):
    index = read(tmp_path, with_ids(float))
    np.testing.assert_array_equal(index.image_ids, [10, 20])


@pytest.mark.parametrize(
    ("reference", "word"), [("20", "is text"), (" 20 ", "is text"), (20.0, None), ("020", "is text")]
)
def test_a_reference_by_another_kind_of_value_is_matched(tmp_path, reference, word):
    document = good_document()
    document["annotations"].append(annotation(918, reference))
    index = read(tmp_path, document)
    assert len(index.labels) == 4
    if word:
        assert only_notice(index, word) == (
            f"1 annotations: image_id is text (such as {json.dumps(reference)}) where the ids of `images` are numbers: "
            "matched by value (first ids: 918)"
        )


def test_a_number_is_matched_with_an_id_that_is_text(tmp_path):
    document = with_ids(str)
    document["annotations"].append(annotation(918, 20))
    index = read(tmp_path, document)
    assert len(index.labels) == 4
    assert "image_id is a number" in only_notice(index, "matched by value")


def test_the_same_digits_as_number_and_as_text_are_two_images(tmp_path):
    document = good_document()
    document["images"].append({"id": "20", "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH})
    document["annotations"].append(annotation(918, "20"))
    index = read(tmp_path, document)
    assert {index.image_key(position): index.file_names[position] for position in range(3)} == {
        20: "b.jpg",
        10: "a.jpg",
        "20": "c.jpg",
    }


@pytest.mark.parametrize("identity", ["x", None, 3.0])
def test_annotation_ids_of_any_kind_are_shown_as_they_are(tmp_path, identity):
    document = good_document()
    document["annotations"].append(annotation(identity, 20, bbox=[5, 5, 10, 0]))
    index = read(tmp_path, document)
    shown = {"x": "x", None: "missing", 3.0: "3.0"}[identity]
    assert only_notice(index, "zero width or height: left").endswith(f"(first ids: {shown})") or identity is None


@pytest.mark.parametrize("identity", ["7", 7.0, " 7"])
def test_a_category_id_that_stands_for_a_number_is_read(tmp_path, identity):
    document = good_document()
    document["categories"][1]["id"] = identity
    index = read(tmp_path, document)
    np.testing.assert_array_equal(index.category_ids, [7, 9])
    assert len(index.labels) == 3


@pytest.mark.parametrize(
    ("value", "is_object"), [(None, 1), (False, 1), (0.0, 1), ("0", 1), (True, 0), ("1", 0), (1.0, 0)]
)
def test_crowd_marks_of_plain_meaning_are_read(tmp_path, value, is_object):
    document = good_document()
    document["annotations"].append(annotation(918, 20, iscrowd=value))
    index = read(tmp_path, document)
    assert len(index.labels) == 3 + is_object
    assert "iscrowd=" in only_notice(index, "read as")


def test_sides_and_boxes_and_outlines_written_as_text_are_read(tmp_path):
    document = good_document()
    document["images"][0].update(height=str(HEIGHT), width=float(WIDTH))
    text_box, text_ring = ["5", "5.0", "10", " 10 "], [str(value) for value in triangle(5, 5)]
    document["annotations"].append(annotation(918, 20, bbox=text_box, segmentation=[text_ring], area="50"))
    for training in (True, False):
        index = read(tmp_path, document, training=training)
        assert len(index.labels) == 4
        np.testing.assert_array_equal(index.boxes[-1], [5, 5, 14, 14])
        np.testing.assert_array_equal(index.points[-3:].reshape(-1), triangle(5, 5))
    text = "\n".join(index.notices)
    for word in ("a height such as", "a width such as", "box whose numbers are text", "outline whose numbers are text"):
        assert word in text


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
def test_run_lengths_of_every_form_are_masks(tmp_path, outline, expected, training):
    document = good_document()
    document["annotations"].append(annotation(918, 20, bbox=[10, 8, 20, 20], segmentation=outline))
    index = read(tmp_path, document, training=training)
    ends = index.run_ends[index.run_offsets[-2] : index.run_offsets[-1]]
    flat = np.zeros(AREA, np.uint8)
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        flat[start:end] = 1
    np.testing.assert_array_equal(flat.reshape((HEIGHT, WIDTH), order="F"), expected)
    if not training:
        (entry,) = (entry for entry in dataset_of(index)["annotations"] if entry["id"] == 918)
        np.testing.assert_array_equal(pixels_of(entry["segmentation"]), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ring", [[], [1, 2], [1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4, 5]])
def test_a_short_polygon_beside_good_ones_is_dropped_with_a_count(tmp_path, ring, training):
    document = good_document()
    document["annotations"].append(annotation(918, 20, segmentation=[ring, triangle(5, 5)]))
    index = read(tmp_path, document, training=training)
    assert np.diff(index.polygon_offsets).tolist() == [1, 2, 1, 1]
    assert only_notice(index, "fewer than three points beside").endswith("(first ids: 918)")
    (row,) = (row for row in read_annotations(index).annotations if row.id == 918)
    assert json.loads(bytes(row.segmentation)) == [triangle(5, 5)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "outline", [..., None, [], "", [[]], [[1, 2, 3, 4]], [[1, 2], [3, 4, 5]], uncompressed(0 * MASK)]
)
def test_an_annotation_left_without_an_outline_is_left_out_with_a_count(tmp_path, outline, training):
    document = good_document()
    document["annotations"].append(annotation(918, 20, segmentation=outline))
    index = read(tmp_path, document, training=training)
    assert len(index.labels) == 3
    assert only_notice(index, "no outline").endswith("(first ids: 918)")
    assert [entry["id"] for entry in dataset_of(index)["annotations"]] == [101, 102, 103, 104]


@pytest.mark.parametrize("missing", [..., None, []])
@pytest.mark.parametrize("outline", [[SQUARE], compressed(MASK), uncompressed(MASK), [SQUARE, triangle(1, 1)]])
def test_a_missing_box_is_derived_from_the_outline(tmp_path, outline, missing):
    document = good_document()
    document["annotations"].append(annotation(918, 20, bbox=missing, segmentation=outline))
    index = read(tmp_path, document)
    low = (1.0, 1.0) if len(outline) == 2 and isinstance(outline, list) else (10.0, 8.0)
    np.testing.assert_array_equal(index.boxes[-1], [*low, 29, 27])
    assert only_notice(index, "no box").endswith("(first ids: 918)")


def test_boxes_are_derived_where_none_is_given(tmp_path):
    document = good_document()
    for row in document["annotations"]:
        del row["bbox"]
    index = read(tmp_path, document)
    assert only_notice(index, "no box").startswith("4 annotations")
    np.testing.assert_array_equal(index.boxes[0], [5, 5, 14, 14])


@pytest.mark.parametrize("reference", [99, "99", 2**70, "nobody", 20.5])
@pytest.mark.parametrize("training", [True, False])
def test_annotations_of_images_that_are_not_listed_are_left_out(tmp_path, reference, training):
    document = good_document()
    document["annotations"].append(annotation(918, reference))
    index = read(tmp_path, document, training=training)
    assert len(index.labels) == 3
    assert only_notice(index, "not in `images`: left out").endswith("(first ids: 918)")
    assert len(dataset_of(index)["annotations"]) == 4


def test_annotations_of_other_images_alone_are_an_error(tmp_path):
    document = good_document()
    for row in document["annotations"]:
        row["image_id"] += 1000
    with pytest.raises(DataError, match="No annotation belongs to an image"):
        read(tmp_path, document)


PLACEHOLDERS = [
    [{"id": 0, "name": "cup", "supercategory": "none"}],  # an unused one with the name of a real one
    [{"id": 0, "name": "things", "supercategory": "none"}],  # the supercategory of the real ones
    [{"id": 0, "name": "_background_"}],
    [{"id": 0, "name": "Background"}, {"id": 1, "name": "dog"}],
]


@pytest.mark.parametrize("extra", PLACEHOLDERS)
@pytest.mark.parametrize("training", [True, False])
def test_unused_placeholder_categories_are_left_out(tmp_path, extra, training):
    document = good_document()
    for row in document["categories"]:
        row["supercategory"] = "things"
    document["categories"] = [*extra, *document["categories"]]
    index = read(tmp_path, document, training=training)
    assert index.category_names == ("dog", "cup")
    np.testing.assert_array_equal(index.labels, [1, 2, 1])
    assert only_notice(index, "placeholder").startswith(f"{len(extra)} categories")
    assert [entry["id"] for entry in dataset_of(index)["categories"]] == [9, 7]


@pytest.mark.parametrize("extra", [{"id": 1, "name": "cat"}, {"id": 1, "name": "things", "supercategory": "things"}])
def test_a_real_category_without_annotations_stays_with_a_notice(tmp_path, extra):
    document = good_document()
    document["categories"].append(extra)
    index = read(tmp_path, document)
    assert len(index.category_names) == 3
    assert only_notice(index, "have no annotation") == f"1 of 3 categories have no annotation: {extra['name']}"


def test_a_used_category_is_no_placeholder(tmp_path):
    document = good_document()
    for row in document["categories"]:
        row["supercategory"] = "things"
    document["categories"].append({"id": 0, "name": "things", "supercategory": "none"})
    document["annotations"].append(annotation(918, 20, category_id=0))
    assert len(read(tmp_path, document).category_names) == 3


def all_crowds() -> dict[str, Any]:
    document = good_document()
    for row in document["annotations"]:
        row["iscrowd"] = 1
    return document


def test_all_crowds_name_the_likely_mistake_and_the_switch(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, all_crowds())
    (problem,) = caught.value.problems
    assert "All 4 annotations are crowd regions (iscrowd=1)" in problem.message
    assert "brush" in problem.message
    assert "data.crowd_as_objects=true" in problem.fix


def test_crowds_are_read_as_objects_where_that_is_wanted(tmp_path):
    for training in (True, False):
        index = read(tmp_path, all_crowds(), training=training, crowd_as_objects=True)
        assert len(index.labels) == 4
        assert only_notice(index, "read as objects").startswith("4 annotations")
        assert {entry["iscrowd"] for entry in dataset_of(index)["annotations"]} == {0}


def test_mostly_crowds_are_told_with_the_likely_mistake(tmp_path):
    document = all_crowds()
    document["annotations"][1]["iscrowd"] = 0
    index = read(tmp_path, document)
    assert index.image_ids.tolist() == [10]
    line = only_notice(index, "crowd regions and are not trained on")
    assert line.startswith("3 of 4 annotations")
    assert "data.crowd_as_objects=true" in line


@pytest.mark.parametrize("field", ["coco_url", "flickr_url"])
def test_a_url_takes_the_place_of_a_missing_file_name(tmp_path, field):
    document = good_document()
    row = document["images"][0]
    row[field] = "http://images.example.org/train2017/b%20c.jpg"
    del row["file_name"]
    index = read(tmp_path, document)
    assert index.file_names[1] == row[field]
    assert "URL" in only_notice(index, "no file_name")


def test_the_annotations_of_a_plain_file_are_those_of_the_json(tmp_path):
    document = good_document()
    index = read(tmp_path, document, training=False)
    assert index.is_plain
    found = dataset_of(index)
    assert found["annotations"] == document["annotations"]


def test_a_test_set_may_lack_annotations_and_categories(tmp_path):
    path = write_json(tmp_path, {"images": good_document()["images"]})
    index = read_coco(path, tmp_path, training=False, is_test_set=True)
    assert (len(index.image_ids), len(index.labels), len(index.category_ids)) == (2, 0, 0)
    with pytest.raises(DataError, match="--save-detections"):
        read_coco(path, tmp_path, training=False)
