"""An instances JSON as it was found: reading the file, and where it is broken."""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from maskperf.errors import DataError, Problem

NOT_IN_JSON = "key of maskperf, not of the file"  # the name of a member that no file has
LISTS = {"images": "image", "annotations": "annotation", "categories": "category"}  # and one entry of each
CHECKED_LATER = ("bbox", "segmentation")  # `repair_document` names the single values that are not finite
FIX_FILE = "Fetch or export the file again."
FIX_TYPE = "Use an instances file: an object with the lists `images`, `annotations` and `categories`."
FIX_TEST_SET = "For a test set without annotations: maskperf evaluate --save-detections FOLDER. "
FIX_NUMBER = "Replace it by a finite number; JSON has no NaN and no Infinity."
BYTE_ORDER_MARK = "\ufeff"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
GZIP_MARK, ZIP_MARK = b"\x1f\x8b", b"PK\x03\x04"
# A string, which stays as it is, or a comma before the end of a list or object.
STRING_OR_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[\]}])', re.DOTALL)
IDS_SHOWN = 5


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
        switches = [entry.name for entry in fields(self)[1:] if getattr(self, entry.name)]
        return ".".join(["training" if self.training else "evaluation", *switches])


class Row(msgspec.Struct):
    """One entry of a list, as found."""

    kind: ClassVar[str]
    fix: ClassVar[str]
    id: Any = None
    key: Any = msgspec.field(default=None, name=NOT_IN_JSON)  # the id as the file has it, where `id` is another

    @property
    def own_id(self) -> Any:
        """The id as the file has it."""
        return self.id if self.key is None else self.key


class ImageRow(Row):
    kind, fix = "image", "Correct the entry in `images`."
    file_name: Any = None
    height: Any = None
    width: Any = None
    coco_url: Any = None
    flickr_url: Any = None


class AnnotationRow(Row):
    kind, fix = "annotation", "Correct the annotation, or remove it from the file."
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = 0
    area: Any = msgspec.UNSET  # evaluation works out a missing one
    segmentation: msgspec.Raw = msgspec.Raw(b"null")  # text: as Python numbers, COCO's polygons would take over 1 GB

    @property
    def outline(self) -> Any:
        """The decoded `segmentation`, NaN and Infinity included."""
        return json.loads(bytes(self.segmentation))

    @outline.setter
    def outline(self, value: Any) -> None:
        self.segmentation = _raw_json(value)


class CategoryRow(Row):
    kind, fix = "category", "Give it a name in `categories`."
    name: Any = None
    supercategory: Any = None


class Document(msgspec.Struct):
    """An instances JSON."""

    images: list[ImageRow]
    annotations: list[AnnotationRow]
    categories: list[CategoryRow]


def read_text(path: Path) -> tuple[str, str, list[str]]:
    """Return the text without a byte order mark, the SHA-256 of the file, and a notice for what was undone.

    Errors: DataError for a file that cannot be read, is empty, or is neither UTF-8 nor marked as UTF-16.
    """
    notices = []
    is_utf16 = False
    try:
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        if data.startswith(GZIP_MARK):
            data = gzip.decompress(data)
            notices.append("the file is compressed with gzip: read as what is in it")
        if data.startswith(ZIP_MARK):
            fix = "Unpack it, and name the JSON file that is in it."
            raise _error(path, "bytes 50 4B 03 04", "The file is a zip archive.", fix)
        is_utf16 = data.startswith(UTF16_MARKS)
        text = data.decode("utf-16" if is_utf16 else "utf-8")
    except UnicodeDecodeError as error:
        if is_utf16:
            raise _error(path, shown(str(error)), "The UTF-16 text is damaged.") from error
        line = data.count(b"\n", 0, error.start) + 1
        message = f"The file is not UTF-8 at byte {error.start} (line {line})."
        fix = "Save it as UTF-8; if it is packed, unpack it first."
        raise _error(path, f"byte {data[error.start]:#04x}", message, fix) from error
    except OSError as error:  # gzip's own errors are among them
        message = "The file does not exist." if isinstance(error, FileNotFoundError) else "The file cannot be read."
        raise _error(path, shown(error.strerror or str(error)), message) from error
    except (EOFError, zlib.error) as error:
        raise _error(path, shown(str(error)), "The gzip file is cut short or damaged.") from error
    if is_utf16:
        notices.append("the file is UTF-16: read as such; JSON files should be UTF-8")
    if text.startswith(BYTE_ORDER_MARK):
        text = text.removeprefix(BYTE_ORDER_MARK)
        notices.append("the file starts with a byte order mark, which JSON does not allow: ignored")
    if not text.strip():
        raise _error(path, f"{len(data)} bytes", "The file is empty.")
    return text, sha256, notices


