"""What the entries of an instances JSON must be, and the message where one is not."""

import json
from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Any, Literal, TypeGuard

import msgspec
import numpy as np
from msgspec import Meta

from maskperf.data.coco.document import (
    AnnotationRow,
    CategoryRow,
    Document,
    ImageRow,
    Reading,
    Row,
    key_of,
    shown,
    shown_id,
)
from maskperf.errors import Problem

LARGEST_ID = 2**63 - 1
FAR_OUTSIDE_PX = 10_000  # always allowed; beyond it, ten times the image's longer side
FAR_OUTSIDE_SIDES = 10
IDS_SHOWN = 5
BACKGROUND_NAMES = ("background", "_background_", "__background__")

# What msgspec checks, in the quick reader and for single values here.
Id = Annotated[int, Meta(ge=-LARGEST_ID - 1, le=LARGEST_ID)]
Side = Annotated[int, Meta(gt=0, le=2**31 - 1)]
NotNegative = Annotated[float, Meta(ge=0)]
CrowdMark = Literal[0, 1]
Name = Annotated[str, Meta(pattern=r"\S")]
FileName = Annotated[str, Meta(pattern=r"\A[^\0]*[^\0\s][^\0]*\Z")]

KINDS = {ImageRow: "image", AnnotationRow: "annotation", CategoryRow: "category"}
FIXES = {
    ImageRow: "Correct the entry in `images`.",
    AnnotationRow: "Correct the annotation, or remove it from the file.",
    CategoryRow: "Give it a name in `categories`.",
}


SIDE = "The side is not a whole number of pixels above 0."
RULES: dict[type[Row], tuple[tuple[str, Any, str], ...]] = {  # field, its type for msgspec, message
    ImageRow: (("height", Side, SIDE), ("width", Side, SIDE), ("file_name", FileName, "This is no file name.")),
    CategoryRow: (("name", Name, "The category has no name."),),
    AnnotationRow: (
        ("image_id", Id, "No entry of `images` has this id."),
        ("iscrowd", CrowdMark, "The value is neither 0 (one object) nor 1 (a crowd region)."),
    ),
}
AREA = "Evaluation sorts objects by their area, and this is no number of at least 0."
FIX_AREA = "Write the object's area in square pixels, or leave the field out."


class Findings:
    """What was changed in a document, counted, and what is wrong with it."""

    def __init__(self, file: str):
        self.file = file
        self.problems: list[tuple[Row | None, Problem]] = []  # the entry with it; None: the whole file
        self._notes: dict[str, tuple[str, list[str]]] = {}  # by text: the first example, and the ids

    def note(self, text: str, row: Row, *, example: Any = None) -> None:
        """Count one entry; the first `example` of this text is shown in place of {}."""
        _, ids = self._notes.setdefault(text, (json.dumps(example, ensure_ascii=False), []))
        ids.append(shown_id(row))

    def notices(self) -> list[str]:
        return [counted(text.replace("{}", example), ids) for text, (example, ids) in self._notes.items()]

    def refuse(self, row: Row, field: str, value: Any, message: str, fix: str = "", *, where: str = "") -> None:
        """Add a problem of one entry."""
        where = where or f"{KINDS[type(row)]} id {shown_id(row)}"
        fix = fix or FIXES[type(row)]
        problem = Problem(file=self.file, where=where, field=field, value=shown(value), message=message, fix=fix)
        self.problems.append((row, problem))

    def refuse_file(self, field: str, value: str, message: str, fix: str) -> None:
        """Add a problem of the whole file."""
        problem = Problem(file=self.file, where="top level", field=field, value=value, message=message, fix=fix)
        self.problems.append((None, problem))


def counted(text: str, ids: Sequence[Any]) -> str:
    """Return a notice: how many, what, and the first ids."""
    return f"{len(ids)} {text} (first ids: {', '.join(str(one) for one in ids[:IDS_SHOWN])})"


def is_finite(value: Any) -> bool:
    """Return whether the value is a JSON number that a float can hold."""
    return type(value) is not bool and fits(value, float)


def as_number(value: Any) -> int | float | None:
    """Return the number that a number or a text stands for; None where it stands for none."""
    if type(value) in (int, float):
        return value
    try:
        number = float(value) if type(value) is str else float("nan")
    except ValueError:
        return None
    return number if isfinite(number) else None


def as_numbers(values: Any) -> Any:
    """Return a list with the numbers that texts in it stand for; anything else, and a list without such, as it is."""
    if not isinstance(values, list) or str not in map(type, values):
        return values
    numbers = [as_number(value) for value in values]
    return values if None in numbers else numbers


def as_whole_number(value: Any) -> int | None:
    """Return the integer of at most 64 bits that a number or a text stands for; None where it stands for none."""
    is_digits = type(value) is str and len(value) <= 20 and value.strip().removeprefix("-").isdecimal()
    if is_digits or (type(value) is float and value.is_integer()):
        value = int(value)
    return value if type(value) is int and abs(value) <= LARGEST_ID else None


