"""The values of an instances JSON, one array per field, and the quick way to them."""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from maskperf.data.coco.document import Document, Reading, key_of
from maskperf.data.coco.outlines import SMALLEST_POLYGON, read_runs
from maskperf.data.coco.rules import (
    CrowdMark,
    FileName,
    Id,
    Name,
    NotNegative,
    Side,
    far_outside_px,
    placeholder_categories,
)
from maskperf.data.coco.stream import ListStream, NotPlain

EMPTY = np.zeros(0, np.int64)
ROWS_AT_ONCE = 1000


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
    num_polygons: np.ndarray  # int64, of each annotation
    polygon_lengths: np.ndarray  # int64, in numbers, so twice the points
    coordinates: np.ndarray  # float32, x and y in turn
    num_runs: np.ndarray  # int64, of each annotation; 0 unless its mask is run-length encoded
    run_ends: np.ndarray  # int64, first pixel after each run, column by column


def stream_columns(path: Path, reading: Reading) -> tuple[Columns, str]:
    """Return the columns of a file in COCO's form, read block by block, and the file's SHA-256.

    Errors: NotPlain for a file that `read_document` and `repair_document` must look at.
    """
    reader = _Reader(reading)
    takers = {"images": reader.take_images, "annotations": reader.take_annotations}
    try:
        with open(path, "rb") as file:
            sha256 = ListStream(file).read({**takers, "categories": reader.take_categories})
    except OSError as error:
        raise NotPlain from error
    columns = reader.columns()
    reader.check(columns)
    return columns, sha256


def columns_of_document(document: Document, reading: Reading) -> Columns:
    """Return the columns of a repaired document without problems."""
    reader = _Reader(reading)
    reader.take_images(msgspec.json.encode(document.images))
    reader.take_categories(msgspec.json.encode(document.categories))
    for start in range(0, max(len(document.annotations), 1), ROWS_AT_ONCE):
        reader.take_annotations(msgspec.json.encode(document.annotations[start : start + ROWS_AT_ONCE]))
    columns = reader.columns()
    if any(row.key is not None for row in document.annotations):
        return replace(columns, annotation_ids=np.array([key_of(row) for row in document.annotations], object))
    return columns


class _RunLengths(msgspec.Struct, gc=False):
    size: list[int]
    counts: list[int] | str


class _Image(msgspec.Struct, gc=False):
    id: Id
    file_name: FileName
    height: Side
    width: Side


class _Category(msgspec.Struct, gc=False):
    id: Id
    name: Name
    supercategory: Any = None


class _Annotation(msgspec.Struct, gc=False):
    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, NotNegative, NotNegative]
    segmentation: list[Annotated[list[float], msgspec.Meta(min_length=SMALLEST_POLYGON)]] | _RunLengths | None = None
    iscrowd: CrowdMark = 0


class _EvaluatedAnnotation(_Annotation, gc=False):
    area: NotNegative = 0.0


