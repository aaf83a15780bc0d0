"""Synthetic detections of a whole validation split: as COCO results, and as the mask head leaves them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks

from maskperf.bench.synthetic import shifted, synthetic_boxes
from maskperf.bench.synthetic_coco import VERSION, size_of

DETECTIONS = 100  # of an image
OUTLINES = 2000  # different ones
COPIES_OF_OBJECT = 4  # found more than once
MASK_SIDE = 28
FINER = 4  # times as many pixels a side when an outline is drawn for a soft mask


def result_files(cache: Path, truth_json: Path, *, seed: int) -> dict[str, str]:
    """Return the files of box results and mask results for a JSON of `large_json`; files already there are used again.

    Most of the best detections are objects of the truth, a little shifted; the others are anywhere.
    """
    paths = {kind: cache / f"{truth_json.stem}-{kind}-{VERSION}.json" for kind in ("boxes", "masks")}
    if not all(path.exists() for path in paths.values()):
        results = _results(json.loads(truth_json.read_text(encoding="ascii")), np.random.default_rng(seed))
        for path, entries in zip(paths.values(), results, strict=True):
            temporary = path.with_suffix(f".{os.getpid()}.part")
            temporary.write_bytes(msgspec.json.encode(entries))
            temporary.replace(path)
    return {kind: str(path) for kind, path in paths.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """The detections of one image, best first; those with an owner were made from that object of the truth."""

    corners: np.ndarray  # float64 [detections, 4]
    kinds: list[int]  # category ids
    scores: list[float]
    owners: list[int]  # -1: of no object


def _objects_of_images(truth: dict) -> dict[int, list[dict]]:
    objects: dict[int, list[dict]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            objects[annotation["image_id"]].append(annotation)
    return objects


def _unit_ring(annotation: dict) -> np.ndarray:
    """Return the outline [points, 2] of an object as if its box were the unit square."""
    ring = np.array(annotation["segmentation"][0]).reshape(-1, 2)
    return (ring - ring.min(axis=0)) / (ring.max(axis=0) - ring.min(axis=0))


def _results(truth: dict, random: np.random.Generator) -> tuple[list[dict], list[dict]]:
    objects = _objects_of_images(truth)
    units = [_unit_ring(entry) for found in objects.values() for entry in found][:OUTLINES]
    boxes, masks = [], []
    for image_id, found in objects.items():
        entries = _of_image(random, image_id, found, units)
        boxes += entries[0]
        masks += entries[1]
    return boxes, masks


def _of_image(
    random: np.random.Generator, image_id: int, objects: list[dict], units: list[np.ndarray]
) -> tuple[list[dict], list[dict]]:
    size_hw = size_of(image_id)
    found = _find(random, objects, size_hw)
    sides = found.corners[:, 2:] - found.corners[:, :2]
    chosen = random.integers(0, len(units), DETECTIONS).tolist()
    rings = [(found.corners[row, :2] + units[unit] * sides[row]).ravel() for row, unit in enumerate(chosen)]
    codes = coco_masks.frPyObjects(rings, *size_hw)
    boxes, masks = [], []
    for row, bbox in enumerate(np.concatenate([found.corners[:, :2], sides], axis=1).tolist()):
        owner = {"image_id": image_id, "category_id": found.kinds[row], "score": found.scores[row]}
        code = {"size": list(codes[row]["size"]), "counts": codes[row]["counts"].decode("ascii")}
        boxes.append({**owner, "bbox": bbox})
        masks.append({**owner, "segmentation": code})
    return boxes, masks


def _find(random: np.random.Generator, objects: list[dict], size_hw: tuple[int, int]) -> _Found:
    owners = np.repeat(np.arange(len(objects)), COPIES_OF_OBJECT)[:DETECTIONS]
    strays = DETECTIONS - len(owners)
    kinds = random.integers(1, 81, DETECTIONS)
    scores = random.uniform(0.05, 0.6, DETECTIONS)
    corners = synthetic_boxes(random, DETECTIONS, size_hw)
    if len(owners):
        xywh = np.array([entry["bbox"] for entry in objects])[owners]
        of_objects = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        corners[strays:] = shifted(random, of_objects, 0.07, size_hw)
        right = random.uniform(size=len(owners)) < 0.8
        kinds[strays:] = np.where(right, np.array([entry["category_id"] for entry in objects])[owners], kinds[strays:])
        scores[strays:] = random.uniform(0.1, 1.0, len(owners))
    order = np.argsort(-scores)
    return _Found(
        corners=corners[order].astype(np.float64),
        kinds=kinds[order].tolist(),
        scores=scores[order].tolist(),
        owners=np.concatenate([np.full(strays, -1), owners])[order].tolist(),
    )


def write_detections(path: Path, truth_json: Path, *, seed: int) -> None:
    """Write what the network leaves of each image of a JSON of `large_json`, DETECTIONS of each.

    Arrays: image_ids, sizes_hw [images, 2], boxes [images, detections, 4], scores, labels (category ids) and mask
    probabilities [images, detections, 28, 28]: soft outlines of the objects, strays have those of other objects.
    """
    random = np.random.default_rng(seed)
    objects = _objects_of_images(json.loads(truth_json.read_text(encoding="ascii")))
    soft = {image_id: [_soft_mask(_unit_ring(entry)) for entry in found] for image_id, found in objects.items()}
    strays = [mask for masks in soft.values() for mask in masks][:OUTLINES]
    found = {image_id: _find(random, entries, size_of(image_id)) for image_id, entries in objects.items()}
    probabilities = np.empty((len(found), DETECTIONS, MASK_SIDE, MASK_SIDE), np.float32)
    for number, (image_id, detections) in enumerate(found.items()):
        for place, owner in enumerate(detections.owners):
            others = strays[int(random.integers(len(strays)))]
            probabilities[number, place] = others if owner < 0 else soft[image_id][owner]
    np.savez(
        path,
        image_ids=np.array(list(found)),
        sizes_hw=np.array([size_of(image_id) for image_id in found]),
        boxes=np.stack([detections.corners for detections in found.values()]).astype(np.float32),
        scores=np.array([detections.scores for detections in found.values()], np.float32),
        labels=np.array([detections.kinds for detections in found.values()]),
        probabilities=probabilities,
    )


def _soft_mask(unit_ring: np.ndarray) -> np.ndarray:
    """Return probabilities [28, 28] that fall from 1 inside the outline to 0 outside, over about a cell."""
    side = FINER * MASK_SIDE
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in (unit_ring * (side - 1)).tolist()], fill=255)
    small = canvas.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(small, np.float32) / 255