def fits(value: Any, wanted: Any) -> bool:
    """Return whether the value has the wanted type, as msgspec decides it, and is no NaN or Infinity."""
    try:
        msgspec.convert(value, wanted)
    except (msgspec.ValidationError, OverflowError):
        return False
    return type(value) is not float or isfinite(value)


def is_size(image: ImageRow | None) -> TypeGuard[ImageRow]:
    """Return whether the entry has a height and a width that an image can have."""
    return image is not None and fits(image.height, Side) and fits(image.width, Side)


def far_outside_px(longer_sides: Any) -> Any:
    """Return the largest coordinate that is not far outside of an image; a number, or an array of them."""
    return np.maximum(FAR_OUTSIDE_PX, FAR_OUTSIDE_SIDES * longer_sides)


def limit_px(image: ImageRow | None) -> int:
    """Return `far_outside_px` of an image, or of one without a size."""
    return int(far_outside_px(max(image.height, image.width) if is_size(image) else 0))


def images_by_id(document: Document) -> dict[int, ImageRow]:
    """Return the first image of each id."""
    return {row.id: row for row in reversed(document.images) if fits(row.id, Id)}


def check_lists(document: Document, reading: Reading, findings: Findings) -> None:
    """Refuse lists that must not be empty, but are."""
    needed = ["images"] if reading.is_test_set else ["images", "categories"]
    needed += ["annotations"] if reading.training else []
    fix = "Use an instances file that describes at least one image with an object."
    for name in needed:
        if not getattr(document, name):
            findings.refuse_file(name, "[]", "Nothing is in the list.", fix)


def check_entries(document: Document, reading: Reading, findings: Findings) -> None:
    """Refuse every entry that breaks a rule, but for outlines."""
    for rows in (document.images, document.categories, document.annotations):
        _check_ids(rows, findings)
    images = images_by_id(document)
    categories = {row.id for row in document.categories if fits(row.id, Id)}
    names = set()
    entries: list[Row] = [*document.images, *document.categories, *document.annotations]
    for row in entries:
        for field, wanted, message in RULES[type(row)]:
            if not fits(getattr(row, field), wanted):
                findings.refuse(row, field, getattr(row, field), message)
        if isinstance(row, CategoryRow) and fits(row.name, Name):
            if row.name in names:
                fix = "Merge the two categories, or rename one of them."
                findings.refuse(row, "name", row.name, "Two categories with annotations have the same name.", fix=fix)
            names.add(row.name)
        if isinstance(row, AnnotationRow):
            if not (reading.training or row.area is msgspec.UNSET or fits(row.area, NotNegative)):
                findings.refuse(row, "area", row.area, AREA, fix=FIX_AREA)
            if not (fits(row.category_id, Id) and row.category_id in categories):
                findings.refuse(row, "category_id", row.category_id, "No entry of `categories` has this id.")
            _check_box(row, images.get(row.image_id) if fits(row.image_id, Id) else None, findings)


def _check_ids(rows: Sequence[Row], findings: Findings) -> None:
    seen = set()
    for number, row in enumerate(rows):
        kind = KINDS[type(row)]
        if not fits(row.id, Id):
            or_text = "" if kind == "category" else ", or text"
            message = f"The id is not a whole number of at most 64 bits{or_text}."
            where = f"{kind} number {number} of its list (from 0)"
            findings.refuse(row, "id", key_of(row), message, fix=f"Give the {kind} an id of its own.", where=where)
        elif row.id in seen:
            fix = "Remove one of them, or give it an id of its own."
            findings.refuse(row, "id", key_of(row), f"Two entries have this {kind} id.", fix=fix)
        else:
            seen.add(row.id)


def _check_box(row: AnnotationRow, image: ImageRow | None, findings: Findings) -> None:
    if not isinstance(row.bbox, list) or len(row.bbox) != 4:
        findings.refuse(row, "bbox", row.bbox, "The box is not [x, y, width, height].")
        return
    limit = limit_px(image)
    for position, value in enumerate(row.bbox):
        message = ""
        if not is_finite(value):
            message = "The value is not a finite number."
        elif position >= 2 and value < 0:
            message = f"The {'width' if position == 2 else 'height'} is negative."
        elif abs(value) > limit:
            message = f"The value is more than {limit} pixels, far outside of the image."
        if message:
            findings.refuse(row, f"bbox[{position}]", value, message)


def placeholder_categories(ids: Sequence[int], names: Sequence[tuple[Any, Any]], used: set[int]) -> set[int]:
    """Return the ids of categories that stand for no class: without annotations, and either named like another one,
    or the supercategory of others, or called background. `names` are name and supercategory of each.
    """
    supercategories = {above for name, above in names if above != name and type(above) is str}
    texts = [name for name, _ in names if type(name) is str]
    found = set()
    for identity, (name, _) in zip(ids, names, strict=True):
        if type(name) is not str or identity in used:
            continue
        if name in supercategories or name.lower() in BACKGROUND_NAMES:
            found.add(identity)
        elif texts.count(name) > 1:
            texts.remove(name)
            found.add(identity)
    return found if len(found) < len(ids) else set()
