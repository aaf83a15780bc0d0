"""Everything that can be wrong inside an instances JSON, found in one pass, before any C code sees the numbers."""

from collections.abc import Iterable
from functools import partial
from math import isfinite
from typing import Any

import msgspec
import numpy as np

from maskperf.data.document import (
    MEND_KIND,
    AnnotationRow,
    CategoryRow,
    Document,
    ImageRow,
    Shapes,
    as_float,
    is_number,
    outline_of,
    shown,
)
from maskperf.errors import Fault

LARGEST_ID = 2**63 - 1
LARGEST_SIDE_PX = 2**31 - 1
SMALLEST_POLYGON = 6  # numbers; pycocotools takes four of them for a box and fails
FAR_OUTSIDE_PX = 10_000  # always allowed; beyond it, ten times the image's longer side
FAR_OUTSIDE_SIDES = 10

MEND_ANNOTATION = "Correct the annotation, or remove it from the file."
MEND_IMAGE = "Correct the entry in `images`."
MEND_POLYGONS = "Write the outline as [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels, or remove the annotation."


def find_faults(document: Document, shapes: Shapes, *, file: str, training: bool) -> list[Fault]:
    """Returns every fault of the document; the values of one without faults may be used without further checks.

    Training refuses run-length outlines of single objects. Evaluation allows them, but needs an outline of
    every crowd region as well, and an `area` that is missing or right.
    """
    if document.annotations and all(row.bbox is None for row in document.annotations):
        problem = "This is not an instances file: no annotation has a box. Captions or panoptic labels look like this."
        where, field = "top level", "annotations"
        return [Fault(file=file, where=where, field=field, value="no bbox", problem=problem, mend=MEND_KIND)]
    faults = _empty_list_faults(document, file, training)
    faults += _id_faults(document.images, "image", file) + _id_faults(document.categories, "category", file)
    faults += _id_faults(document.annotations, "annotation", file)
    for row in document.images:
        faults += image_faults(row, file)
    faults += category_name_faults(document.categories, file)
    images = {row.id: row for row in document.images if _is_id(row.id)}
    categories = {row.id for row in document.categories if _is_id(row.id)}
    with_rings = set(shapes.ring_owners.tolist())
    for index, row in enumerate(document.annotations):
        image = images.get(row.image_id) if _is_id(row.image_id) else None
        faults += _annotation_faults(row, image, categories, file=file, training=training)
        if index not in with_rings:
            faults += _outline_faults(row, image, file=file, training=training)
    return faults + _polygon_faults(document, shapes, images, file)


def _is_id(value: Any) -> bool:
    return type(value) is int and -LARGEST_ID - 1 <= value <= LARGEST_ID


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_SIDE_PX


def _is_size(image: ImageRow | None) -> bool:
    return image is not None and all(map(_is_side, (image.height, image.width)))


def _is_area(value: Any) -> bool:
    return value is msgspec.UNSET or (is_number(value) and isfinite(as_float(value)) and value >= 0)


def _is_crowd(row: AnnotationRow) -> bool:
    return row.iscrowd == 1


def _far_outside_px(image: ImageRow | None) -> int:
    return (
        max(FAR_OUTSIDE_PX, FAR_OUTSIDE_SIDES * max(image.height, image.width)) if _is_size(image) else FAR_OUTSIDE_PX
    )


def _empty_list_faults(document: Document, file: str, training: bool) -> list[Fault]:
    needed = ("images", "categories", "annotations") if training else ("images", "categories")
    mend = "Use an instances file that describes at least one image."
    return [
        Fault(file=file, where="top level", field=name, value="[]", problem="The list is empty.", mend=mend)
        for name in needed
        if not getattr(document, name)
    ]


