"""Which images and objects of an instances JSON are used, as flat arrays; and what is said of the others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from maskperf.data.coco.box_notices import box_notices
from maskperf.data.coco.cleaning import IDS_SHOWN, counted
from maskperf.data.coco.columns import Columns
from maskperf.data.coco.document import Reading
from maskperf.data.coco.table import Table
from maskperf.errors import DataError, Problem

BRUSH = "Exports of masks drawn with a brush often set iscrowd=1 on every object by mistake."
RINGS_AT_ONCE = 1 << 16  # bounds the memory for the places of their points


def select(
    columns: Columns,
    reading: Reading,
    *,
    file: str,
    notices: Sequence[str] = (),
    image_keys: Sequence[Any] = (),
) -> Table:
    """Return the arrays and texts of an index, as `CocoIndex` names them.

    `notices` are those of the reading; `image_keys` are the ids of the images in the file's order, where they are not
    the numbers in the columns.
    Errors: DataError when nothing is left to train on.
    """
    found = _locate(columns)
    is_kept_image = np.ones(len(found.image_ids), bool)
    if reading.training and not reading.negatives:
        is_kept_image = np.bincount(found.image_positions[found.is_object], minlength=len(found.image_ids)) > 0
    rows = np.flatnonzero(found.is_object)
    box_lines = box_notices(columns, found.sizes_hw[found.image_positions])
    if reading.training and not len(rows):
        raise DataError([_nothing_to_train_on(columns, file)], notices=[f"{file}: {n}" for n in (*notices, *box_lines)])
    kept = np.flatnonzero(is_kept_image)
    rows = rows[np.argsort(found.image_positions[rows], kind="stable")]  # file order within an image
    num_objects = np.bincount(found.image_positions[rows], minlength=len(found.image_ids))[kept]
    ring_offsets, point_offsets, points = _select_shapes(columns, rows)
    categories = np.argsort(columns.category_ids)
    arrays = {
        "image_ids": found.image_ids[kept],
        "sizes_hw": found.sizes_hw[kept],
        "object_offsets": _offsets(num_objects),
        "boxes": found.boxes[rows],
        "labels": found.labels[rows],
        "polygon_offsets": ring_offsets,
        "point_offsets": point_offsets,
        "points": points,
        "category_ids": columns.category_ids[categories],
    }
    if columns.num_runs[rows].any():
        first_run = np.cumsum(columns.num_runs) - columns.num_runs
        arrays["run_offsets"] = _offsets(columns.num_runs[rows])
        arrays["run_ends"] = columns.run_ends[_range_indices(first_run[rows], columns.num_runs[rows])]
    keys = [image_keys[row] for row in found.image_rows.tolist()] if image_keys else found.image_ids.tolist()
    own_notices = [
        *_crowd_notices(columns, reading),
        *box_lines,
        *_selection_notices(columns, found, keys, is_kept_image, reading),
    ]
    texts = {
        "file_names": tuple(columns.file_names[row] for row in found.image_rows[kept].tolist()),
        "category_names": tuple(columns.category_names[row] for row in categories.tolist()),
        "notices": (*notices, *own_notices),
        "image_keys": tuple(json.dumps(keys[position]) for position in kept.tolist()) if image_keys else (),
    }
    return Table(arrays, texts)


@dataclass(frozen=True, eq=False)
class _Located:
    """Images in ascending order of their ids; the annotations in the order of the file, with their place there."""

    image_ids: np.ndarray
    image_rows: np.ndarray  # position in the file
    sizes_hw: np.ndarray
    image_positions: np.ndarray  # of each annotation
    labels: np.ndarray
    boxes: np.ndarray  # float32, clipped corners
    is_object: np.ndarray


def _locate(columns: Columns) -> _Located:
    image_rows = np.argsort(columns.image_ids)
    image_ids = columns.image_ids[image_rows]
    sizes_hw = columns.sizes_hw[image_rows]
    positions = np.searchsorted(image_ids, columns.annotated_images)
    labels = np.searchsorted(np.sort(columns.category_ids), columns.annotated_categories) + 1
    boxes = clip_boxes(corners_of_xywh(columns.boxes_xywh.astype(np.float32)), sizes_hw[positions])
    return _Located(
        image_ids=image_ids,
        image_rows=image_rows,
        sizes_hw=sizes_hw,
        image_positions=positions,
        labels=labels.astype(np.int64),
        boxes=boxes,
        is_object=~columns.is_crowd & _has_extent(boxes),
    )


def corners_of_xywh(boxes_xywh: np.ndarray) -> np.ndarray:
    """Return [x, y, x + max(w - 1, 0), y + max(h - 1, 0)] of float32 boxes: corners inclusive."""
    top_left = boxes_xywh[:, :2]
    return np.concatenate([top_left, top_left + np.maximum(boxes_xywh[:, 2:] - 1, 0)], axis=1)


def clip_boxes(boxes: np.ndarray, sizes_hw: np.ndarray) -> np.ndarray:
    """Return the boxes with x in [0, width - 1] and y in [0, height - 1], each by its own image's size."""
    limits = (sizes_hw[:, [1, 0, 1, 0]] - 1).astype(np.float32)
    return np.minimum(np.maximum(boxes, 0), limits)


