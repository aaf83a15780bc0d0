import json

import pytest
from coco_folder import HEIGHT, WIDTH, annotation, write_images, write_json
from PIL import Image

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.images.files import open_split, prepare_images
from maskperf.errors import DataError

SKIPPING = DataConfig(skip_bad=True)
NUM_IMAGES = 8


@pytest.fixture
def folder(tmp_path):
    names = [f"{number}.png" for number in range(1, NUM_IMAGES + 1)]
    images = [
        {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
        for number, name in enumerate(names, start=1)
    ]
    annotations = [annotation(100 + row["id"], row["id"]) for row in images]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "dog"}]}
    (tmp_path / "pictures").mkdir()
    write_images(tmp_path / "pictures", document)
    write_json(tmp_path, document)
    return tmp_path


def index_of(folder, *, training=True):
    return read_coco(folder / "instances.json", folder / "pictures", training=training)


def break_images(folder) -> None:
    """One is missing, two are cut short, one is broken inside only, one has its sides swapped."""
    pictures = folder / "pictures"
    (pictures / "2.png").unlink()
    for name in ("3.png", "7.png"):
        (pictures / name).write_bytes((pictures / name).read_bytes()[:-3000])
    inside = bytearray((pictures / "5.png").read_bytes())
    inside[2000:2100] = bytes(100)
    (pictures / "5.png").write_bytes(inside)
    Image.new("RGB", (HEIGHT, WIDTH)).save(pictures / "6.png")


def test_good_images_pass_without_a_word(folder):
    index = index_of(folder)
    assert prepare_images(index, DataConfig()) == (index, (), [])
    assert prepare_images(index, SKIPPING) == (index, (), [])


def test_problems_of_names_and_heads_come_in_one_pass_by_image(folder):
    break_images(folder)
    index, notices, problems = prepare_images(index_of(folder), DataConfig())
    assert len(index.image_ids) == NUM_IMAGES
    assert notices == ()
    assert [problem.where for problem in problems] == ["image id 2", "image id 3", "image id 6", "image id 7"]
    assert [problem.message.partition(".")[0] for problem in problems][1:] == [
        "The image is cut short or broken",
        "Width and height are swapped in the JSON",
        "The image is cut short or broken",
    ]


def test_decoding_finds_what_a_look_does_not(folder):
    break_images(folder)
    told = []
    _, _, problems = prepare_images(
        index_of(folder), DataConfig(), decode=True, progress=lambda done, total: told.append((done, total))
    )
    assert [problem.where for problem in problems] == [f"image id {number}" for number in (2, 3, 5, 6, 7)]
    assert told[-1] == (7, 7)


def test_bad_images_are_left_out_with_counts_where_this_was_asked_for(folder):
    break_images(folder)
    whole = index_of(folder)
    index, notices, problems = prepare_images(whole, SKIPPING)
    assert problems == []
    assert index.image_ids.tolist() == [1, 4, 8]
    assert len(index.boxes) == 3
    assert not index.is_plain
    assert notices == (
        f"1 images left out (data.skip_bad=true): There is no such file in {whole.image_folder} (first ids: 2)",
        "3 images left out (data.skip_bad=true): The image is cut short or broken (first ids: 3, 5, 7)",
        "1 images left out (data.skip_bad=true): Width and height are swapped in the JSON (first ids: 6)",
    )


def test_renamed_files_of_the_rest_keep_their_new_names(folder):
    document = json.loads((folder / "instances.json").read_text())
    for row in document["images"]:
        row["file_name"] = "pictures\\" + row["file_name"]
    write_json(folder, document)
    break_images(folder)
    index, notices, problems = prepare_images(index_of(folder), SKIPPING)
    assert index.file_names == ("1.png", "4.png", "8.png")
    assert notices[0].startswith("7 of 8 file names")
    assert problems == []


def test_where_no_image_is_left_it_is_an_error(folder):
    for path in (folder / "pictures").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        prepare_images(index_of(folder), SKIPPING)
    first, *others = caught.value.problems
    assert first.message == "Without the images that have errors (data.skip_bad=true), none is left."
    assert first.value == "8 images"
    assert len(others) == NUM_IMAGES


def test_the_limit_of_pixels_is_that_of_the_configuration(folder):
    _, _, problems = prepare_images(index_of(folder), DataConfig(max_image_pixels=HEIGHT * WIDTH - 1))
    assert len(problems) == NUM_IMAGES
    assert all("data.max_image_pixels=2400" in problem.fix for problem in problems)


def test_a_split_is_opened_with_its_notices(folder):
    json_path, pictures = folder / "instances.json", folder / "pictures"
    (pictures / "sub").mkdir()
    (pictures / "4.png").rename(pictures / "sub" / "4.png")
    index, error = open_split(json_path, pictures, DataConfig(), training=False)
    assert error is None
    assert index.file_names[3] == "sub/4.png"
    assert index.notices[-1].startswith(
        "1 of 1 file names that do not exist as written were found in the subfolder sub/"
    )
    (pictures / "2.png").unlink()
    index, error = open_split(json_path, pictures, DataConfig(), training=False)
    assert len(index.image_ids) == NUM_IMAGES
    assert [problem.where for problem in error.problems] == ["image id 2"]
    assert error.notices[-1].startswith(f"{json_path}: 1 of 2 file names")


def test_a_split_whose_annotations_cannot_be_read_has_no_index(folder):
    (folder / "instances.json").write_text("{")
    index, error = open_split(folder / "instances.json", folder / "pictures", DataConfig(), training=True)
    assert index is None
    assert error.problems[0].file == str(folder / "instances.json")
