"""An instances JSON as people have it, made into one that follows COCO's rules where its meaning is plain.

What is changed or left out is counted in notices; what cannot be used is an error, or left out with `skip_bad`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import msgspec
import numpy as np
from pycocotools import mask as coco_masks

from maskperf.data.coco.document import (
    AnnotationRow,
    CategoryRow,
    Document,
    ImageRow,
    Reading,
    is_number,
    outline_of,
    shown_id,
)
from maskperf.data.coco.problems import (
    LARGEST_ID,
    SMALLEST_POLYGON,
    RowProblem,
    empty_list_problems,
    find_problems,
    is_id,
    is_size,
    polygon_problems,
    rle_problems,
)
from maskperf.errors import Problem

IDS_SHOWN = 5
BACKGROUND_NAMES = ("background", "_background_", "__background__")
POLYGON_DECODER = msgspec.json.Decoder(list[list[float]])


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A document that follows COCO's rules, unless there are problems."""

    document: Document
    problems: list[Problem]
    notices: list[str]
    image_keys: list[Any]  # ids as the file has them, in the order of `images`; empty where they are the ids used


class Notes:
    """Counts what was changed or left out, by what it was."""

    def __init__(self):
        self._ids: dict[str, list[str]] = {}
        self._examples: dict[str, str] = {}

    def add(self, text: str, row: ImageRow | AnnotationRow | CategoryRow, *, example: Any = None) -> None:
        """Count one entry; `example` is a value that stands where the text has {}, and the first one is shown."""
        self._ids.setdefault(text, []).append(shown_id(row))
        self._examples.setdefault(text, json.dumps(example, ensure_ascii=False))

    def lines(self) -> list[str]:
        return [counted(text.replace("{}", self._examples[text]), ids) for text, ids in self._ids.items()]


def counted(text: str, ids: Sequence[Any]) -> str:
    """Return a notice: how many, what, and the first ids."""
    return f"{len(ids)} {text} (first ids: {', '.join(str(one) for one in ids[:IDS_SHOWN])})"


def clean_document(document: Document, reading: Reading, *, file: str) -> Cleaned:
    """Return the document with every value in COCO's form; the rows are changed in place."""
    notes = Notes()
    problems: list[RowProblem] = [(None, problem) for problem in empty_list_problems(document, reading, file)]
    number_of_image = _number_rows(document.images, notes, "image")
    number_of_category = _number_categories(document.categories, notes)
    _number_rows(document.annotations, notes, "annotation")
    for image in document.images:
        _clean_image(image, notes)
    for row in document.annotations:
        _clean_annotation(row, number_of_category, reading, notes)
    problems += _match_images(document, number_of_image, notes)
    images = {row.id: row for row in document.images if is_id(row.id)}
    problems += _clean_outlines(document, images, reading, notes, file)
    _drop_placeholder_categories(document, notes)
    problems += find_problems(document, reading, file=file)
    if reading.skip_bad:
        problems = _skip_bad(document, problems, notes)
    if not problems:  # what is empty now was not before
        problems = [(None, problem) for problem in empty_list_problems(document, reading, file)]
    keys = [row.id if row.key is None else row.key for row in document.images]
    return Cleaned(
        document=document,
        problems=[replace(problem, file=file) for _, problem in problems],
        notices=notes.lines(),
        image_keys=keys if any(row.key is not None for row in document.images) else [],
    )


def as_whole_number(value: Any) -> int | None:
    """Return the integer that a number or a text stands for; None where it stands for none."""
    if (
        type(value) is float
        and value.is_integer()
        or type(value) is str
        and value.strip().removeprefix("-").isdecimal()
        and len(value) <= 20
    ):
        value = int(value)
    return value if type(value) is int and abs(value) <= LARGEST_ID else None


def _number_rows(rows: Iterable[ImageRow | AnnotationRow], notes: Notes, kind: str) -> dict[Any, int]:
    """Give every entry a whole number as id, and returns the number of each id of the file.

    Whole numbers stay. Where an id is text, all entries are numbered in their order, from 1.
    """
    rows = list(rows)
    has_text = any(type(row.id) is str for row in rows)
    is_missing = kind == "annotation" and any(row.id is None for row in rows)  # nothing refers to them
    numbers: dict[Any, int] = {}
    for position, row in enumerate(rows, start=1):
        key = row.id
        if key is None and is_missing:
            notes.add("annotations have no id: numbered in their order", row)
            row.id = position
            continue
        usable = type(key) is str and key.strip() or (type(key) is float and key.is_integer()) or is_id(key)
        if not usable:
            continue
        number = numbers.setdefault(key, position if has_text or is_missing else int(key))
        if key != number or type(key) is not int:
            row.key, row.id = key, number
    return numbers


