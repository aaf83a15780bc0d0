"""Where the files of a data set are. Nothing heavy is imported: a path that is wrong is an error at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskperf.config import DataConfig
from maskperf.errors import DataError, Problem

VALIDATION_FIX = "Name the data set with --data, or with --val-json and --val-images."


@dataclass(frozen=True)
class DataPaths:
    """The two files and two folders of a data set."""

    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path


def split_paths(data: DataConfig, split: str) -> tuple[Path, Path]:
    """Return where annotations and images of "train" or "val" should be; a part held out is where the whole is."""
    split = "train" if data.holdout[0] else split
    root = Path(data.root)
    json_path = getattr(data, f"{split}_json") or root / "annotations" / f"instances_{split}2017.json"
    return Path(json_path), Path(getattr(data, f"{split}_images") or root / f"{split}2017")


def locate(data: DataConfig) -> DataPaths:
    """Return the paths of the data set: the explicit fields, or the COCO layout under `data.root`.

    Errors: DataError with a problem for each path that is missing or of the wrong kind, one below a missing root.
    """
    fix = f"Put the data set under data.root (now {data.root}), or set DATA_KEY to its path."
    return DataPaths(*existing_paths(data, ("train", "val"), fix))


def existing_paths(data: DataConfig, splits: Sequence[str], fix: str) -> list[Path]:
    """Return annotations and images of each split; DATA_KEY in `fix`, the advice, stands for the key of a missing one.

    Errors: DataError as `locate`.
    """
    paths, problems, lost = [], [], []
    root = Path(data.root)
    for split in splits:
        for name, kind, path in zip(("json", "images"), ("file", "folder"), split_paths(data, split), strict=True):
            paths.append(path)
            if path.is_relative_to(root) and not root.exists():
                lost.append(str(path.relative_to(root)))
            elif not (path.is_file() if kind == "file" else path.is_dir()):
                field, value = f"data.{split}_{name}", str(path)
                message = f"It is not a {kind}." if path.exists() else f"The {kind} does not exist."
                where, advice = f"the {kind} of {field}", fix.replace("DATA_KEY", field)
                problems.append(Problem(file=value, where=where, field=field, value=value, message=message, fix=advice))
    if lost:  # one problem, not one for each path below it
        place = {"file": data.root, "where": "the folder of data.root", "field": "data.root", "value": data.root}
        message = f"The folder does not exist; wanted in it: {', '.join(lost)}."
        problems.append(Problem(**place, message=message, fix=fix.replace("DATA_KEY", "data.root")))
    if problems:
        raise DataError(problems)
    return paths
