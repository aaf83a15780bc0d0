import numpy as np
import pytest
from coco_folder import HEIGHT, WIDTH, annotation, triangle, write_images, write_json

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_annotations, read_coco
from maskperf.data.images.loader import load_sample

NUM_IMAGES = 6


def document(with_run_lengths: bool, ids=None) -> dict:
    ids = ids or list(range(10, 10 + NUM_IMAGES))
    images = [{"id": key, "file_name": f"{at}.png", "height": HEIGHT, "width": WIDTH} for at, key in enumerate(ids)]
    annotations = []
    for at, key in enumerate(ids):
        for number in range(at % 3 + 1):
            left, top = 3.0 + at, 5.0 + number
            shapes = [triangle(left, top)] * (number + 1)
            if with_run_lengths and number == 1:
                before, column = int(left) * HEIGHT + int(top), [10, HEIGHT - 10]
                behind = HEIGHT * WIDTH - before - 9 * HEIGHT - 10
                shapes = {"size": [HEIGHT, WIDTH], "counts": [before, *(column * 9), 10, behind]}
            box = [left, top, 10.0, 10.0]
            annotations.append(annotation(len(annotations) + 1, key, bbox=box, segmentation=shapes))
    return {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "dog"}]}


def index_of(folder, whole):
    write_images(folder, {**whole, "images": [{**row, "id": at} for at, row in enumerate(whole["images"])]})
    return read_coco(write_json(folder, whole), folder, training=True)


@pytest.mark.parametrize("with_run_lengths", [False, True])
@pytest.mark.parametrize("left_out", [[0], [5], [1, 2], [0, 3, 5], [], [4, 4]])
def test_every_sample_of_the_rest_is_as_before(tmp_path, with_run_lengths, left_out):
    index = index_of(tmp_path, document(with_run_lengths))
    rest = index.without(left_out)
    kept = [position for position in range(NUM_IMAGES) if position not in left_out]
    assert (
        len(rest.image_ids) == len(rest.file_names) == len(rest.sizes_hw) == len(rest.object_offsets) - 1 == len(kept)
    )
    for offsets in (rest.object_offsets, rest.polygon_offsets, rest.point_offsets, rest.run_offsets):
        assert offsets is None or (offsets.dtype == np.int64 and offsets[0] == 0 and (np.diff(offsets) >= 0).all())
    assert rest.point_offsets[-1] == len(rest.points)
    assert (rest.run_ends is not None) == with_run_lengths
    data = DataConfig(short_side=24, long_side=40)
    for place, position in enumerate(kept):
        found, expected = (
            load_sample(one, at, data=data, seed=1, epoch=1, training=True)
            for one, at in ((rest, place), (index, position))
        )
        assert found.image_id == expected.image_id
        for name in ("bgr", "boxes", "labels", "ring_offsets", "point_offsets", "points", "run_offsets", "run_ends"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_the_annotations_are_those_of_the_rest(tmp_path):
    index = index_of(tmp_path, document(False))
    rest = index.without([1, 2])
    assert not rest.is_plain  # so that the ground truth is made of the rest, not of the whole file
    found = read_annotations(rest)
    assert [row.id for row in found.images] == [10, 13, 14, 15]
    assert {row.image_id for row in found.annotations} == {10, 13, 14, 15}


def test_ids_are_shown_as_the_file_has_them(tmp_path):
    index = index_of(tmp_path, document(False, ["f", "e", "d", "c", "b", "a"]))
    rest = index.without([0])
    assert len(rest.image_keys) == NUM_IMAGES - 1
    assert {index.shown_id(position) for position in range(NUM_IMAGES)} == {"'a'", "'b'", "'c'", "'d'", "'e'", "'f'"}
    assert [rest.shown_id(place) for place in range(5)] == [index.shown_id(position) for position in range(1, 6)]
    numbered = index_of(tmp_path, document(False))
    assert numbered.first_ids([5, 0]) == "first ids: 15, 10"
    assert numbered.first_ids(range(6)) == "first ids: 10, 11, 12, 13, 14"
