"""An instances JSON as people have it, made into one that follows COCO's rules where its meaning is plain.

What is changed or left out is counted in notices; what cannot be used is a problem, or left out with `skip_bad`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from maskperf.data.coco.document import AnnotationRow, Document, ImageRow, Reading, Row
from maskperf.data.coco.outlines import repair_outlines
from maskperf.data.coco.rules import (
    KINDS,
    Findings,
    Id,
    as_number,
    as_numbers,
    as_whole_number,
    check_entries,
    check_lists,
    fits,
    placeholder_categories,
)
from maskperf.errors import Problem

CROWD_MARKS = {None: 0, False: 0, True: 1, "0": 0, "1": 1}  # 0.0 and 1.0 are equal to False and True


def repair_document(document: Document, reading: Reading, *, file: str) -> tuple[list[Problem], list[str]]:
    """Bring every value into COCO's form, in place; return the problems of what is left, and notices."""
    findings = Findings(file)
    check_lists(document, reading, findings)
    image_numbers = _number_rows(document.images, findings)
    category_numbers = _number_categories(document, findings)
    _number_rows(document.annotations, findings)
    for image in document.images:
        _repair_values(image, reading, findings)
    for row in document.annotations:
        row.category_id = _matched(row, "category_id", category_numbers, findings)
        _repair_values(row, reading, findings)
    _match_images(document, image_numbers, findings)
    repair_outlines(document, reading, findings)
    _drop_placeholder_categories(document, findings)
    check_entries(document, reading, findings)
    if reading.skip_bad:
        _skip_bad(document, findings)
    if not findings.problems:  # what is empty now was not before
        check_lists(document, reading, findings)
    return [problem for _, problem in findings.problems], findings.notices()


def _number_rows(rows: Sequence[ImageRow | AnnotationRow], findings: Findings) -> dict[Any, int]:
    """Give every entry a whole number as id; return the number of each id of the file.

    Whole numbers stay. Where an id is text, all entries are numbered in their order, from 1.
    """
    # nothing refers to an annotation, so it may have no id
    is_missing = any(row.id is None for row in rows if isinstance(row, AnnotationRow))
    renumbers = is_missing or any(type(row.id) is str for row in rows)
    numbers: dict[Any, int] = {}
    for position, row in enumerate(rows, start=1):
        key = row.id
        if key is None and is_missing:
            findings.note("annotations have no id: numbered in their order", row)
            row.id = position
        elif (type(key) is str and key.strip()) or (type(key) is float and key.is_integer()) or fits(key, Id):
            number = numbers.setdefault(key, position if renumbers else int(key))
            if key != number or type(key) is not int:
                row.key, row.id = key, number
    return numbers


def _number_categories(document: Document, findings: Findings) -> dict[Any, int]:
    """Give every category a whole number as id where its id stands for one; return the number of each."""
    numbers: dict[Any, int] = {}
    for row in document.categories:
        number = as_whole_number(row.id)
        if number is None:
            continue
        if type(row.id) is not int:
            findings.note("categories have an id that is no whole number: read as the number it stands for", row)
            row.key = row.id
        numbers[row.id] = number
        row.id = number
    return numbers


def _crowd_mark(value: Any) -> int | None:
    return CROWD_MARKS.get(value) if type(value) in (bool, float, str, type(None)) else None


# By kind of entry: field, what gives the value that is meant (None, or the value itself: nothing to repair), notice.
REPAIRS: dict[type[Row], tuple[tuple[str, Callable[[Any], Any], str], ...]] = {
    ImageRow: (
        ("height", as_whole_number, "images have a height such as {}: read as the number"),
        ("width", as_whole_number, "images have a width such as {}: read as the number"),
    ),
    AnnotationRow: (
        ("iscrowd", _crowd_mark, "annotations have iscrowd={}: read as NEW"),
        ("area", as_number, "annotations have an area that is text: read as the number"),
        ("bbox", as_numbers, "annotations have a box whose numbers are text: read as the numbers"),
    ),
}


