"""Values as people have them, brought into COCO's form where their meaning is plain, or refused.

What is changed or left out is counted in notices; what cannot be used is a problem, or left out with `skip_bad`.
"""

import json
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from pycocotools import mask as coco_masks

from maskperf.data.coco import columns
from maskperf.data.coco.document import AnnotationRow, CategoryRow, Document, ImageRow, Reading, Row, counted, shown
from maskperf.errors import Problem

CROWD_MARKS = {"None": 0, "False": 0, "0.0": 0, "'0'": 0, "True": 1, "1.0": 1, "'1'": 1}  # what stands for 0 and 1
FIX_POLYGONS = "Write the outline as [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels, or remove the annotation."
FIX_OUTLINES = "Export with `segmentation`: polygons [[x1, y1, x2, y2, x3, y3, ...], ...] or run-length codes (RLE)."
Four = Annotated[list, Meta(min_length=4, max_length=4)]
Points = Annotated[list[tuple[Any, Any]], Meta(min_length=3)]
OTHER_OUTLINES = (  # what may stand in place of a list of lists of numbers; message and fix
    (list[float], "The outline is one flat list of numbers.", "Put it into another pair of brackets: [[x1, y1, ...]]."),
    (Points, "The outline is a list of points [x, y].", "Write all numbers into one list: [[x1, y1, x2, y2, ...]]."),
    (object, "The outline is not a list of lists of numbers.", FIX_POLYGONS),
)


def fits(value: Any, wanted: Any) -> bool:
    """Return whether the value has the wanted type, as msgspec decides it, and is no NaN or Infinity."""
    try:
        msgspec.convert(value, wanted)
    except (msgspec.ValidationError, OverflowError):
        return False
    return type(value) is not float or isfinite(value)


def as_number(value: Any) -> int | float | None:
    """Return the number that a number or a text stands for; None where it stands for none."""
    if type(value) in (int, float):
        return value
    try:
        number = float(value) if type(value) is str else float("nan")
    except ValueError:
        return None
    return number if isfinite(number) else None


def as_whole_number(value: Any) -> int | None:
    """Return the integer of at most 64 bits that a number or a text stands for; None where it stands for none."""
    is_digits = type(value) is str and len(value) <= 20 and value.strip().removeprefix("-").isdecimal()
    if is_digits or (type(value) is float and value.is_integer()):
        value = int(value)
    return value if fits(value, columns.Id) else None


def as_numbers(values: Any, as_one: Callable[[Any], Any] = as_number) -> Any:
    """Return a list with the numbers that its values stand for; anything else, and what is right already, as it is."""
    numbers = [as_one(value) for value in values] if isinstance(values, list) else [None]
    return values if None in numbers or list(map(type, numbers)) == list(map(type, values)) else numbers


def as_crowd(value: Any) -> int | None:
    return CROWD_MARKS.get(repr(value))


SIDE = "The side is not a whole number of pixels above 0."
CROWD = "The value is neither 0 (one object) nor 1 (a crowd region)."
BOX = "The box is not [x, y, width, height]."
AREA = "Evaluation sorts objects by their area, and this is no number of at least 0."
FIX_AREA = "Write the object's area in square pixels, or leave the field out."
AREA_TEXT = "annotations have an area that is text: read as the number"
BOX_TEXT = "annotations have a box whose numbers are text: read as the numbers"
# By kind of entry: field; what gives the value that is meant (None, or the value itself: nothing to repair), and the
# notice; its type for msgspec (None: checked elsewhere), and the message where it is another.
RULES: dict[type[Row], tuple[tuple[str, Callable[[Any], Any], str, Any, str], ...]] = {
    ImageRow: (
        ("height", as_whole_number, "images have a height such as {}: read as the number", columns.Side, SIDE),
        ("width", as_whole_number, "images have a width such as {}: read as the number", columns.Side, SIDE),
        ("file_name", lambda value: value, "", columns.FileName, "This is no file name."),
    ),
    CategoryRow: (("name", lambda value: value, "", columns.Name, "The category has no name."),),
    AnnotationRow: (
        ("iscrowd", as_crowd, "annotations have iscrowd={}: read as NEW", columns.CrowdMark, CROWD),
        ("area", as_number, AREA_TEXT, None, AREA),
        ("bbox", as_numbers, BOX_TEXT, Four, BOX),
    ),
}


