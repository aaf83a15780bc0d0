"""Where annotations and images are found, by folder trees that hold empty files."""

from pathlib import Path

import pytest

from maskperf.data.coco.layout import find_layout
from maskperf.errors import DataError

ROBOFLOW = "_annotations.coco.json"


def tree(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def found(root: Path, part) -> str:
    """Return file and folder with a blank between, empty where there is no such part."""
    return "" if part is None else f"{part.json_path.relative_to(root)} {part.image_folder.relative_to(root)}"


IN_FOLDERS, ALONE = "annotations and images in folders of their own", "one annotation file and its images"
TRAIN, VAL = "annotations/instances_train2017.json", "annotations/instances_val2017.json"
CASES = [  # files, what is said, and what is found: train, val and test
    (f"{TRAIN} {VAL} train2017/1.jpg val2017/2.jpg", "COCO's layout", f"{TRAIN} train2017", f"{VAL} val2017", ""),
    (
        f"train/{ROBOFLOW} train/1.jpg valid/{ROBOFLOW} valid/2.jpg test/{ROBOFLOW} test/3.jpg",
        "a Roboflow export",
        *(f"{folder}/{ROBOFLOW} {folder}" for folder in ("train", "valid", "test")),
    ),
    (
        "train.json train/1.png val.json val/2.PNG",
        "annotation files beside folders of images",
        *("train.json train", "val.json val", ""),
    ),
    (
        "annotations/train.json annotations/validation.json images/train/1.jpg images/validation/2.jpg",
        IN_FOLDERS,
        *("annotations/train.json images/train", "annotations/validation.json images/validation", ""),
    ),
    ("annotations/train.json images/a/1.jpg", IN_FOLDERS, "annotations/train.json images", "", ""),
    (
        "train/annotations.json train/images/1.jpg test/annotations.json test/images/2.jpg",
        IN_FOLDERS,
        *("train/annotations.json train/images", "", "test/annotations.json test/images"),
    ),
    ("result.json images/1.jpg", ALONE, "result.json images", "", ""),
    (f"{ROBOFLOW} 1.jpg other.json", ALONE, f"{ROBOFLOW} .", "", ""),
    ("annotations/all.json 1.tif", ALONE, "annotations/all.json .", "", ""),
]


@pytest.mark.parametrize(("files", "kind", "train", "val", "test"), CASES)
def test_a_layout_is_found_and_said(tmp_path, files, kind, train, val, test):
    layout = find_layout(tree(tmp_path, *files.split()))
    parts = (layout.train, layout.val, layout.test)
    assert (layout.kind, *(found(tmp_path, part) for part in parts)) == (kind, train, val, test)
    said = "\n".join(layout.lines())
    assert kind in said and all(str(part.json_path) in said for part in parts if part is not None)


def test_parts_that_are_elsewhere_are_named_by_a_file_or_a_folder(tmp_path):
    root = tree(tmp_path, "a/data.json", "a/images/1.jpg", "b/check.json", "b/check/2.jpg", f"c/{ROBOFLOW}", "c/3.jpg")
    layout = find_layout(root / "a", val=root / "b" / "check.json", test=root / "c")
    assert found(root, layout.val) == "b/check.json b/check"
    assert found(root, layout.test) == f"c/{ROBOFLOW} c"
    assert found(root, find_layout(root / "b" / "check.json").train) == "b/check.json b/check"


def test_a_val_inside_of_the_folder_does_not_count_as_a_second_file(tmp_path):
    root = tree(tmp_path, "mine.json", "held_out.json", "images/1.jpg")
    layout = find_layout(root, val=root / "held_out.json")
    assert found(root, layout.train) == "mine.json images"
    assert found(root, layout.val) == "held_out.json images"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("a.json", "b.json", "1.jpg"), ("Several annotation files", "a.json, b.json", "--val")),
        (("notes.txt",), ("No COCO annotations", "Looked for", "train/_annotations.coco.json", "Found: notes.txt")),
        (("data.yaml", "train/labels/1.txt", "train/images/1.jpg"), ("looks like YOLO", "Export", "segmentation")),
        (("x/Annotations/1.xml", "x/JPEGImages/1.jpg"), ("looks like Pascal VOC",)),
        (("train.json",), ("train.json", "no image")),
        ((), ("No COCO annotations", "Found: nothing")),
    ],
)
def test_what_is_not_found_is_an_error_that_says_what_is_there(tmp_path, files, words):
    with pytest.raises(DataError) as caught:
        find_layout(tree(tmp_path, *files))
    assert all(word in str(caught.value) for word in (*words, "Fix: ", str(tmp_path)))


def test_a_path_that_does_not_exist_is_named(tmp_path):
    root = tree(tmp_path, "a.json", "1.jpg")
    for arguments in ({"data": root / "none"}, {"data": root, "val": root / "none.json"}):
        with pytest.raises(DataError, match="none"):
            find_layout(**arguments)
