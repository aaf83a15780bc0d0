import json

import pytest
from image_folder import image_index
from PIL import Image

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.images.files import open_split, prepare_images
from maskperf.errors import DataError

SKIPPING = DataConfig(skip_bad=True)
NUM_IMAGES, HEIGHT, WIDTH = 8, 40, 60


@pytest.fixture
def folder(tmp_path):
    image_index(tmp_path, [(HEIGHT, WIDTH)] * NUM_IMAGES, first_id=1, suffix="png")
    (tmp_path / "images").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "images" / path.name)
    return tmp_path


def index_of(folder):
    return read_coco(folder / "instances.json", folder / "images", training=True)


def break_images(folder) -> None:
    """One is missing, two are cut short, one is broken inside only, one has its sides swapped."""
    images = folder / "images"
    (images / "2.png").unlink()
    for name in ("3.png", "7.png"):
        (images / name).write_bytes((images / name).read_bytes()[:-3000])
    inside = bytearray((images / "5.png").read_bytes())
    inside[2000:2100] = bytes(100)
    (images / "5.png").write_bytes(inside)
    Image.new("RGB", (HEIGHT, WIDTH)).save(images / "6.png")


def image_ids(problems) -> list[int]:
    return [int(problem.where.removeprefix("image id ")) for problem in problems]


@pytest.mark.parametrize("data", [DataConfig(), SKIPPING])
def test_good_images_pass_without_a_notice(folder, data):
    index = index_of(folder)
    assert prepare_images(index, data) == (index, (), [])


def test_problems_of_names_and_heads_come_in_one_pass_by_image(folder):
    break_images(folder)
    index, notices, problems = prepare_images(index_of(folder), DataConfig())
    assert len(index.image_ids) == NUM_IMAGES
    assert notices == ()
    assert image_ids(problems) == [2, 3, 6, 7]
    assert [problem.field for problem in problems] == ["file_name", "pixels", "height, width", "pixels"]


def test_decoding_finds_what_a_look_does_not(folder):
    break_images(folder)
    progress = []
    _, _, problems = prepare_images(
        index_of(folder), DataConfig(), decode=True, progress=lambda done, total: progress.append((done, total))
    )
    assert image_ids(problems) == [2, 3, 5, 6, 7]
    assert progress[-1] == (7, 7)


def test_bad_images_are_left_out_with_counts_where_this_was_asked_for(folder):
    break_images(folder)
    index, notices, problems = prepare_images(index_of(folder), SKIPPING)
    assert problems == []
    assert index.image_ids.tolist() == [1, 4, 8]
    assert len(index.boxes) == 3
    assert not index.is_plain
    assert [notice.partition(" images left out (data.skip_bad=true)")[0] for notice in notices] == ["1", "3", "1"]
    assert [notice.partition("first ids: ")[2] for notice in notices] == ["2)", "3, 5, 7)", "6)"]
    assert "The image is cut short or broken" in notices[1]


def test_renamed_files_of_the_rest_keep_their_new_names(folder):
    document = json.loads((folder / "instances.json").read_text())
    for row in document["images"]:
        row["file_name"] = "images\\" + row["file_name"]
    (folder / "instances.json").write_text(json.dumps(document))
    break_images(folder)
    index, notices, problems = prepare_images(index_of(folder), SKIPPING)
    assert index.file_names == ("1.png", "4.png", "8.png")
    assert notices[0].startswith("7 of 8 file names")
    assert problems == []


def test_where_no_image_is_left_it_is_an_error(folder):
    for path in (folder / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        prepare_images(index_of(folder), SKIPPING)
    first, *others = caught.value.problems
    assert (first.where, first.value) == ("all images", "8 images")
    assert len(others) == NUM_IMAGES


def test_the_limit_of_pixels_is_that_of_the_configuration(folder):
    _, _, problems = prepare_images(index_of(folder), DataConfig(max_image_pixels=HEIGHT * WIDTH - 1))
    assert len(problems) == NUM_IMAGES
    assert all("data.max_image_pixels=2400" in problem.fix for problem in problems)


def test_a_split_is_opened_with_its_notices(folder):
    json_path, images = folder / "instances.json", folder / "images"
    (images / "sub").mkdir()
    (images / "4.png").rename(images / "sub" / "4.png")
    index, error = open_split(json_path, images, DataConfig(), training=False)
    assert error is None
    assert index.file_names[3] == "sub/4.png"
    assert "1 of 1 file names" in index.notices[-1] and "sub/" in index.notices[-1]
    (images / "2.png").unlink()
    index, error = open_split(json_path, images, DataConfig(), training=False)
    assert len(index.image_ids) == NUM_IMAGES
    assert image_ids(error.problems) == [2]
    assert error.notices[-1].startswith(f"{json_path}: 1 of 2 file names")


def test_a_split_whose_annotations_have_errors_has_no_index_and_all_problems(folder):
    json_path = folder / "instances.json"
    document = json.loads(json_path.read_text())
    document["annotations"][0]["bbox"] = [5.0, 5.0, -1.0, 10.0]
    json_path.write_text(json.dumps(document))
    (folder / "images" / "3.png").write_bytes(b"")
    index, error = open_split(json_path, folder / "images", DataConfig(), training=True)
    assert index is None
    assert [problem.file for problem in error.problems] == [str(json_path), str(folder / "images" / "3.png")]
    json_path.write_text("{")
    index, error = open_split(json_path, folder / "images", DataConfig(), training=True)
    assert index is None
    assert [problem.file for problem in error.problems] == [str(json_path)]
