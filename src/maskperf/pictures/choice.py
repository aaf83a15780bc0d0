"""The validation images that a run shows: some spread over the split, and those with the best and worst predictions."""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from pycocotools import mask as coco_masks

from maskperf.data.coco.categories import CategoryMatch
from maskperf.data.coco.document import AnnotationRow, CategoryRow, Document, ImageRow
from maskperf.data.coco.index import CocoIndex, read_annotations
from maskperf.data.images.decode import decode_image
from maskperf.evaluation.results import packed_mask
from maskperf.files import printable
from maskperf.pictures import drawing
from maskperf.schema import PictureEntry

PAGE_IMAGES = 8
BEST_AND_WORST = 4  # of each
SAMPLES = 6  # images that are the same in every run on a data set
SURE_SCORE = 0.5  # detections below this are neither scored nor drawn
LEAST_OVERLAP = 0.1  # a smaller overlap is chance, not an object found
LOOSE_OVERLAP = 0.5  # a found object of a smaller one is marked
CROWD_OVERLAP = 0.5  # share of a detection inside a crowd of its category from which it is left out
LARGEST_JPEG_BYTES = 80_000
QUALITIES = (88, 80, 70, 60, 50, 40, 30)


@dataclass(frozen=True, kw_only=True)
class ImageMatch:
    """Which detections of an image are which of its annotations, by their positions in both lists."""

    image_id: int
    overlaps: dict[int, float]  # mask overlaps with the objects that were found, by detection
    missed: frozenset[int]  # annotations
    wrong: frozenset[int]  # detections without an object

    @property
    def objects(self) -> int:
        return len(self.overlaps) + len(self.missed)

    @property
    def score(self) -> float:
        """The sum of the overlaps, divided by the number of objects plus that of wrong detections."""
        return sum(self.overlaps.values()) / max(1, self.objects + len(self.wrong))

    def caption(self) -> str:
        found = f"{len(self.overlaps)} of {self.objects} object{'s' if self.objects > 1 else ''} found"
        if self.overlaps:
            found += f", mean mask overlap {sum(self.overlaps.values()) / len(self.overlaps):.2f}"
        wrong = len(self.wrong)
        return f"score {self.score:.2f}: {found}, {wrong or 'no'} wrong detection{'s' if wrong > 1 else ''}"


class Predictions:
    """A validation split in COCO's form with the sure detections of a model, image by image.

    Results are entries of COCO's result format; entry k of both lists describes the same detection.
    Errors: ValueError for results that do not belong together.
    """

    def __init__(
        self, document: Document, image_folder: Path, box_results: Sequence[dict], mask_results: Sequence[dict]
    ):
        self.document = document
        self._image_folder = image_folder
        self._names = drawing.drawable_names({row.id: str(row.name) for row in document.categories})
        self._colours = drawing.category_colours(list(self._names.values()))
        self._truth: dict[int, list[AnnotationRow]] = defaultdict(list)
        self._found: dict[int, list[dict]] = defaultdict(list)  # with box and mask
        for annotation in document.annotations:
            self._truth[annotation.image_id].append(annotation)
        for boxes, masks in zip(box_results, mask_results, strict=True):
            if boxes["image_id"] != masks["image_id"] or boxes["category_id"] != masks["category_id"]:
                raise ValueError("box_results and mask_results do not describe the same detections in the same order")
            if boxes["score"] >= SURE_SCORE:
                self._found[boxes["image_id"]].append({**masks, **boxes})

    def write_grid(self, path: Path, num_images: int = PAGE_IMAGES) -> None:
        """Write the page of images spread over the split, one with a crowd among them if there is one.

        Errors: DataError for an image that cannot be read; StorageError where the page cannot be written.
        """
        rows = choose_images(self.document, num_images)
        shown = {row.category_id for image in rows for row in self._truth[image.id]}
        shown |= {entry["category_id"] for image in rows for entry in self._found[image.id]}
        names = {self._names[category_id] for category_id in shown}
        legend = {name: colour for name, colour in self._colours.items() if name in names}
        drawing.write_page([(row.file_name, self._draw(row, self._match(row))) for row in rows], legend, path)

    def best_and_worst(self, count: int = BEST_AND_WORST) -> list[PictureEntry]:
        """Return the `count` best and the `count` worst images, each drawn with its truth and its detections.

        Missed objects and wrong detections are marked.
        Errors: DataError for an image that cannot be read.
        """
        rows = {row.id: row for row in self.document.images}
        chosen = choose_best_and_worst(self.matches(), count)
        return [self._entry(kind, rows[match.image_id], match) for kind, match in chosen]

    def samples(self, count: int = SAMPLES) -> list[PictureEntry]:
        """Return `count` images spread over the split: those of two runs on it are the same. Otherwise as above."""
        rows = choose_images(self.document, count)
        return [self._entry("sample", row, self._match(row)) for row in rows]

    def _entry(self, kind: str, row: ImageRow, match: ImageMatch) -> PictureEntry:
        return picture_entry(kind, printable(row.file_name), match.caption(), self._draw(row, match))

    def matches(self) -> list[ImageMatch]:
        """Return the match of each image that has an object (crowds are none).

        Detections and objects of one category are paired one to one, the largest overlap first, down to an overlap of
        0.1; a detection left over is wrong, unless half of it is inside a crowd of its category.
        """
        filled = {row.image_id for row in self.document.annotations if not row.iscrowd}
        return [self._match(row) for row in self.document.images if row.id in filled]

    def _match(self, row: ImageRow) -> ImageMatch:
        truth, found = self._truth[row.id], self._found[row.id]
        is_crowd = np.array([bool(annotation.iscrowd) for annotation in truth], bool)
        overlaps = np.zeros((len(found), len(truth)))  # of one category; for a crowd the share inside it
        if found and truth:
            outlines = [packed_mask(annotation.outline, (row.height, row.width)) for annotation in truth]
            overlaps = coco_masks.iou([entry["segmentation"] for entry in found], outlines, is_crowd.tolist())
            found_ids = np.array([entry["category_id"] for entry in found])
            overlaps *= found_ids[:, None] == [annotation.category_id for annotation in truth]
        paired = _pair_largest_first(np.where(is_crowd, 0, overlaps))
        is_ignored = overlaps[:, is_crowd].max(axis=1, initial=0) >= CROWD_OVERLAP
        return ImageMatch(
            image_id=row.id,
            overlaps={detection: float(overlaps[detection, index]) for detection, index in paired.items()},
            missed=frozenset(np.flatnonzero(~is_crowd).tolist()) - set(paired.values()),
            wrong=frozenset(index for index in range(len(found)) if index not in paired and not is_ignored[index]),
        )

    def _draw(self, row: ImageRow, match: ImageMatch) -> Image.Image:
        size_hw = (row.height, row.width)
        path, max_pixels = self._image_folder / row.file_name, row.height * row.width
        pixels = decode_image(path, image_id=row.id, expected_size_hw=size_hw, max_pixels=max_pixels)

        def overlay(box: Sequence, outline: list | dict, category_id: int, suffix: str, error: str) -> drawing.Overlay:
            name = self._names[category_id]
            mask = coco_masks.decode(packed_mask(outline, size_hw)).astype(bool)
            label = (f"{error}: " if error else "") + drawing.short_name(name) + suffix
            return drawing.Overlay(box, mask, label, self._colours[name], is_error=bool(error))

        loose = {index for index, overlap in match.overlaps.items() if overlap < LOOSE_OVERLAP}
        errors = {**dict.fromkeys(match.wrong, "false"), **dict.fromkeys(loose, "loose")}
        errors_of_truth = dict.fromkeys(match.missed, "missed")
        truth = [
            overlay(t.bbox, t.outline, t.category_id, ", crowd" if t.iscrowd else "", errors_of_truth.get(i, ""))
            for i, t in enumerate(self._truth[row.id])
        ]
        found = [
            overlay(d["bbox"], d["segmentation"], d["category_id"], f" {d['score']:.2f}", errors.get(i, ""))
            for i, d in enumerate(self._found[row.id])
        ]
        panels = drawing.draw_panel(pixels, truth, "no objects"), drawing.draw_panel(pixels, found, "nothing found")
        return drawing.draw_pair(*panels)


