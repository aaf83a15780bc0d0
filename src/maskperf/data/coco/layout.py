"""Where the annotations and images of a data set are, in the layouts that people and other programs write.

Names decide, and one look for images in a folder; no annotation file is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from maskperf.errors import DataError, Problem

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
ROBOFLOW_FILE = "_annotations.coco.json"
WHOLE_FILES = (ROBOFLOW_FILE, "annotations.json", "instances.json", "instances_default.json", "coco.json")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
LOOKED_FOR = (
    f"annotations/instances_train2017.json, annotations/train.json, train.json, train/{ROBOFLOW_FILE}, "
    "or one JSON beside the images"
)
MOST_ENTRIES = 10_000  # of a folder that are looked at
SHOWN_ENTRIES = 12
OTHER_FORMATS = (
    ("*.yaml", "YOLO", "YOLO's labels are text files"),
    ("**/labels/*.txt", "YOLO", "YOLO's labels are text files"),
    ("**/Annotations/*.xml", "Pascal VOC", "Pascal VOC has an XML file for each image, and boxes alone"),
)


@dataclass(frozen=True)
class SplitPaths:
    """One annotation file and the folder of its images."""

    json_path: Path
    image_folder: Path


@dataclass(frozen=True)
class DataLayout:
    """What was found; where `val` is None, a part of `train` is to be held out."""

    kind: str  # as it is said: "COCO's layout", "a Roboflow export"
    train: SplitPaths
    val: SplitPaths | None
    test: SplitPaths | None

    def lines(self) -> list[str]:
        """Return what to say about it, a line for each part."""
        parts = zip(SPLIT_NAMES, (self.train, self.val, self.test), strict=True)
        found = [f"  {name:<5} {part.json_path}, images in {part.image_folder}" for name, part in parts if part]
        return [f"data: {self.kind}", *found]


def find_layout(data: Path, *, val: Path | None = None, test: Path | None = None) -> DataLayout:
    """Return the parts of a data set: a folder with some layout, or an annotation file.

    `val` and `test`, files or folders, name parts that are elsewhere or named otherwise. Without a validation part
    `val` is None.
    Errors: DataError that lists what was looked for, what is there, and what to do.
    """
    named = {name: _named_part(path, name) for name, path in (("val", val), ("test", test)) if path is not None}
    if data.is_file():
        return DataLayout("one annotation file", _named_part(data, "train"), named.get("val"), named.get("test"))
    if not data.is_dir():
        raise _error(data, "DATA", "There is no such folder or file.", "Give the folder of a data set.")
    found = {name: part for name in SPLIT_NAMES if (part := _find_split(data, name)) is not None}
    if "train" not in found:
        found = {"train": _only_file(data, named)}
        kind = "one annotation file and its images"
    else:
        kind = _kind_of(data, found["train"].json_path)
    found |= named
    return DataLayout(kind, found["train"], found.get("val"), found.get("test"))


def _find_split(root: Path, split: str) -> SplitPaths | None:
    """Return the files of a split by the names that it may have, those of COCO first."""
    for word in SPLIT_NAMES[split]:
        for json_path in filter(Path.is_file, _json_candidates(root, word)):
            if folder := _image_folder(_folder_candidates(root, json_path, word)):
                return SplitPaths(json_path, folder)
    return None


def _json_candidates(root: Path, word: str) -> Iterator[Path]:
    for folder in (root / "annotations", root):
        for name in (f"instances_{word}2017", f"instances_{word}", f"{word}2017", word, f"{word}_coco"):
            yield folder / f"{name}.json"
        yield folder / f"annotations_{word}.json"
        yield folder / f"{word}_annotations.json"
    for name in WHOLE_FILES:
        yield root / word / name
    yield root / word / f"{word}.json"


def _folder_candidates(root: Path, json_path: Path, word: str) -> list[Path]:
    if json_path.parent.name == word:  # annotations and images of a split in one folder
        return [json_path.parent / "images", json_path.parent]
    of_split = [parent / name for parent in (root, root / "images") for name in (f"{word}2017", word)]
    return [*of_split, root / "images", root / "JPEGImages", root]


def _image_folder(candidates: Sequence[Path]) -> Path | None:
    """Return the first folder that holds an image, itself or in its subfolders."""
    return next((folder for folder in candidates if folder.is_dir() and _holds_images(folder)), None)


def _holds_images(folder: Path) -> bool:
    entries = islice(chain(folder.iterdir(), folder.rglob("*")), MOST_ENTRIES)
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in entries)


def _kind_of(root: Path, train_json: Path) -> str:
    if train_json.name == ROBOFLOW_FILE:
        return "a Roboflow export"
    if train_json == root / "annotations" / "instances_train2017.json":
        return "COCO's layout"
    if train_json.parent == root:
        return "annotation files beside folders of images"
    return "annotations and images in folders of their own"


def _only_file(root: Path, named: dict[str, SplitPaths]) -> SplitPaths:
    """Return the one annotation file of a folder without splits.

    Errors: DataError where there is none, or several whose names say nothing.
    """
    apart = {part.json_path.resolve() for part in named.values()}
    folders = [folder for folder in (root, root / "annotations") if folder.is_dir()]
    files = [path for folder in folders for path in sorted(folder.glob("*.json")) if path.resolve() not in apart]
    known = [path for path in files if path.name in WHOLE_FILES]
    if len(known or files) != 1:
        raise _not_found(root, files)
    (json_path,) = known or files
    folder = _image_folder((root / "images", root / json_path.stem, root / "JPEGImages", root))
    if folder is None:
        fix = "Put the images into images/ beside the annotations."
        raise _error(json_path, "the images of the data set", f"There is no image in {root}.", fix)
    return SplitPaths(json_path, folder)


def _named_part(path: Path, split: str) -> SplitPaths:
    """Return the part that a path names: an annotation file with its images near, or a folder that holds both.

    Errors: DataError where something is missing.
    """
    if path.is_file():
        parent = path.parent
        words = [f"{word}{year}" for word in SPLIT_NAMES[split] for year in ("2017", "")]
        words.insert(0, path.stem.removeprefix("instances_"))
        named = [folder / word for folder in (parent, parent / "images", parent.parent) for word in words]
        folder = _image_folder([*named, parent / "images", parent, parent.parent / "images"])
        if folder is None:
            fix = "Put them into a folder of the file's name, or into images/ beside it."
            raise _error(path, f"the images of {split}", f"No folder near {path} holds images.", fix)
        return SplitPaths(path, folder)
    if not path.is_dir():
        option = "DATA" if split == "train" else f"--{split}"
        raise _error(path, option, "There is no such file or folder.", "Give an annotation file, or its folder.")
    return _find_split(path, split) or _only_file(path, {})


def _not_found(root: Path, files: Sequence[Path]) -> DataError:
    fix = "Arrange the files in one of these ways, or give the annotation file itself, with --val for a second one."
    entries = sorted(path.name + "/" * path.is_dir() for path in islice(root.iterdir(), MOST_ENTRIES))
    shown = ", ".join(entries[:SHOWN_ENTRIES]) or "nothing"
    if len(entries) > SHOWN_ENTRIES:
        shown += f" and {len(entries) - SHOWN_ENTRIES} more"
    message = "No COCO annotations were found."
    if len(files) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in files[:SHOWN_ENTRIES])
        message = f"Several annotation files, whose names do not say which to train on: {names}."
    for pattern, name, about in () if files else OTHER_FORMATS:
        if next(root.glob(pattern), None) is not None:
            message += f" It looks like {name}: {about}."
            fix = "Export the data set again as COCO with segmentation."
            break
    return _error(root, "annotations", f"{message} Looked for {LOOKED_FOR}. Found: {shown}.", fix)


def _error(path: Path, where: str, message: str, fix: str) -> DataError:
    field = where if where in ("--val", "--test") else "DATA"
    return DataError([Problem(file=str(path), where=where, field=field, value=str(path), message=message, fix=fix)])