def repair_document(document: Document, reading: Reading, *, file: str) -> tuple[list[Problem], list[str]]:
    """Bring every value into COCO's form, in place; return the problems of what is left, and notices."""
    repair = _Repair(document, reading, file)
    repair.check_lists()
    for image in document.images:
        repair.repair_image(image)
    repair.repair_annotations()
    repair.check_categories()
    for rows in (document.images, document.categories, document.annotations):
        repair.check_ids(rows)
    if reading.skip_bad:
        repair.skip_bad()
    if not repair.problems:  # what is empty now was not before
        repair.check_lists()
    notices = [counted(text.replace("{}", example), ids) for text, (example, ids) in repair.notes.items()]
    return [problem for _, problem in repair.problems], notices


class _Repair:
    def __init__(self, document: Document, reading: Reading, file: str):
        self.document, self.reading, self.file = document, reading, file
        self.problems: list[tuple[Row | None, Problem]] = []  # the entry with it; None: the whole file
        self.notes: dict[str, tuple[str, list[str]]] = {}  # by text: the first example, and the ids
        self.sizes_hw: dict[int, list[int]] = {}  # of the first image of each id; empty where it is refused
        self.without: list[AnnotationRow] = []  # an outline
        self.numbers = {  # of the ids that a field refers to
            "image_id": self.number_rows(document.images),
            "category_id": self.number_rows(document.categories),
        }
        self.number_rows(document.annotations)

    def note(self, text: str, row: Row, *, example: Any = None) -> None:
        """Count one entry; the first `example` of this text is shown in place of {}."""
        _, ids = self.notes.setdefault(text, (json.dumps(example, ensure_ascii=False), []))
        ids.append(shown(row.own_id))

    def refuse(self, row: Row | None, field: str, value: Any, message: str, fix: str = "", where: str = "") -> None:
        """Add a problem of one entry, or of the whole file."""
        if row is not None:
            where = where or f"{row.kind} id {shown(row.own_id)}"
            value, fix = shown(value), fix or row.fix
        where = where or "top level"
        problem = Problem(file=self.file, where=where, field=field, value=value, message=message, fix=fix)
        self.problems.append((row, problem))

    def check_lists(self) -> None:
        """Refuse lists that must not be empty, but are."""
        needed = {"images": True, "categories": not self.reading.is_test_set, "annotations": self.reading.training}
        for name, is_needed in needed.items():
            if is_needed and not getattr(self.document, name):
                fix = "Use an instances file that describes at least one image with an object."
                self.refuse(None, name, "[]", "Nothing is in the list.", fix)

    def number_rows(self, rows: Sequence[Row]) -> dict[Any, int]:
        """Give every entry a whole number as id, None where it can have none; return the number of each id of the file.

        Whole numbers stay. Where an image or annotation has text as id, all are numbered in their order, from 1.
        """
        is_category = any(isinstance(row, CategoryRow) for row in rows)
        # nothing refers to an annotation, so it may have no id
        is_missing = any(row.id is None for row in rows if isinstance(row, AnnotationRow))
        renumbers = is_missing or (not is_category and any(type(row.id) is str for row in rows))
        numbers: dict[Any, int] = {}
        for position, row in enumerate(rows, start=1):
            key, number = row.id, as_whole_number(row.id)
            if key is None and is_missing:
                self.note("annotations have no id: numbered in their order", row)
                row.id = position
                continue
            if is_category and number is not None and type(key) is not int:
                self.note("categories have an id that is no whole number: read as the number it stands for", row)
            if renumbers and (number is not None or (type(key) is str and key.strip())):
                number = numbers.get(key, position)
            if type(key) is not int or key != number:
                row.key, row.id = key, number
            if number is not None:
                numbers[key] = number
        return numbers

    def check_ids(self, rows: Sequence[Row]) -> None:
        seen = set()
        for position, row in enumerate(rows):
            if row.id is None:
                or_text = "" if isinstance(row, CategoryRow) else ", or text"
                message = f"The id is not a whole number of at most 64 bits{or_text}."
                where = f"{row.kind} number {position} of its list (from 0)"
                self.refuse(row, "id", row.key, message, f"Give the {row.kind} an id of its own.", where=where)
            elif row.id in seen:
                fix = "Remove one of them, or give it an id of its own."
                self.refuse(row, "id", row.own_id, f"Two entries have this {row.kind} id.", fix)
            seen.add(row.id)

    def match(self, row: AnnotationRow, field: str) -> bool:
        """Replace a reference by the number of the entry that it means; return whether there is one."""
        value, numbers = getattr(row, field), self.numbers[field]
        if type(value) not in (int, float, str):
            return False
        number = as_whole_number(value)
        other = number if number is None or type(value) is str else str(number)
        if value in numbers:
            number = numbers[value]
        elif other in numbers:
            found, wanted = ("text", "numbers") if type(value) is str else ("a number", "text")
            name = "images" if field == "image_id" else "categories"
            text = f"{field} is {found} (such as {{}}) where the ids of `{name}` are {wanted}: matched by value"
            self.note(f"annotations: {text}", row, example=value)
            number = numbers[other]
        elif field == "image_id" or number not in numbers.values():
            return False
        setattr(row, field, number)
        return True

    def repair_values(self, row: Row) -> None:
        """Replace the values whose meaning is plain by themselves, without a look at other entries."""
        for field, meaning_of, text, _, _ in RULES[type(row)]:
            value = getattr(row, field)
            meant = meaning_of(value)
            if meant is not None and meant is not value:
                self.note(text.replace("NEW", str(meant)), row, example=value)
                setattr(row, field, meant)

    def check_values(self, row: Row) -> None:
        for field, _, _, wanted, message in RULES[type(row)]:
            if wanted and not fits(getattr(row, field), wanted):
                self.refuse(row, field, getattr(row, field), message)

    def repair_image(self, row: ImageRow) -> None:
        self.repair_values(row)
        urls = [url for url in (row.coco_url, row.flickr_url) if type(url) is str and url]
        if urls and not row.file_name:
            self.note("images have a URL and no file_name: the last part of the URL is looked for", row)
            row.file_name = urls[0]
        self.check_values(row)
        size_hw = [row.height, row.width]
        self.sizes_hw.setdefault(row.id, size_hw if all(fits(side, columns.Side) for side in size_hw) else [])

    def repair_annotations(self) -> None:
        """Repair all annotations; leave out those without an image or outline, unless no object has an outline."""
        rows = self.document.annotations
        self.document.annotations = listed = [row for row in rows if self.repair_annotation(row)]
        if rows and not listed and not self.without:
            fix = "Use the `images` that the annotations were made for."
            message = "No annotation belongs to an image of this file."
            self.refuse(None, "image_id", f"{len(rows)} annotations", message, fix)
        objects = [row for row in self.without if row.iscrowd != 1]
        has_bad_outlines = any(problem.field.startswith("segmentation") for _, problem in self.problems)
        if not objects or has_bad_outlines or any(row.iscrowd != 1 for row in listed):
            for row in self.without:
                self.note("annotations have no outline of three points or more: left out", row)
            return
        message = "Every annotation has a box, but none has an outline; Mask R-CNN learns masks from outlines."
        if all(row.bbox is None for row in objects):
            kinds = "as in captions or panoptic files"
            message = f"This is not an instances file: no annotation has a box or an outline, {kinds}."
        self.refuse(None, "segmentation", f"{len(objects)} annotations", message, FIX_OUTLINES)

    def repair_annotation(self, row: AnnotationRow) -> bool:
        """Return whether the annotation stays in the list; without an outline it goes to the list of such."""
        self.repair_values(row)
        if row.area is None:
            row.area = msgspec.UNSET
        if self.reading.crowd_as_objects and row.iscrowd == 1:
            self.note("annotations have iscrowd=1: read as objects (data.crowd_as_objects=true)", row)
            row.iscrowd = 0
        has_category, has_image = self.match(row, "category_id"), self.match(row, "image_id")
        is_reference = type(row.image_id) in (int, float, str)
        if is_reference and not has_image and self.document.images:
            self.note("annotations belong to images that are not in `images`: left out", row)
            return False
        size_hw = self.sizes_hw[row.image_id] if has_image else []
        limit_px = int(columns.far_outside_px(max(size_hw, default=0)))
        outline = self.repair_outline(row, size_hw, limit_px)
        if outline == [] and not (self.reading.training and row.iscrowd == 1):
            self.without.append(row)
            return False
        if outline and row.bbox in (None, []):
            row.bbox = _box_of(outline)
            self.note("annotations have no box: taken from their outline", row)
        self.check_values(row)
        if not is_reference:
            self.refuse(row, "image_id", row.image_id, "No entry of `images` has this id.")
        if not has_category:
            self.refuse(row, "category_id", row.category_id, "No entry of `categories` has this id.")
        if not (self.reading.training or row.area is msgspec.UNSET or fits(row.area, columns.NotNegative)):
            self.refuse(row, "area", row.area, AREA, FIX_AREA)
        for position, value in enumerate(row.bbox if fits(row.bbox, Four) else []):
            if message := _side_problem(value, position, limit_px):
                self.refuse(row, f"bbox[{position}]", value, message)
        return True

    def repair_outline(self, row: AnnotationRow, size_hw: list[int], limit_px: int) -> Any:
        """Bring an outline into the form of polygons or of one run-length code, and return it; None: it was refused.

        An outline without a polygon of three points or without a pixel is [].
        """
        written = row.outline or []
        parts = written if isinstance(written, list) else [written]
        codes = [part for part in parts if isinstance(part, dict)]
        others = [part for part in parts if not isinstance(part, dict)]
        polygons = [as_numbers(part) for part in others]
        if codes and not size_hw:  # the image is refused for it
            return None
        if polygons != others:
            self.note("annotations have an outline whose numbers are text: read as the numbers", row)
        if not self.check_polygons(row, polygons if isinstance(written, list) or codes else written, limit_px):
            return None
        outline: Any = [polygon for polygon in polygons if len(polygon) >= columns.SMALLEST_POLYGON]
        if len(outline) < len(polygons) and (outline or codes):
            text = "annotations have polygons of fewer than three points beside others: those polygons left out"
            self.note(text, row)
        if codes:
            outline = self.merge_runs(row, codes, outline, size_hw)
            if outline is None:
                return None
        if outline == [] or codes or outline != written:
            row.outline = outline or None
        return outline

    def check_polygons(self, row: AnnotationRow, polygons: Any, limit_px: int) -> bool:
        """Refuse what cannot be polygons; those of fewer than three points are right."""
        if not fits(polygons, list[list[float]]) or fits(polygons, Points):
            _, message, fix = next(form for form in OTHER_OUTLINES if form[0] is object or fits(polygons, form[0]))
            self.refuse(row, "segmentation", polygons, message, fix)
            return False
        messages = [_polygon_problem(polygon, limit_px) for polygon in polygons]
        for position, message in enumerate(messages):
            if message:
                self.refuse(row, f"segmentation[{position}]", polygons[position], message, FIX_POLYGONS)
        return not any(messages)

    def merge_runs(self, row: AnnotationRow, codes: list[dict], polygons: list, size_hw: list[int]) -> Any:
        """Return the union of run-length codes, and perhaps of polygons beside them, as one code."""
        packed = coco_masks.frPyObjects(polygons, *size_hw) if polygons else []
        for part in codes:
            code = {name: as_numbers(part.get(name), as_whole_number) for name in ("size", "counts")}
            _, problem = columns.read_runs(code["size"], code["counts"], size_hw)
            if problem:
                field, message, fix = problem
                self.refuse(row, f"segmentation.{field}", code[field], message, fix)
                return None
            packed.append(_compressed(code))
        merged = packed[0]
        if len(packed) > 1:
            self.note("annotations have run-length codes in a list: read as the union of its parts", row)
            merged = coco_masks.merge(packed)
            code = {"size": merged["size"], "counts": merged["counts"].decode("ascii")}
        return code if coco_masks.area(merged) else []

    def check_categories(self) -> None:
        """Leave out placeholders, and refuse categories without a name of their own."""
        rows = [row for row in self.document.categories if row.id is not None]
        used = {row.category_id for row in self.document.annotations if type(row.category_id) is int}
        placeholders = columns.placeholder_categories(rows, used)
        names = set()
        for row in self.document.categories:
            if row.id in placeholders:
                text = "categories without an annotation look like placeholders ({}): left out"
                self.note(text, row, example=row.name)
                continue
            self.check_values(row)
            if type(row.name) is str and row.name.strip() and row.name in names:
                fix = "Merge the two categories, or rename one of them."
                self.refuse(row, "name", row.name, "Two categories with annotations have the same name.", fix)
            names.add(str(row.name))
        self.document.categories = [row for row in self.document.categories if row.id not in placeholders]

    def skip_bad(self) -> None:
        """Leave out images and annotations with problems, and the annotations of images that were left out."""
        document = self.document
        bad: set[int] = set()  # by identity, as rows are mutable
        for row, problem in self.problems:
            if isinstance(row, ImageRow | AnnotationRow) and id(row) not in bad:
                bad.add(id(row))
                field = problem.field.partition("[")[0]
                self.note(f"{row.kind}s left out (data.skip_bad=true), {field}: {problem.message}", row)
        self.problems = [(row, problem) for row, problem in self.problems if id(row) not in bad]
        document.images = [row for row in document.images if id(row) not in bad]
        known = {row.id for row in document.images}
        rows = [row for row in document.annotations if id(row) not in bad]
        for row in rows:
            if row.image_id not in known:
                self.note("annotations of images that were left out: left out too", row)
        document.annotations = [row for row in rows if row.image_id in known]


