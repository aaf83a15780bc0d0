"""Which images and objects of an instances JSON are used, as flat arrays; and the notices about the others."""

import json
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

import numpy as np

from maskperf.data.coco.box_notices import box_notices
from maskperf.data.coco.columns import Columns
from maskperf.data.coco.document import IDS_SHOWN, Reading, counted
from maskperf.data.coco.table import Table
from maskperf.errors import DataError, Problem

BRUSH = "Exports of masks drawn with a brush often set iscrowd=1 on every object by mistake."
POLYGONS_AT_ONCE = 1 << 16  # bounds the memory for the positions of their points


def select(columns: Columns, reading: Reading, *, file: str, notices: Sequence[str] = ()) -> Table:
    """Return the arrays and texts of an index, as `CocoIndex` names them; `notices` are those of the reading.

    Errors: DataError when nothing is left to train on.
    """
    order = np.argsort(columns.image_ids)
    image_ids, sizes_hw = columns.image_ids[order], columns.sizes_hw[order]
    positions = np.searchsorted(image_ids, columns.annotated_images)  # of each annotation's image
    corners = _corners(columns)
    boxes = np.minimum(np.maximum(corners, 0), (sizes_hw[positions][:, [1, 0, 1, 0]] - 1).astype(np.float32))
    rows = np.flatnonzero(~columns.is_crowd & _has_extent(boxes))
    rows = rows[np.argsort(positions[rows], kind="stable")]  # file order within an image
    num_objects = np.bincount(positions[rows], minlength=len(image_ids))
    is_used = num_objects > 0 if reading.training and not reading.negatives else np.ones(len(num_objects), bool)
    box_lines = box_notices(columns, sizes_hw[positions])
    if reading.training and not len(rows):
        raise DataError([_nothing_to_train_on(columns, file)], notices=[f"{file}: {n}" for n in (*notices, *box_lines)])
    categories = np.argsort(columns.category_ids)
    arrays = {
        "image_ids": image_ids[is_used],
        "sizes_hw": sizes_hw[is_used],
        "object_offsets": _offsets(num_objects[is_used]),
        "boxes": boxes[rows],
        "labels": np.searchsorted(columns.category_ids, columns.annotated_categories[rows], sorter=categories) + 1,
        **_outlines(columns, rows),
        "category_ids": columns.category_ids[categories],
    }
    keys = [columns.image_keys[row] for row in order.tolist()] if columns.image_keys else image_ids.tolist()
    texts = {
        "file_names": tuple(columns.file_names[row] for row in order[is_used].tolist()),
        "category_names": tuple(columns.category_names[row] for row in categories.tolist()),
        "notices": (
            *notices,
            *_crowd_notices(columns, reading),
            *box_lines,
            *_extent_notices(columns, corners, boxes, reading),
            *(_left_out_notices(columns, positions, keys, is_used) if reading.training else ()),
        ),
        "image_keys": tuple(map(json.dumps, compress(keys, is_used))) if columns.image_keys else (),
    }
    return Table(arrays, texts)


def _corners(columns: Columns) -> np.ndarray:
    """Return [x, y, x + max(w - 1, 0), y + max(h - 1, 0)] of each box in float32: corners inclusive."""
    boxes_xywh = columns.boxes_xywh.astype(np.float32)
    top_left = boxes_xywh[:, :2]
    return np.concatenate([top_left, top_left + np.maximum(boxes_xywh[:, 2:] - 1, 0)], axis=1)


def _has_extent(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _ranges_of(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the positions of the chosen owners' parts, where all parts lie one owner after the other."""
    starts, lengths = (np.cumsum(counts) - counts)[rows], counts[rows]
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _outlines(columns: Columns, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the polygons of the chosen annotations, in their order, and their runs if there are any."""
    polygons = _ranges_of(rows, columns.num_polygons)
    num_points = columns.polygon_lengths // 2
    point_offsets = _offsets(num_points[polygons])
    source = columns.coordinates.view(np.uint64)  # x and y move together
    points = np.empty(point_offsets[-1], np.uint64)
    for start in range(0, len(polygons), POLYGONS_AT_ONCE):
        part = polygons[start : start + POLYGONS_AT_ONCE]
        points[point_offsets[start] : point_offsets[start + len(part)]] = source[_ranges_of(part, num_points)]
    arrays = {
        "polygon_offsets": _offsets(columns.num_polygons[rows]),
        "point_offsets": point_offsets,
        "points": points.view(np.float32).reshape(-1, 2),
    }
    if columns.num_runs[rows].any():
        arrays["run_offsets"] = _offsets(columns.num_runs[rows])
        arrays["run_ends"] = columns.run_ends[_ranges_of(rows, columns.num_runs)]
    return arrays


def _nothing_to_train_on(columns: Columns, file: str) -> Problem:
    num_crowds, total = int(columns.is_crowd.sum()), len(columns.is_crowd)
    field, value = "annotations", f"{total} annotations, {num_crowds} of them crowd regions"
    message, fix = "No image has an object wider and higher than one pixel.", "Use a file with objects to train on."
    if num_crowds == total:
        field, value = "iscrowd", "1"
        message = f"All {total} annotations are crowd regions (iscrowd=1), which are not trained on. {BRUSH}"
        fix = "Set data.crowd_as_objects=true to read them as objects, or export again."
    return Problem(file=file, where="top level", field=field, value=value, message=message, fix=fix)


def _crowd_notices(columns: Columns, reading: Reading) -> Iterator[str]:
    num_crowds, total = int(columns.is_crowd.sum()), len(columns.is_crowd)
    if num_crowds and reading.training:
        hint = f". {BRUSH} If so, set data.crowd_as_objects=true" if 2 * num_crowds > total else ""
        yield f"{num_crowds} of {total} annotations are crowd regions and are not trained on{hint}"


def _extent_notices(columns: Columns, corners: np.ndarray, boxes: np.ndarray, reading: Reading) -> Iterator[str]:
    """Yield one line for each reason why boxes, `corners` before they were clipped, have no extent."""
    fate = "left out of training" if reading.training else "left to pycocotools as they are"
    is_dropped = ~columns.is_crowd & ~_has_extent(boxes)
    is_empty, was_whole = (columns.boxes_xywh[:, 2:] == 0).any(axis=1), _has_extent(corners)
    for what, chosen in (
        ("of zero width or height", is_empty),
        ("outside of the image", ~is_empty & was_whole),
        ("at most one pixel wide or high", ~is_empty & ~was_whole),
    ):
        if (chosen & is_dropped).any():
            ids = columns.annotation_ids[chosen & is_dropped].tolist()
            yield counted(f"annotations with a box {what}: {fate}", ids)


def _left_out_notices(
    columns: Columns, positions: np.ndarray, keys: Sequence[Any], is_used: np.ndarray
) -> Iterator[str]:
    """Yield one line for each reason why training has no use for images or categories."""
    has_annotation = np.bincount(positions, minlength=len(is_used)) > 0
    for what, chosen in (
        ("images without an annotation: left out of training (data.negatives=true keeps them)", ~has_annotation),
        ("images without an object, only crowd regions or the boxes above: left out of training", has_annotation),
    ):
        if left_out := list(compress(keys, ~is_used & chosen)):
            yield counted(what, left_out)
    names = list(compress(columns.category_names, ~np.isin(columns.category_ids, columns.annotated_categories)))
    if names:
        shown = ", ".join([*names[:IDS_SHOWN], *["..."] * (len(names) > IDS_SHOWN)])
        yield f"{len(names)} of {len(columns.category_names)} categories have no annotation: {shown}"
