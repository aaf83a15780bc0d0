import os
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from coco_folder import HEIGHT, WIDTH, annotation, good_document, read

from maskperf.data.coco import file_names
from maskperf.data.coco.file_names import list_files, resolve_file_names
from maskperf.errors import DataError

NFC, NFD = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def index_of(folder, names, files, ids=None):
    """Return the index of images with these names, in a folder with these (empty) files."""
    images = [
        {"id": key, "file_name": name, "height": HEIGHT, "width": WIDTH}
        for key, name in zip(ids or range(1, len(names) + 1), names, strict=True)
    ]
    annotations = [annotation(number, row["id"]) for number, row in enumerate(images, start=1)]
    for path in [folder / "images" / file for file in files]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    index = read(folder, good_document() | {"images": images, "annotations": annotations})
    return replace(index, image_folder=folder / "images")


# names in the JSON, files in the folder, each with commas between; what the notice reports of the reading
FITTING = {
    "backslash": ("sub\\a.jpg,sub\\b.jpg", "sub/a.jpg,sub/b.jpg", "with / for each backslash"),
    "two backslashes": ("x\\y\\a.jpg", "x/y/a.jpg", "with / for each backslash"),
    "percent": ("a%20%C3%A9.jpg,b%20c.jpg", "a \u00e9.jpg,b c.jpg", "percent-decoded"),
    "percent in a folder": ("my%20files/a.jpg", "my files/a.jpg", "percent-decoded"),
    "percent and backslash": (
        "s%5Ca%20b.jpg,s%5Cc.jpg",
        "s/a b.jpg,s/c.jpg",
        "percent-decoded and with / for each backslash",
    ),
    "percent and plain": ("t\\a.jpg,t\\b%20c.jpg", "t/a.jpg,t/b c.jpg", "percent-decoded and with /"),
    "percent on the disk": ("a b.jpg", "a%20b.jpg", "percent-encoded"),
    "backslash on the disk": ("sub/a.jpg", "sub\\a.jpg", "with a backslash for each /"),
    "one folder dropped": ("train/a.jpg,train/b.jpg", "a.jpg,b.jpg", "without the first 1 of their folders"),
    "two of three folders dropped": ("data/x/s/a.jpg", "s/a.jpg", "without the first 2 of their folders"),
    "base names of different depth": ("x/y/a.jpg,z/b.jpg", "a.jpg,b.jpg", "without the leading folders"),
    "absolute": ("/home/me/data/a.jpg,/home/me/data/b.jpg", "a.jpg,b.jpg", "without the first 3"),
    "absolute, below the folder": ("/sub/a.jpg", "sub/a.jpg", "found below the image folder"),
    "a folder up": ("../images/a.jpg", "a.jpg", "without the first 2 of their folders"),
    "drive letter": ("C:\\data\\a.jpg", "a.jpg", "with / for each backslash, without the first 1"),
    "drive letter and slash": ("D:/data/a.jpg", "data/a.jpg", "found below the image folder"),
    "subfolder": ("a.jpg,b.jpg", "images/a.jpg,images/b.jpg", "in the subfolder images/"),
    "subfolder of a subfolder": ("x/a.jpg", "images/train/x/a.jpg", "in the subfolder images/train/"),
    "any subfolder": ("a.jpg,b.jpg", "cats/a.jpg,dogs/b.jpg", "in a subfolder"),
    "another folder": ("old/a.jpg,old/b.jpg", "new/a.jpg,new/b.jpg", "1 of their folders, in the subfolder new/"),
    "letter case of the ending": ("a.jpg,b.jpg", "a.JPG,b.JPG", "letter case"),
    "letter case of a folder": ("Images/A.jpg", "images/a.jpg", "letter case"),
    "letter case and backslash": ("Sub\\A.jpg,sub\\b.jpg", "sub/a.jpg,sub/b.jpg", "backslash, in other letter case"),
    "Unicode form": (f"{NFC}.jpg", f"{NFD}.jpg", "Unicode form"),
    "Unicode form, the other way": (f"{NFD}.jpg", f"{NFC}.jpg", "Unicode form"),
    "URL": ("http://host/train2017/000009.jpg", "000009.jpg", "as the path of a URL, without the first 1"),
    "URLs of different depth": ("https://h/a/1.jpg,https://h/2.jpg", "1.jpg,2.jpg", "as the path of a URL"),
    "URL with a query": ("https://h/x/my%20cat.jpg?size=2#top", "my cat.jpg", "as the path of a URL"),
    "URL of a bucket": ("s3://bucket/a/1.jpg,s3://bucket/a/2.jpg", "a/1.jpg,a/2.jpg", "path of a URL"),
    "URL of a file": ("file:///data/set/1.jpg", "1.jpg", "as the path of a URL"),
    "Label Studio's local files": ("/data/local-files/?d=set/1.jpg", "1.jpg", "without the first 3"),
}