def predictions_of_split(
    index: CocoIndex, match: CategoryMatch, box_results: Sequence[dict], mask_results: Sequence[dict]
) -> Predictions:
    """Return the predictions for a split; the results have the ids of categories that its file knows."""
    document = read_annotations(index)
    document.categories = [CategoryRow(id=match.written_ids[key], name=name) for key, name in match.names.items()]
    return Predictions(document, index.image_folder, box_results, mask_results)


def choose_images(document: Document, num_images: int) -> list[ImageRow]:
    """Return that many images at equal distances in the order of their ids, one with a crowd if there is one.

    Images without objects are taken only where there are no others.
    """
    filled = {row.image_id for row in document.annotations if not row.iscrowd}
    crowded = {row.image_id for row in document.annotations if row.iscrowd}
    ordered = sorted(document.images, key=lambda row: row.id)
    shown = [row for row in ordered if row.id in filled] or ordered
    count = min(num_images, len(shown))
    chosen = [shown[(2 * index + 1) * len(shown) // (2 * count)] for index in range(count)]
    with_crowd = [row for row in ordered if row.id in crowded]
    if chosen and with_crowd and not any(row.id in crowded for row in chosen):
        chosen[-1] = with_crowd[len(with_crowd) // 2]
    return sorted(chosen, key=lambda row: row.id)


def choose_best_and_worst(matches: Sequence[ImageMatch], count: int) -> list[tuple[str, ImageMatch]]:
    """Return up to `count` best images, the best one first, then up to `count` worst, the worst one first.

    No image is both, and where there are too few each kind gets a half; a score of 0 is never among the best. Of equal
    scores the image with more objects and wrong detections is chosen, then the smaller id.
    """
    best = sorted(matches, key=lambda entry: (-entry.score, -entry.objects - len(entry.wrong), entry.image_id))
    worst = sorted(matches, key=lambda entry: (entry.score, -entry.objects - len(entry.wrong), entry.image_id))
    chosen = [entry for entry in best[: min(count, (len(best) + 1) // 2)] if entry.score > 0]
    left = [entry for entry in worst if entry not in chosen][:count]
    return [("best", entry) for entry in chosen] + [("worst", entry) for entry in left]


def _pair_largest_first(overlaps: Float[np.ndarray, "detections objects"]) -> dict[int, int]:
    """Return the object of each detection that got one."""
    left, paired = overlaps.copy(), {}
    while left.size and left.max() >= LEAST_OVERLAP:
        detection, index = np.unravel_index(left.argmax(), left.shape)
        paired[int(detection)] = int(index)
        left[detection], left[:, index] = 0, 0
    return paired


def picture_entry(kind: str, title: str, caption: str, picture: Image.Image) -> PictureEntry:
    """Return a picture as it stands in pictures.json; the JPEG is that of the highest quality that is small enough."""
    for quality in QUALITIES:
        stream = io.BytesIO()
        picture.save(stream, format="JPEG", quality=quality, optimize=True)
        if stream.tell() <= LARGEST_JPEG_BYTES:
            break
    jpeg = base64.b64encode(stream.getvalue()).decode("ascii")
    return PictureEntry(kind=kind, title=title, caption=caption, jpeg_base64=jpeg)
