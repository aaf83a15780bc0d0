"""A small data set as people have one: images of three kinds of objects in one folder, run-length masks in one JSON."""

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

from maskperf.demo import images as demo_images
from maskperf.demo.outlines import tight_box
from maskperf.demo.shapes import CATEGORIES

KINDS = {"crate": 3, "star": 5, "leaf": 9}  # with ids of their own


def write_own_data(folder: Path, *, images: int, seed: int, split: int = 0, name: str = "annotations.json") -> Path:
    """Return the folder after images/ and a JSON with compressed run lengths were written there.

    Images with other seeds or splits are other images; about one in 33 has no object.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    document: dict[str, list[dict]] = {"images": [], "annotations": [], "categories": []}
    document["categories"] = [{"id": number, "name": kind} for kind, number in KINDS.items()]
    chosen = tuple(category for category in CATEGORIES if category.name in KINDS)
    with patch.object(demo_images, "CATEGORIES", chosen):
        for index in range(images):
            _add_image(document, folder, demo_images.draw_image(split, index, seed), f"{split}_{index:05d}.jpg")
    (folder / name).write_text(json.dumps(document))
    return folder


def _add_image(document: dict, folder: Path, drawn: demo_images.DemoImage, name: str) -> None:
    height, width = drawn.pixels.shape[:2]
    image_id = 1000 + len(document["images"])
    Image.fromarray(drawn.pixels).save(folder / "images" / name, quality=92)
    document["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
    for instance in drawn.instances:
        encoded = coco_masks.encode(np.asfortranarray(instance.visible.astype(np.uint8)))
        document["annotations"].append(
            {
                "id": 1 + len(document["annotations"]),
                "image_id": image_id,
                "category_id": KINDS[instance.category.name],
                "bbox": tight_box(instance.visible),
                "area": int(instance.visible.sum()),
                "iscrowd": int(not instance.outline),
                "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
            }
        )