def _id_faults(rows: Iterable[ImageRow | AnnotationRow | CategoryRow], kind: str, file: str) -> list[Fault]:
    faults, seen = [], set()
    for index, row in enumerate(rows):
        make = partial(Fault, file=file, where=f"{kind} id {shown(row.id)}", field="id", value=shown(row.id))
        if not _is_id(row.id):
            make = partial(make, where=f"{kind} number {index} of its list (from 0)")
            problem = "The id is not a whole number of at most 64 bits."
            faults.append(make(problem=problem, mend=f"Give the {kind} a whole number as id."))
        elif row.id in seen:
            problem = f"Two entries have this {kind} id."
            faults.append(make(problem=problem, mend="Remove one of them, or give it an id of its own."))
        else:
            seen.add(row.id)
    return faults


def image_faults(row: ImageRow, file: str) -> list[Fault]:
    make = partial(Fault, file=file, where=f"image id {shown(row.id)}", mend=MEND_IMAGE)
    faults = []
    for field, side in (("height", row.height), ("width", row.width)):
        if not _is_side(side):
            problem = "The side is not a whole number of pixels above 0."
            faults.append(make(field=field, value=shown(side), problem=problem))
    name = row.file_name
    if type(name) is not str or not name.strip() or "\0" in name:
        faults.append(make(field="file_name", value=shown(name), problem="This is no file name."))
    elif name[0] in "/\\" or name[1:2] == ":" or ".." in name.replace("\\", "/").split("/"):
        problem = "The path leads out of the image folder."
        mend = "Write the path relative to the image folder, without '..'."
        faults.append(make(field="file_name", value=shown(name), problem=problem, mend=mend))
    return faults


def category_name_faults(rows: list[CategoryRow], file: str) -> list[Fault]:
    faults, seen = [], set()
    for row in rows:
        make = partial(Fault, file=file, where=f"category id {shown(row.id)}", field="name", value=shown(row.name))
        if type(row.name) is not str or not row.name.strip():
            faults.append(make(problem="The category has no name.", mend="Give it a name in `categories`."))
        elif row.name in seen:
            problem = "Two categories have the same name."
            faults.append(make(problem=problem, mend="Merge the two categories, or rename one of them."))
        else:
            seen.add(row.name)
    return faults


def _annotation_faults(
    row: AnnotationRow, image: ImageRow | None, categories: set[int], *, file: str, training: bool
) -> list[Fault]:
    make = partial(Fault, file=file, where=f"annotation id {shown(row.id)}", mend=MEND_ANNOTATION)
    faults = []
    if image is None:
        problem = "No entry of `images` has this id."
        faults.append(make(field="image_id", value=shown(row.image_id), problem=problem))
    if not _is_id(row.category_id) or row.category_id not in categories:
        problem = "No entry of `categories` has this id."
        faults.append(make(field="category_id", value=shown(row.category_id), problem=problem))
    if not (isinstance(row.iscrowd, int) and row.iscrowd in (0, 1)):
        problem = "The value is neither 0 (one object) nor 1 (a crowd region)."
        faults.append(make(field="iscrowd", value=shown(row.iscrowd), problem=problem))
    if not training and not _is_area(row.area):
        problem = "Evaluation sorts objects by their area, and this is no number of at least 0."
        mend = "Write the object's area in square pixels, or leave the field out."
        faults.append(make(field="area", value=shown(row.area), problem=problem, mend=mend))
    return faults + _box_faults(row.bbox, make, _far_outside_px(image))


def _box_faults(box: Any, make: partial, limit_px: int) -> list[Fault]:
    if not isinstance(box, list) or len(box) != 4:
        return [make(field="bbox", value=shown(box), problem="The box is not [x, y, width, height].")]
    faults = []
    for place, value in enumerate(box):
        problem = ""
        if not is_number(value) or not isfinite(as_float(value)):
            problem = "The value is not a finite number."
        elif place >= 2 and value < 0:
            problem = f"The {'width' if place == 2 else 'height'} is negative."
        elif abs(value) > limit_px:
            problem = f"The value is more than {limit_px} pixels, far outside of the image."
        if problem:
            faults.append(make(field=f"bbox[{place}]", value=shown(value), problem=problem))
    return faults


