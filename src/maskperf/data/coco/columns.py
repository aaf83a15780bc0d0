"""The values of an instances JSON, one array per field: their types, and the quick way to them."""

import codecs
import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from maskperf.data.coco.document import CategoryRow, Document, Reading

EMPTY = np.zeros(0, np.int64)
BLOCK_BYTES = 1 << 20
FREED_BYTES = 1 << 24  # at a time; a multiple of the size of a page
ROWS_AT_ONCE = 256  # what is made of so many annotations stays in the processor's own memory
FAR_OUTSIDE_PX = 10_000  # always allowed; beyond it, ten times the image's longer side
SMALLEST_POLYGON = 6  # numbers; pycocotools takes four of them for a box and fails
BACKGROUND_NAMES = ("background", "_background_", "__background__")
FIX_RUNS = "Write the outline anew for the image's size, or remove the annotation."

Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Side = Annotated[int, Meta(gt=0, le=2**31 - 1)]
NotNegative = Annotated[float, Meta(ge=0)]
CrowdMark = Literal[0, 1]
Name = Annotated[str, Meta(pattern=r"\S")]
FileName = Annotated[str, Meta(pattern=r"\A[^\0]*[^\0\s][^\0]*\Z")]
RunsProblem = tuple[str, str, str]  # field of the code, message, fix


class NotPlain(Exception):  # noqa: N818 -- no error: the file may be right, but it needs a close look
    """The JSON is broken, or holds values that `repair_document` could change or refuse."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """What a file without problems holds, in the order of the file."""

    image_ids: np.ndarray  # int64
    image_keys: list[Any]  # the file's own ids where they are others; else empty
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
    segmentation: list[Annotated[list[float], Meta(min_length=SMALLEST_POLYGON)]] | _RunLengths | None = None
    iscrowd: CrowdMark = 0


class _EvaluatedAnnotation(_Annotation, gc=False):
    area: NotNegative = 0.0


class _File(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[msgspec.Raw]  # views of the text: as Python objects, COCO's would take over 2 GB
    categories: list[_Category]


def columns_of_document(document: Document, reading: Reading) -> Columns:
    """Return the columns of a repaired document without problems."""
    columns = _columns_of_json(msgspec.json.encode(document), reading)
    image_keys, annotation_keys = (
        [row.own_id for row in rows] if any(row.key is not None for row in rows) else []
        for rows in (document.images, document.annotations)
    )
    annotation_ids = np.array(annotation_keys, object) if annotation_keys else columns.annotation_ids
    return replace(columns, image_keys=image_keys, annotation_ids=annotation_ids)


def read_columns(path: Path, reading: Reading) -> tuple[Columns, str]:
    """Return the columns of a file in COCO's form, and its SHA-256.

    Errors: NotPlain for a file that `parse_document` and `repair_document` must look at.
    """
    digest, utf8 = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as file:
            # A copy that can be given back in parts; the file itself, mapped, could change.
            memory = mmap.mmap(-1, max(os.fstat(file.fileno()).st_size, 1))
            while block := file.read(BLOCK_BYTES):
                memory.write(block)
                digest.update(block)
                utf8.decode(block)
    except (OSError, ValueError) as error:  # cannot be read, has grown, is not UTF-8
        raise NotPlain from error
    return _columns_of_json(memory, reading), digest.hexdigest()


def far_outside_px(longer_sides: Any) -> Any:
    """Return the largest coordinate that is not far outside of an image; a number, or an array of them."""
    return np.maximum(FAR_OUTSIDE_PX, 10 * longer_sides)


def placeholder_categories(categories: Sequence[CategoryRow | _Category], used: set[int]) -> set[int]:
    """Return the ids of categories that stand for no class: without annotations, and either named like another one,
    or the supercategory of others, or called background.
    """
    supercategories = {
        row.supercategory for row in categories if type(row.supercategory) is str and row.supercategory != row.name
    }
    names = Counter(row.name for row in categories if type(row.name) is str)
    found = set()
    for row in categories:
        if type(row.name) is str and row.id not in used:
            is_other = row.name in supercategories or row.name.lower() in BACKGROUND_NAMES
            if is_other or names[row.name] > 1:
                names[row.name] -= 1
                found.add(row.id)
    return found if len(found) < len(categories) else set()


def read_runs(size_hw: Any, counts: Any, wanted_hw: list[int]) -> tuple[list[int], RunsProblem | None]:
    """Return the run lengths of a code for an image of this size, and what is wrong with it."""
    if size_hw != wanted_hw:
        swapped = " Width and height are swapped." if size_hw == wanted_hw[::-1] else ""
        return [], ("size", f"The size is not the image's [height, width] = {wanted_hw}.{swapped}", FIX_RUNS)
    if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
        message = "The run lengths are text of the form b'...', as Python shows bytes."
        return [], ("counts", message, "Export the text itself: counts.decode().")
    runs = _runs_of_text(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or set(map(type, runs)) - {int} or min(runs, default=0) < 0:
        return [], ("counts", "These are no run lengths.", FIX_RUNS)
    area = wanted_hw[0] * wanted_hw[1]
    if sum(runs) != area:
        message = f"The run lengths sum to {sum(runs)}, not to height times width = {area}."
        return [], ("counts", message, FIX_RUNS)
    return runs, None


def _runs_of_text(text: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed text: 5 bits a character, from the third on as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    return runs if shift == 0 else None  # cut inside a number: pycocotools would read past the end


def _columns_of_json(data: bytes | mmap.mmap, reading: Reading) -> Columns:
    try:
        file = msgspec.json.decode(data, type=_File)
        columns, extents = _columns(file, data, reading)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NotPlain from error
    _check(columns, extents, file.categories, reading)
    return columns


def _columns(file: _File, data: bytes | mmap.mmap, reading: Reading) -> tuple[Columns, np.ndarray]:
    """Return the columns, and the largest magnitude in each polygon."""
    decoder = msgspec.json.Decoder(list[_Annotation if reading.training else _EvaluatedAnnotation])  # type: ignore[misc]
    sizes_hw = {row.id: [row.height, row.width] for row in file.images}
    coordinates = bytearray()  # grows in place, where joining arrays would need twice the memory
    parts, ends = [], [EMPTY]
    for part in _parts(file.annotations, data):
        rows = decoder.decode(part)
        num_runs = np.zeros(len(rows), np.int64)
        for position, row in enumerate(rows):
            if type(row.segmentation) is _RunLengths:
                size_hw = sizes_hw.get(row.image_id, [0, 0])
                runs, problem = read_runs(row.segmentation.size, row.segmentation.counts, size_hw)
                if problem or not any(runs[1::2]):  # or a mask without a pixel
                    raise NotPlain
                num_runs[position] = len(runs)
                ends.append(np.cumsum(runs, dtype=np.int64))
            elif not row.segmentation and not (reading.training and row.iscrowd == 1):
                raise NotPlain
        numbers = np.array([(row.id, row.image_id, row.category_id, row.iscrowd) for row in rows], np.int64)
        boxes = np.fromiter(chain.from_iterable(row.bbox for row in rows), np.float64, 4 * len(rows))
        parts.append((numbers.reshape(-1, 4), boxes.reshape(-1, 4), num_runs, *_polygons(rows, coordinates)))
    numbers, boxes, num_runs, num_polygons, lengths, extents = map(np.concatenate, zip(*parts, strict=True))
    columns = Columns(
        image_ids=np.array([row.id for row in file.images], np.int64),
        image_keys=[],
        file_names=[row.file_name for row in file.images],
        sizes_hw=np.array([(row.height, row.width) for row in file.images], np.int32).reshape(-1, 2),
        category_ids=np.array([row.id for row in file.categories], np.int64),
        category_names=[row.name for row in file.categories],
        annotation_ids=numbers[:, 0].copy(),
        annotated_images=numbers[:, 1].copy(),
        annotated_categories=numbers[:, 2].copy(),
        is_crowd=numbers[:, 3] == 1,
        boxes_xywh=boxes,
        num_polygons=num_polygons,
        polygon_lengths=lengths,
        coordinates=np.frombuffer(coordinates, np.float32),
        num_runs=num_runs,
        run_ends=np.concatenate(ends),
    )
    return columns, extents


def _parts(annotations: list[msgspec.Raw], data: bytes | mmap.mmap) -> Iterator[bytes]:
    """Yield the annotations as JSON lists of some at a time; the memory of those before is given back."""
    used = freed = 0  # bytes; as there is more in the text, what is used up reaches at least so far
    for start in range(0, max(len(annotations), 1), ROWS_AT_ONCE):
        part = b",".join(annotations[start : start + ROWS_AT_ONCE])
        yield b"[%b]" % part
        used += len(part)
        length = (used - freed) // FREED_BYTES * FREED_BYTES
        if length and isinstance(data, mmap.mmap):
            data.madvise(mmap.MADV_DONTNEED, freed, length)
            freed += length


def _polygons(rows: list[_Annotation], coordinates: bytearray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the count of each annotation's polygons; count of numbers and largest magnitude of each polygon.

    The numbers are added to `coordinates`, as float32.
    """
    outlines = [row.segmentation if type(row.segmentation) is list else [] for row in rows]
    num_polygons = np.fromiter(map(len, outlines), np.int64, len(rows))
    polygons = list(chain.from_iterable(outlines))
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    if (lengths % 2).any():
        raise NotPlain
    numbers = np.fromiter(chain.from_iterable(polygons), np.float64, int(lengths.sum()))
    with np.errstate(over="ignore"):  # what is too large is found by its magnitude
        coordinates += numbers.astype(np.float32).data
    starts = np.cumsum(lengths) - lengths
    return num_polygons, lengths, np.maximum.reduceat(np.abs(numbers), starts) if len(polygons) else numbers


