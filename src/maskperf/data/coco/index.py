"""A COCO data set as flat arrays: its images, and the targets before any resize."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from maskperf.config import DataConfig
from maskperf.data.coco.columns import NotPlain, columns_of_document, read_columns
from maskperf.data.coco.document import Document, Reading, parse_document, read_text, shown
from maskperf.data.coco.repair import repair_document
from maskperf.data.coco.selection import select
from maskperf.data.coco.table import Table, load_table, save_table, settled_state
from maskperf.errors import DataError, Problem
from maskperf.seeds import derive_seed

BY_THE_RULES = DataConfig()  # COCO's own
ENGINE_MEMBERS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "iscrowd", "area", "segmentation"),
    "categories": ("id", "name"),
}
SMALLEST_CACHED_BYTES = 8 << 20  # smaller files are read anew in a moment


# Of an index: the offsets of each owner's parts, in the order of the file; what the other arrays have an entry for.
OFFSETS = (
    ("object_offsets", "images", "objects"),
    ("polygon_offsets", "objects", "polygons"),
    ("point_offsets", "polygons", "points"),
    ("run_offsets", "objects", "runs"),
)
ARRAYS = {"image_ids": "images", "sizes_hw": "images", "boxes": "objects", "labels": "objects"}
ARRAYS |= {"points": "points", "run_ends": "runs"}


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
    polygon_offsets: np.ndarray  # int64 [T + 1]
    point_offsets: np.ndarray  # int64 [R + 1]
    points: np.ndarray  # float32 [P, 2], not clipped
    category_ids: np.ndarray  # int64 [C], ascending: the id of label k + 1 is at k
    category_names: tuple[str, ...]
    notices: tuple[str, ...]  # what was left out, one line per kind
    run_offsets: np.ndarray | None = None  # int64 [T + 1]; None: no mask of the file is run-length encoded
    run_ends: np.ndarray | None = None  # int64 [N], first pixel after each run, column by column
    image_keys: tuple[str, ...] = ()  # each image's id as JSON, where it is not the number in image_ids
    reading: Reading = Reading(training=True)
    is_plain: bool = True  # the file is in COCO's form: nothing was changed or left out

    def image_key(self, position: int) -> Any:
        """Return the id of the image at this position as the file has it."""
        return json.loads(self.image_keys[position]) if self.image_keys else int(self.image_ids[position])

    def shown_id(self, position: int) -> str:
        """Return the id of the image at this position for a message."""
        return shown(self.image_key(position))

    def with_image_keys(self, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return entries of COCO's result format with the ids of the images as the file has them."""
        if not self.image_keys:
            return list(results)
        keys = {number: self.image_key(position) for position, number in enumerate(self.image_ids.tolist())}
        return [{**entry, "image_id": keys[entry["image_id"]]} for entry in results]

    def image_path(self, position: int) -> Path:
        """Return the file of the image at this position."""
        return self.image_folder / self.file_names[position]

    def without(self, positions: Iterable[int]) -> "CocoIndex":
        """Return the index without the images at these positions and all that belongs to them."""
        is_in = {"images": np.ones(len(self.image_ids), bool)}
        is_in["images"][list(positions)] = False
        changes: dict[str, Any] = {"is_plain": False}
        for name, owner, part in OFFSETS:
            if getattr(self, name) is not None:
                counts = np.diff(getattr(self, name))
                changes[name] = np.concatenate([[0], np.cumsum(counts[is_in[owner]])]).astype(np.int64)
                is_in[part] = np.repeat(is_in[owner], counts)
        changes |= {name: getattr(self, name)[is_in[part]] for name, part in ARRAYS.items() if part in is_in}
        for name in ("file_names", "image_keys"):
            changes[name] = tuple(compress(getattr(self, name), is_in["images"]))
        return replace(self, **changes)

    def objects_at(self, position: int) -> dict[str, np.ndarray]:
        """Return the arrays of the objects of one image, offsets from 0; no runs where the file has none."""
        where = {"objects": slice(*self.object_offsets[position : position + 2])}
        found = {}
        for name, owner, part in OFFSETS[1:]:
            if getattr(self, name) is not None:
                own = getattr(self, name)[where[owner].start : where[owner].stop + 1]
                where[part], found[name] = slice(own[0], own[-1]), own - own[0]
        return found | {name: getattr(self, name)[where[part]] for name, part in ARRAYS.items() if part in where}