@pytest.mark.parametrize(("names", "files", "fact"), FITTING.values(), ids=FITTING)
def test_the_reading_that_fits_is_used_and_described(tmp_path, names, files, fact):
    names, files = names.split(","), files.split(",")
    index = index_of(tmp_path, names, files)
    resolved, (notice,), problems = resolve_file_names(index)
    assert resolved.file_names == tuple(files) and problems == []
    assert all(resolved.image_path(position).is_file() for position in range(len(files)))
    assert notice.startswith(f"{len(names)} of {len(names)} file names that do not exist as written were found ")
    assert fact in notice and notice.endswith(f"{names[0]!r} -> {files[0]!r}")
    np.testing.assert_array_equal(resolved.boxes, index.boxes)


@pytest.mark.parametrize(
    "name", ["a.jpg", "sub/a.jpg", "./a.jpg", "sub//a.jpg", "x%20.jpg", "a\\b.jpg", "c:a.jpg", "A.jpg"]
)
def test_names_that_are_there_stay_as_they_are(tmp_path, name, monkeypatch):
    index = index_of(tmp_path, [name], [name, "a.jpg"])
    monkeypatch.setattr(file_names, "list_files", None)  # subfolders are walked only if something is missing
    assert resolve_file_names(index) == (index, (), [])


def test_what_stays_missing_is_a_problem_with_all_that_was_tried(tmp_path):
    names = ["sub\\a.jpg", "sub\\b%20c.jpg", "sub\\d.jpg"]
    index = index_of(tmp_path, names, ["sub/a.jpg", "sub/d.jpg"], [5, 6, 7])
    resolved, (notice,), ((position, problem),) = resolve_file_names(index)
    assert resolved.file_names == ("sub/a.jpg", names[1], "sub/d.jpg")
    assert notice.startswith("2 of 3 file names") and position == 1
    assert (problem.file, problem.where, problem.field) == (str(index.json_path), "image id 6", "file_name")
    assert problem.value == repr(names[1]) and str(tmp_path / "images") in problem.message
    for tried in ("/ for each backslash", "percent-decoded and", "percent-encoded", "subfolders", "letter case"):
        assert tried in problem.message
    assert "data.skip_bad=true" in problem.fix


def test_the_id_of_a_message_is_that_of_the_file_and_only_what_changes_a_name_was_tried(tmp_path):
    _, notices, problems = resolve_file_names(index_of(tmp_path, ["a.jpg", "b.jpg"], ["c.jpg"], ["cat-1", "cat-2"]))
    assert notices == () and [problem.where for _, problem in problems] == ["image id 'cat-1'", "image id 'cat-2'"]
    assert problems[0][1].message.endswith(". Looked for as well: in other letter case and Unicode form.")


# names in the JSON, files in the folder, what is resolved; the fact that the notice names
PARTLY = {
    "the reading that finds most": (
        "sub\\a.jpg,sub\\b.jpg,x%20.jpg",
        "sub/a.jpg,sub/b.jpg,other.jpg",
        "sub/a.jpg,sub/b.jpg,x%20.jpg",
        "with / for each backslash",
    ),
    "the best without a double": (
        "train/1.jpg,train/2.jpg,val/1.jpg",
        "x/train/1.jpg,x/train/2.jpg,1.jpg",
        "x/train/1.jpg,x/train/2.jpg,val/1.jpg",
        "in the subfolder x/",
    ),
    "beside files that are there": ("a.jpg,s\\b.jpg", "a.jpg,s/b.jpg,s/a.jpg", "a.jpg,s/b.jpg", "1 of 1 "),
    "several files fit one": (
        "1.jpg,2.jpg",
        "images/1.jpg,masks/1.jpg,images/2.jpg",
        "1.jpg,images/2.jpg",
        "in the subfolder images/",
    ),
    "both would be the same file": ("train/1.jpg,val/1.jpg", "1.jpg", "train/1.jpg,val/1.jpg", None),
    "the same but for letter case": ("A.jpg,a.jpg", "a.JPG", "A.jpg,a.jpg", None),
    "the file of another image": ("1.jpg,old/1.jpg", "1.jpg", "1.jpg,old/1.jpg", None),
    "one of two": ("1.jpg", "x/1.jpg,y/1.jpg", "1.jpg", None),
    "two of four": ("1.jpg,2.jpg", "images/1.jpg,masks/1.jpg,images/2.jpg,masks/2.jpg", "1.jpg,2.jpg", None),
    "two spellings": ("a.jpg", "A.jpg,a.JPG", "a.jpg", None),
    "two hosts": ("https://h/1.jpg,https://i/1.jpg", "1.jpg", "https://h/1.jpg,https://i/1.jpg", None),
}


