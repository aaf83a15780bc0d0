"""Everything that can be wrong inside an instances JSON, found in one pass, before any C code sees the numbers."""

from collections.abc import Iterable
from functools import partial
from math import isfinite
from typing import Any

import msgspec

from maskperf.data.coco.document import (
    AnnotationRow,
    CategoryRow,
    Document,
    ImageRow,
    Reading,
    as_float,
    is_number,
    shown,
    shown_id,
)
from maskperf.errors import Problem

RowProblem = tuple[ImageRow | AnnotationRow | CategoryRow | None, Problem]  # the entry with it; None: the whole file

LARGEST_ID = 2**63 - 1
LARGEST_SIDE_PX = 2**31 - 1
SMALLEST_POLYGON = 6  # numbers; pycocotools takes four of them for a box and fails
FAR_OUTSIDE_PX = 10_000  # always allowed; beyond it, ten times the image's longer side
FAR_OUTSIDE_SIDES = 10

FIX_ANNOTATION = "Correct the annotation, or remove it from the file."
FIX_IMAGE = "Correct the entry in `images`."
FIX_POLYGONS = "Write the outline as [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels, or remove the annotation."
FIX_RUNS = "Write the outline anew for the image's size, or remove the annotation."


def find_problems(document: Document, reading: Reading, *, file: str) -> list[RowProblem]:
    """Return every problem of the entries of a cleaned document but those of outlines, each with its entry.

    Evaluation needs an `area` that is missing or right.
    """
    problems: list[RowProblem] = []
    for rows, kind in (
        (document.images, "image"),
        (document.categories, "category"),
        (document.annotations, "annotation"),
    ):
        problems += _id_problems(rows, kind, file)
    problems += [(row, problem) for row in document.images for problem in image_problems(row, file)]
    problems += category_name_problems(document.categories, file)
    images = {row.id: row for row in document.images if is_id(row.id)}
    categories = {row.id for row in document.categories if is_id(row.id)}
    for row in document.annotations:
        image = images.get(row.image_id) if is_id(row.image_id) else None
        problems += [
            (row, problem) for problem in _annotation_problems(row, image, categories, reading=reading, file=file)
        ]
    return problems


def is_id(value: Any) -> bool:
    """Return whether the value is a whole number of at most 64 bits."""
    return type(value) is int and -LARGEST_ID - 1 <= value <= LARGEST_ID


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_SIDE_PX


def is_size(image: ImageRow | None) -> bool:
    """Return whether the entry has a height and a width that an image can have."""
    return image is not None and all(map(_is_side, (image.height, image.width)))


def _is_area(value: Any) -> bool:
    return value is msgspec.UNSET or (is_number(value) and isfinite(as_float(value)) and value >= 0)


def far_outside_px(image: ImageRow | None) -> int:
    """Return the largest coordinate that is not far outside of the image."""
    return max(FAR_OUTSIDE_PX, FAR_OUTSIDE_SIDES * max(image.height, image.width)) if is_size(image) else FAR_OUTSIDE_PX


def empty_list_problems(document: Document, reading: Reading, file: str) -> list[Problem]:
    """Return a problem for each list that must not be empty, but is."""
    needed = ["images"] if reading.is_test_set else ["images", "categories"]
    needed += ["annotations"] if reading.training else []
    fix = "Use an instances file that describes at least one image with an object."
    return [
        Problem(file=file, where="top level", field=name, value="[]", message="Nothing is in the list.", fix=fix)
        for name in needed
        if not getattr(document, name)
    ]


def _id_problems(rows: Iterable[ImageRow | AnnotationRow | CategoryRow], kind: str, file: str) -> list[RowProblem]:
    problems, seen = [], set()
    for index, row in enumerate(rows):
        make = partial(Problem, file=file, where=f"{kind} id {shown_id(row)}", field="id", value=shown_id(row))
        if not is_id(row.id):
            make = partial(make, where=f"{kind} number {index} of its list (from 0)")
            wanted = "a whole number of at most 64 bits" + ("" if kind == "category" else ", or text")
            message = f"The id is {kind_of(row.id)}, not {wanted}."
            problems.append((row, make(message=message, fix=f"Give the {kind} an id of its own.")))
        elif row.id in seen:
            message = f"Two entries have this {kind} id."
            problems.append((row, make(message=message, fix="Remove one of them, or give it an id of its own.")))
        else:
            seen.add(row.id)
    return problems


def kind_of(value: Any) -> str:
    """Return what kind of JSON value it is, in words."""
    if value is None:
        return "null or missing"
    names = {bool: "true or false", str: "text", list: "a list", dict: "an object", float: "not a whole number"}
    return names.get(type(value), "too large a number")


def image_problems(row: ImageRow, file: str) -> list[Problem]:
    """Return what is wrong with one entry of `images`. Where its file lies is for `resolve_file_names`."""
    make = partial(Problem, file=file, where=f"image id {shown_id(row)}", fix=FIX_IMAGE)
    problems = []
    for field, side in (("height", row.height), ("width", row.width)):
        if not _is_side(side):
            message = "The side is not a whole number of pixels above 0."
            problems.append(make(field=field, value=shown(side), message=message))
    name = row.file_name
    if type(name) is not str or not name.strip() or "\0" in name:
        problems.append(make(field="file_name", value=shown(name), message="This is no file name."))
    return problems