def _number_categories(rows: Iterable[CategoryRow], notes: Notes) -> dict[Any, int]:
    """Give every category a whole number as id where its id stands for one; returns the number of each."""
    numbers: dict[Any, int] = {}
    for row in rows:
        number = as_whole_number(row.id)
        if number is None:
            continue
        if type(row.id) is not int:
            notes.add("categories have an id that is no whole number: read as the number it stands for", row)
            row.key = row.id
        numbers[row.id] = number
        row.id = number
    return numbers


def _clean_image(row: ImageRow, notes: Notes) -> None:
    for field in ("height", "width"):
        value = getattr(row, field)
        number = as_whole_number(value)
        if number is not None and type(value) is not int:
            notes.add(f"images have a {field} such as {{}}: read as the number", row, example=value)
            setattr(row, field, number)
    if not row.file_name:
        url = next((url for url in (row.coco_url, row.flickr_url) if type(url) is str and url), None)
        if url is not None:
            notes.add("images have a URL and no file_name: the last part of the URL is looked for", row)
            row.file_name = url


def _clean_annotation(row: AnnotationRow, number_of_category: dict[Any, int], reading: Reading, notes: Notes) -> None:
    row.category_id = _matched(row, "category_id", number_of_category, "categories", notes)
    if type(row.iscrowd) in (bool, float, str) or row.iscrowd is None:
        plain = {None: 0, False: 0, True: 1, "0": 0, "1": 1}.get(row.iscrowd)
        if plain is not None:
            notes.add(f"annotations have iscrowd={{}}: read as {plain}", row, example=row.iscrowd)
            row.iscrowd = plain
    if reading.crowd_as_objects and row.iscrowd == 1:
        notes.add("annotations have iscrowd=1: read as objects (data.crowd_as_objects=true)", row)
        row.iscrowd = 0
    if row.area is None:
        row.area = msgspec.UNSET
    elif type(row.area) is str and _as_float(row.area) is not None:
        notes.add("annotations have an area that is text: read as the number", row)
        row.area = _as_float(row.area)
    if isinstance(row.bbox, list) and any(type(value) is str for value in row.bbox):
        numbers = [_as_float(value) for value in row.bbox]
        if None not in numbers:
            notes.add("annotations have a box whose numbers are text: read as the numbers", row)
            row.bbox = numbers


def _as_float(value: Any) -> int | float | None:
    """Return the number that a number or a text stands for."""
    if is_number(value):
        return value
    try:
        number = float(value) if type(value) is str else float("nan")
    except ValueError:
        return None
    return number if isfinite(number) else None


def _matched(row: AnnotationRow, field: str, numbers: dict[Any, int], list_name: str, notes: Notes) -> Any:
    """Return the number of the entry that a reference means; the reference itself where it means none."""
    value = getattr(row, field)
    if type(value) not in (int, float, str):
        return value
    if value in numbers:
        return numbers[value]
    number = as_whole_number(value)
    other = number if number is None or type(value) is str else str(number)
    if other is None or other not in numbers:
        return value
    found, wanted = ("text", "numbers") if type(value) is str else ("a number", "text")
    note = (
        f"annotations: {field} is {found} (such as {{}}) where the ids of `{list_name}` are {wanted}: matched by value"
    )
    notes.add(note, row, example=value)
    return numbers[other]


def _match_images(document: Document, number_of_image: dict[Any, int], notes: Notes) -> list[RowProblem]:
    """Turn image references into numbers, and leaves out annotations of images that the file does not list."""
    known = set(number_of_image.values())
    kept = []
    for row in document.annotations:
        reference = row.image_id
        row.image_id = _matched(row, "image_id", number_of_image, "images", notes)
        is_reference = type(reference) in (int, float, str)
        if is_reference and row.image_id not in known and document.images:
            notes.add("annotations belong to images that are not in `images`: left out", row)
        else:
            kept.append(row)
    if document.annotations and not kept:
        value = f"{len(document.annotations)} annotations"
        fix = "Use the `images` that the annotations were made for."
        message = "No annotation belongs to an image of this file."
        document.annotations = kept
        return [(None, Problem(file="", where="top level", field="image_id", value=value, message=message, fix=fix))]
    document.annotations = kept
    return []