def _check(columns: Columns, extents: np.ndarray, categories: list[_Category], reading: Reading) -> None:
    """Raise NotPlain where `repair_document` would find what no entry shows by itself; `extents` are of polygons."""
    ids = (columns.image_ids, columns.category_ids, columns.annotation_ids)
    may_be_empty = (False, reading.is_test_set, not reading.training)
    if (
        any(not len(one) and not may for one, may in zip(ids, may_be_empty, strict=True))
        or any((np.diff(np.sort(one)) == 0).any() for one in ids)
        or len(set(columns.category_names)) < len(categories)
        or placeholder_categories(categories, set(np.unique(columns.annotated_categories).tolist()))
        or (reading.crowd_as_objects and columns.is_crowd.any())
        or not np.isin(columns.annotated_images, columns.image_ids).all()
        or not np.isin(columns.annotated_categories, columns.category_ids).all()
    ):
        raise NotPlain
    order = np.argsort(columns.image_ids)
    positions = order[np.searchsorted(columns.image_ids, columns.annotated_images, sorter=order)]
    limits_px = far_outside_px(columns.sizes_hw.max(axis=1).astype(np.int64))[positions]
    are_boxes_near = (np.abs(columns.boxes_xywh) <= limits_px[:, None]).all()
    if not (are_boxes_near and (extents <= np.repeat(limits_px, columns.num_polygons)).all()):
        raise NotPlain
