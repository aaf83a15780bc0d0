"""The validation images on which a model did best and worst, each drawn beside its truth, for the report."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks

from maskperf.data.coco.document import AnnotationRow, Document, ImageRow, outline_of
from maskperf.data.images.decode import decode_image
from maskperf.files import pretty_json, write_text
from maskperf.pictures.panels import (
    Colour,
    Overlay,
    category_colours,
    draw_panel,
    drawable_names,
    font_of,
    printable_line,
    printable_name,
)
from maskperf.pictures.pictures import decode_outline
from maskperf.schema import PICTURES_FILE, PictureEntry

SURE_SCORE = 0.5  # detections below this are neither judged nor drawn
LEAST_OVERLAP = 0.1  # a smaller overlap is chance, not an object found
CROWD_OVERLAP = 0.5  # share of a detection inside a crowd of its category from which it is left out
LARGEST_JPEG_BYTES = 80_000
QUALITIES = (88, 80, 70, 60, 50, 40, 30)
HEADER_PX = 26
GAP_PX = 8
HEADER_COLOUR = (244, 245, 247)
TEXT_COLOUR = (40, 44, 52)


@dataclass(frozen=True, kw_only=True)
class ImageJudgement:
    """How well one image went."""

    image_id: int
    score: float
    objects: int
    overlaps: tuple[float, ...]  # mask overlap of each object that was found
    wrong: int  # detections without an object

    def caption(self) -> str:
        found = f"{len(self.overlaps)} of {self.objects} object{'s' if self.objects > 1 else ''} found"
        if self.overlaps:
            found += f", mean mask overlap {sum(self.overlaps) / len(self.overlaps):.2f}"
        wrong = f"{self.wrong} wrong detection{'s' if self.wrong > 1 else ''}" if self.wrong else "no wrong detection"
        return f"score {self.score:.2f}: {found}, {wrong}"


@dataclass(frozen=True, kw_only=True)
class _Split:
    """What is known of a validation split: truth and sure detections by image."""

    document: Document
    annotations: dict[int, list[AnnotationRow]]
    detections: dict[int, list[tuple[dict, dict]]]  # entry of the boxes, entry of the masks


def write_picture_entries(
    document: Document,
    image_folder: Path,
    box_results: Sequence[dict],
    mask_results: Sequence[dict],
    *,
    count: int = 4,
    folder: Path,
) -> None:
    """Write pictures.json with the `count` best and the `count` worst images, each drawn twice.

    `document` is in COCO's form, as `read_annotations` returns it.
    Results are entries of COCO's result format; entry k of both lists describes the same detection.
    An image's score is the sum of the mask overlaps of its found objects, divided by the number of its objects plus
    that of the wrong detections. Only detections with a score of 0.5 or more count. Detections and objects of one
    category are paired one to one, the largest overlap first, down to an overlap of 0.1; a detection left over is
    wrong, unless half of it lies in a crowd of its category. Images without objects are left out; crowds are no
    objects. Of equal scores the image with more objects and wrong detections is chosen, then the smaller id.
    Errors: ValueError for results that do not belong together; DataError for a picture that cannot be read;
    StorageError where the file cannot be written.
    """
    split = _split_of(document, box_results, mask_results)
    judgements = judge_images(split.document, split.annotations, split.detections)
    rows = {row.id: row for row in split.document.images}
    names = drawable_names({row.id: str(row.name) for row in split.document.categories})
    colours = category_colours(list(names.values()))
    entries = []
    for kind, judgement in choose_best_and_worst(judgements, count):
        row = rows[judgement.image_id]
        truth, found = split.annotations[row.id], split.detections.get(row.id, [])
        jpeg = _draw(row, image_folder, truth=truth, found=found, names=names, colours=colours)
        entries.append(
            PictureEntry(
                kind=kind,
                title=printable_line(row.file_name),
                caption=judgement.caption(),
                jpeg_base64=base64.b64encode(jpeg).decode("ascii"),
            )
        )
    write_text(folder / PICTURES_FILE, pretty_json(entries))


def judge_images(
    document: Document,
    annotations: dict[int, list[AnnotationRow]],
    detections: dict[int, list[tuple[dict, dict]]],
) -> list[ImageJudgement]:
    """Return the judgement of each image that has an object, by the rule of `write_picture_entries`."""
    judgements = []
    for row in document.images:
        truth = annotations.get(row.id, [])
        objects = sum(1 for annotation in truth if not annotation.iscrowd)
        if not objects:
            continue
        overlaps, wrong = _match_image(row, truth, [mask for _, mask in detections.get(row.id, [])])
        judgements.append(
            ImageJudgement(
                image_id=row.id,
                score=sum(overlaps) / (objects + wrong),
                objects=objects,
                overlaps=tuple(overlaps),
                wrong=wrong,
            )
        )
    return judgements


def choose_best_and_worst(judgements: Sequence[ImageJudgement], count: int) -> list[tuple[str, ImageJudgement]]:
    """Return up to `count` best images, the best one first, then up to `count` worst, the worst one first.

    No image is both, and where there are too few each kind gets a half; a score of 0 is never among the best.
    """
    best = sorted(judgements, key=lambda entry: (-entry.score, -entry.objects - entry.wrong, entry.image_id))
    worst = sorted(judgements, key=lambda entry: (entry.score, -entry.objects - entry.wrong, entry.image_id))
    chosen = [entry for entry in best[: min(count, (len(best) + 1) // 2)] if entry.score > 0]
    taken = {entry.image_id for entry in chosen}
    left = [entry for entry in worst if entry.image_id not in taken][:count]
    return [("best", entry) for entry in chosen] + [("worst", entry) for entry in left]


def _split_of(document: Document, box_results: Sequence[dict], mask_results: Sequence[dict]) -> _Split:
    if len(box_results) != len(mask_results):
        raise ValueError(f"{len(box_results)} box results, but {len(mask_results)} mask results")
    annotations: dict[int, list[AnnotationRow]] = {}
    for annotation in document.annotations:
        annotations.setdefault(annotation.image_id, []).append(annotation)
    detections: dict[int, list[tuple[dict, dict]]] = {}
    for boxes, masks in zip(box_results, mask_results, strict=True):
        if boxes["image_id"] != masks["image_id"] or boxes["category_id"] != masks["category_id"]:
            raise ValueError("box_results and mask_results do not describe the same detections in the same order")
        if boxes["score"] >= SURE_SCORE:
            detections.setdefault(boxes["image_id"], []).append((boxes, masks))
    return _Split(document=document, annotations=annotations, detections=detections)


def _match_image(row: ImageRow, truth: list[AnnotationRow], found: list[dict]) -> tuple[list[float], int]:
    """Return the overlaps of the objects that were found, and the number of wrong detections."""
    overlaps: list[float] = []
    wrong = 0
    for category_id in sorted({entry["category_id"] for entry in found}):
        masks = [entry["segmentation"] for entry in found if entry["category_id"] == category_id]
        objects, crowds = [], []
        for annotation in truth:
            if annotation.category_id == category_id:
                (crowds if annotation.iscrowd else objects).append(_packed(annotation, row))
        paired = _pair(coco_masks.iou(masks, objects, [False] * len(objects))) if objects else {}
        overlaps += paired.values()
        left = [mask for place, mask in enumerate(masks) if place not in paired]
        if left and crowds:
            in_crowd = np.asarray(coco_masks.iou(left, crowds, [True] * len(crowds))).max(axis=1) >= CROWD_OVERLAP
            wrong += len(left) - int(in_crowd.sum())
        else:
            wrong += len(left)
    return overlaps, wrong


def _pair(overlaps: np.ndarray) -> dict[int, float]:
    """Return the overlap of each detection (row) that got an object (column), the largest overlaps first."""
    paired: dict[int, float] = {}
    taken = set()
    for flat in np.argsort(-overlaps, axis=None, kind="stable"):
        detection, place = divmod(int(flat), overlaps.shape[1])
        overlap = float(overlaps[detection, place])
        if overlap < LEAST_OVERLAP:
            break
        if detection not in paired and place not in taken:
            paired[detection] = overlap
            taken.add(place)
    return paired


def _packed(annotation: AnnotationRow, row: ImageRow) -> Any:
    """Return the outline as run lengths in COCO's packed form."""
    outline = outline_of(annotation)
    if isinstance(outline, list):
        return coco_masks.merge(coco_masks.frPyObjects(outline, row.height, row.width))
    if isinstance(outline["counts"], list):
        return coco_masks.frPyObjects(outline, row.height, row.width)
    return outline