def read_coco(
    json_path: Path,
    image_folder: Path,
    *,
    training: bool,
    data: DataConfig = BY_THE_RULES,
    is_test_set: bool = False,
) -> CocoIndex:
    """Return the index of one part of a data set. What is read of a large file is cached in a table.

    `data` decides how freely the file is read. Training leaves out images without an object, unless it keeps them.
    Crowd regions, and boxes that have no extent once clipped, are never objects. Boxes are clipped, masks are not.
    With `data.holdout` the file is that of both parts, and `training` says which of them is returned.
    Errors: DataError with every problem of the file, and its notices; also where nothing is left to train on.
    Source: the reference's COCO data set class; it stops on images without objects.
    """
    reading = Reading(
        training=training,
        negatives=training and data.negatives,
        crowd_as_objects=data.crowd_as_objects,
        skip_bad=data.skip_bad,
        is_test_set=is_test_set,
    )
    table = load_table(json_path, reading.name) or _read_anew(json_path, reading)
    values: dict[str, Any] = {**table.arrays, **table.texts}
    is_plain = bool(values.pop("plain"))
    index = CocoIndex(json_path=json_path, image_folder=image_folder, reading=reading, is_plain=is_plain, **values)
    if not data.holdout[0] or is_test_set:
        return index
    unsplit = replace(data, holdout=(0.0, 0))
    whole = read_coco(json_path, image_folder, training=False, data=unsplit) if training else index
    return _part_of(index, whole, data.holdout)


def _part_of(index: CocoIndex, whole: CocoIndex, holdout: tuple[float, int]) -> CocoIndex:
    """Return the training images of an index, or those held out: the first of `whole` in the order of a hash.

    Errors: DataError where a part would be empty.
    """
    (fraction, seed), total = holdout, len(whole.image_ids)
    count = min(max(1, round(fraction * total)), total - 1)
    keys = [derive_seed(seed, f"held out {json.dumps(whole.image_key(position))}") for position in range(total)]
    held_out = np.sort(whole.image_ids[np.argsort(np.array(keys, dtype=np.int64), kind="stable")[: max(0, count)]])
    is_out = np.isin(index.image_ids, held_out, invert=not index.reading.training)
    if total < 2 or is_out.all():
        name = "train on" if index.reading.training else "validate on"
        message = f"With data.holdout={fraction},{seed} no image with objects is left to {name}."
        at = {"file": str(index.json_path), "where": "the list of images", "field": "images"}
        fix = "Give more images, or another seed."
        raise DataError([Problem(**at, value=f"{total} entries", message=message, fix=fix)])
    part = index.without(np.flatnonzero(is_out).tolist())
    if index.reading.training:
        return part
    notice = f"{count} of {total} images are held out to validate on, by a hash of their ids (seed {seed})"
    return replace(part, notices=(*part.notices, notice))


def read_annotations(index: CocoIndex) -> Document:
    """Return the whole annotations of the images of an index, in COCO's form.

    Errors: DataError where the file is no longer what the index was made of.
    """
    document, problems, _, _ = _repaired(index.json_path, index.reading, is_plain=index.is_plain)
    if problems:
        raise DataError(problems)
    names = dict(zip(index.image_ids.tolist(), index.file_names, strict=True))
    document.images = [row for row in document.images if row.id in names]
    for row in document.images:
        row.file_name = names[row.id]
    document.annotations = [row for row in document.annotations if row.image_id in names]
    return document


def dataset_of(index: CocoIndex) -> dict[str, list[dict[str, Any]]]:
    """Return the annotations of the images of an index as the COCO engines take them: the objects of the JSON."""
    entries = msgspec.json.decode(msgspec.json.encode(read_annotations(index)))
    return {
        list_name: [{name: row[name] for name in names if name in row} for row in entries[list_name]]
        for list_name, names in ENGINE_MEMBERS.items()
    }


def _read_anew(json_path: Path, reading: Reading) -> Table:
    """Return what the JSON holds, from the cached table if it could be saved, so that processes share its memory.

    Errors: DataError with every problem of the file.
    """
    is_large = json_path.is_file() and json_path.stat().st_size >= SMALLEST_CACHED_BYTES
    state = settled_state(json_path) if is_large else None
    try:
        columns, sha256 = read_columns(json_path, reading)
        notices: list[str] = []
        is_plain = True
    except NotPlain:
        document, problems, sha256, notices = _repaired(json_path, reading)
        if problems:
            raise DataError(problems, notices=[f"{json_path}: {notice}" for notice in notices]) from None
        columns, is_plain = columns_of_document(document, reading), False
    table = select(columns, reading, file=str(json_path), notices=notices)
    table.texts["plain"] = ("yes",) if is_plain else ()
    reason = save_table(json_path, reading.name, table, state=state, sha256=sha256) if is_large else ""
    if reason:
        notice = f"what was read could not be cached, so that the next start reads the file again ({reason})"
        table.texts["notices"] += (notice,)
        return table
    return is_large and load_table(json_path, reading.name) or table


def _repaired(
    json_path: Path, reading: Reading, *, is_plain: bool = False
) -> tuple[Document, list[Problem], str, list[str]]:
    """Return the document in COCO's form, which `is_plain` has; problems, SHA-256 and notices of the file."""
    text, sha256, notices = read_text(json_path)
    document, strictness, more = parse_document(json_path, text, is_test_set=reading.is_test_set)
    problems, repairs = ([], []) if is_plain else repair_document(document, reading, file=str(json_path))
    named = {(problem.where, problem.field) for problem in problems}
    problems += [problem for problem in strictness if (problem.where, problem.field) not in named]
    return document, problems, sha256, [*notices, *more, *repairs]