def _outline_faults(row: AnnotationRow, image: ImageRow | None, *, file: str, training: bool) -> list[Fault]:
    """Returns the faults of an outline without polygons: run-length, empty, missing or malformed."""
    outline = outline_of(row)
    make = partial(Fault, file=file, where=f"annotation id {shown(row.id)}", field="segmentation", value=shown(outline))
    crowd = _is_crowd(row)
    if isinstance(outline, dict):
        if training and not crowd:
            problem = "The outline is run-length coded (RLE); training needs polygons."
            return [make(problem=problem, mend=MEND_POLYGONS + " For a crowd region set iscrowd to 1.")]
        return _rle_faults(outline, image, make) if _is_size(image) else []
    if not outline and training and crowd:
        return []  # training never looks at the outline of a crowd
    if outline is None or outline == []:
        return [make(problem="The object has no outline.", mend=MEND_POLYGONS)]
    if isinstance(outline, list) and all(map(is_number, outline)):
        problem = "The outline is one flat list of numbers."
        return [make(problem=problem, mend="Put it into another pair of brackets: [[x1, y1, ...]].")]
    return [make(problem="The outline is not a list of lists of numbers.", mend=MEND_POLYGONS)]


def _rle_faults(outline: dict, image: ImageRow, make: partial) -> list[Fault]:
    mend = "Write the outline anew for the image's size, or remove the annotation."
    make = partial(make, mend=mend)
    size_hw, counts = outline.get("size"), outline.get("counts")
    if size_hw != [image.height, image.width]:
        problem = f"The size is not the image's [height, width] = [{image.height}, {image.width}]."
        return [make(field="segmentation.size", value=shown(size_hw), problem=problem)]
    make = partial(make, field="segmentation.counts", value=shown(counts))
    runs = runs_of_text(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return [make(problem="These are no run lengths.")]
    if sum(runs) != image.height * image.width:
        area = image.height * image.width
        return [make(problem=f"The run lengths sum to {sum(runs)}, not to height times width = {area}.")]
    return []


def runs_of_text(text: str) -> list[int] | None:
    """Returns the run lengths of COCO's compressed text: 5 bits a character, from the third on as differences."""
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


def _polygon_faults(document: Document, shapes: Shapes, images: dict[int, ImageRow], file: str) -> list[Fault]:
    """Returns one fault for each polygon that is too short, odd, not finite or far outside of its image."""
    lengths, owners = shapes.ring_lengths, shapes.ring_owners
    starts = np.cumsum(lengths) - lengths
    largest = np.zeros(len(lengths), np.float32)
    filled = lengths > 0
    if filled.any():
        largest[filled] = np.maximum.reduceat(np.abs(shapes.coordinates), starts[filled])  # NaN wins
    limit_of_image = {key: _far_outside_px(row) for key, row in images.items()}
    rows = document.annotations
    image_keys = (row.image_id if _is_id(row.image_id) else None for row in rows)
    limits = np.fromiter((limit_of_image.get(key, FAR_OUTSIDE_PX) for key in image_keys), np.int64, len(rows))
    near = largest <= limits[owners]
    first_rings = np.searchsorted(owners, owners)
    faults = []
    for ring in np.flatnonzero((lengths < SMALLEST_POLYGON) | (lengths % 2 == 1) | ~near).tolist():
        numbers = outline_of(rows[owners[ring]])[ring - first_rings[ring]]
        problem = _polygon_problem(numbers, int(limits[owners[ring]]))
        where, field = f"annotation id {shown(rows[owners[ring]].id)}", f"segmentation[{ring - first_rings[ring]}]"
        value = shown(numbers)
        faults.append(Fault(file=file, where=where, field=field, value=value, problem=problem, mend=MEND_POLYGONS))
    return faults


def _polygon_problem(numbers: list[int | float], limit_px: int) -> str:
    if not all(isfinite(as_float(number)) for number in numbers):
        return "The polygon holds a value that is not a finite number."
    if len(numbers) % 2:
        return f"The polygon has an odd count of numbers ({len(numbers)})."
    if len(numbers) < SMALLEST_POLYGON:
        return f"The polygon has {len(numbers)} numbers; three points need {SMALLEST_POLYGON}."
    return f"The polygon has a point more than {limit_px} pixels from the origin, far outside of the image."