def _side_problem(value: Any, position: int, limit_px: int) -> str:
    """Return what is wrong with a number of a box; nothing where it is right."""
    if type(value) is bool or not fits(value, float):
        return "The value is not a finite number."
    if position >= 2 and value < 0:
        return f"The {'width' if position == 2 else 'height'} is negative."
    return f"The value is more than {limit_px} pixels, far outside of the image." if abs(value) > limit_px else ""


def _polygon_problem(polygon: list, limit_px: int) -> str:
    """Return what is wrong with a polygon; nothing where it is right, or too short to be used."""
    if len(polygon) < columns.SMALLEST_POLYGON:
        return ""
    extent = np.abs(polygon).max()
    if not np.isfinite(extent):
        return "The polygon holds a value that is not a finite number."
    if len(polygon) % 2:
        return f"The polygon has an odd count of numbers ({len(polygon)})."
    message = f"The polygon has a point more than {limit_px} pixels from the origin, far outside of the image."
    return message if extent > limit_px else ""


def _compressed(code: dict[str, Any]) -> dict[str, Any]:
    return coco_masks.frPyObjects(code, *code["size"]) if isinstance(code["counts"], list) else code


def _box_of(outline: Any) -> list:
    """Return the box around polygons or a run-length code."""
    if isinstance(outline, dict):
        return coco_masks.toBbox(_compressed(outline)).tolist()
    points = np.concatenate(outline).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]
