import dataclasses

import numpy as np
import pytest
from coco_folder import HEIGHT, WIDTH, annotation, good_document, triangle, write_json

from maskperf.data.coco import columns
from maskperf.data.coco.columns import columns_of_document, stream_columns
from maskperf.data.coco.document import Reading, read_document
from maskperf.data.coco.repair import repair_document
from maskperf.data.coco.stream import ListStream, NotPlain


def random_document(seed: int) -> dict:
    generator = np.random.default_rng(seed)
    document = good_document()
    document["images"] = [
        {"id": int(number), "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH}
        for number in generator.permutation(50)
    ]
    document["annotations"] = []
    for number in generator.permutation(300).tolist():
        rings = [np.round(generator.uniform(-5, 70, 2 * generator.integers(3, 9)), 2).tolist() for _ in range(3)]
        document["annotations"].append(
            annotation(
                number,
                int(generator.integers(50)),
                segmentation=rings[: int(generator.integers(1, 4))],
                bbox=[round(float(value), 2) for value in generator.uniform(0, 30, 4)],
                category_id=int(generator.choice([7, 9])),
                iscrowd=int(generator.random() < 0.1),
            )
        )
    counts = [100, 50, HEIGHT * WIDTH - 150]
    document["annotations"].insert(
        7, annotation(999, 3, iscrowd=1, segmentation={"size": [HEIGHT, WIDTH], "counts": counts})
    )
    return document


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("block_bytes", [500, 1 << 20])
def test_both_ways_to_the_columns_agree(tmp_path, monkeypatch, seed, training, block_bytes):
    monkeypatch.setattr(columns, "ListStream", lambda file: ListStream(file, block_bytes))
    path = write_json(tmp_path, random_document(seed))
    quick, _ = stream_columns(path, Reading(training=training))
    document, _, _ = read_document(path)
    assert repair_document(document, Reading(training=training), file=str(path)) == ([], [])
    plain = columns_of_document(document, Reading(training=training))
    for field in dataclasses.fields(plain):
        first, second = getattr(quick, field.name), getattr(plain, field.name)
        if isinstance(second, list):
            assert first == second, field.name
        else:
            assert first.dtype == second.dtype, field.name
            np.testing.assert_array_equal(first, second, err_msg=field.name)


@pytest.mark.parametrize("training", [True, False])
def test_a_good_file_needs_no_close_look(tmp_path, training):
    found, _ = stream_columns(write_json(tmp_path, good_document()), Reading(training=training))
    assert found.annotation_ids.tolist() == [101, 102, 103, 104]
    assert found.num_polygons.tolist() == [2, 1, 1, 0]


def refused(folder, document, *, training: bool = True) -> bool:
    try:
        stream_columns(write_json(folder, document), Reading(training=training))
    except NotPlain:
        return True
    return False


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 101},
        {"id": 2**63},
        {"id": 3.0},
        {"image_id": 99},
        {"category_id": 8},
        {"iscrowd": 2},
        {"bbox": [1, 2, -3, 4]},
        {"bbox": [1e8, 2, 3, 4]},
        {"bbox": [1, 2, 3]},
        {"segmentation": []},
        {"segmentation": None},
        {"segmentation": [[1, 2, 3, 4]]},
        {"segmentation": [triangle(1, 1), [1, 2, 3, 4, 5, 6, 7]]},
        {"segmentation": [[1, 2, 3, 4, 5, 1e300]]},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}},  # a mask without a pixel
        {"segmentation": [{"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}]},
        {"iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [1, 2]}},
        {"iscrowd": 1, "segmentation": {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}},
        {"iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "oo"}},
    ],
)
def test_a_problem_of_an_annotation_is_never_passed_over(tmp_path, changes):
    document = good_document()
    document["annotations"].append({**annotation(918, 20), **changes})
    assert refused(tmp_path, document)


def test_a_problem_that_only_evaluation_minds_is_passed_over_in_training(tmp_path):
    document = good_document()
    document["annotations"].append(annotation(918, 20, area=-1))
    assert not refused(tmp_path, document)
    assert refused(tmp_path, document, training=False)


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_an_empty_list_is_left_to_the_close_look(tmp_path, name):
    document = good_document()
    document[name] = []
    assert refused(tmp_path, document)


@pytest.mark.parametrize("name", ["", " ", "a\0.jpg"])
def test_an_odd_file_name_is_left_to_the_close_look(tmp_path, name):
    document = good_document()
    document["images"].append({"id": 42, "file_name": name, "height": HEIGHT, "width": WIDTH})
    assert refused(tmp_path, document)
