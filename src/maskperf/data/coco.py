"""A COCO data set as flat arrays: where its files are, what is kept of them, and the targets before any resize."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from maskperf.config import DataConfig
from maskperf.data.document import Document, Shapes, gather_shapes, read_document
from maskperf.data.faults import find_faults
from maskperf.errors import DataError, Fault

IDS_SHOWN = 5


@dataclass(frozen=True)
class DataPaths:
    """The two files and two folders of a data set."""

    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """One part of a data set. Image i has the objects object_offsets[i]:object_offsets[i + 1], and so on downwards."""

    json_path: Path
    image_folder: Path
    image_ids: np.ndarray  # int64 [I], ascending
    file_names: tuple[str, ...]
    sizes_hw: np.ndarray  # int32 [I, 2]
    object_offsets: np.ndarray  # int64 [I + 1]
    boxes: np.ndarray  # float32 [T, 4], inclusive corners, clipped to the image
    labels: np.ndarray  # int64 [T], 1 and up
    ring_offsets: np.ndarray  # int64 [T + 1]
    point_offsets: np.ndarray  # int64 [R + 1]
    points: np.ndarray  # float32 [P, 2], not clipped
    category_ids: np.ndarray  # int64 [C], ascending: the id of label k + 1 is at k
    category_names: tuple[str, ...]
    notices: tuple[str, ...]  # what was left out, one line per kind

    def image_path(self, position: int) -> Path:
        """Returns the file of the image at this position."""
        return self.image_folder / self.file_names[position]


def locate(data: DataConfig) -> DataPaths:
    """Returns the paths of the data set: the explicit fields, or the COCO layout under `data.root`.

    Errors: DataError with one fault for each path that is missing or of the wrong kind.
    """
    paths = [path for split in ("train", "val") for path in _split_paths(data, split)]
    names = ("train_json", "train_images", "val_json", "val_images")
    mends = [f"Put the data set under data.root (now {data.root}), or set data.{name} to its path." for name in names]
    _demand_paths(names, paths, mends)
    return DataPaths(*paths)


def locate_validation(data: DataConfig, mend: str) -> tuple[Path, Path]:
    """Returns the annotations and the pictures of the validation split; the other split need not be there.

    `mend` is what the message tells the user to do.

    Errors: DataError with a fault for each of the two that is missing or of the wrong kind.
    """
    paths = _split_paths(data, "val")
    _demand_paths(("val_json", "val_images"), paths, [mend, mend])
    return paths


def _split_paths(data: DataConfig, split: str) -> tuple[Path, Path]:
    root = Path(data.root)
    json_path = getattr(data, f"{split}_json") or root / "annotations" / f"instances_{split}2017.json"
    return Path(json_path), Path(getattr(data, f"{split}_images") or root / f"{split}2017")


def _demand_paths(names: Sequence[str], paths: Sequence[Path], mends: Sequence[str]) -> None:
    faults = []
    for name, path, mend in zip(names, paths, mends, strict=True):
        found, kind = (path.is_file(), "file") if name.endswith("json") else (path.is_dir(), "folder")
        if not found:
            problem = f"It is not a {kind}." if path.exists() else f"The {kind} does not exist."
            where, field = f"the {kind} of data.{name}", f"data.{name}"
            faults.append(Fault(file=str(path), where=where, field=field, value=str(path), problem=problem, mend=mend))
    if faults:
        raise DataError(faults)


def read_coco(json_path: Path, image_folder: Path, *, training: bool) -> CocoIndex:
    """Returns the index of one part of a data set.

    Training leaves out images without an annotation (crowd or not) wider and higher than one pixel. Crowd regions,
    and boxes that have no extent once clipped, are never objects. Boxes are clipped, polygons are not.
    Errors: DataError with every fault of the file; also for a training image whose objects all vanish.
    Source: the reference's COCO data set class; it stops on images without objects as well.
    """
    document, reading_faults = read_document(json_path)
    shapes = gather_shapes(document)
    faults = find_faults(document, shapes, file=str(json_path), training=training)
    named = {(fault.where, fault.field) for fault in faults}
    faults += [fault for fault in reading_faults if (fault.where, fault.field) not in named]
    if faults:
        raise DataError(faults)
    table = _tabulate(document)
    is_kept_image = table.images_with_annotation if training else np.ones(len(table.image_ids), bool)
    is_object = table.is_object & is_kept_image[table.image_positions]
    if training:
        _demand_objects(table, is_object, is_kept_image, str(json_path))
    kept = np.flatnonzero(is_kept_image)
    rows = np.flatnonzero(is_object)
    rows = rows[np.argsort(table.image_positions[rows], kind="stable")]  # file order within an image
    num_objects = np.bincount(table.image_positions[rows], minlength=len(table.image_ids))[kept]
    ring_offsets, point_offsets, points = _select_shapes(shapes, rows, len(document.annotations))
    images = [document.images[row] for row in table.image_rows[kept]]
    return CocoIndex(
        json_path=json_path,
        image_folder=image_folder,
        image_ids=table.image_ids[kept],
        file_names=tuple(row.file_name for row in images),
        sizes_hw=table.sizes_hw[kept],
        object_offsets=_offsets(num_objects),
        boxes=table.boxes[rows],
        labels=table.labels[rows],
        ring_offsets=ring_offsets,
        point_offsets=point_offsets,
        points=points,
        category_ids=table.category_ids,
        category_names=table.category_names,
        notices=_notices(table, training=training),
    )


@dataclass(frozen=True, eq=False)
class _Table:
    """The columns of a document without faults; images in ascending order of their ids."""

    image_ids: np.ndarray
    image_rows: np.ndarray  # position in the file
    sizes_hw: np.ndarray
    images_with_annotation: np.ndarray  # bool: with one wider and higher than a pixel
    category_ids: np.ndarray
    category_names: tuple[str, ...]
    annotation_ids: np.ndarray
    image_positions: np.ndarray  # of each annotation
    labels: np.ndarray
    is_crowd: np.ndarray
    boxes_xywh: np.ndarray  # float64, as in the file
    boxes: np.ndarray  # float32, clipped corners
    is_object: np.ndarray


def _tabulate(document: Document) -> _Table:
    images, annotations = document.images, document.annotations
    file_ids = np.array([row.id for row in images], np.int64)
    image_rows = np.argsort(file_ids)
    image_ids = file_ids[image_rows]
    sizes_hw = np.array([(row.height, row.width) for row in images], np.int32).reshape(-1, 2)[image_rows]
    categories = sorted(document.categories, key=lambda row: row.id)
    category_ids = np.array([row.id for row in categories], np.int64)
    positions = np.searchsorted(image_ids, np.array([row.image_id for row in annotations], np.int64))
    labels = np.searchsorted(category_ids, np.array([row.category_id for row in annotations], np.int64)) + 1
    boxes_xywh = np.array([row.bbox for row in annotations], np.float64).reshape(-1, 4)
    is_crowd = np.array([row.iscrowd == 1 for row in annotations], bool)
    is_large = (boxes_xywh[:, 2] > 1) & (boxes_xywh[:, 3] > 1)
    boxes = clip_boxes(corners_of_xywh(boxes_xywh.astype(np.float32)), sizes_hw[positions])
    return _Table(
        image_ids=image_ids,
        image_rows=image_rows,
        sizes_hw=sizes_hw,
        images_with_annotation=np.bincount(positions[is_large], minlength=len(image_ids)) > 0,
        category_ids=category_ids,
        category_names=tuple(row.name for row in categories),
        annotation_ids=np.array([row.id for row in annotations], np.int64),
        image_positions=positions,
        labels=labels.astype(np.int64),
        is_crowd=is_crowd,
        boxes_xywh=boxes_xywh,
        boxes=boxes,
        is_object=~is_crowd & _has_extent(boxes),
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


def _select_shapes(shapes: Shapes, rows: np.ndarray, num_annotations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ring offsets, point offsets and points of the chosen annotations, in their order."""
    num_rings = np.bincount(shapes.ring_owners, minlength=num_annotations)
    first_ring = np.cumsum(num_rings) - num_rings
    rings = _range_indices(first_ring[rows], num_rings[rows])
    num_points = shapes.ring_lengths // 2
    first_point = np.cumsum(num_points) - num_points
    points = shapes.coordinates.reshape(-1, 2)[_range_indices(first_point[rings], num_points[rings])]
    return _offsets(num_rings[rows]), _offsets(num_points[rings]), points


