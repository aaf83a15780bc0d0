import dataclasses
import hashlib
import json

import numpy as np
import pytest
from coco_folder import HEIGHT, WIDTH, annotation, good_document, triangle, write_json

from maskperf.data.coco import columns
from maskperf.data.coco.columns import NotPlain, columns_of_document, read_columns
from maskperf.data.coco.document import Reading, read_document
from maskperf.data.coco.repair import repair_document


def random_document(seed: int) -> dict:
    generator = np.random.default_rng(seed)
    document = good_document()
    document["images"] = [
        {"id": int(number), "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH}
        for number in generator.permutation(50)
    ]
    document["annotations"] = []
    for number in generator.permutation(300).tolist():
        polygons = [np.round(generator.uniform(-5, 70, 2 * generator.integers(3, 9)), 2).tolist() for _ in range(3)]
        document["annotations"].append(
            annotation(
                number,
                int(generator.integers(50)),
                segmentation=polygons[: int(generator.integers(1, 4))],
                bbox=[round(float(value), 2) for value in generator.uniform(0, 30, 4)],
                category_id=int(generator.choice([7, 9])),
                iscrowd=int(generator.random() < 0.1),
            )
        )
    runs = {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}
    document["annotations"].insert(7, annotation(999, 3, iscrowd=1, segmentation=runs))
    return document


def columns_reference(document: dict) -> dict[str, np.ndarray | list[str]]:
    """Return the columns, value by value."""
    annotations = document["annotations"]
    outlines = [row["segmentation"] for row in annotations]
    polygons_of = [outline if isinstance(outline, list) else [] for outline in outlines]
    runs_of = [outline["counts"] if isinstance(outline, dict) else [] for outline in outlines]
    polygons = [polygon for of_object in polygons_of for polygon in of_object]
    return {
        "image_ids": np.array([row["id"] for row in document["images"]]),
        "image_keys": [],
        "file_names": [row["file_name"] for row in document["images"]],
        "sizes_hw": np.array([(row["height"], row["width"]) for row in document["images"]], np.int32),
        "category_ids": np.array([row["id"] for row in document["categories"]]),
        "category_names": [row["name"] for row in document["categories"]],
        "annotation_ids": np.array([row["id"] for row in annotations]),
        "annotated_images": np.array([row["image_id"] for row in annotations]),
        "annotated_categories": np.array([row["category_id"] for row in annotations]),
        "is_crowd": np.array([row["iscrowd"] == 1 for row in annotations]),
        "boxes_xywh": np.array([row["bbox"] for row in annotations], np.float64),
        "num_polygons": np.array([len(of_object) for of_object in polygons_of]),
        "polygon_lengths": np.array([len(polygon) for polygon in polygons]),
        "coordinates": np.array([number for polygon in polygons for number in polygon], np.float32),
        "num_runs": np.array([len(runs) for runs in runs_of]),
        "run_ends": np.concatenate([np.cumsum(runs, dtype=np.int64) for runs in runs_of]),
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rows_at_once", [1, 7, 256])
def test_both_ways_to_the_columns_agree_with_the_obvious_one(tmp_path, monkeypatch, seed, training, rows_at_once):
    monkeypatch.setattr(columns, "ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(columns, "FREED_BYTES", 4096)
    path, reading = write_json(tmp_path, random_document(seed)), Reading(training=training)
    quick, sha256 = read_columns(path, reading)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    document, _, _ = read_document(path)
    assert repair_document(document, reading, file=str(path)) == ([], [])
    expected = columns_reference(random_document(seed))
    for found in (quick, columns_of_document(document, reading)):
        assert {field.name for field in dataclasses.fields(found)} == set(expected)
        for name, value in expected.items():
            assert type(getattr(found, name)) is type(value), name
            np.testing.assert_array_equal(
                getattr(found, name), value, err_msg=name, strict=isinstance(value, np.ndarray)
            )


def refused(folder, document: dict | bytes, *, training: bool = True) -> bool:
    path = folder / "instances.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    try:
        read_columns(path, Reading(training=training))
    except NotPlain:
        return True
    return False


def runs(counts, size=(HEIGHT, WIDTH)) -> dict:
    return {"size": list(size), "counts": counts}


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
        {"segmentation": runs([HEIGHT * WIDTH])},  # a mask without a pixel
        {"segmentation": [runs([0, HEIGHT * WIDTH])]},
        {"iscrowd": 1, "segmentation": runs([1, 2])},
        {"iscrowd": 1, "segmentation": runs([HEIGHT * WIDTH], (WIDTH, HEIGHT))},
        {"iscrowd": 1, "segmentation": runs("oo")},
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


@pytest.mark.parametrize(
    "change",
    [
        *({name: []} for name in ("images", "annotations", "categories")),
        *({"images": [{"id": 10, "file_name": name, "height": 5, "width": 5}]} for name in ("", " ", "a\0.jpg")),
        {"info": float("nan")},
    ],
)
def test_an_empty_list_an_odd_name_and_a_value_that_is_not_finite_need_a_close_look(tmp_path, change):
    assert refused(tmp_path, good_document() | change)


def test_broken_files_need_a_close_look(tmp_path):
    data = json.dumps(good_document() | {"note": "K\u00e4se }, { ]"}, ensure_ascii=False).encode()
    assert not refused(tmp_path, data + b"\n")
    for length in range(0, len(data), 29):
        assert refused(tmp_path, data[:length]), length
    deep = b', "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    note = b"K\xc3\xa4se"
    broken = (data + b"1", b"[" + data + b"]", b"\xef\xbb\xbf" + data, data.replace(b"}]", b"},]"), data[:-1] + deep)
    for bad in (*broken, data.replace(note, b"K\xff"), data.replace(note, b"K\xc3"), data[:-1] + b"\xc3"):
        assert refused(tmp_path, bad), bad[:40]
    with pytest.raises(NotPlain):
        read_columns(tmp_path / "missing.json", Reading(training=True))
