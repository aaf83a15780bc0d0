"""Image files, and small data sets of random images, one object each where nothing else is given."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskperf.config import DataConfig
from maskperf.data.coco.index import CocoIndex, read_coco
from maskperf.data.images.loader import TrainingLoader
from maskperf.structures import tensors_of

CATEGORY = {"id": 3, "name": "dog"}
FIRST_ID = 100
SMALL = DataConfig(short_side=24, long_side=40, size_divisor=8, loader_threads=2)
KINDS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


def gradient(height: int, width: int) -> np.ndarray:
    """Return an image of smooth colours, which a JPEG keeps well."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 8 % 256, columns * 5 % 256, rows * columns % 251], axis=2).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, *, mode: str | None = None, orientation: int = 0, **options) -> bytes:
    """Return the file of an image, with an EXIF orientation unless that is 0."""
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"].update({0x010F: "a camera", 0x0112: orientation})
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def triangle(x: float, y: float) -> list[float]:
    return [x, y, x + 10.0, y, x, y + 10.0]


def write_document(
    folder: Path, names_and_sizes: Sequence[tuple[str, tuple[int, int]]], *, first_id: int, polygons=None
) -> Path:
    """Write the JSON; `polygons` gives the polygons of each object of each image."""
    document = {"images": [], "annotations": [], "categories": [CATEGORY]}
    for number, (name, (height, width)) in enumerate(names_and_sizes):
        image_id = first_id + number
        document["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for segmentation in polygons[number] if polygons else [[triangle(2, 3)]]:
            entry = {"id": len(document["annotations"]) + 1, "image_id": image_id, "category_id": CATEGORY["id"]}
            box = {"bbox": [2.0, 3.0, 10.0, 8.0], "area": 50.0, "iscrowd": 0}
            document["annotations"].append({**entry, **box, "segmentation": segmentation})
    path = folder / "instances.json"
    path.write_text(json.dumps(document))
    return path


def image_index(
    folder: Path, sizes_hw: Sequence[tuple[int, int]], *, first_id: int = FIRST_ID, suffix: str = "jpg", polygons=None
) -> CocoIndex:
    """Return the index of random images of these sizes, written to the folder as FIRST_ID.jpg and so on."""
    names_and_sizes = [(f"{first_id + number}.{suffix}", size_hw) for number, size_hw in enumerate(sizes_hw)]
    for number, (name, size_hw) in enumerate(names_and_sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=90)
    json_path = write_document(folder, names_and_sizes, first_id=first_id, polygons=polygons)
    return read_coco(json_path, folder, training=True)


def training_loader(index: CocoIndex, data: DataConfig = SMALL, **changes) -> TrainingLoader:
    return TrainingLoader(index, data, **{"seed": 5, "rank": 0, "world": 1, "images_per_rank": 2, **changes})


def assert_equal(found: Iterable, expected: Iterable) -> None:
    """Every tensor of every batch is the same, bit for bit."""
    for batch, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, tensors_of(batch), tensors_of(other)))