def parse_document(path: Path, text: str, *, is_test_set: bool = False) -> tuple[Document, list[Problem], list[str]]:
    """Return the document, why it is not strict JSON if only a lenient reader could read it, and notices.

    A test set may lack the lists of annotations and categories.
    Errors: DataError for a file that is cut short, or is not an instances file.
    """
    try:
        return msgspec.json.decode(text, type=Document), [], []
    except (msgspec.DecodeError, RecursionError):
        complete = STRING_OR_TRAILING_COMMA.sub(lambda match: "" if match[0] == "," else match[0], text)
    notices = []
    if complete != text:
        count = len(text) - len(complete)
        notices = [f"{count} trailing commas before the end of a list or object: ignored, JSON does not allow them"]
    plain = _parse_leniently(path, complete)
    document = _document_of_plain(plain, path, is_test_set=is_test_set)
    try:
        msgspec.json.decode(complete)
    except (msgspec.DecodeError, RecursionError) as error:
        return document, _strictness_problems(plain, path, str(error)), notices
    return document, [], notices  # refused for what is in it, not for how it is written


def shown(value: Any) -> str:
    """Return the value as text, at most 80 characters."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def counted(text: str, ids: Sequence[Any]) -> str:
    """Return a notice: how many, what, and the first ids."""
    return f"{len(ids)} {text} (first ids: {', '.join(map(str, ids[:IDS_SHOWN]))})"


def _raw_json(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def _problem(path: Path, where: str, field: str, value: Any, message: str, fix: str) -> Problem:
    return Problem(file=str(path), where=where, field=field, value=shown(value), message=message, fix=fix)


def _error(path: Path, value: str, message: str, fix: str = FIX_FILE) -> DataError:
    problem = Problem(file=str(path), where="annotations", field="file", value=value, message=message, fix=fix)
    return DataError([problem])


def _parse_leniently(path: Path, text: str) -> Any:
    """Return what Python's reader makes of the text; it takes NaN and Infinity, and knows where JSON is broken."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        # The reader points at the start of what it could not finish: a string, a literal like "true", or nothing.
        is_partial = len(rest.strip()) < len("false") and error.msg != "Extra data"
        cut_short = is_partial or error.msg.startswith("Unterminated")
        end = len(text) if cut_short else error.pos
        what = "The file ends in the middle of the JSON" if cut_short else f"The JSON is malformed ({error.msg})"
        message = f"{what}, at byte {len(text[:end].encode())} (line {text.count(chr(10), 0, end) + 1})."
        raise _error(path, shown(rest[:40] or "end of file"), message) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists without end
        message = "The JSON holds a number too long, or lists too deep, to be read."
        raise _error(path, shown(str(error)), message) from error


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
            hint = FIX_TEST_SET if name == "annotations" and isinstance(plain.get("images"), list) else ""
            message = f"This is not an instances file: the list `{name}` is missing."
            problems.append(_problem(path, "top level", name, rows, message, hint + FIX_TYPE))
        else:
            problems += [
                _problem(path, "top level", f"{name}[{index}]", row, "The entry is not an object.", FIX_TYPE)
                for index, row in enumerate(rows)
                if not isinstance(row, dict)
            ]
    if problems:
        raise DataError(problems)
    annotations = [
        {**row, "segmentation": _raw_json(row["segmentation"])} if "segmentation" in row else row
        for row in plain["annotations"]
    ]
    return msgspec.convert({**plain, "annotations": annotations}, Document)


def _strictness_problems(plain: dict[str, Any], path: Path, refusal: str) -> list[Problem]:
    """Return one problem for each field that holds NaN or Infinity, or else the message of the strict reader."""
    entries = [(f"{name}, entry 0", {"value": value}) for name, value in plain.items() if name not in LISTS]
    for name, kind in LISTS.items():
        entries += [(f"{kind} id {shown(row.get('id'))}", row) for row in plain[name]]
    odd = [(where, field, value) for where, entry in entries for field, value in entry.items() if not _is_strict(value)]
    if not odd:
        return _error(path, refusal, "The file is not strict JSON.").problems
    return [
        _problem(path, where, field, value, "The value holds a number that is not finite.", FIX_NUMBER)
        for where, field, value in odd
        if not (where.startswith("annotation id") and field in CHECKED_LATER)
    ]


def _is_strict(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