def _has_extent(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _range_indices(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return start, start + 1, ... of every range, one range after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _select_shapes(columns: Columns, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ring offsets, point offsets and points of the chosen annotations, in their order."""
    first_ring = np.cumsum(columns.num_rings) - columns.num_rings
    rings = _range_indices(first_ring[rows], columns.num_rings[rows])
    num_points = columns.ring_lengths // 2
    first_point = np.cumsum(num_points) - num_points
    point_offsets = _offsets(num_points[rings])
    source = columns.coordinates.view(np.uint64)  # x and y move together
    points = np.empty(point_offsets[-1], np.uint64)
    for start in range(0, len(rings), RINGS_AT_ONCE):
        part = rings[start : start + RINGS_AT_ONCE]
        where = slice(point_offsets[start], point_offsets[start + len(part)])
        points[where] = source[_range_indices(first_point[part], num_points[part])]
    return _offsets(columns.num_rings[rows]), point_offsets, points.view(np.float32).reshape(-1, 2)


def _nothing_to_train_on(columns: Columns, file: str) -> Problem:
    """Return why no object is left."""
    num_crowds, total = int(columns.is_crowd.sum()), len(columns.is_crowd)
    make = partial(Problem, file=file, where="top level")
    if num_crowds == total:
        problem = f"All {total} annotations are crowd regions (iscrowd=1), which are not trained on. {BRUSH}"
        fix = "Set data.crowd_as_objects=true to read them as objects, or export again."
        return make(field="iscrowd", value="1", message=problem, fix=fix)
    problem = "No image has an object wider and higher than one pixel."
    value = f"{total} annotations, {num_crowds} of them crowd regions"
    return make(field="annotations", value=value, message=problem, fix="Use a file with objects to train on.")


def _selection_notices(
    columns: Columns, found: _Located, image_keys: Sequence[Any], is_kept_image: np.ndarray, reading: Reading
) -> list[str]:
    """Return one line for each kind of oddity that is no error: how many, what becomes of them, the first ids."""
    fate = "left out of training" if reading.training else "left to pycocotools as they are"
    is_dropped = ~columns.is_crowd & ~_has_extent(found.boxes)
    is_empty = (columns.boxes_xywh[:, 2:] == 0).any(axis=1)
    was_whole = _has_extent(corners_of_xywh(columns.boxes_xywh.astype(np.float32)))
    kinds = (
        ("annotations with a box of zero width or height", is_dropped & is_empty),
        ("annotations with a box outside of the image", is_dropped & ~is_empty & was_whole),
        ("annotations with a box at most one pixel wide or high", is_dropped & ~is_empty & ~was_whole),
    )
    lines = [
        counted(f"{what}: {fate}", columns.annotation_ids[chosen].tolist()) for what, chosen in kinds if chosen.any()
    ]
    left_out = np.flatnonzero(~is_kept_image)
    has_annotation = np.bincount(found.image_positions, minlength=len(is_kept_image)) > 0
    for what, chosen in (
        ("images without an annotation: left out of training (data.negatives=true keeps them)", ~has_annotation),
        ("images without an object, only crowd regions or the boxes above: left out of training", has_annotation),
    ):
        if chosen[left_out].any():
            lines.append(counted(what, [image_keys[position] for position in left_out[chosen[left_out]].tolist()]))
    if reading.training:
        unused = ~np.isin(columns.category_ids, columns.annotated_categories)
        if unused.any():
            names = [name for name, is_unused in zip(columns.category_names, unused, strict=True) if is_unused]
            shown = ", ".join(names[:IDS_SHOWN]) + (", ..." if len(names) > IDS_SHOWN else "")
            lines.append(f"{len(names)} of {len(unused)} categories have no annotation: {shown}")
    return lines


def _crowd_notices(columns: Columns, reading: Reading) -> list[str]:
    num_crowds, total = int(columns.is_crowd.sum()), len(columns.is_crowd)
    if not num_crowds or not reading.training:
        return []
    line = f"{num_crowds} of {total} annotations are crowd regions and are not trained on"
    if 2 * num_crowds > total:
        line += f". {BRUSH} If so, set data.crowd_as_objects=true"
    return [line]
