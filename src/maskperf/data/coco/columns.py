"""The values of an instances JSON, one array per field, and the quick way to them."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from maskperf.data.coco.cleaning import placeholder_categories
from maskperf.data.coco.document import CategoryRow, Document, ImageRow, Reading, outline_of
from maskperf.data.coco.problems import (
    FAR_OUTSIDE_PX,
    FAR_OUTSIDE_SIDES,
    LARGEST_SIDE_PX,
    SMALLEST_POLYGON,
    category_name_problems,
    image_problems,
    runs_of_text,
)
from maskperf.data.coco.stream import ListStream, NotPlain

EMPTY = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """What a file without problems holds, in the order of the file."""

    image_ids: np.ndarray  # int64
    file_names: list[str]
    sizes_hw: np.ndarray  # int32 [images, 2]
    category_ids: np.ndarray  # int64
    category_names: list[str]
    annotation_ids: np.ndarray  # int64, or the file's own as objects where they are others
    annotated_images: np.ndarray  # int64, ids
    annotated_categories: np.ndarray  # int64, ids
    is_crowd: np.ndarray  # bool
    boxes_xywh: np.ndarray  # float64 [annotations, 4]
    num_rings: np.ndarray  # int64, polygons of each annotation
    ring_lengths: np.ndarray  # int64, in numbers, so twice the points
    coordinates: np.ndarray  # float32, x and y in turn
    num_runs: np.ndarray  # int64, of each annotation; 0 unless its mask is run-length encoded
    run_ends: np.ndarray  # int64, first pixel after each run, column by column


def columns_of_document(document: Document) -> Columns:
    """Return the columns of a cleaned document without problems."""
    images, annotations, categories = document.images, document.annotations, document.categories
    outlines = [outline_of(row) for row in annotations]
    rings = [outline if isinstance(outline, list) else [] for outline in outlines]
    ends = [_run_ends(outline) if isinstance(outline, dict) else EMPTY for outline in outlines]
    flat = [ring for of_object in rings for ring in of_object]
    has_keys = any(row.key is not None for row in annotations)
    return Columns(
        image_ids=np.array([row.id for row in images], np.int64),
        file_names=[row.file_name for row in images],
        sizes_hw=np.array([(row.height, row.width) for row in images], np.int32).reshape(-1, 2),
        category_ids=np.array([row.id for row in categories], np.int64),
        category_names=[row.name for row in categories],
        annotation_ids=np.array(
            [row.id if row.key is None else row.key for row in annotations], object if has_keys else np.int64
        ),
        annotated_images=np.array([row.image_id for row in annotations], np.int64),
        annotated_categories=np.array([row.category_id for row in annotations], np.int64),
        is_crowd=np.array([row.iscrowd == 1 for row in annotations], bool),
        boxes_xywh=np.array([row.bbox for row in annotations], np.float64).reshape(-1, 4),
        num_rings=np.array([len(of_object) for of_object in rings], np.int64),
        ring_lengths=np.array([len(ring) for ring in flat], np.int64),
        coordinates=np.array(list(chain.from_iterable(flat)), np.float64).astype(np.float32),
        num_runs=np.array([len(of_object) for of_object in ends], np.int64),
        run_ends=np.concatenate([EMPTY, *ends]),
    )


def _run_ends(code: dict) -> np.ndarray:
    """Return the first pixel after each run of a run-length code that is right."""
    runs = runs_of_text(code["counts"]) if isinstance(code["counts"], str) else code["counts"]
    return np.cumsum(runs, dtype=np.int64)


def stream_columns(path: Path, reading: Reading) -> tuple[Columns, str]:
    """Return the columns of a file in COCO's form, read block by block, and the file's SHA-256.

    Errors: NotPlain for a file that `read_document` and `clean_document` must look at.
    """
    reader = _Reader(reading)
    takers = {"images": reader.take_images, "annotations": reader.take_annotations}
    try:
        with open(path, "rb") as file:
            sha256 = ListStream(file).read({**takers, "categories": reader.take_categories})
        return reader.columns(), sha256
    except OSError as error:
        raise NotPlain from error


class _RunLengths(msgspec.Struct, gc=False):
    size: list[int]
    counts: list[int] | str


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int
    width: int


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str
    supercategory: Any = None


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    segmentation: list[list[float]] | _RunLengths | None = None
    iscrowd: int = 0
    area: float = 0.0


class _Reader:
    """Gathers columns from parts of the lists. Values that `find_problems` could refuse raise NotPlain."""

    def __init__(self, reading: Reading):
        self._reading = reading
        self._images: list[_Image] = []
        self._categories: list[_Category] = []
        self._whole_numbers: list[np.ndarray] = []  # [part, 4]: id, image_id, category_id, iscrowd
        self._boxes: list[np.ndarray] = []
        self._num_rings: list[np.ndarray] = []
        self._ring_lengths: list[np.ndarray] = []
        self._coordinates = bytearray()  # float32; grows in place, where joining arrays would need twice the memory
        self._extents: list[np.ndarray] = []  # largest magnitude of each ring
        self._run_lengths: list[tuple[int, int, _RunLengths]] = []  # place of the annotation, image id, outline
        self._num_annotations = 0
        self._image_decoder = msgspec.json.Decoder(list[_Image])
        self._category_decoder = msgspec.json.Decoder(list[_Category])
        self._annotation_decoder = msgspec.json.Decoder(list[_Annotation])

    def take_images(self, part: bytes) -> None:
        self._images += self._image_decoder.decode(part)

    def take_categories(self, part: bytes) -> None:
        self._categories += self._category_decoder.decode(part)

    def take_annotations(self, part: bytes) -> None:
        rows = self._annotation_decoder.decode(part)
        numbers = [(row.id, row.image_id, row.category_id, row.iscrowd) for row in rows]
        self._whole_numbers.append(_int64(numbers).reshape(-1, 4))
        boxes = chain.from_iterable(row.bbox for row in rows)
        self._boxes.append(np.fromiter(boxes, np.float64, 4 * len(rows)).reshape(-1, 4))
        if not self._reading.training and any(not row.area >= 0 for row in rows):
            raise NotPlain
        outlines = [row.segmentation for row in rows]
        self._num_rings.append(
            np.array([len(outline) if type(outline) is list else 0 for outline in outlines], np.int64)
        )
        self._take_rings(list(chain.from_iterable(outline for outline in outlines if type(outline) is list)))
        for place, row in enumerate(rows, start=self._num_annotations):
            self._take_outline(place, row)
        self._num_annotations += len(rows)

    def _take_rings(self, rings: list[list[float]]) -> None:
        lengths = np.fromiter(map(len, rings), np.int64, len(rings))
        if (lengths < SMALLEST_POLYGON).any() or (lengths % 2).any():
            raise NotPlain
        numbers = np.fromiter(chain.from_iterable(rings), np.float64, int(lengths.sum()))
        if len(rings):
            self._extents.append(np.maximum.reduceat(np.abs(numbers), np.cumsum(lengths) - lengths))
        self._ring_lengths.append(lengths)
        with np.errstate(over="ignore"):  # what is too large is found by its extent
            self._coordinates += numbers.astype(np.float32).data

    def _take_outline(self, place: int, row: _Annotation) -> None:
        """Remember a run-length outline for later, when the sizes of all images are known."""
        outline = row.segmentation
        if type(outline) is _RunLengths:
            self._run_lengths.append((place, row.image_id, outline))
        elif not outline and not (self._reading.training and row.iscrowd == 1):
            raise NotPlain

    def columns(self) -> Columns:
        numbers = _joined(self._whole_numbers, (0, 4), np.int64)
        num_runs, run_ends = self._runs(len(numbers))
        columns = Columns(
            image_ids=_int64([row.id for row in self._images]),
            file_names=[row.file_name for row in self._images],
            sizes_hw=_sizes(self._images),
            category_ids=_int64([row.id for row in self._categories]),
            category_names=[row.name for row in self._categories],
            annotation_ids=numbers[:, 0].copy(),
            annotated_images=numbers[:, 1].copy(),
            annotated_categories=numbers[:, 2].copy(),
            is_crowd=numbers[:, 3] == 1,
            boxes_xywh=_joined(self._boxes, (0, 4), np.float64),
            num_rings=_joined(self._num_rings, 0, np.int64),
            ring_lengths=_joined(self._ring_lengths, 0, np.int64),
            coordinates=np.frombuffer(self._coordinates, np.float32),
            num_runs=num_runs,
            run_ends=run_ends,
        )
        if self._reading.crowd_as_objects and columns.is_crowd.any():
            raise NotPlain
        if not ((numbers[:, 3] == 0) | columns.is_crowd).all():
            raise NotPlain
        self._check(columns)
        return columns

    def _runs(self, num_annotations: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how many runs each annotation has, and where they end."""
        sizes_hw = {row.id: [row.height, row.width] for row in self._images}
        num_runs, ends = np.zeros(num_annotations, np.int64), [EMPTY]
        for place, image_id, outline in self._run_lengths:
            counts = outline.counts
            runs = runs_of_text(counts) if isinstance(counts, str) else counts
            if runs is None or outline.size != sizes_hw.get(image_id) or min(runs, default=0) < 0:
                raise NotPlain
            if sum(runs) != outline.size[0] * outline.size[1] or not any(runs[1::2]):  # or a mask without a pixel
                raise NotPlain
            ends.append(np.cumsum(runs, dtype=np.int64))
            num_runs[place] = len(runs)
        return num_runs, np.concatenate(ends)

    def _check(self, columns: Columns) -> None:
        """Raise NotPlain where `find_problems` would name a problem that no part of a list shows by itself."""
        is_empty = not len(columns.image_ids) or not len(columns.category_ids)
        if is_empty or (self._reading.training and not len(columns.annotation_ids)):
            raise NotPlain
        for ids in (columns.image_ids, columns.category_ids, columns.annotation_ids):
            ordered = np.sort(ids)
            if (ordered[1:] == ordered[:-1]).any():
                raise NotPlain
        if any(_image_is_odd(row) for row in self._images) or category_name_problems(_rows(self._categories), ""):
            raise NotPlain
        names = [(row.name, row.supercategory) for row in self._categories]
        used = set(np.unique(columns.annotated_categories).tolist())
        if placeholder_categories(columns.category_ids.tolist(), names, used):
            raise NotPlain
        order = np.argsort(columns.image_ids)
        positions = order[_places(columns.image_ids[order], columns.annotated_images)]
        _places(np.sort(columns.category_ids), columns.annotated_categories)
        longer_sides = columns.sizes_hw.max(axis=1).astype(np.int64)
        limits_px = np.maximum(FAR_OUTSIDE_PX, FAR_OUTSIDE_SIDES * longer_sides)[positions]
        boxes = columns.boxes_xywh
        if not ((np.abs(boxes) <= limits_px[:, None]).all() and (boxes[:, 2:] >= 0).all()):
            raise NotPlain
        if not (_joined(self._extents, 0, np.float64) <= np.repeat(limits_px, columns.num_rings)).all():
            raise NotPlain


def _int64(values: list) -> np.ndarray:
    try:
        return np.array(values, np.int64)
    except OverflowError as error:
        raise NotPlain from error


def _sizes(images: list[_Image]) -> np.ndarray:
    sizes_hw = _int64([(row.height, row.width) for row in images]).reshape(-1, 2)
    if not ((sizes_hw > 0) & (sizes_hw <= LARGEST_SIDE_PX)).all():
        raise NotPlain
    return sizes_hw.astype(np.int32)


def _joined(parts: list[np.ndarray], shape: Any, dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(shape, dtype), *parts])


def _rows(categories: list[_Category]) -> list[CategoryRow]:
    return [CategoryRow(id=row.id, name=row.name) for row in categories]


def _image_is_odd(row: _Image) -> bool:
    # the names that people give their pictures need no closer look
    if row.file_name.isascii() and row.file_name.replace(".", "a", 1).isalnum():
        return False
    return bool(image_problems(ImageRow(id=row.id, file_name=row.file_name, height=row.height, width=row.width), ""))


def _places(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each of the wanted ids is among the known, which are sorted."""
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    if not (known[places] == wanted).all():
        raise NotPlain
    return places