def _drop_placeholder_categories(document: Document, notes: Notes) -> None:
    used = {row.category_id for row in document.annotations if is_id(row.category_id)}
    rows = [row for row in document.categories if is_id(row.id)]
    names = [(row.name, row.supercategory) for row in rows]
    placeholders = placeholder_categories([row.id for row in rows], names, used)
    for row in rows:
        if row.id in placeholders:
            notes.add("categories without an annotation look like placeholders ({}): left out", row, example=row.name)
    document.categories = [row for row in document.categories if not is_id(row.id) or row.id not in placeholders]


def placeholder_categories(ids: Sequence[int], names: Sequence[tuple[Any, Any]], used: set[int]) -> set[int]:
    """Return the ids of categories that stand for no class: without annotations, and either named like another one,
    or the supercategory of others, or called background. `names` are name and supercategory of each.
    """
    supercategories = {above for name, above in names if above != name and type(above) is str}
    counts: dict[Any, int] = {}
    for name, _ in names:
        if type(name) is str:
            counts[name] = counts.get(name, 0) + 1
    found = set()
    for identity, (name, _) in zip(ids, names, strict=True):
        if type(name) is not str or identity in used:
            continue
        if name in supercategories or name.lower() in BACKGROUND_NAMES:
            found.add(identity)
        elif counts[name] > 1:
            counts[name] -= 1
            found.add(identity)
    return found if len(found) < len(ids) else set()


def _clean_outlines(
    document: Document, images: dict[int, ImageRow], reading: Reading, notes: Notes, file: str
) -> list[RowProblem]:
    """Bring every outline into the form of polygons or of one run-length code, and derives missing boxes.

    Annotations left without an outline are left out, unless no object has one.
    """
    kept, problems, without = [], [], []
    for row in document.annotations:
        found = _clean_outline(row, images.get(row.image_id) if is_id(row.image_id) else None, notes)
        problems += [(row, problem) for problem in found]
        has_outline = bytes(row.segmentation) != b"null"
        if not has_outline and not found and not (reading.training and row.iscrowd == 1):
            without.append(row)
        else:
            kept.append(row)
    objects = [row for row in document.annotations if row.iscrowd != 1]
    if objects and not problems and len([row for row in without if row.iscrowd != 1]) == len(objects):
        document.annotations = kept
        return [(None, _no_outlines(objects, file))]
    for row in without:
        notes.add("annotations have no outline of three points or more: left out", row)
    document.annotations = kept
    for row in kept:
        if (row.bbox is None or row.bbox == []) and bytes(row.segmentation) != b"null":
            image = images.get(row.image_id) if is_id(row.image_id) else None
            _derive_box(row, image, notes)
    return problems


def _no_outlines(objects: list[AnnotationRow], file: str) -> Problem:
    value = f"{len(objects)} annotations"
    if all(row.bbox is None for row in objects):
        message = (
            "This is not an instances file: no annotation has a box or an outline, as in captions or panoptic files."
        )
    else:
        message = "Every annotation has a box, but none has an outline; Mask R-CNN learns masks from outlines."
    fix = "Export with `segmentation`: polygons [[x1, y1, x2, y2, x3, y3, ...], ...] or run-length codes (RLE)."
    return Problem(file=file, where="top level", field="segmentation", value=value, message=message, fix=fix)


