import dataclasses
import hashlib

import numpy as np
import pytest
from coco_folder import HEIGHT, WIDTH, annotation, good_document, write_json

from maskperf.data.coco import columns
from maskperf.data.coco.columns import columns_of_document, read_columns
from maskperf.data.coco.document import Reading, parse_document
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
    document, _, _ = parse_document(path, path.read_text())
    assert repair_document(document, reading, file=str(path)) == ([], [])
    expected = columns_reference(random_document(seed))
    for found in (quick, columns_of_document(document, reading)):
        assert {field.name for field in dataclasses.fields(found)} == set(expected)
        for name, value in expected.items():
            assert type(getattr(found, name)) is type(value), name
            np.testing.assert_array_equal(
                getattr(found, name), value, err_msg=name, strict=isinstance(value, np.ndarray)
            )