def category_name_problems(rows: list[CategoryRow], file: str) -> list[RowProblem]:
    """Return the categories without a name, or with that of another one."""
    problems, seen = [], set()
    for row in rows:
        make = partial(Problem, file=file, where=f"category id {shown_id(row)}", field="name", value=shown(row.name))
        if type(row.name) is not str or not row.name.strip():
            problems.append((row, make(message="The category has no name.", fix="Give it a name in `categories`.")))
        elif row.name in seen:
            fix = "Merge the two categories, or rename one of them."
            problems.append((row, make(message="Two categories with annotations have the same name.", fix=fix)))
        else:
            seen.add(row.name)
    return problems


def _annotation_problems(
    row: AnnotationRow, image: ImageRow | None, categories: set[int], *, reading: Reading, file: str
) -> list[Problem]:
    make = partial(Problem, file=file, where=f"annotation id {shown_id(row)}", fix=FIX_ANNOTATION)
    problems = []
    if not is_id(row.image_id):
        message = f"It is {kind_of(row.image_id)}, so no entry of `images` has this id."
        problems.append(make(field="image_id", value=shown(row.image_id), message=message))
    if not is_id(row.category_id) or row.category_id not in categories:
        is_text = " It is text." if type(row.category_id) is str else ""
        message = f"No entry of `categories` has this id.{is_text}"
        problems.append(make(field="category_id", value=shown(row.category_id), message=message))
    if not (isinstance(row.iscrowd, int) and row.iscrowd in (0, 1)):
        message = "The value is neither 0 (one object) nor 1 (a crowd region)."
        problems.append(make(field="iscrowd", value=shown(row.iscrowd), message=message))
    if not reading.training and not _is_area(row.area):
        message = "Evaluation sorts objects by their area, and this is no number of at least 0."
        fix = "Write the object's area in square pixels, or leave the field out."
        problems.append(make(field="area", value=shown(row.area), message=message, fix=fix))
    return problems + _box_problems(row.bbox, make, far_outside_px(image))


def _box_problems(box: Any, make: partial, limit_px: int) -> list[Problem]:
    if not isinstance(box, list) or len(box) != 4:
        return [make(field="bbox", value=shown(box), message="The box is not [x, y, width, height].")]
    problems = []
    for place, value in enumerate(box):
        message = ""
        if not is_number(value) or not isfinite(as_float(value)):
            message = f"The value is {'text' if type(value) is str else 'not a finite number'}."
        elif place >= 2 and value < 0:
            message = f"The {'width' if place == 2 else 'height'} is negative."
        elif abs(value) > limit_px:
            message = f"The value is more than {limit_px} pixels, far outside of the image."
        if message:
            problems.append(make(field=f"bbox[{place}]", value=shown(value), message=message))
    return problems


def polygon_problems(outline: Any, row: AnnotationRow, image: ImageRow | None) -> list[Problem]:
    """Return what is wrong with an outline that is meant as polygons. One of fewer than three points is no problem."""
    make = partial(Problem, file="", where=f"annotation id {shown_id(row)}", fix=FIX_POLYGONS)
    of_outline = partial(make, field="segmentation", value=shown(outline))
    if isinstance(outline, list) and all(map(is_number, outline)):
        message = "The outline is one flat list of numbers."
        return [of_outline(message=message, fix="Put it into another pair of brackets: [[x1, y1, ...]].")]
    if not isinstance(outline, list) or not all(isinstance(ring, list) for ring in outline):
        return [of_outline(message="The outline is not a list of lists of numbers.")]
    if len(outline) >= 3 and all(len(ring) == 2 for ring in outline):
        message = "The outline is a list of points [x, y]."
        return [of_outline(message=message, fix="Write all numbers into one list: [[x1, y1, x2, y2, ...]].")]
    if not all(is_number(value) for ring in outline for value in ring):
        return [of_outline(message="The outline is not a list of lists of numbers.")]
    limit_px = far_outside_px(image)
    problems = [_polygon_problem(ring, limit_px) for ring in outline]
    return [
        make(field=f"segmentation[{place}]", value=shown(ring), message=message)
        for place, (ring, message) in enumerate(zip(outline, problems, strict=True))
        if message
    ]


def _polygon_problem(numbers: list[int | float], limit_px: int) -> str:
    if len(numbers) < SMALLEST_POLYGON:
        return ""
    if not all(isfinite(as_float(number)) for number in numbers):
        return "The polygon holds a value that is not a finite number."
    if len(numbers) % 2:
        return f"The polygon has an odd count of numbers ({len(numbers)})."
    if max(map(abs, numbers)) > limit_px:
        return f"The polygon has a point more than {limit_px} pixels from the origin, far outside of the image."
    return ""


def rle_problems(code: dict, row: AnnotationRow, image: ImageRow) -> list[Problem]:
    """Return what is wrong with a run-length code of this image."""
    make = partial(Problem, file="", where=f"annotation id {shown_id(row)}", fix=FIX_RUNS)
    size_hw, counts = code.get("size"), code.get("counts")
    if size_hw != [image.height, image.width]:
        message = f"The size is not the image's [height, width] = [{image.height}, {image.width}]."
        if size_hw == [image.width, image.height]:
            message += " Width and height are swapped."
        return [make(field="segmentation.size", value=shown(size_hw), message=message)]
    make = partial(make, field="segmentation.counts", value=shown(counts))
    if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
        message = "The run lengths are text of the form b'...', as Python shows bytes."
        return [make(message=message, fix="Export the text itself: counts.decode().")]
    runs = runs_of_text(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return [make(message="These are no run lengths.")]
    area = image.height * image.width
    if sum(runs) != area:
        return [make(message=f"The run lengths sum to {sum(runs)}, not to height times width = {area}.")]
    return []


def runs_of_text(text: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed text: 5 bits a character, from the third on as differences."""
    runs, value, shift = [], 0, 0
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