@pytest.mark.parametrize(("names", "files", "expected", "fact"), PARTLY.values(), ids=PARTLY)
def test_no_file_is_given_to_two_images_or_chosen_of_two(tmp_path, names, files, expected, fact):
    names, files, expected = names.split(","), files.split(","), expected.split(",")
    resolved, notices, problems = resolve_file_names(index_of(tmp_path, names, files))
    assert resolved.file_names == tuple(expected)
    assert [position for position, _ in problems] == [at for at, name in enumerate(expected) if name not in files]
    assert len(notices) == (fact is not None) and (fact or "") in "".join(notices)
    if files[1:2] == ["masks/1.jpg"]:
        assert problems[0][1].value == "'1.jpg' (images/1.jpg or masks/1.jpg?)"
        assert "Several files fit" in problems[0][1].message


OUTSIDE = ["../secret.jpg", "/tmp/secret.jpg", "..\\secret.jpg", "sub/../../secret.jpg", "%2e%2e/secret.jpg"]
IMPOSSIBLE = ["x" * 5000 + "/a.jpg", "data:image/png;base64," + "A/B" * 2000, "http://[::1/a.jpg", "%ff%fe.jpg"]


@pytest.mark.parametrize("name", [*OUTSIDE, "C:\\secret.jpg", *IMPOSSIBLE])
def test_nothing_outside_of_the_image_folder_and_no_impossible_name_is_found(tmp_path, name):
    index = index_of(tmp_path, [name], ["other.jpg", "sub/other.jpg"])
    (tmp_path / "secret.jpg").touch()
    _, notices, ((_, problem),) = resolve_file_names(index)
    assert notices == () and len(problem.value) <= 80


def test_an_absolute_name_of_a_file_that_exists_is_not_used_as_it_is(tmp_path):
    outside = tmp_path / "a.jpg"
    outside.touch()
    resolved, (_,), problems = resolve_file_names(index_of(tmp_path, [str(outside)], ["a.jpg"]))
    assert resolved.file_names == ("a.jpg",) and problems == []


def test_links_in_the_folder_are_followed_and_circles_end(tmp_path):
    index = index_of(tmp_path, ["set\\a.jpg"], ["b.jpg"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").touch()
    (tmp_path / "images" / "set").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "images")
    assert list_files(tmp_path / "images") == ["b.jpg", "set/a.jpg"]
    resolved, _, problems = resolve_file_names(index)
    assert resolved.file_names == ("set/a.jpg",) and problems == []


def test_a_walk_that_is_too_long_ends_with_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(file_names, "MAX_FILES", 3)
    files = [f"s/{number}.jpg" for number in range(9)]
    _, _, ((_, problem),) = resolve_file_names(index_of(tmp_path, ["a.jpg"], files))
    assert "in the subfolders (the first 3 files)" in problem.message
    assert len(list_files(tmp_path / "images")) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_subfolder_that_cannot_be_read_is_passed_over(tmp_path):
    index = index_of(tmp_path, ["a.jpg"], ["s/a.jpg", "t/b.jpg"])
    (tmp_path / "images" / "t").chmod(0)
    resolved, _, _ = resolve_file_names(index)
    (tmp_path / "images" / "t").chmod(0o700)
    assert resolved.file_names == ("s/a.jpg",)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    index = index_of(tmp_path, ["a.jpg"], ["a.jpg"])
    with pytest.raises(DataError, match="The folder cannot be listed") as caught:
        resolve_file_names(replace(index, image_folder=index.image_path(0)))
    assert caught.value.problems[0].value == "Not a directory"