def _draw(
    row: ImageRow,
    image_folder: Path,
    *,
    truth: list[AnnotationRow],
    found: list[tuple[dict, dict]],
    names: dict[int, str],
    colours: dict[str, Colour],
) -> bytes:
    """Return a JPEG: the truth on the left, what was found on the right."""
    size_hw = (row.height, row.width)
    path, max_pixels = image_folder / row.file_name, row.height * row.width
    pixels = decode_image(path, image_id=row.id, expected_size_hw=size_hw, max_pixels=max_pixels)
    wanted = [
        Overlay(
            annotation.bbox,
            decode_outline(outline_of(annotation), size_hw),
            printable_name(names[annotation.category_id]) + (", crowd" if annotation.iscrowd else ""),
            colours[names[annotation.category_id]],
        )
        for annotation in truth
    ]
    detected = [
        Overlay(
            boxes["bbox"],
            decode_outline(masks["segmentation"], size_hw),
            f"{printable_name(names[boxes['category_id']])} {boxes['score']:.2f}",
            colours[names[boxes["category_id"]]],
        )
        for boxes, masks in found
    ]
    panels = [draw_panel(pixels, wanted, "no objects"), draw_panel(pixels, detected, "nothing found")]
    return _jpeg(_side_by_side(panels))


def _side_by_side(panels: list[Image.Image]) -> Image.Image:
    width, height = panels[0].size
    page = Image.new("RGB", (2 * width + GAP_PX, height + HEADER_PX), HEADER_COLOUR)
    draw = ImageDraw.Draw(page)
    for left, panel, text in zip((0, width + GAP_PX), panels, ("truth", "found"), strict=True):
        page.paste(panel, (left, HEADER_PX))
        draw.text((left + width / 2, HEADER_PX / 2), text, fill=TEXT_COLOUR, font=font_of(15), anchor="mm")
    return page


def _jpeg(page: Image.Image) -> bytes:
    """Return the page as a JPEG of at most `LARGEST_JPEG_BYTES`, or else of the lowest quality."""
    for quality in QUALITIES:
        stream = io.BytesIO()
        page.save(stream, format="JPEG", quality=quality, optimize=True)
        if stream.tell() <= LARGEST_JPEG_BYTES:
            break
    return stream.getvalue()
