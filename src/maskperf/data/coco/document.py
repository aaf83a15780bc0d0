"""An instances JSON as it was found: reading the file, and where it is broken."""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from maskperf.config import DataConfig
from maskperf.errors import DataError, Problem

NOT_IN_JSON = "key of maskperf, not of the file"  # the name of a member that no file has
LISTS = {"images": "image", "annotations": "annotation", "categories": "category"}  # and one entry of each
CHECKED_LATER = ("bbox", "segmentation")  # the rules name the single values that are not finite
FIX_FILE = "Fetch or export the file again."
FIX_TYPE = "Use an instances file: an object with the lists `images`, `annotations` and `categories`."
FIX_NUMBER = "Replace it by a finite number; JSON has no NaN and no Infinity."
NO_OUTLINE = msgspec.Raw(b"null")
BYTE_ORDER_MARK = "\ufeff"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
GZIP_MARK, ZIP_MARK = b"\x1f\x8b", b"PK\x03\x04"
# A string, which stays as it is, or a comma before the end of a list or object.
STRING_OR_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[\]}])', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a file of annotations is read for, and how freely."""

    training: bool
    negatives: bool = False  # training keeps images without objects
    crowd_as_objects: bool = False  # iscrowd=1 is read as 0
    skip_bad: bool = False  # images and annotations with errors are left out
    is_test_set: bool = False  # evaluation without ground truth: the lists of annotations and categories may be missing

    @property
    def name(self) -> str:
        """A short text, different for each reading."""
        switches = [entry.name for entry in fields(self) if entry.name != "training" and getattr(self, entry.name)]
        return ".".join(["training" if self.training else "evaluation", *switches])


def reading_of(data: DataConfig, *, training: bool, is_test_set: bool = False) -> Reading:
    """Return how the configuration wants one split to be read."""
    return Reading(
        training=training,
        negatives=training and data.negatives,
        crowd_as_objects=data.crowd_as_objects,
        skip_bad=data.skip_bad,
        is_test_set=is_test_set,
    )


class ImageRow(msgspec.Struct):
    """One entry of `images`, as found."""

    id: Any = None
    file_name: Any = None
    height: Any = None
    width: Any = None
    coco_url: Any = None
    flickr_url: Any = None
    key: Any = msgspec.field(default=None, name=NOT_IN_JSON)  # the id as the file has it, where `id` replaces it


class AnnotationRow(msgspec.Struct):
    """One entry of `annotations`, as found."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = 0
    area: Any = msgspec.UNSET  # evaluation works out a missing one
    segmentation: msgspec.Raw = NO_OUTLINE  # text: as Python numbers, COCO's polygons would take over 1 GB
    key: Any = msgspec.field(default=None, name=NOT_IN_JSON)


class CategoryRow(msgspec.Struct):
    """One entry of `categories`, as found."""

    id: Any = None
    name: Any = None
    supercategory: Any = None
    key: Any = msgspec.field(default=None, name=NOT_IN_JSON)


Row = ImageRow | AnnotationRow | CategoryRow


class Document(msgspec.Struct):
    """An instances JSON."""

    images: list[ImageRow]
    annotations: list[AnnotationRow]
    categories: list[CategoryRow]


def read_document(path: Path, *, is_test_set: bool = False) -> tuple[Document, list[Problem], list[str]]:
    """Return `parse_document` of the text of a file.

    Errors: those of `read_text` and `parse_document`.
    """
    return parse_document(path, read_text(path)[0], is_test_set=is_test_set)


def read_text(path: Path) -> tuple[str, str, list[str]]:
    """Return the text without a byte order mark, the SHA-256 of the file, and a notice for what was undone.

    Errors: DataError for a file that cannot be read, is empty, or is neither UTF-8 nor marked as UTF-16.
    """
    notices = []
    try:
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        if data.startswith(GZIP_MARK):
            data = gzip.decompress(data)
            notices.append("the file is compressed with gzip: read as what is in it")
        if data.startswith(ZIP_MARK):
            fix = "Unpack it, and name the JSON file that is in it."
            raise _refusal(path, "bytes 50 4B 03 04", "The file is a zip archive.", fix)
        is_utf16 = data.startswith(UTF16_MARKS)
        text = data.decode("utf-16" if is_utf16 else "utf-8")
    except UnicodeDecodeError as error:
        if is_utf16:
            raise _refusal(path, shown(str(error)), "The UTF-16 text is damaged.") from error
        line = data.count(b"\n", 0, error.start) + 1
        message = f"The file is not UTF-8 at byte {error.start} (line {line})."
        fix = "Save it as UTF-8; if it is packed, unpack it first."
        raise _refusal(path, f"byte {data[error.start]:#04x}", message, fix) from error
    except OSError as error:  # gzip's own errors are among them
        message = "The file does not exist." if isinstance(error, FileNotFoundError) else "The file cannot be read."
        raise _refusal(path, shown(error.strerror or str(error)), message) from error
    except (EOFError, zlib.error) as error:
        raise _refusal(path, shown(str(error)), "The gzip file is cut short or damaged.") from error
    if is_utf16:
        notices.append("the file is UTF-16: read as such; JSON files should be UTF-8")
    if text.startswith(BYTE_ORDER_MARK):
        text = text.removeprefix(BYTE_ORDER_MARK)
        notices.append("the file starts with a byte order mark, which JSON does not allow: ignored")
    if not text.strip():
        raise _refusal(path, f"{len(data)} bytes", "The file is empty.")
    return text, sha256, notices


def parse_document(path: Path, text: str, *, is_test_set: bool = False) -> tuple[Document, list[Problem], list[str]]:
    """Return the document, why it is not strict JSON if only a lenient reader could read it, and notices.

    A test set may lack the lists of annotations and categories.
    Errors: DataError for a file that is cut short, or is not an instances file.
    """
    try:
        return msgspec.json.decode(text, type=Document), [], []
    except (msgspec.DecodeError, RecursionError) as error:
        refusal = str(error)
    notices = []
    try:
        plain = _parse_leniently(path, text)
    except DataError:
        complete = STRING_OR_TRAILING_COMMA.sub(lambda match: "" if match[0] == "," else match[0], text)
        count = len(text) - len(complete)
        if not count:
            raise
        text, plain = complete, _parse_leniently(path, complete)
        notices = [f"{count} trailing commas before the end of a list or object: ignored, JSON does not allow them"]
    document = _document_of_plain(plain, path, is_test_set=is_test_set)
    return document, _strictness_problems(plain, path, text, refusal), notices


def shown_id(row: Row) -> str:
    """Return the id of an entry as the file has it, for messages."""
    return shown(key_of(row))


def key_of(row: Row) -> Any:
    """Return the id of an entry as the file has it."""
    return row.id if row.key is None else row.key


def outline_of(row: AnnotationRow) -> Any:
    """Return the decoded `segmentation`, NaN and Infinity included."""
    return json.loads(bytes(row.segmentation))


def raw_json(value: Any) -> msgspec.Raw:
    """Return the value as JSON text, NaN and Infinity included."""
    return msgspec.Raw(json.dumps(value).encode())


def shown(value: Any) -> str:
    """Return the value as text, at most 80 characters."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _problem(path: Path, where: str, field: str, value: Any, message: str, fix: str) -> Problem:
    return Problem(file=str(path), where=where, field=field, value=shown(value), message=message, fix=fix)