def _clean_outline(row: AnnotationRow, image: ImageRow | None, notes: Notes) -> list[Problem]:
    """Rewrite the outline of one annotation (null: it has none); returns what is wrong with it."""
    try:
        rings: Any = POLYGON_DECODER.decode(row.segmentation)
    except msgspec.DecodeError:
        rings = outline_of(row)
    if not rings:
        row.segmentation = msgspec.Raw(b"null")
        return []
    if isinstance(rings, dict) or (isinstance(rings, list) and any(isinstance(part, dict) for part in rings)):
        return _clean_runs(row, rings if isinstance(rings, list) else [rings], image, notes)
    if isinstance(rings, list) and all(isinstance(ring, list) for ring in rings):
        converted = [[_as_float(value) if type(value) is str else value for value in ring] for ring in rings]
        if any(type(value) is str for ring in rings for value in ring) and not any(None in ring for ring in converted):
            notes.add("annotations have an outline whose numbers are text: read as the numbers", row)
            rings = converted
    if polygon_problems(rings, row, image):
        return polygon_problems(outline_of(row), row, image)  # the numbers as they are written
    long_rings = [ring for ring in rings if len(ring) >= SMALLEST_POLYGON]
    if long_rings and len(long_rings) < len(rings):
        notes.add("annotations have polygons of fewer than three points beside others: those polygons left out", row)
    row.segmentation = msgspec.Raw(json.dumps(long_rings or None).encode())
    return []


def _clean_runs(row: AnnotationRow, parts: list, image: ImageRow | None, notes: Notes) -> list[Problem]:
    """Rewrite an outline of run-length codes, and perhaps polygons beside them, as one code: their union."""
    if not is_size(image):
        return []  # the image's own problem is named
    codes = []
    for part in parts:
        if isinstance(part, dict):
            part = _plain_code(part)
            problems = rle_problems(part, row, image)
            if problems:
                return problems
            codes.append(_compressed(part, image))
        else:
            problems = polygon_problems([part], row, image)
            if problems:
                return problems
            if len(part) >= SMALLEST_POLYGON:
                codes += coco_masks.frPyObjects([part], image.height, image.width)
    if len(parts) > 1:
        notes.add("annotations have run-length codes in a list: read as the union of its parts", row)
    merged = coco_masks.merge(codes) if len(codes) > 1 else codes[0]
    if not coco_masks.area(merged):
        row.segmentation = msgspec.Raw(b"null")
    elif len(parts) > 1:
        counts = merged["counts"].decode("ascii")
        row.segmentation = msgspec.Raw(json.dumps({"size": list(merged["size"]), "counts": counts}).encode())
    else:
        row.segmentation = msgspec.Raw(json.dumps(_plain_code(parts[0])).encode())
    return []


def _plain_code(code: dict) -> dict:
    """Return a run-length code with whole numbers where they are written as text or with a point."""
    plain = {"size": code.get("size"), "counts": code.get("counts")}
    for name, value in plain.items():
        if isinstance(value, list):
            numbers = [as_whole_number(item) for item in value]
            plain[name] = value if None in numbers else numbers
    return plain


def _compressed(code: dict, image: ImageRow) -> dict:
    if isinstance(code["counts"], list):
        return coco_masks.frPyObjects(code, image.height, image.width)
    return {"size": code["size"], "counts": code["counts"].encode("ascii")}


def _derive_box(row: AnnotationRow, image: ImageRow | None, notes: Notes) -> None:
    outline = outline_of(row)
    if isinstance(outline, dict):
        if not is_size(image):
            return
        row.bbox = coco_masks.toBbox(_compressed(outline, image)).tolist()
    else:
        points = np.array([value for ring in outline for value in ring[: len(ring) // 2 * 2]], np.float64).reshape(
            -1, 2
        )
        low, high = points.min(axis=0), points.max(axis=0)
        row.bbox = [*low.tolist(), *(high - low).tolist()]
    notes.add("annotations have no box: taken from their outline", row)


def _skip_bad(document: Document, problems: list[RowProblem], notes: Notes) -> list[RowProblem]:
    """Leave out the entries with problems, and the annotations of images that were left out; returns other problems."""
    bad: set[int] = set()
    for row, problem in problems:
        if isinstance(row, ImageRow | AnnotationRow) and id(row) not in bad:
            bad.add(id(row))
            kind = "images" if isinstance(row, ImageRow) else "annotations"
            notes.add(
                f"{kind} left out (data.skip_bad=true), {problem.field.partition('[')[0]}: {problem.message}", row
            )
    document.images = [row for row in document.images if id(row) not in bad]
    known = {row.id for row in document.images}
    kept = []
    for row in document.annotations:
        if id(row) in bad:
            continue
        if row.image_id in known:
            kept.append(row)
        else:
            notes.add("annotations of images that were left out: left out too", row)
    document.annotations = kept
    return [(row, problem) for row, problem in problems if not isinstance(row, ImageRow | AnnotationRow)]