class _Reader:
    """Gathers columns from parts of the lists. Values that the rules could refuse raise ValidationError or NotPlain."""

    def __init__(self, reading: Reading):
        self._reading = reading
        self._images: list[_Image] = []
        self._categories: list[_Category] = []
        # [part, 4] id, image_id, category_id, iscrowd; boxes; polygons of each; numbers of each polygon and the largest
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._coordinates = bytearray()  # float32; grows in place, where joining arrays would need twice the memory
        self._run_lengths: list[tuple[int, int, _RunLengths]] = []  # position of the annotation, image id, outline
        self._num_annotations = 0
        self._extents = np.zeros(0)  # largest magnitude of each polygon
        self._image_decoder = msgspec.json.Decoder(list[_Image])
        self._category_decoder = msgspec.json.Decoder(list[_Category])
        row_type = _Annotation if reading.training else _EvaluatedAnnotation
        self._annotation_decoder = msgspec.json.Decoder(list[row_type])

    def take_images(self, part: bytes) -> None:
        self._images += self._image_decoder.decode(part)

    def take_categories(self, part: bytes) -> None:
        self._categories += self._category_decoder.decode(part)

    def take_annotations(self, part: bytes) -> None:
        rows = self._annotation_decoder.decode(part)
        numbers = [(row.id, row.image_id, row.category_id, row.iscrowd) for row in rows]
        boxes = np.fromiter(chain.from_iterable(row.bbox for row in rows), np.float64, 4 * len(rows))
        outlines = [row.segmentation for row in rows]
        of_rows = [outline if type(outline) is list else [] for outline in outlines]
        num_polygons = np.fromiter(map(len, of_rows), np.int64, len(rows))
        lengths, extents = self._take_polygons(list(chain.from_iterable(of_rows)))
        self._parts.append(
            (np.array(numbers, np.int64).reshape(-1, 4), boxes.reshape(-1, 4), num_polygons, lengths, extents)
        )
        for position, row in enumerate(rows, start=self._num_annotations):
            if type(row.segmentation) is _RunLengths:
                self._run_lengths.append((position, row.image_id, row.segmentation))
            elif not row.segmentation and not (self._reading.training and row.iscrowd == 1):
                raise NotPlain
        self._num_annotations += len(rows)

    def _take_polygons(self, polygons: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the count of numbers and the largest magnitude of each polygon."""
        lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
        if (lengths % 2).any():
            raise NotPlain
        numbers = np.fromiter(chain.from_iterable(polygons), np.float64, int(lengths.sum()))
        with np.errstate(over="ignore"):  # what is too large is found by its extent
            self._coordinates += numbers.astype(np.float32).data
        if not len(polygons):
            return lengths, numbers
        return lengths, np.maximum.reduceat(np.abs(numbers), np.cumsum(lengths) - lengths)

    def columns(self) -> Columns:
        numbers, boxes, num_polygons, lengths, self._extents = map(np.concatenate, zip(*self._parts, strict=True))
        num_runs, run_ends = self._runs(len(numbers))
        return Columns(
            image_ids=np.array([row.id for row in self._images], np.int64),
            file_names=[row.file_name for row in self._images],
            sizes_hw=np.array([(row.height, row.width) for row in self._images], np.int32).reshape(-1, 2),
            category_ids=np.array([row.id for row in self._categories], np.int64),
            category_names=[row.name for row in self._categories],
            annotation_ids=numbers[:, 0].copy(),
            annotated_images=numbers[:, 1].copy(),
            annotated_categories=numbers[:, 2].copy(),
            is_crowd=numbers[:, 3] == 1,
            boxes_xywh=boxes,
            num_polygons=num_polygons,
            polygon_lengths=lengths,
            coordinates=np.frombuffer(self._coordinates, np.float32),
            num_runs=num_runs,
            run_ends=run_ends,
        )

    def _runs(self, num_annotations: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how many runs each annotation has, and where they end; now the sizes of all images are known."""
        sizes_hw = {row.id: [row.height, row.width] for row in self._images}
        num_runs, ends = np.zeros(num_annotations, np.int64), [EMPTY]
        for position, image_id, outline in self._run_lengths:
            runs, problem = read_runs(outline.size, outline.counts, sizes_hw.get(image_id, [0, 0]))
            if problem or not any(runs[1::2]):  # or a mask without a pixel
                raise NotPlain
            ends.append(np.cumsum(runs, dtype=np.int64))
            num_runs[position] = len(runs)
        return num_runs, np.concatenate(ends)

    def check(self, columns: Columns) -> None:
        """Raise NotPlain where the rules would name a problem that no part of a list shows by itself."""
        ids = (columns.image_ids, columns.category_ids, columns.annotation_ids)
        may_be_empty = (False, False, not self._reading.training)
        names = [(row.name, row.supercategory) for row in self._categories]
        used = set(np.unique(columns.annotated_categories).tolist())
        if (
            any(not len(one) and not may for one, may in zip(ids, may_be_empty, strict=True))
            or any(len(np.unique(one)) < len(one) for one in ids)
            or len(set(columns.category_names)) < len(names)
            or placeholder_categories(columns.category_ids.tolist(), names, used)
            or (self._reading.crowd_as_objects and columns.is_crowd.any())
        ):
            raise NotPlain
        order = np.argsort(columns.image_ids)
        positions = order[_positions(columns.image_ids[order], columns.annotated_images)]
        _positions(np.sort(columns.category_ids), columns.annotated_categories)
        limits_px = far_outside_px(columns.sizes_hw.max(axis=1).astype(np.int64))[positions]
        are_boxes_near = (np.abs(columns.boxes_xywh) <= limits_px[:, None]).all()
        if not (are_boxes_near and (self._extents <= np.repeat(limits_px, columns.num_polygons)).all()):
            raise NotPlain


def _positions(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each of the wanted ids is among the known, which are sorted."""
    positions = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    if not (known[positions] == wanted).all():
        raise NotPlain
    return positions