def _refusal(path: Path, value: str, message: str, fix: str = FIX_FILE) -> DataError:
    return DataError(
        [Problem(file=str(path), where="annotations", field="file", value=value, message=message, fix=fix)]
    )


def _parse_leniently(path: Path, text: str) -> Any:
    """Return what Python's reader makes of the text; it takes NaN and Infinity, and knows where JSON is broken."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        # The reader points at the start of what it could not finish: a string, a word like "true", or nothing.
        is_partial = len(rest.strip()) < len("false") and error.msg != "Extra data"
        cut_short = is_partial or error.msg.startswith("Unterminated")
        end = len(text) if cut_short else error.pos
        line = text.count("\n", 0, end) + 1
        what = "The file ends in the middle of the JSON" if cut_short else f"The JSON is malformed ({error.msg})"
        message = f"{what}, at byte {len(text[:end].encode())} (line {line})."
        raise _refusal(path, shown(rest[:40] or "end of file"), message) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists without end
        message = "The JSON holds a number too long, or lists too deep, to be read."
        raise _refusal(path, shown(str(error)), message) from error


def _document_of_plain(plain: Any, path: Path, *, is_test_set: bool) -> Document:
    if not isinstance(plain, dict):
        hint = " It looks like a file of results." if isinstance(plain, list) else ""
        message = f"This is not an instances file: the top level is not an object.{hint}"
        raise DataError([_problem(path, "top level", "file", plain, message, FIX_TYPE)])
    problems = []
    for name in LISTS:
        rows = plain.get(name)
        if rows is None and is_test_set and name != "images":
            plain[name] = []
        elif not isinstance(rows, list):
            is_test_set_perhaps = name == "annotations" and isinstance(plain.get("images"), list)
            hint = "For a test set without annotations: maskperf evaluate --save-detections FOLDER. "
            message = f"This is not an instances file: the list `{name}` is missing."
            problems.append(_problem(path, "top level", name, rows, message, hint * is_test_set_perhaps + FIX_TYPE))
        else:
            problems += [
                _problem(path, "top level", f"{name}[{index}]", row, "The entry is not an object.", FIX_TYPE)
                for index, row in enumerate(rows)
                if not isinstance(row, dict)
            ]
    if problems:
        raise DataError(problems)
    annotations = [
        {**row, "segmentation": raw_json(row["segmentation"])} if "segmentation" in row else row
        for row in plain["annotations"]
    ]
    return msgspec.convert({**plain, "annotations": annotations}, Document)


def _strictness_problems(plain: dict[str, Any], path: Path, text: str, refusal: str) -> list[Problem]:
    """Return one problem for each field that holds NaN or Infinity, or else the message of the strict reader."""
    try:
        msgspec.json.decode(text)
        return []  # refused for what is in it, not for how it is written
    except (msgspec.DecodeError, RecursionError):
        odd = [entry for entry in _fields_of(plain) if not _is_strict(entry[2])]
    if not odd:
        return _refusal(path, refusal, "The file is not strict JSON.").problems
    return [
        _problem(path, where, field, value, "The value holds a number that is not finite.", FIX_NUMBER)
        for where, field, value in odd
        if not (where.startswith("annotation id") and field in CHECKED_LATER)
    ]


def _fields_of(plain: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield entry, field and value of everything in the document."""
    for name, rows in plain.items():
        if name not in LISTS:
            yield f"{name}, entry 0", "value", rows
            continue
        for row in rows:
            for field, value in row.items():
                yield f"{LISTS[name]} id {shown(row.get('id'))}", field, value


def _is_strict(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
