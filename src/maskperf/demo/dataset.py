"""Writes a small synthetic data set in COCO's format, to train and evaluate on where COCO itself is not at hand."""

import json
import os
import shutil
from pathlib import Path

from PIL import Image

from maskperf.demo.images import Instance, draw_image, image_id_of
from maskperf.demo.outlines import run_lengths, tight_box
from maskperf.demo.shapes import CATEGORIES
from maskperf.errors import ConfigError, StorageError

FORMAT_VERSION = 1  # raise it whenever the same seed would give other images
SETTINGS_NAME = "demo.json"
MARKER_NAME = "demo.partial"  # replaces SETTINGS_NAME until everything else is written
SPLITS = ("train2017", "val2017")
JPEG_QUALITY = 92


def write_demo_dataset(root: Path, train_images: int, val_images: int, seed: int = 0) -> bool:
    """Write images, annotations and demo.json unless `root` holds the same data set; return whether it was written.

    What an interrupted call left behind is removed and written again.
    Errors: ConfigError for a split without images; StorageError when `root` holds anything else, or cannot be written.
    """
    counts = {"train_images": train_images, "val_images": val_images}
    settings = {**counts, "seed": seed, "format_version": FORMAT_VERSION}
    if min(train_images, val_images) < 1:
        raise ConfigError(f"data.generate_images is {train_images},{val_images}. Fix: give numbers of 1 or more.")
    if _settings_found(root) == settings:
        return False
    try:
        _refuse_foreign_folder(root, settings)
        root.mkdir(parents=True, exist_ok=True)
        marker = root / MARKER_NAME
        marker.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        for name in (*SPLITS, "annotations"):
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir()
        for split_index, count in enumerate(counts.values()):
            _write_split(root, split_index, count, seed)
        os.replace(marker, root / SETTINGS_NAME)  # a rename, so a demo.json is always whole and always last
    except OSError as error:
        raise StorageError(
            f"{root}: cannot write the demo data set: {error}. Fix: free some space or set data.root to another folder."
        ) from error
    return True


def _write_split(root: Path, split_index: int, count: int, seed: int) -> None:
    split = SPLITS[split_index]
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        image = draw_image(split_index, index, seed)
        image_id = image_id_of(split_index, index)
        file_name = f"{image_id:012d}.jpg"
        Image.fromarray(image.pixels).save(root / split / file_name, quality=JPEG_QUALITY)
        height, width = image.pixels.shape[:2]
        images.append({"license": 1, "file_name": file_name, "height": height, "width": width, "id": image_id})
        for instance in image.instances:
            annotations.append(_annotation(instance, image_id, len(annotations) + 1))
    about = {"description": f"maskperf demo data set, {split}, seed {seed}", "version": str(FORMAT_VERSION), "url": ""}
    document = {
        "info": {**about, "year": 2026, "contributor": "maskperf", "date_created": "2026/01/01"},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": entry.supercategory, "id": entry.id, "name": entry.name} for entry in CATEGORIES
        ],
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")


def _annotation(instance: Instance, image_id: int, annotation_id: int) -> dict:
    polygons = [[float(value) for point in polygon for value in point] for polygon in instance.outline]
    crowd = {"counts": run_lengths(instance.visible), "size": list(instance.visible.shape)}
    return {
        "segmentation": polygons or crowd,
        "area": float(instance.visible.sum()),
        "iscrowd": int(not polygons),
        "image_id": image_id,
        "bbox": tight_box(instance.visible),
        "category_id": instance.category.id,
        "id": annotation_id,
    }


def holds_own_data(root: Path) -> bool:
    """Return whether `root` has a training file that this program did not write."""
    is_generated = (root / SETTINGS_NAME).exists() or (root / MARKER_NAME).exists()
    return not is_generated and (root / "annotations" / f"instances_{SPLITS[0]}.json").is_file()


def _settings_found(root: Path) -> dict | None:
    """Return the content of demo.json in `root`; None when there is none or it cannot be read."""
    try:
        found = json.loads((root / SETTINGS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _refuse_foreign_folder(root: Path, settings: dict[str, int]) -> None:
    """Raise StorageError unless `root` is absent, empty, or left behind by an interrupted call."""
    fix = "Fix: set data.root to a folder that is empty or does not exist"
    if not root.exists():
        return
    if not root.is_dir():
        raise StorageError(f"{root}: this is a file, but the demo data set needs a folder. {fix}.")
    if (root / SETTINGS_NAME).exists():
        found = _settings_found(root)
        if found is not None and found.get("format_version") == FORMAT_VERSION:
            numbers = ",".join(str(found.get(name)) for name in ("train_images", "val_images", "seed"))
            fix += f", or set data.generate_images={numbers} to use this one"
        content = f"a {SETTINGS_NAME} that cannot be read" if found is None else f"the settings {found}"
        raise StorageError(f"{root}: holds a demo data set with {content}; expected are {settings}. {fix}.")
    if any(root.iterdir()) and not (root / MARKER_NAME).exists():
        raise StorageError(
            f"{root}: the folder is not empty and holds no {SETTINGS_NAME}; nothing was changed. {fix}. To train on "
            "what is in it, set data.train_json, data.train_images, data.val_json and data.val_images, or arrange it "
            f"as COCO is, with annotations/instances_{SPLITS[0]}.json."
        )
