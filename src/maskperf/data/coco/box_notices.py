"""Boxes that do not fit the outlines beside them, and what was probably written in their place."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from maskperf.data.coco.columns import Columns
from maskperf.data.coco.document import counted

SMALLEST_FIT = 0.5  # intersection over union of a box with the bounds of its outline
GOOD_FIT = 0.85  # of another reading of the same four numbers
MARGIN_PX = 2.0  # boxes and outlines are rounded in many ways, which must not matter for small ones

Boxes = Float[np.ndarray, "boxes 4"]  # left, top, right, bottom


def _from_corner(boxes: np.ndarray) -> Boxes:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _from_center(boxes: np.ndarray) -> Boxes:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


# What the four numbers may be instead of x, y, width and height; whwh is the image's size.
READINGS: tuple[tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]], ...] = (
    ("corners (x1, y1, x2, y2) in place of width and height", lambda box, whwh: box),
    ("the center in place of the corner", lambda box, whwh: _from_center(box)),
    ("shares of the image's size from 0 to 1", lambda box, whwh: _from_corner(box * whwh)),
    ("center and size as shares from 0 to 1 (YOLO)", lambda box, whwh: _from_center(box * whwh)),
    ("corners as shares from 0 to 1", lambda box, whwh: box * whwh),
    ("x and y exchanged", lambda box, whwh: _from_corner(box[:, [1, 0, 3, 2]])),
    ("corners with x and y exchanged (y1, x1, y2, x2)", lambda box, whwh: box[:, [1, 0, 3, 2]]),
)


def box_notices(columns: Columns, sizes_hw: Int[np.ndarray, "annotations 2"]) -> list[str]:
    """Return a line for each likely cause of boxes that do not fit their outlines; none where all fit.

    `sizes_hw` are those of the annotations' images.
    """
    bounds, has_bounds = outline_bounds(columns, sizes_hw)
    boxes = columns.boxes_xywh
    suspects = np.flatnonzero(has_bounds & ~columns.is_crowd & (_overlap(_from_corner(boxes), bounds) < SMALLEST_FIT))
    written, wanted, whwh = boxes[suspects], bounds[suspects], sizes_hw[suspects][:, [1, 0, 1, 0]]
    causes = {
        "have zero width or height, but the outline has an area": (written[:, 2:] == 0).any(axis=1),
        **{f"look like {name}": _overlap(read(written, whwh), wanted) >= GOOD_FIT for name, read in READINGS},
        "lie elsewhere than the outline": np.ones(len(suspects), bool),
    }
    first_cause = np.argmax(list(causes.values()), axis=0)
    return [
        counted(
            f"boxes do not fit their outlines: they {text}; nothing was changed",
            columns.annotation_ids[suspects[first_cause == number]].tolist(),
        )
        for number, text in enumerate(causes)
        if number in first_cause
    ]


def outline_bounds(
    columns: Columns, sizes_hw: Int[np.ndarray, "annotations 2"]
) -> tuple[Boxes, Bool[np.ndarray, " annotations"]]:
    """Return left, top, right and bottom of each annotation's outline, and whether it has one."""
    bounds = np.zeros((len(columns.is_crowd), 4))
    has_polygons, has_runs = columns.num_polygons > 0, columns.num_runs > 0
    if has_polygons.any():
        points = columns.coordinates.reshape(-1, 2)
        starts = _starts(np.add.reduceat(columns.polygon_lengths // 2, _starts(columns.num_polygons)))
        bounds[has_polygons, :2] = np.minimum.reduceat(points, starts)
        bounds[has_polygons, 2:] = np.maximum.reduceat(points, starts)
    if has_runs.any():
        bounds[has_runs] = _run_bounds(columns, sizes_hw[has_runs, 0])
    return bounds, has_polygons | has_runs


def _starts(counts: Int[np.ndarray, " parts"]) -> Int[np.ndarray, " filled"]:
    """Return where the parts begin that are not empty."""
    return (np.cumsum(counts) - counts)[counts > 0]


def _run_bounds(columns: Columns, heights: Int[np.ndarray, " masks"]) -> Boxes:
    """Return the bounds of run-length masks: columns of their pixels, and rows unless a run passes a column's end."""
    counts = columns.num_runs[columns.num_runs > 0]
    starts, ends = _starts(counts), columns.run_ends
    owners = np.repeat(np.arange(len(counts)), counts)
    begins = np.concatenate([[0], ends[:-1]])
    begins[starts] = 0
    is_object = ((np.arange(len(begins)) - starts[owners]) % 2 == 1) & (ends > begins)
    owners, first, last = owners[is_object], begins[is_object], ends[is_object] - 1
    height = heights[owners]
    (left, top), (right, bottom) = np.divmod(first, height), np.divmod(last, height)
    top, bottom = np.where(left == right, [top, bottom], [0 * height, height - 1])
    first_runs = np.flatnonzero(np.diff(owners, prepend=-1))  # every mask has a pixel
    low = np.minimum.reduceat(np.stack([left, top], axis=1), first_runs)
    high = np.maximum.reduceat(np.stack([right, bottom], axis=1), first_runs)
    return np.concatenate([low, high + 1], axis=1).astype(np.float64)


def _overlap(boxes: Boxes, others: Boxes) -> Float[np.ndarray, " boxes"]:
    """Return intersection over union; both grow by a margin."""
    margins = np.array([-MARGIN_PX, -MARGIN_PX, MARGIN_PX, MARGIN_PX])
    boxes, others = boxes + margins, others + margins
    low, high = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = [np.clip(sides[:, 2:] - sides[:, :2], 0, None).prod(axis=1) for sides in (boxes, others)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)