def _repair_values(row: ImageRow | AnnotationRow, reading: Reading, findings: Findings) -> None:
    """Replace the values whose meaning is plain by themselves, without a look at other entries."""
    for field, meaning_of, text in REPAIRS[type(row)]:
        value = getattr(row, field)
        meant = meaning_of(value)
        if meant is not None and meant is not value:
            findings.note(text.replace("NEW", str(meant)), row, example=value)
            setattr(row, field, meant)
    if isinstance(row, ImageRow):
        urls = [url for url in (row.coco_url, row.flickr_url) if type(url) is str and url]
        if urls and not row.file_name:
            findings.note("images have a URL and no file_name: the last part of the URL is looked for", row)
            row.file_name = urls[0]
        return
    if row.area is None:
        row.area = msgspec.UNSET
    if reading.crowd_as_objects and row.iscrowd == 1:
        findings.note("annotations have iscrowd=1: read as objects (data.crowd_as_objects=true)", row)
        row.iscrowd = 0


def _matched(row: AnnotationRow, field: str, numbers: dict[Any, int], findings: Findings) -> Any:
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
    list_name = "images" if field == "image_id" else "categories"
    text = f"{field} is {found} (such as {{}}) where the ids of `{list_name}` are {wanted}: matched by value"
    findings.note(f"annotations: {text}", row, example=value)
    return numbers[other]


def _match_images(document: Document, image_numbers: dict[Any, int], findings: Findings) -> None:
    """Turn image references into numbers, and leave out annotations of images that the file does not list."""
    known = set(image_numbers.values())
    listed = []
    for row in document.annotations:
        is_reference = type(row.image_id) in (int, float, str)
        row.image_id = _matched(row, "image_id", image_numbers, findings)
        if is_reference and row.image_id not in known and document.images:
            findings.note("annotations belong to images that are not in `images`: left out", row)
        else:
            listed.append(row)
    if document.annotations and not listed:
        value, fix = f"{len(document.annotations)} annotations", "Use the `images` that the annotations were made for."
        findings.refuse_file("image_id", value, "No annotation belongs to an image of this file.", fix)
    document.annotations = listed


def _drop_placeholder_categories(document: Document, findings: Findings) -> None:
    used = {row.category_id for row in document.annotations if fits(row.category_id, Id)}
    rows = [row for row in document.categories if fits(row.id, Id)]
    names = [(row.name, row.supercategory) for row in rows]
    placeholders = placeholder_categories([row.id for row in rows], names, used)
    dropped = [row for row in rows if row.id in placeholders]
    for row in dropped:
        text = "categories without an annotation look like placeholders ({}): left out"
        findings.note(text, row, example=row.name)
    document.categories = _without(document.categories, dropped)


def _skip_bad(document: Document, findings: Findings) -> None:
    """Leave out images and annotations with problems, and the annotations of images that were left out."""
    bad: dict[int, Row] = {}  # by identity, as rows are mutable
    for row, problem in findings.problems:
        if isinstance(row, ImageRow | AnnotationRow) and id(row) not in bad:
            bad[id(row)] = row
            kind, field = f"{KINDS[type(row)]}s", problem.field.partition("[")[0]
            findings.note(f"{kind} left out (data.skip_bad=true), {field}: {problem.message}", row)
    findings.problems = [(row, problem) for row, problem in findings.problems if id(row) not in bad]
    document.images = _without(document.images, bad.values())
    document.annotations = _without(document.annotations, bad.values())
    known = {row.id for row in document.images}
    orphans = [row for row in document.annotations if row.image_id not in known]
    for row in orphans:
        findings.note("annotations of images that were left out: left out too", row)
    document.annotations = _without(document.annotations, orphans)


def _without(rows: list, left_out: Iterable[Row]) -> list:
    dropped = set(map(id, left_out))
    return [row for row in rows if id(row) not in dropped]
