"""Which images and objects of an instances JSON are used, as flat arrays; and what is said of the others."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from maskperf.data.columns import Columns
from maskperf.data.table import Table
from maskperf.errors import DataError, Fault

IDS_SHOWN = 5
RINGS_AT_ONCE = 1 << 16  # bounds the memory for the places of their points


def select(columns: Columns, *, training: bool, file: str) -> Table:
    """Returns the arrays and texts of an index, as `CocoIndex` names them.

    Errors: DataError when training would have an image without an object, or none at all.
    """
    found = _locate(columns)
    is_kept_image = found.images_with_annotation if training else np.ones(len(found.image_ids), bool)
    is_object = found.is_object & is_kept_image[found.image_positions]
    if training:
        _demand_objects(found, is_object, is_kept_image, file)
    kept = np.flatnonzero(is_kept_image)
    rows = np.flatnonzero(is_object)
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
        "ring_offsets": ring_offsets,
        "point_offsets": point_offsets,
        "points": points,
        "category_ids": columns.category_ids[categories],
    }
    texts = {
        "file_names": tuple(columns.file_names[row] for row in found.image_rows[kept].tolist()),
        "category_names": tuple(columns.category_names[row] for row in categories.tolist()),
        "notices": _notices(columns, found, training=training),
    }
    return Table(arrays, texts)


@dataclass(frozen=True, eq=False)
class _Located:
    """Images in ascending order of their ids; the annotations in the order of the file, with their place there."""

    image_ids: np.ndarray
    image_rows: np.ndarray  # position in the file
    sizes_hw: np.ndarray
    images_with_annotation: np.ndarray  # bool: with one wider and higher than a pixel
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
    is_large = (columns.boxes_xywh[:, 2] > 1) & (columns.boxes_xywh[:, 3] > 1)
    boxes = clip_boxes(corners_of_xywh(columns.boxes_xywh.astype(np.float32)), sizes_hw[positions])
    return _Located(
        image_ids=image_ids,
        image_rows=image_rows,
        sizes_hw=sizes_hw,
        images_with_annotation=np.bincount(positions[is_large], minlength=len(image_ids)) > 0,
        image_positions=positions,
        labels=labels.astype(np.int64),
        boxes=boxes,
        is_object=~columns.is_crowd & _has_extent(boxes),
    )


def corners_of_xywh(boxes_xywh: np.ndarray) -> np.ndarray:
    """Returns [x, y, x + max(w - 1, 0), y + max(h - 1, 0)] of float32 boxes: corners inclusive."""
    top_left = boxes_xywh[:, :2]
    return np.concatenate([top_left, top_left + np.maximum(boxes_xywh[:, 2:] - 1, 0)], axis=1)


def clip_boxes(boxes: np.ndarray, sizes_hw: np.ndarray) -> np.ndarray:
    """Returns the boxes with x in [0, width - 1] and y in [0, height - 1], each by its own image's size."""
    limits = (sizes_hw[:, [1, 0, 1, 0]] - 1).astype(np.float32)
    return np.minimum(np.maximum(boxes, 0), limits)


def _has_extent(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _range_indices(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns start, start + 1, ... of every range, one range after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _select_shapes(columns: Columns, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ring offsets, point offsets and points of the chosen annotations, in their order."""
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


def _demand_objects(found: _Located, is_object: np.ndarray, is_kept_image: np.ndarray, file: str) -> None:
    """Raises DataError when no image is left, or for every kept image that has no object."""
    make = partial(Fault, file=file, field="annotations")
    if not is_kept_image.any():
        problem = "No image has an annotation wider and higher than one pixel."
        mend = "Use a file with objects to train on."
        raise DataError([make(where="top level", value="0 images", problem=problem, mend=mend)])
    num_objects = np.bincount(found.image_positions[is_object], minlength=len(found.image_ids))
    num_annotations = np.bincount(found.image_positions, minlength=len(found.image_ids))
    problem = "All annotations are crowd regions, at most a pixel wide or high, or outside; training needs an object."
    mend = "Annotate an object of this image, or remove the image from `images` and its annotations."
    faults = []
    for position in np.flatnonzero(is_kept_image & (num_objects == 0)).tolist():
        where, value = f"image id {found.image_ids[position]}", f"{num_annotations[position]} annotations, 0 objects"
        faults.append(make(where=where, value=value, problem=problem, mend=mend))
    if faults:
        raise DataError(faults)


def _notices(columns: Columns, found: _Located, *, training: bool) -> tuple[str, ...]:
    """Returns one line for each kind of oddity that is no fault: how many, what becomes of them, the first ids."""
    fate = "left out of training" if training else "left to pycocotools as they are"
    is_dropped = ~columns.is_crowd & ~_has_extent(found.boxes)
    is_empty = (columns.boxes_xywh[:, 2:] == 0).any(axis=1)
    was_whole = _has_extent(corners_of_xywh(columns.boxes_xywh.astype(np.float32)))
    kinds = (
        ("annotations with a box of zero width or height", is_dropped & is_empty),
        ("annotations with a box outside of the image", is_dropped & ~is_empty & was_whole),
        ("annotations with a box at most one pixel wide or high", is_dropped & ~is_empty & ~was_whole),
    )
    lines = [_notice(what, fate, columns.annotation_ids[chosen]) for what, chosen in kinds if chosen.any()]
    if training and not found.images_with_annotation.all():
        left_out = found.image_ids[~found.images_with_annotation]
        lines.append(_notice("images without an annotation wider and higher than one pixel", fate, left_out))
    return tuple(lines)


def _notice(what: str, fate: str, ids: np.ndarray) -> str:
    first = ", ".join(str(number) for number in ids[:IDS_SHOWN])
    return f"{len(ids)} {what}: {fate} (first ids: {first})"
