"""An instances JSON as it was found: reading the file, saying where it is broken, and its polygons as flat arrays."""

import json
from array import array
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from maskperf.errors import DataError, Fault

LISTS = {"images": "image", "annotations": "annotation", "categories": "category"}  # and one entry of each
NAMED_LATER = ("bbox", "segmentation")  # find_faults names the single values that are not finite
MEND_FILE = "Fetch or export the file again."
MEND_KIND = "Use an instances file: an object with the lists `images`, `annotations` and `categories`."
MEND_NUMBER = "Replace it by a finite number; JSON has no NaN and no Infinity."
NO_OUTLINE = msgspec.Raw(b"null")


class ImageRow(msgspec.Struct):
    """One entry of `images`, as found."""

    id: Any = None
    file_name: Any = None
    height: Any = None
    width: Any = None


class AnnotationRow(msgspec.Struct):
    """One entry of `annotations`, as found."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = 0
    area: Any = msgspec.UNSET  # evaluation works out a missing one
    segmentation: msgspec.Raw = NO_OUTLINE  # text: as Python numbers, COCO's polygons would take over 1 GB


class CategoryRow(msgspec.Struct):
    """One entry of `categories`, as found."""

    id: Any = None
    name: Any = None


class Document(msgspec.Struct):
    """An instances JSON."""

    images: list[ImageRow]
    annotations: list[AnnotationRow]
    categories: list[CategoryRow]


@dataclass(frozen=True, eq=False)
class Shapes:
    """Every polygon of a document, flat, in the order of the annotations; run-length outlines are not among them."""

    coordinates: np.ndarray  # float32, x and y in turn
    ring_lengths: np.ndarray  # int64, in numbers, so twice the points
    ring_owners: np.ndarray  # int64, index into `annotations`


DOCUMENT_DECODER = msgspec.json.Decoder(Document)
POLYGON_DECODER = msgspec.json.Decoder(list[list[float]])


def read_document(path: Path) -> tuple[Document, list[Fault]]:
    """Returns the document, and why it is not strict JSON if only a lenient reader could read it.

    Errors: DataError when there is nothing to look into: no file, not UTF-8, cut short, not an instances file.
    """
    data = _read_bytes(path)
    try:
        return DOCUMENT_DECODER.decode(data), []
    except (msgspec.DecodeError, RecursionError) as error:
        plain = _parse_leniently(path, data)
        return _document_of_plain(plain, str(path)), _strictness_faults(plain, str(path), str(error))


def gather_shapes(document: Document) -> Shapes:
    """Returns the polygons of all annotations; an outline that is no list of lists of numbers adds none."""
    coordinates, lengths, owners = array("f"), array("q"), array("q")
    for owner, row in enumerate(document.annotations):
        for ring in _rings(row):
            coordinates.extend(ring)
            lengths.append(len(ring))
            owners.append(owner)
    flat = np.frombuffer(coordinates, np.float32) if coordinates else np.zeros(0, np.float32)
    return Shapes(flat, np.array(lengths, np.int64), np.array(owners, np.int64))


def outline_of(row: AnnotationRow) -> Any:
    """Returns the decoded `segmentation`, NaN and Infinity included."""
    return json.loads(bytes(row.segmentation))


def is_number(value: Any) -> bool:
    """Returns whether the value is a JSON number, finite or not."""
    return type(value) in (int, float)


def as_float(value: int | float) -> float:
    """Returns the number as a float; an integer too large for one is infinite."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def shown(value: Any) -> str:
    """Returns the value as text, at most 80 characters."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _rings(row: AnnotationRow) -> list[list[float]]:
    try:
        return POLYGON_DECODER.decode(row.segmentation)
    except msgspec.DecodeError:  # run-length, malformed or not finite: _outline_faults and _polygon_faults tell
        rings = outline_of(row)
    if not isinstance(rings, list) or not all(isinstance(ring, list) and all(map(is_number, ring)) for ring in rings):
        return []
    return [[as_float(value) for value in ring] for ring in rings]


def _read_bytes(path: Path) -> bytes:
    make = partial(Fault, file=str(path), where="annotations", field="file", mend=MEND_FILE)
    try:
        data = path.read_bytes()
    except OSError as error:
        problem = "The file does not exist." if isinstance(error, FileNotFoundError) else "The file cannot be read."
        raise DataError([make(value=shown(error.strerror), problem=problem)]) from error
    if not data.strip():
        raise DataError([make(value=f"{len(data)} bytes", problem="The file is empty.")])
    if data.startswith(b"\xef\xbb\xbf"):
        problem = "The file starts with a byte order mark, which JSON does not allow."
        raise DataError([make(value="bytes EF BB BF", problem=problem, mend="Save it as UTF-8 without the mark.")])
    if not data.isascii():
        _demand_utf8(data, make)
    return data


def _demand_utf8(data: bytes, make: partial) -> None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        value = f"byte {data[error.start]:#04x}"
        problem = f"The file is not UTF-8 at byte {error.start} (line {line})."
        mend = "Save it as UTF-8; if it is packed (.gz, .zip), unpack it first."
        raise DataError([make(value=value, problem=problem, mend=mend)]) from error


def _parse_leniently(path: Path, data: bytes) -> Any:
    """Returns what Python's reader makes of the bytes, which takes NaN and Infinity and knows where JSON is broken."""
    make = partial(Fault, file=str(path), where="annotations", field="file", mend=MEND_FILE)
    text = data.decode("utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        # The reader points at the start of what it could not finish: a string, a word like "true", or nothing.
        cut_short = error.msg.startswith("Unterminated") or len(rest.strip()) < len("false")
        byte = len(data) if cut_short else len(text[: error.pos].encode())
        line = (text.count("\n") if cut_short else text.count("\n", 0, error.pos)) + 1
        what = "The file ends in the middle of the JSON" if cut_short else f"The JSON is malformed ({error.msg})"
        fault = make(value=shown(rest[:40] or "end of file"), problem=f"{what}, at byte {byte} (line {line}).")
        raise DataError([fault]) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists without end
        problem = "The JSON holds a number too long, or lists too deep, to be read."
        raise DataError([make(value=shown(str(error)), problem=problem)]) from error


def _document_of_plain(plain: Any, file: str) -> Document:
    make = partial(Fault, file=file, where="top level", mend=MEND_KIND)
    if not isinstance(plain, dict):
        hint = " It looks like a file of results." if isinstance(plain, list) else ""
        problem = f"This is not an instances file: the top level is not an object.{hint}"
        raise DataError([make(field="file", value=shown(plain), problem=problem)])
    faults = []
    for name in LISTS:
        rows = plain.get(name)
        if not isinstance(rows, list):
            problem = f"This is not an instances file: the list `{name}` is missing."
            faults.append(make(field=name, value=shown(rows), problem=problem))
            continue
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                problem = "The entry is not an object."
                faults.append(make(field=f"{name}[{index}]", value=shown(row), problem=problem))
    if faults:
        raise DataError(faults)
    annotations = [{**row, "segmentation": _raw(row.get("segmentation"))} for row in plain["annotations"]]
    return Document(
        [_row(ImageRow, row) for row in plain["images"]],
        [_row(AnnotationRow, row) for row in annotations],
        [_row(CategoryRow, row) for row in plain["categories"]],
    )


def _row(kind: type[msgspec.Struct], plain: dict[str, Any]) -> Any:
    return kind(**{name: plain[name] for name in kind.__struct_fields__ if name in plain})


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def _strictness_faults(plain: dict[str, Any], file: str, refusal: str) -> list[Fault]:
    """Returns one fault for each field that holds NaN or Infinity, or else the strict reader's own words."""
    faults, others = [], False
    for name, rows in plain.items():
        if name not in LISTS:
            rows = [{"value": rows}]
        for index, row in enumerate(rows):
            for field, value in row.items():
                if _is_strict(value):
                    continue
                if name == "annotations" and field in NAMED_LATER:
                    others = True
                    continue
                where = f"{LISTS[name]} id {shown(row.get('id'))}" if name in LISTS else f"{name}, entry {index}"
                problem = "The value holds a number that is not finite."
                fault = Fault(
                    file=file, where=where, field=field, value=shown(value), problem=problem, mend=MEND_NUMBER
                )
                faults.append(fault)
    if not faults and not others:
        problem = "The file is not strict JSON."
        faults.append(
            Fault(file=file, where="annotations", field="file", value=refusal, problem=problem, mend=MEND_FILE)
        )
    return faults


def _is_strict(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
