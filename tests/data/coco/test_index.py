from dataclasses import replace

import numpy as np
import pytest
from coco_folder import (
    HEIGHT,
    WIDTH,
    annotation,
    good_document,
    only_problem,
    read,
    triangle,
    with_annotation,
    write_images,
    write_json,
)

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_annotations
from maskperf.data.coco.paths import locate
from maskperf.data.images.loader import load_sample
from maskperf.errors import DataError


def test_the_index_holds_what_the_file_says(tmp_path):
    index = read(tmp_path, good_document())
    assert index.json_path == tmp_path / "instances.json"
    assert index.image_path(1) == tmp_path / "b.jpg"
    assert index.file_names == ("a.jpg", "b.jpg")
    np.testing.assert_array_equal(index.image_ids, [10, 20])
    np.testing.assert_array_equal(index.sizes_hw, [[HEIGHT, WIDTH]] * 2)
    np.testing.assert_array_equal(index.object_offsets, [0, 1, 3])
    np.testing.assert_array_equal(index.labels, [1, 2, 1])
    np.testing.assert_array_equal(index.boxes, [[5, 5, 14, 14], [5, 5, 14, 14], [20, 8, 31.5, 13]])
    np.testing.assert_array_equal(index.polygon_offsets, [0, 1, 3, 4])
    np.testing.assert_array_equal(index.point_offsets, [0, 3, 6, 9, 12])
    expected = [triangle(5, 5), triangle(5, 5), triangle(8, 8), triangle(20, 8)]
    np.testing.assert_array_equal(index.points.reshape(-1), np.concatenate(expected))
    np.testing.assert_array_equal(index.category_ids, [7, 9])
    assert index.category_names == ("dog", "cup")
    assert index.notices == ("1 of 4 annotations are crowd regions and are not trained on",)
    assert index.is_plain and index.run_ends is None and index.image_keys == ()
    for name in ("image_ids", "object_offsets", "labels", "polygon_offsets", "point_offsets", "category_ids"):
        assert getattr(index, name).dtype == np.int64
    assert index.sizes_hw.dtype == np.int32 and index.boxes.dtype == index.points.dtype == np.float32


def test_ids_may_be_anything_in_64_bits(tmp_path):
    document = good_document()
    huge = {10: -(2**63), 20: 2**63 - 1, 7: 2**62, 9: -5}
    for row in document["images"] + document["categories"]:
        row["id"] = huge[row["id"]]
    for row in document["annotations"]:
        row["image_id"], row["category_id"] = huge[row["image_id"]], huge[row["category_id"]]
    index = read(tmp_path, document)
    np.testing.assert_array_equal(index.image_ids, [-(2**63), 2**63 - 1])
    np.testing.assert_array_equal(index.category_ids, [-5, 2**62])
    np.testing.assert_array_equal(index.labels, [2, 1, 2])


def test_boxes_are_clipped_and_polygons_are_not(tmp_path):
    outside = triangle(-3, 35)
    index = read(tmp_path, with_annotation(bbox=[-3.5, 35.25, 80, 20], segmentation=[outside]))
    np.testing.assert_array_equal(index.boxes[-1], [0, 35.25, WIDTH - 1, HEIGHT - 1])
    assert any("boxes do not fit their outlines" in notice for notice in index.notices)
    np.testing.assert_array_equal(index.points[-3:].reshape(-1), outside)


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ([5, 5, 10, 0.0], "of zero width or height"),
        ([5, 5, 0, 10], "of zero width or height"),
        ([WIDTH + 5, 5, 10, 10], "outside of the image"),
        ([5, -30, 10, 20], "outside of the image"),
        ([WIDTH - 1, 5, 10, 10], "outside of the image"),  # x1 = x2 after the clip
        ([5, 5, 1, 10], "at most one pixel wide or high"),
        ([5, 5, 10, 0.5], "at most one pixel wide or high"),
    ],
)
def test_a_box_without_extent_is_dropped_with_a_notice(tmp_path, box, what):
    document = good_document()
    document["annotations"][:0] = [annotation(900 + number, 20, bbox=box) for number in range(7)]
    index = read(tmp_path, document)
    np.testing.assert_array_equal(index.labels, [1, 2, 1])
    np.testing.assert_array_equal(index.polygon_offsets, [0, 1, 3, 4])
    text = f"7 annotations with a box {what}: left out of training (first ids: 900, 901, 902, 903, 904)"
    assert text in index.notices
    document["annotations"] = document["annotations"][:1]
    assert "No image has an object wider and higher than one pixel" in only_problem(tmp_path, document).message


def test_training_leaves_out_images_without_an_object(tmp_path):
    document = good_document()
    document["images"] += [
        {"id": number, "file_name": f"deep/er/{number}..jpg", "height": HEIGHT, "width": WIDTH}
        for number in (30, 5, 6, 7)
    ]
    document["annotations"] += [
        annotation(918, 5, bbox=[5, 5, 1, 30]),
        annotation(919, 6, iscrowd=1),
        annotation(920, 7, bbox=[WIDTH + 5, 5, 10, 10]),
    ]
    index = read(tmp_path, document)
    np.testing.assert_array_equal(index.image_ids, [10, 20])
    assert index.notices[-2:] == (
        "1 images without an annotation: left out of training (data.negatives=true keeps them) (first ids: 30)",
        "3 images without an object, only crowd regions or the boxes above: left out of training (first ids: 5, 6, 7)",
    )
    for options in ({"negatives": True}, {"training": False}):
        whole = read(tmp_path, document, **options)
        np.testing.assert_array_equal(whole.image_ids, [5, 6, 7, 10, 20, 30])
        np.testing.assert_array_equal(whole.object_offsets, [0, 0, 0, 0, 1, 3, 3])
        assert whole.file_names[5] == "deep/er/30..jpg"


