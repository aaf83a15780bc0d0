"""Synthetic COCO data: images with their JSON, a JSON as large as that of train2017, and detections of its images."""

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks

from maskperf.bench.synthetic import shifted, synthetic_boxes, synthetic_polygon
from maskperf.config import NUM_TRAIN_FILES
from maskperf.files import replace_file
from maskperf.machine.speed import make_jpeg

SIZES_HW = ((480, 640), (640, 480), (427, 640), (640, 427), (500, 375), (333, 500), (612, 612), (425, 640))
ROUGH_HW, NOISE = (9, 12), 8.0  # of the synthetic images
CATEGORIES = [{"id": number, "name": f"thing {number}"} for number in range(1, 81)]
OBJECTS_OF_IMAGE = 7
TRAIN_ANNOTATIONS = 860_001  # of train2017
POLYGONS_OF_SIZE = 1_000  # different ones for each image size; annotations share them
CROWD_SHARE = 0.012
STRIPE_PIXELS = 1000  # of the synthetic mask of a crowd
EMPTY_SHARE = 0.009  # images without an annotation
COPIES_OF_IMAGE = 8  # a file system limits the links to one file
DETECTIONS = 100  # of an image
POLYGONS_OF_STRAYS = 2000  # different ones
DETECTIONS_OF_OBJECT = 4
MASK_SIDE = 28
OVERSAMPLING = 4  # of a polygon that is drawn for a soft mask
VERSION = 2  # of what this file makes; part of the names in the cache


def size_of(image_id: int) -> tuple[int, int]:
    return SIZES_HW[image_id % len(SIZES_HW)]


def write_images(folder: Path, *, images: int, seed: int) -> Path:
    """Write JPEG files of 640 x 480 and 480 x 640 with 7 objects each on average; return the path of their JSON."""
    random = np.random.default_rng(seed)
    entries: list[dict] = []
    annotations: list[dict] = []
    for number in range(1, images + 1):
        height, width = SIZES_HW[number % 2]
        name = f"{number:012d}.jpg"
        (folder / name).write_bytes(make_jpeg(random, (height, width), ROUGH_HW, NOISE))
        entries.append({"id": number, "file_name": name, "height": height, "width": width})
        for box in synthetic_boxes(random, int(random.integers(1, 2 * OBJECTS_OF_IMAGE)), (height, width)):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": int(random.integers(1, 81))}
            annotations.append(entry | _outline_entry(random, box))
    path = folder / "instances.json"
    document = {"images": entries, "annotations": annotations, "categories": CATEGORIES}
    path.write_text(json.dumps(document), encoding="ascii")
    return path


def _outline_entry(random: np.random.Generator, box: np.ndarray) -> dict:
    """Return the fields of an annotation that follow from a polygon that fills the corner box."""
    polygon = np.round(synthetic_polygon(random, box).astype(np.float64), 2)
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    x, y = polygon.T
    area = abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
    bbox = [round(float(value), 2) for value in (*low, *(high - low))]
    return {"segmentation": [polygon.ravel().tolist()], "area": round(area, 2), "bbox": bbox, "iscrowd": 0}


def large_json(cache: Path, *, images: int, seed: int) -> Path:
    """Return a JSON with as many annotations an image as that of train2017; one in the cache is used again."""
    path = cache / f"instances-{VERSION}-{images}-{seed}.json"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: _write_large_json(temporary, images=images, seed=seed))
    return path


