"""Writes a small synthetic data set in COCO's format, to train and judge on where COCO itself is not at hand."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from maskperf.demo.images import Thing, draw_picture, image_id_of
from maskperf.demo.outlines import run_lengths, tight_box
from maskperf.demo.shapes import CATEGORIES
from maskperf.errors import ConfigError, StorageError

FORMAT_VERSION = 1  # raise it whenever the same seed would give other pictures
SETTINGS_NAME = "demo.json"
MARKER_NAME = "demo.partial"  # stands in for SETTINGS_NAME until everything else is written
SPLITS = ("train2017", "val2017")
JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What decides the data set's content."""

    train_images: int
    val_images: int
    seed: int
    format_version: int = FORMAT_VERSION


def ensure_demo_dataset(root: Path, *, train_images: int, val_images: int, seed: int) -> bool:
    """Return whether the data set had to be written; False when `root` holds the same one already.

    Errors: StorageError when `root` holds anything else, or cannot be written.
    """
    settings = DemoSettings(train_images=train_images, val_images=val_images, seed=seed)
    if _settings_found(root) == asdict(settings):
        return False
    write_demo_dataset(root, train_images=train_images, val_images=val_images, seed=seed)
    return True


def write_demo_dataset(root: Path, *, train_images: int, val_images: int, seed: int) -> None:
    """Write pictures, annotations and demo.json into the empty or new folder `root`.

    What an interrupted call left behind is removed and written anew.
    Errors: ConfigError for a split without pictures; StorageError when `root` is not empty, or cannot be written.
    """
    for name, count in (("train_images", train_images), ("val_images", val_images)):
        if count < 1:
            raise ConfigError(f"data.generate_{name} is {count}. Give a number of 1 or more.")
    settings = DemoSettings(train_images=train_images, val_images=val_images, seed=seed)
    try:
        _refuse_foreign_folder(root, settings)
        root.mkdir(parents=True, exist_ok=True)
        marker = root / MARKER_NAME
        marker.write_text(json.dumps(asdict(settings)) + "\n", encoding="utf-8")
        for name in (*SPLITS, "annotations"):
            if (root / name).exists():
                shutil.rmtree(root / name)
            (root / name).mkdir()
        for split_index, count in enumerate((train_images, val_images)):
            _write_split(root, split_index, count, seed)
        os.replace(marker, root / SETTINGS_NAME)  # a rename, so a demo.json is always whole and always last
    except OSError as error:
        raise StorageError(
            f"{root}: cannot write the demo data set: {error}. Free some space or name another folder in data.root."
        ) from error


def _write_split(root: Path, split_index: int, count: int, seed: int) -> None:
    split = SPLITS[split_index]
    images, annotations = [], []
    for place in range(count):
        picture = draw_picture(split_index, place, seed)
        image_id = image_id_of(split_index, place)
        file_name = f"{image_id:012d}.jpg"
        Image.fromarray(picture.pixels).save(root / split / file_name, quality=JPEG_QUALITY)
        height, width = picture.pixels.shape[:2]
        images.append({"license": 1, "file_name": file_name, "height": height, "width": width, "id": image_id})
        for thing in picture.things:
            annotations.append(_annotation(thing, image_id, len(annotations) + 1))
    document = {
        "info": {
            "description": f"maskperf demo data set, {split}, seed {seed}",
            "version": str(FORMAT_VERSION),
            "url": "",
            "year": 2026,
            "contributor": "maskperf",
            "date_created": "2026/01/01",
        },
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": entry.supercategory, "id": entry.id, "name": entry.name} for entry in CATEGORIES
        ],
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")


def _annotation(thing: Thing, image_id: int, annotation_id: int) -> dict:
    is_crowd = not thing.outline
    if is_crowd:
        segmentation = {"counts": run_lengths(thing.visible), "size": list(thing.visible.shape)}
    else:
        segmentation = [[float(value) for point in ring for value in point] for ring in thing.outline]
    return {
        "segmentation": segmentation,
        "area": float(thing.visible.sum()),
        "iscrowd": int(is_crowd),
        "image_id": image_id,
        "bbox": tight_box(thing.visible),
        "category_id": thing.category.id,
        "id": annotation_id,
    }


def holds_own_data(root: Path) -> bool:
    """Return whether `root` has a training file that this program did not write."""
    is_generated = (root / SETTINGS_NAME).exists() or (root / MARKER_NAME).exists()
    return not is_generated and (root / "annotations" / f"instances_{SPLITS[0]}.json").is_file()


def _settings_found(root: Path) -> dict | None:
    """Return what demo.json in `root` says; None when there is none or it cannot be read."""
    try:
        found = json.loads((root / SETTINGS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _refuse_foreign_folder(root: Path, settings: DemoSettings) -> None:
    """Raise StorageError unless `root` is absent, empty, or left behind by an interrupted call."""
    fix = "Set data.root to a folder that is empty or does not exist"
    if not root.exists():
        return
    if not root.is_dir():
        raise StorageError(f"{root}: this is a file, but the demo data set needs a folder. {fix}.")
    if (root / SETTINGS_NAME).exists():
        found = _settings_found(root)
        said = f"a {SETTINGS_NAME} that cannot be read" if found is None else f"the settings {found}"
        fix += _keys_of(found)
        raise StorageError(f"{root}: holds a demo data set with {said}; asked for were {asdict(settings)}. {fix}.")
    if any(root.iterdir()) and not (root / MARKER_NAME).exists():
        raise StorageError(
            f"{root}: the folder is not empty and holds no {SETTINGS_NAME}; nothing was changed. {fix}. To train on "
            "what is in it, set data.train_json, data.train_images, data.val_json and data.val_images, or lay it out "
            f"as COCO is, with annotations/instances_{SPLITS[0]}.json."
        )


def _keys_of(found: dict | None) -> str:
    """Return which keys ask for a data set that is there; nothing for one of another version."""
    if found is None or found.get("format_version") != FORMAT_VERSION:
        return ""
    names = ("train_images", "val_images", "seed")
    return ", or set " + " ".join(f"data.generate_{name}={found.get(name)}" for name in names) + " to use this one"