def test_locate_finds_the_coco_layout_or_the_given_paths(tmp_path):
    for part in ("train2017", "val2017"):
        (tmp_path / part).mkdir()
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{part}.json").write_text("{}")
    paths = locate(DataConfig(root=str(tmp_path)))
    assert paths.train_json == tmp_path / "annotations" / "instances_train2017.json"
    assert paths.val_images == tmp_path / "val2017"
    other = write_json(tmp_path, {})
    assert locate(DataConfig(root=str(tmp_path), val_json=str(other))) == replace(paths, val_json=other)


def test_locate_names_every_missing_path_at_once(tmp_path):
    (tmp_path / "train2017").write_text("a file in place of the folder")
    with pytest.raises(DataError) as caught:
        locate(DataConfig(root=str(tmp_path), val_json=str(tmp_path)))
    problems = caught.value.problems
    assert [(problem.field, problem.message) for problem in problems] == [
        ("data.train_json", "The file does not exist."),
        ("data.train_images", "It is not a folder."),
        ("data.val_json", "It is not a file."),
        ("data.val_images", "The folder does not exist."),
    ]
    assert all(problem.field in problem.fix and str(tmp_path) in problem.value for problem in problems)


NUM_IMAGES = 6


def index_of(folder, *, with_run_lengths=False, ids=range(10, 10 + NUM_IMAGES)):
    """Return the index of images with one to three objects each, and write the images."""
    images = [{"id": at, "file_name": f"{at}.png", "height": HEIGHT, "width": WIDTH} for at in range(NUM_IMAGES)]
    write_images(folder, {"images": images})
    annotations = []
    for at, key in enumerate(ids):
        images[at]["id"] = key
        for number in range(at % 3 + 1):
            left, top = 3 + at, 5 + number
            outline = [triangle(left, top)] * (number + 1)
            if with_run_lengths and number == 1:
                before, column = left * HEIGHT + top, [10, HEIGHT - 10]
                behind = HEIGHT * WIDTH - before - 9 * HEIGHT - 10
                outline = {"size": [HEIGHT, WIDTH], "counts": [before, *(column * 9), 10, behind]}
            annotations.append(annotation(len(annotations), key, bbox=[left, top, 10, 10], segmentation=outline))
    return read(folder, good_document() | {"images": images, "annotations": annotations})


@pytest.mark.parametrize("with_run_lengths", [False, True])
@pytest.mark.parametrize("left_out", [[0], [5], [1, 2], [0, 3, 5], [], [4, 4]])
def test_every_sample_of_the_rest_is_as_before(tmp_path, with_run_lengths, left_out):
    index = index_of(tmp_path, with_run_lengths=with_run_lengths)
    rest = index.without(left_out)
    remaining = [position for position in range(NUM_IMAGES) if position not in left_out]
    lengths = {len(rest.image_ids), len(rest.file_names), len(rest.sizes_hw), len(rest.object_offsets) - 1}
    assert lengths == {len(remaining)}
    for offsets in (rest.object_offsets, rest.polygon_offsets, rest.point_offsets, rest.run_offsets):
        assert offsets is None or (offsets.dtype == np.int64 and offsets[0] == 0 and (np.diff(offsets) >= 0).all())
    assert rest.point_offsets[-1] == len(rest.points) and (rest.run_ends is not None) == with_run_lengths
    data = DataConfig(short_side=24, long_side=40)
    for new, position in enumerate(remaining):
        found, expected = (
            load_sample(one, at, data=data, seed=1, epoch=1, training=True)
            for one, at in ((rest, new), (index, position))
        )
        assert found.image_id == expected.image_id
        for name in ("bgr", "boxes", "labels", "polygon_offsets", "point_offsets", "points", "run_offsets", "run_ends"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_the_annotations_are_those_of_the_rest(tmp_path):
    rest = index_of(tmp_path).without([1, 2])
    assert not rest.is_plain  # so that the ground truth is made of the rest, not of the whole file
    found = read_annotations(rest)
    assert [row.id for row in found.images] == [10, 13, 14, 15]
    assert {row.image_id for row in found.annotations} == {10, 13, 14, 15}


def test_ids_are_shown_as_the_file_has_them(tmp_path):
    index = index_of(tmp_path, ids="fedcba")
    rest = index.without([0])
    shown = [index.shown_id(position) for position in range(NUM_IMAGES)]
    assert sorted(shown) == ["'a'", "'b'", "'c'", "'d'", "'e'", "'f'"]
    assert [rest.shown_id(position) for position in range(NUM_IMAGES - 1)] == shown[1:] and len(rest.image_keys) == 5
    assert index_of(tmp_path).shown_id(5) == "15"