def _demand_objects(table: _Table, is_object: np.ndarray, is_kept_image: np.ndarray, file: str) -> None:
    """Raises DataError when no image is left, or for every kept image that has no object."""
    make = partial(Fault, file=file, field="annotations")
    if not is_kept_image.any():
        problem = "No image has an annotation wider and higher than one pixel."
        mend = "Use a file with objects to train on."
        raise DataError([make(where="top level", value="0 images", problem=problem, mend=mend)])
    num_objects = np.bincount(table.image_positions[is_object], minlength=len(table.image_ids))
    num_annotations = np.bincount(table.image_positions, minlength=len(table.image_ids))
    problem = "All annotations are crowd regions, at most a pixel wide or high, or outside; training needs an object."
    mend = "Annotate an object of this image, or remove the image from `images` and its annotations."
    faults = []
    for position in np.flatnonzero(is_kept_image & (num_objects == 0)).tolist():
        where, value = f"image id {table.image_ids[position]}", f"{num_annotations[position]} annotations, 0 objects"
        faults.append(make(where=where, value=value, problem=problem, mend=mend))
    if faults:
        raise DataError(faults)


def _notices(table: _Table, *, training: bool) -> tuple[str, ...]:
    """Returns one line for each kind of oddity that is no fault: how many, what becomes of them, the first ids."""
    fate = "left out of training" if training else "left to pycocotools as they are"
    is_dropped = ~table.is_crowd & ~_has_extent(table.boxes)
    is_empty = (table.boxes_xywh[:, 2:] == 0).any(axis=1)
    was_whole = _has_extent(corners_of_xywh(table.boxes_xywh.astype(np.float32)))
    kinds = (
        ("annotations with a box of zero width or height", is_dropped & is_empty),
        ("annotations with a box outside of the image", is_dropped & ~is_empty & was_whole),
        ("annotations with a box at most one pixel wide or high", is_dropped & ~is_empty & ~was_whole),
    )
    lines = [_notice(what, fate, table.annotation_ids[chosen]) for what, chosen in kinds if chosen.any()]
    if training and not table.images_with_annotation.all():
        left_out = table.image_ids[~table.images_with_annotation]
        lines.append(_notice("images without an annotation wider and higher than one pixel", fate, left_out))
    return tuple(lines)


def _notice(what: str, fate: str, ids: np.ndarray) -> str:
    first = ", ".join(str(number) for number in ids[:IDS_SHOWN])
    return f"{len(ids)} {what}: {fate} (first ids: {first})"
