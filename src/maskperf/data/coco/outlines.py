"""Outlines: polygons and run-length codes as people have them, brought into COCO's form, or refused."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from maskperf.data.coco.document import NO_OUTLINE, AnnotationRow, Document, ImageRow, Reading, outline_of, raw_json
from maskperf.data.coco.rules import Findings, Id, as_numbers, as_whole_number, fits, images_by_id, is_size, limit_px

SMALLEST_POLYGON = 6  # numbers; pycocotools takes four of them for a box and fails
FIX_POLYGONS = "Write the outline as [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels, or remove the annotation."
FIX_RUNS = "Write the outline anew for the image's size, or remove the annotation."

RunsProblem = tuple[str, str, str]  # field of the code, message, fix


def repair_outlines(document: Document, reading: Reading, findings: Findings) -> None:
    """Bring every outline into the form of polygons or of one run-length code, and derive missing boxes.

    Annotations left without an outline are left out, unless no object has one.
    """
    images = images_by_id(document)
    num_problems = len(findings.problems)
    objects = [row for row in document.annotations if row.iscrowd != 1]
    usable: list[AnnotationRow] = []
    without: list[AnnotationRow] = []
    for row in document.annotations:
        image = images.get(row.image_id) if fits(row.image_id, Id) else None
        is_right = _repair_outline(row, image, findings)
        has_outline = row.segmentation != NO_OUTLINE
        may_lack_it = not is_right or (reading.training and row.iscrowd == 1)
        (usable if has_outline or may_lack_it else without).append(row)
        if row.bbox in (None, []) and is_right and has_outline:
            _derive_box(row, findings)
    document.annotations = usable
    if objects and len(findings.problems) == num_problems and not any(row.iscrowd != 1 for row in usable):
        _refuse_all(objects, findings)
        return
    for row in without:
        findings.note("annotations have no outline of three points or more: left out", row)


def read_runs(size_hw: Any, counts: Any, wanted_hw: list[int]) -> tuple[list[int], RunsProblem | None]:
    """Return the run lengths of a code for an image of this size, and what is wrong with it."""
    if size_hw != wanted_hw:
        message = f"The size is not the image's [height, width] = {wanted_hw}."
        if size_hw == wanted_hw[::-1]:
            message += " Width and height are swapped."
        return [], ("size", message, FIX_RUNS)
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


def _repair_outline(row: AnnotationRow, image: ImageRow | None, findings: Findings) -> bool:
    """Rewrite the outline of one annotation (null: it has none); return whether it is right."""
    outline = written = outline_of(row)
    if not outline:
        row.segmentation = NO_OUTLINE
        return True
    parts = outline if isinstance(outline, list) else [outline]
    if any(isinstance(part, dict) for part in parts):  # without a size, the image's own problem is named
        return is_size(image) and _repair_runs(row, parts, image, findings)
    if isinstance(outline, list):
        numbers = [as_numbers(polygon) for polygon in outline]
        if numbers != outline:
            findings.note("annotations have an outline whose numbers are text: read as the numbers", row)
            outline = numbers
    if not _check_polygons(row, outline, image, findings):
        return False
    long_polygons = [polygon for polygon in outline if len(polygon) >= SMALLEST_POLYGON]
    if long_polygons and len(long_polygons) < len(outline):
        text = "annotations have polygons of fewer than three points beside others: those polygons left out"
        findings.note(text, row)
    if long_polygons != written:
        row.segmentation = raw_json(long_polygons or None)
    return True


def _check_polygons(row: AnnotationRow, outline: Any, image: ImageRow | None, findings: Findings) -> bool:
    """Refuse what cannot be polygons; those of fewer than three points are right."""
    if not fits(outline, list[list[float]]) or (len(outline) >= 3 and fits(outline, list[tuple[float, float]])):
        findings.refuse(row, "segmentation", outline, *_form_problem(outline))
        return False
    limit = limit_px(image)
    is_right = True
    for position, polygon in enumerate(outline):
        if len(polygon) < SMALLEST_POLYGON:
            continue
        extent = np.abs(polygon).max()
        if not np.isfinite(extent):
            message = "The polygon holds a value that is not a finite number."
        elif len(polygon) % 2:
            message = f"The polygon has an odd count of numbers ({len(polygon)})."
        elif extent > limit:
            message = f"The polygon has a point more than {limit} pixels from the origin, far outside of the image."
        else:
            continue
        is_right = False
        findings.refuse(row, f"segmentation[{position}]", polygon, message, fix=FIX_POLYGONS)
    return is_right


def _form_problem(outline: Any) -> tuple[str, str]:
    """Return message and fix where the outline is no list of lists of numbers."""
    if fits(outline, list[float]):
        return "The outline is one flat list of numbers.", "Put it into another pair of brackets: [[x1, y1, ...]]."
    if isinstance(outline, list) and len(outline) >= 3 and fits(outline, list[tuple[Any, Any]]):
        fix = "Write all numbers into one list: [[x1, y1, x2, y2, ...]]."
        return "The outline is a list of points [x, y].", fix
    return "The outline is not a list of lists of numbers.", FIX_POLYGONS


def _repair_runs(row: AnnotationRow, parts: list, image: ImageRow, findings: Findings) -> bool:
    """Rewrite an outline of run-length codes, and perhaps polygons beside them, as one code: their union."""
    codes = []
    for part in parts:
        if not isinstance(part, dict):
            if not _check_polygons(row, [part], image, findings):
                return False
            if len(part) >= SMALLEST_POLYGON:
                codes += coco_masks.frPyObjects([part], image.height, image.width)
            continue
        plain = _plain_code(part)
        _, problem = read_runs(plain["size"], plain["counts"], [image.height, image.width])
        if problem:
            field, message, fix = problem
            findings.refuse(row, f"segmentation.{field}", plain[field], message, fix=fix)
            return False
        codes.append(_compressed(plain))
    merged = codes[0]
    if len(parts) > 1:
        findings.note("annotations have run-length codes in a list: read as the union of its parts", row)
        merged = coco_masks.merge(codes)
        plain = {"size": merged["size"], "counts": merged["counts"].decode("ascii")}
    row.segmentation = raw_json(plain) if coco_masks.area(merged) else NO_OUTLINE
    return True


def _plain_code(code: dict) -> dict[str, Any]:
    """Return a run-length code with whole numbers where they are written as text or with a point."""
    plain = {"size": code.get("size"), "counts": code.get("counts")}
    for name, value in plain.items():
        if isinstance(value, list):
            numbers = [as_whole_number(item) for item in value]
            plain[name] = value if None in numbers else numbers
    return plain


def _compressed(code: dict[str, Any]) -> dict[str, Any]:
    if isinstance(code["counts"], list):
        return coco_masks.frPyObjects(code, *code["size"])
    return {**code, "counts": code["counts"].encode("ascii")}


def _derive_box(row: AnnotationRow, findings: Findings) -> None:
    outline = outline_of(row)
    if isinstance(outline, list):
        points = np.concatenate(outline).reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
        row.bbox = [*low.tolist(), *(high - low).tolist()]
    else:
        row.bbox = coco_masks.toBbox(_compressed(outline)).tolist()
    findings.note("annotations have no box: taken from their outline", row)


def _refuse_all(objects: list[AnnotationRow], findings: Findings) -> None:
    message = "Every annotation has a box, but none has an outline; Mask R-CNN learns masks from outlines."
    if all(row.bbox is None for row in objects):
        message = (
            "This is not an instances file: no annotation has a box or an outline, as in captions or panoptic files."
        )
    fix = "Export with `segmentation`: polygons [[x1, y1, x2, y2, x3, y3, ...], ...] or run-length codes (RLE)."
    findings.refuse_file("segmentation", f"{len(objects)} annotations", message, fix)
