"""A COCO data set as flat arrays: where its files are, what is kept of them, and the targets before any resize."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from maskperf.config import DataConfig
from maskperf.data.columns import Columns, columns_of_document, stream_columns
from maskperf.data.document import gather_shapes, read_document
from maskperf.data.faults import find_faults
from maskperf.data.selection import select
from maskperf.data.stream import NotPlain
from maskperf.data.table import FileState, Table, file_state, keep_table, load_table, sha256_of_file
from maskperf.errors import DataError, Fault

SMALLEST_KEPT_BYTES = 8 << 20  # smaller files are read anew in a moment


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
    """Returns the index of one part of a data set. What is read of a large file is kept in a table for the next time.

    Training leaves out images without an annotation (crowd or not) wider and higher than one pixel. Crowd regions,
    and boxes that have no extent once clipped, are never objects. Boxes are clipped, polygons are not.
    Errors: DataError with every fault of the file; also for a training image whose objects all vanish.
    Source: the reference's COCO data set class; it stops on images without objects as well.
    """
    kind = "training" if training else "evaluation"
    table = load_table(json_path, kind) or _read_anew(json_path, kind, training)
    return CocoIndex(json_path=json_path, image_folder=image_folder, **table.arrays, **table.texts)


def _read_anew(json_path: Path, kind: str, training: bool) -> Table:
    """Returns what the JSON holds, from the kept table if it could be kept, so that processes share its memory."""
    source = file_state(json_path) if json_path.is_file() else None
    try:
        columns, sha256 = stream_columns(json_path, training=training)
    except NotPlain:
        columns = _read_whole(json_path, training)
        sha256 = _digest_if_unchanged(json_path, source)
    table = select(columns, training=training, file=str(json_path))
    del columns  # a large file's are larger than the table
    if source is None or not sha256 or source.size < SMALLEST_KEPT_BYTES:
        return table
    reason = keep_table(json_path, kind, table, source=source, sha256=sha256)
    if reason:
        notice = f"what was read could not be kept, so that the next start reads the file again ({reason})"
        return replace(table, texts={**table.texts, "notices": (*table.texts["notices"], notice)})
    return load_table(json_path, kind) or table


def _read_whole(json_path: Path, training: bool) -> Columns:
    """Returns the columns of a file that only a close look can judge.

    Errors: DataError with every fault of the file.
    """
    document, reading_faults = read_document(json_path)
    shapes = gather_shapes(document)
    faults = find_faults(document, shapes, file=str(json_path), training=training)
    named = {(fault.where, fault.field) for fault in faults}
    faults += [fault for fault in reading_faults if (fault.where, fault.field) not in named]
    if faults:
        raise DataError(faults)
    return columns_of_document(document, shapes)


def _digest_if_unchanged(json_path: Path, source: FileState | None) -> str:
    """Returns the SHA-256 of a file that was read without it; nothing unless the file is still as it was before."""
    if source is None or not source.is_settled:
        return ""
    sha256 = sha256_of_file(json_path)
    return sha256 if file_state(json_path) == source else ""
