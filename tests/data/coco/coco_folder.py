"""A small data set to break: two images, three objects, one crowd, two categories."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskperf.config import DataConfig
from maskperf.data.coco.index import CocoIndex, read_coco
from maskperf.errors import DataError, Problem

HEIGHT, WIDTH = 40, 60


def triangle(x: float, y: float) -> list[float]:
    return [x, y, x + 10.0, y, x, y + 10.0]


def annotation(annotation_id: int, image_id: int, **changes: Any) -> dict[str, Any]:
    plain = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 7,
        "bbox": [5.0, 5.0, 10.0, 10.0],
        "area": 50.0,
        "iscrowd": 0,
        "segmentation": [triangle(5, 5)],
    }
    plain.update(changes)
    return {key: value for key, value in plain.items() if value is not ...}


def good_document() -> dict[str, Any]:
    crowd = {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 20, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH, "license": 1},
            {"id": 10, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH, "license": 1},
        ],
        "annotations": [
            annotation(101, 20, category_id=9, segmentation=[triangle(5, 5), triangle(8, 8)]),
            annotation(102, 10),
            annotation(103, 20, bbox=[20.0, 8.0, 12.5, 6.0], segmentation=[triangle(20, 8)]),
            annotation(104, 10, iscrowd=1, bbox=[0, 0, 30, 30], segmentation=crowd),
        ],
        "categories": [{"id": 9, "name": "cup"}, {"id": 7, "name": "dog"}],
    }


def with_annotation(image_id: Any = 20, *, key: Any = 918, **changes: Any) -> dict[str, Any]:
    """Return the good document with one more annotation, on an image that has others."""
    document = good_document()
    document["annotations"].append(annotation(key, image_id, **changes))
    return document


def write_json(folder: Path, document: Any) -> Path:
    path = folder / "instances.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return path


def read(folder: Path, document: Any, *, training: bool = True, is_test_set: bool = False, **options: Any) -> CocoIndex:
    """Return the index of a document or of the bytes of a file; `options` are fields of DataConfig."""
    data = DataConfig(**options)
    return read_coco(write_json(folder, document), folder, training=training, data=data, is_test_set=is_test_set)


def problems_of(folder: Path, document: Any, *, training: bool = True, **options: Any) -> list[Problem]:
    """Return the problems of a document or of the bytes of a file, each complete."""
    with pytest.raises(DataError) as caught:
        read(folder, document, training=training, **options)
    for problem in caught.value.problems:
        assert problem.file == str(folder / "instances.json")
        assert all((problem.where, problem.field, problem.value, problem.message, problem.fix))
    return caught.value.problems


def only_problem(folder: Path, document: Any, *, training: bool = True, **options: Any) -> Problem:
    (problem,) = problems_of(folder, document, training=training, **options)
    return problem


def write_images(folder: Path, document: dict[str, Any]) -> None:
    for row in document["images"]:
        generator = np.random.default_rng(row["id"])
        pixels = generator.integers(0, 256, (row["height"], row["width"], 3), dtype=np.uint8)
        path = folder / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