def _write_large_json(path: Path, *, images: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    with path.open("w", encoding="ascii") as file:
        file.write('{"info": {"description": "synthesized"}, "images": [')
        for number in range(1, images + 1):
            height, width = size_of(number)
            entry = {"license": 3, "file_name": f"{number:012d}.jpg", "height": height, "width": width, "id": number}
            file.write(", " * (number > 1) + json.dumps(entry))
        file.write('], "annotations": [')
        count = round(images * TRAIN_ANNOTATIONS / NUM_TRAIN_FILES)
        file.writelines(_annotation_texts(random, images=images, count=count))
        file.write(f'], "categories": {json.dumps(CATEGORIES)}}}')


def _annotation_texts(random: np.random.Generator, *, images: int, count: int) -> Iterator[str]:
    """Yield annotations in random order: an object of its own for every image that is not empty, others at random."""
    different = min(POLYGONS_OF_SIZE, count)
    outlines = [[_outline_text(random, size) for _ in range(different)] for size in SIZES_HW]
    crowd_texts = [_crowd_text(size) for size in SIZES_HW]
    filled = np.flatnonzero(random.uniform(size=images) >= EMPTY_SHARE) + 1
    filled = filled if len(filled) else np.array([1])
    owners = np.concatenate([filled, random.choice(filled, max(0, count - len(filled)))])
    crowds = random.uniform(size=len(owners)) < CROWD_SHARE
    crowds[: len(filled)] = False
    choice = random.integers(0, different, len(owners))
    kinds = random.integers(1, len(CATEGORIES) + 1, len(owners))
    order = random.permutation(len(owners))
    columns = (values[order].tolist() for values in (owners, crowds, choice, kinds))
    for number, (image, is_crowd, outline, kind) in enumerate(zip(*columns, strict=True), start=1):
        size = image % len(SIZES_HW)
        text = crowd_texts[size] if is_crowd else outlines[size][outline]
        owner = f'"image_id": {image}, "category_id": {kind}, "id": {number}'
        yield f"{', ' * (number > 1)}{{{text}, {owner}}}"


def _outline_text(random: np.random.Generator, size_hw: tuple[int, int]) -> str:
    entry = _outline_entry(random, synthetic_boxes(random, 1, size_hw)[0])
    if random.uniform() < 0.1:  # some objects have two parts
        entry["segmentation"] += _outline_entry(random, synthetic_boxes(random, 1, size_hw)[0])["segmentation"]
    return json.dumps(entry)[1:-1]


def _crowd_text(size_hw: tuple[int, int]) -> str:
    """Return a crowd region: the run lengths of stripes over the whole image."""
    height, width = size_hw
    runs = [STRIPE_PIXELS] * (height * width // STRIPE_PIXELS)
    runs.append(height * width - sum(runs))
    code = {"counts": runs, "size": [height, width]}
    entry = {"segmentation": code, "area": sum(runs[1::2]), "iscrowd": 1, "bbox": [0, 0, width, height]}
    return json.dumps(entry)[1:-1]


def large_folder(cache: Path, *, images: int, seed: int) -> Path:
    """Return a folder with an image of the right size for each id of `large_json`: few files with many names."""
    folder = cache / f"pictures-{VERSION}-{images}-{seed}"
    if folder.is_dir():
        return folder
    random = np.random.default_rng(seed)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    temporary.mkdir(parents=True)
    sources = [temporary / f"source_{number}.jpg" for number in range(COPIES_OF_IMAGE * len(SIZES_HW))]
    for number, source in enumerate(sources):
        source.write_bytes(make_jpeg(random, size_of(number), ROUGH_HW, NOISE))
    for number in range(1, images + 1):
        os.link(sources[number % len(sources)], temporary / f"{number:012d}.jpg")
    try:
        temporary.replace(folder)
    except OSError:  # another process was quicker
        shutil.rmtree(temporary)
    return folder


def result_files(cache: Path, truth_json: Path, *, seed: int) -> dict[str, str]:
    """Return the files of box results and mask results for a JSON of `large_json`; those in the cache are used again.

    Most of the best detections are objects of the ground truth, a little shifted; the others are anywhere.
    """
    paths = {kind: cache / f"{truth_json.stem}-{kind}-{VERSION}.json" for kind in ("boxes", "masks")}
    if not all(path.exists() for path in paths.values()):
        results = _results(_objects_of_images(truth_json), np.random.default_rng(seed))
        for path, entries in zip(paths.values(), results, strict=True):
            replace_file(path, partial(Path.write_bytes, data=msgspec.json.encode(entries)))
    return {kind: str(path) for kind, path in paths.items()}


def _objects_of_images(truth_json: Path) -> dict[int, list[dict]]:
    truth = json.loads(truth_json.read_text(encoding="ascii"))
    objects: dict[int, list[dict]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            objects[annotation["image_id"]].append(annotation)
    return objects


def _unit_polygon(annotation: dict) -> np.ndarray:
    """Return the outline [points, 2] of an object as if its box were the unit square."""
    polygon = np.array(annotation["segmentation"][0]).reshape(-1, 2)
    return (polygon - polygon.min(axis=0)) / (polygon.max(axis=0) - polygon.min(axis=0))


def _results(objects: dict[int, list[dict]], random: np.random.Generator) -> tuple[list[dict], list[dict]]:
    units = [_unit_polygon(entry) for found in objects.values() for entry in found][:POLYGONS_OF_STRAYS]
    boxes, masks = [], []
    for image_id, entries in objects.items():
        size_hw = size_of(image_id)
        found = _find(random, entries, size_hw)
        starts, sides = found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]
        chosen = random.integers(0, len(units), DETECTIONS).tolist()
        polygons = [(starts[row] + units[unit] * sides[row]).ravel() for row, unit in enumerate(chosen)]
        columns = (np.concatenate([starts, sides], axis=1), found["labels"], found["scores"])
        rows = zip(coco_masks.frPyObjects(polygons, *size_hw), *(column.tolist() for column in columns), strict=True)
        for code, bbox, label, value in rows:
            owner = {"image_id": image_id, "category_id": label, "score": value}
            boxes.append({**owner, "bbox": bbox})
            masks.append({**owner, "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()}})
    return boxes, masks


def _find(random: np.random.Generator, objects: list[dict], size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the detections of one image by descending score.

    Arrays: boxes (float64 corners), labels (category ids), scores, and owners: the index of the object that a
    detection was made from, -1 for none.
    """
    owners = np.repeat(np.arange(len(objects)), DETECTIONS_OF_OBJECT)[:DETECTIONS]
    strays = DETECTIONS - len(owners)
    labels = random.integers(1, 81, DETECTIONS)
    scores = random.uniform(0.05, 0.6, DETECTIONS)
    boxes = synthetic_boxes(random, DETECTIONS, size_hw)
    if len(owners):
        xywh = np.array([entry["bbox"] for entry in objects])[owners]
        of_objects = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        boxes[strays:] = shifted(random, of_objects, 0.07, size_hw)
        right = random.uniform(size=len(owners)) < 0.8
        own = np.array([entry["category_id"] for entry in objects])[owners]
        labels[strays:] = np.where(right, own, labels[strays:])
        scores[strays:] = random.uniform(0.1, 1.0, len(owners))
    found = {"boxes": boxes.astype(np.float64), "labels": labels, "scores": scores}
    order = np.argsort(-scores)
    found["owners"] = np.concatenate([np.full(strays, -1), owners])
    return {name: values[order] for name, values in found.items()}


def write_detections(path: Path, *, truth_json: Path, seed: int) -> None:
    """Write the network's output for each image of a JSON of `large_json`, DETECTIONS of each.

    Arrays: image_ids, sizes_hw [images, 2], boxes [images, detections, 4], scores, labels (category ids) and mask
    probabilities [images, detections, 28, 28]: soft outlines of the objects; strays have those of other objects.
    """
    random = np.random.default_rng(seed)
    objects = _objects_of_images(truth_json)
    soft = {image_id: [_soft_mask(_unit_polygon(entry)) for entry in found] for image_id, found in objects.items()}
    strays = [mask for masks in soft.values() for mask in masks][:POLYGONS_OF_STRAYS]
    found = {image_id: _find(random, entries, size_of(image_id)) for image_id, entries in objects.items()}
    probabilities = np.empty((len(found), DETECTIONS, MASK_SIDE, MASK_SIDE), np.float32)
    for number, (image_id, detections) in enumerate(found.items()):
        for row, owner in enumerate(detections["owners"].tolist()):
            stray = strays[int(random.integers(len(strays)))]
            probabilities[number, row] = stray if owner < 0 else soft[image_id][owner]
    boxes, scores, labels = (np.stack([one[name] for one in found.values()]) for name in ("boxes", "scores", "labels"))
    np.savez(
        path,
        image_ids=np.array(list(found)),
        sizes_hw=np.array([size_of(image_id) for image_id in found]),
        boxes=boxes.astype(np.float32),
        scores=scores.astype(np.float32),
        labels=labels,
        probabilities=probabilities,
    )


def _soft_mask(unit_polygon: np.ndarray) -> np.ndarray:
    """Return probabilities [28, 28] that fall from 1 inside the outline to 0 outside, over about a cell."""
    side = OVERSAMPLING * MASK_SIDE
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).polygon((unit_polygon * (side - 1)).ravel().tolist(), fill=255)
    small = image.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(small, np.float32) / 255
