"""Synthetic COCO data sets: a few pictures with their JSON, and a JSON as large as that of train2017."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from maskperf.bench.synthetic import synthetic_boxes, synthetic_ring

SIZES_HW = ((480, 640), (640, 480), (427, 640), (640, 427), (500, 375), (333, 500), (612, 612), (425, 640))
CATEGORIES = 80
OBJECTS_OF_PICTURE = 7
TRAIN_IMAGES, TRAIN_ANNOTATIONS = 118_287, 860_001  # of train2017
OUTLINES_OF_SIZE = 1_000  # different outlines made for each size of picture; annotations share them
CROWD_SHARE = 0.012
STRIPE_PIXELS = 1000  # of the synthetic outline of a crowd
EMPTY_SHARE = 0.009  # pictures without an annotation
COPIES_OF_PICTURE = 8  # a file system bounds the names of one file
VERSION = 2  # of what this file makes; part of the names in the cache


def write_pictures(folder: Path, *, images: int, seed: int) -> Path:
    """Write JPEG files of 640 x 480 and 480 x 640 with 7 objects each on average, and returns their JSON."""
    random = np.random.default_rng(seed)
    pictures, annotations = [], []
    for number in range(1, images + 1):
        height, width = SIZES_HW[number % 2]
        name = f"{number:012d}.jpg"
        write_jpeg(folder / name, random, (height, width))
        pictures.append({"id": number, "file_name": name, "height": height, "width": width})
        for box in synthetic_boxes(random, int(random.integers(1, 2 * OBJECTS_OF_PICTURE)), (height, width)):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": int(random.integers(1, 81))}
            annotations.append(entry | outline_entry(random, box))
    path = folder / "instances.json"
    path.write_text(json.dumps(_document(pictures, annotations)), encoding="ascii")
    return path


def outline_entry(random: np.random.Generator, box: np.ndarray) -> dict:
    """Return the fields of an annotation that follow from a polygon that fills the corner box."""
    ring = np.round(synthetic_ring(random, box).astype(np.float64), 2)
    low, high = ring.min(axis=0), ring.max(axis=0)
    x, y = ring.T
    area = abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
    bbox = [round(float(value), 2) for value in (*low, *(high - low))]
    return {"segmentation": [ring.ravel().tolist()], "area": round(area, 2), "bbox": bbox, "iscrowd": 0}


def write_jpeg(path: Path, random: np.random.Generator, size_hw: tuple[int, int]) -> None:
    """Write a picture of rough shapes with fine noise, of about the bytes that COCO's have."""
    rough = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
    smooth = np.asarray(rough.resize(size_hw[::-1], Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + random.normal(0, 8, smooth.shape)
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, "JPEG", quality=90)


def _document(images: list[dict], annotations: list[dict]) -> dict:
    categories = [{"id": number, "name": f"thing {number}"} for number in range(1, CATEGORIES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def large_json(cache: Path, *, images: int, seed: int) -> Path:
    """Return a JSON with as many annotations an image as that of train2017; one that is there is used again."""
    path = cache / f"instances-{VERSION}-{images}-{seed}.json"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _write_large_json(path, images=images, seed=seed)
    return path


def large_folder(cache: Path, *, images: int, seed: int) -> Path:
    """Return a folder with a picture for each image of `large_json`: few files with many names."""
    folder = cache / f"pictures-{VERSION}-{images}-{seed}"
    if not folder.is_dir():
        _link_pictures(folder, images=images, seed=seed)
    return folder


def _write_large_json(path: Path, *, images: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    categories = json.dumps(_document([], [])["categories"])
    count = round(images * TRAIN_ANNOTATIONS / TRAIN_IMAGES)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    with temporary.open("w", encoding="ascii") as file:
        rows = (
            f'{{"license": 3, "file_name": "{number:012d}.jpg", "height": {height}, "width": {width}, "id": {number}}}'
            for number, (height, width) in ((number, size_of(number)) for number in range(1, images + 1))
        )
        file.write('{"info": {"description": "synthesized"}, "images": [')
        file.write(", ".join(rows))
        file.write('], "annotations": [')
        _write_annotations(file, random, images=images, count=count)
        file.write(f'], "categories": {categories}}}')
    temporary.replace(path)


def size_of(image_id: int) -> tuple[int, int]:
    return SIZES_HW[image_id % len(SIZES_HW)]


def _write_annotations(file, random: np.random.Generator, *, images: int, count: int) -> None:
    different = min(OUTLINES_OF_SIZE, count)
    outlines = [[_outline_text(random, size) for _ in range(different)] for size in SIZES_HW]
    filled = np.flatnonzero(random.uniform(size=images) >= EMPTY_SHARE) + 1
    filled = filled if len(filled) else np.array([1])
    # Every picture that is not empty has an object of its own; the others come as they may.
    owners = np.concatenate([filled, random.choice(filled, max(0, count - len(filled)))])
    crowds = random.uniform(size=len(owners)) < CROWD_SHARE
    crowds[: len(filled)] = False
    choice = random.integers(0, len(outlines[0]), len(owners)).tolist()
    kinds = random.integers(1, CATEGORIES + 1, len(owners)).tolist()
    order = random.permutation(len(owners)).tolist()
    owners, crowds = owners.tolist(), crowds.tolist()
    for place, index in enumerate(order):
        image = owners[index]
        size = image % len(SIZES_HW)
        outline = _CROWD[size] if crowds[index] else outlines[size][choice[index]]
        owner = f'"image_id": {image}, "category_id": {kinds[index]}, "id": {place + 1}'
        file.write(f"{', ' if place else ''}{{{outline}, {owner}}}")


def _outline_text(random: np.random.Generator, size_hw: tuple[int, int]) -> str:
    entry = outline_entry(random, synthetic_boxes(random, 1, size_hw)[0])
    if random.uniform() < 0.1:  # some objects have two parts
        entry["segmentation"].append(outline_entry(random, synthetic_boxes(random, 1, size_hw)[0])["segmentation"][0])
    return json.dumps(entry)[1:-1]


def _crowd_text(size_hw: tuple[int, int]) -> str:
    """Return a crowd region: a run-length code of stripes over the whole picture."""
    height, width = size_hw
    runs = [STRIPE_PIXELS] * (height * width // STRIPE_PIXELS)
    runs.append(height * width - sum(runs))
    entry = {
        "segmentation": {"counts": runs, "size": [height, width]},
        "area": sum(runs[1::2]),
        "iscrowd": 1,
        "bbox": [0, 0, width, height],
    }
    return json.dumps(entry)[1:-1]


_CROWD = [_crowd_text(size) for size in SIZES_HW]


def _link_pictures(folder: Path, *, images: int, seed: int) -> None:
    """Make a folder with a picture of the right size for every image id."""
    random = np.random.default_rng(seed)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    temporary.mkdir(parents=True)
    sources = []
    for number in range(COPIES_OF_PICTURE * len(SIZES_HW)):
        source = temporary / f"source_{number}.jpg"
        write_jpeg(source, random, size_of(number))
        sources.append(source)
    for number in range(1, images + 1):
        os.link(sources[number % len(sources)], temporary / f"{number:012d}.jpg")
    try:
        temporary.replace(folder)
    except OSError:  # another process was quicker
        shutil.rmtree(temporary)
