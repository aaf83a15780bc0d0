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
def index(tmp_path):
    return image_index(tmp_path, [(HEIGHT, WIDTH)] * NUM_IMAGES, first_id=1, suffix="png")


@pytest.fixture
def bad_index(index):
    """One image is missing, two are cut short, one is broken inside only, one has its sides swapped."""
    folder = index.image_folder
    (folder / "2.png").unlink()
    for name in ("3.png", "7.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-3000])
    inside = bytearray((folder / "5.png").read_bytes())
    inside[2000:2100] = bytes(100)
    (folder / "5.png").write_bytes(inside)
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "6.png")
    return index


def image_ids(problems) -> list[int]:
    return [int(problem.where.removeprefix("image id ")) for problem in problems]


def rewrite(index, change):
    document = json.loads(index.json_path.read_text())
    change(document)
    index.json_path.write_text(json.dumps(document))


def opened(index, *, training=True):
    return open_split(index.json_path, index.image_folder, DataConfig(), training=training)


@pytest.mark.parametrize("data", [DataConfig(), SKIPPING])
def test_good_images_pass_without_a_notice(index, data):
    assert prepare_images(index, data) == (index, (), [])


@pytest.mark.parametrize("decode", [False, True])
def test_problems_of_names_and_files_come_in_one_pass_by_image_and_decoding_finds_more(bad_index, decode):
    progress, fields = [], {2: "file_name", 3: "pixels", 5: "pixels", 6: "height, width", 7: "pixels"}
    index, notices, problems = prepare_images(
        bad_index, DataConfig(), decode=decode, progress=lambda *counts: progress.append(counts)
    )
    assert (len(index.image_ids), notices) == (NUM_IMAGES, ())
    expected = {image_id: field for image_id, field in fields.items() if decode or image_id != 5}
    assert dict(zip(image_ids(problems), (problem.field for problem in problems), strict=True)) == expected
    assert progress[-1] == ((7, 7) if decode else (3, 3))


def test_bad_images_are_left_out_with_counts_where_this_was_asked_for(bad_index):
    index, notices, problems = prepare_images(bad_index, SKIPPING)
    assert (index.image_ids.tolist(), len(index.boxes), problems) == ([1, 4, 8], 3, [])
    assert not index.is_plain
    assert [notice.partition(" images left out (data.skip_bad=true)")[0] for notice in notices] == ["1", "3", "1"]
    assert [notice.partition("first ids: ")[2] for notice in notices] == ["2)", "3, 5, 7)", "6)"]
    assert "The image is cut short or broken" in notices[1]


def test_renamed_files_of_the_rest_keep_their_new_names(bad_index):
    rewrite(bad_index, lambda document: [row.update(file_name="x\\" + row["file_name"]) for row in document["images"]])
    written = read_coco(bad_index.json_path, bad_index.image_folder, training=True)
    index, notices, problems = prepare_images(written, SKIPPING)
    assert (index.file_names, problems) == (("1.png", "4.png", "8.png"), [])
    assert notices[0].startswith("7 of 8 file names")


def test_where_no_image_is_left_it_is_an_error(index):
    for name in index.file_names:
        (index.image_folder / name).write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        prepare_images(index, SKIPPING)
    first, *others = caught.value.problems
    assert (first.where, first.value, len(others)) == ("all images", "8 images", NUM_IMAGES)


def test_a_split_is_opened_with_its_notices(index):
    (index.image_folder / "sub").mkdir()
    (index.image_folder / "4.png").rename(index.image_folder / "sub" / "4.png")
    split, error = opened(index, training=False)
    assert (error, split.file_names[3]) == (None, "sub/4.png")
    assert "1 of 1 file names" in split.notices[-1] and "sub/" in split.notices[-1]
    (index.image_folder / "2.png").unlink()
    split, error = opened(index, training=False)
    assert (len(split.image_ids), image_ids(error.problems)) == (NUM_IMAGES, [2])
    assert error.notices[-1].startswith(f"{index.json_path}: 1 of 2 file names")


def test_a_split_whose_annotations_have_errors_has_no_index_and_all_problems(index):
    rewrite(index, lambda document: document["annotations"][0].update(bbox=[5.0, 5.0, -1.0, 10.0]))
    (index.image_folder / "3.png").write_bytes(b"")
    split, error = opened(index)
    assert split is None
    assert [problem.file for problem in error.problems] == [str(index.json_path), str(index.image_folder / "3.png")]
    index.json_path.write_text("{")
    split, error = opened(index)
    assert split is None
    assert [problem.file for problem in error.problems] == [str(index.json_path)]
