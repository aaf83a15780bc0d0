import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from maskperf.demo import dataset as demo_dataset
from maskperf.demo.dataset import holds_own_data, write_demo_dataset
from maskperf.demo.images import draw_image
from maskperf.errors import ConfigError, StorageError

# pycocotools' decode predates numpy 2 and says so.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COUNTS = {"train_images": 40, "val_images": 3, "seed": 7}
TINY = {"train_images": 2, "val_images": 1, "seed": 7}


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "new" / "data"
    write_demo_dataset(folder, **COUNTS)
    return folder


@pytest.fixture(scope="module")
def train(root) -> COCO:
    return COCO(str(root / "annotations" / "instances_train2017.json"))


def test_the_same_settings_give_the_same_bytes(root, tmp_path):
    write_demo_dataset(tmp_path / "again", **COUNTS)
    assert digests(tmp_path / "again") == digests(root)
    assert len(digests(root)) == 40 + 3 + 2 + 1


def test_other_counts_leave_the_first_images_as_they_were_and_another_seed_none(root, tmp_path):
    write_demo_dataset(tmp_path / "few", **TINY)
    write_demo_dataset(tmp_path / "other", **{**TINY, "seed": 8})
    few, many = digests(tmp_path / "few" / "train2017"), digests(root / "train2017")
    assert few.items() <= many.items() and len(few) == 2
    assert not set(digests(tmp_path / "other").values()) & set(digests(root).values())


def test_the_document_has_the_fields_of_coco(root):
    document = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    assert list(document) == ["info", "licenses", "images", "annotations", "categories"]
    fields = {kind: {name for entry in document[kind] for name in entry} for kind in list(document)[2:]}
    assert fields == {
        "images": {"id", "file_name", "height", "width", "license"},
        "annotations": {"segmentation", "area", "iscrowd", "image_id", "bbox", "category_id", "id"},
        "categories": {"supercategory", "id", "name"},
    }
    assert [entry["id"] for entry in document["categories"]] == [1, 2, 4, 7, 8, 11, 13, 16]


def test_every_listed_image_exists_with_its_size_and_name(root, train):
    for entry in train.imgs.values():
        assert entry["file_name"] == f"{entry['id']:012d}.jpg"
        with Image.open(root / "train2017" / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"]) and image.mode == "RGB"
    assert len(list((root / "train2017").iterdir())) == len(train.imgs) == 40
    val = COCO(str(root / "annotations" / "instances_val2017.json"))
    assert not set(train.imgs) & set(val.imgs) and len(val.imgs) == 3
    assert sorted(train.anns) == list(range(1, len(train.anns) + 1))


def test_areas_and_boxes_are_those_of_the_rasterised_mask(train):
    for entry in train.anns.values():
        mask = train.annToMask(entry)
        ys, xs = np.nonzero(mask)
        assert entry["area"] == mask.sum() >= 40
        assert entry["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert min(entry["bbox"][2:]) > 4


def test_polygons_and_run_lengths_say_exactly_what_is_visible(train):
    instances = [instance for index in range(40) for instance in draw_image(0, index, 7).instances]
    for entry, instance in zip(train.anns.values(), instances, strict=True):
        np.testing.assert_array_equal(train.annToMask(entry), instance.visible)


def test_crowds_are_run_lengths_and_single_instances_are_polygons(train):
    crowds = [entry for entry in train.anns.values() if entry["iscrowd"]]
    singles = [entry for entry in train.anns.values() if not entry["iscrowd"]]
    assert len(crowds) == 2 and all(set(entry["segmentation"]) == {"counts", "size"} for entry in crowds)
    for polygon in (polygon for entry in singles for polygon in entry["segmentation"]):
        assert len(polygon) >= 6 and len(polygon) % 2 == 0
    assert any(len(entry["segmentation"]) > 1 for entry in singles)
    assert [image_id for image_id in train.imgs if not train.getAnnIds(imgIds=[image_id])] == [2 * 16 + 1]


def test_the_same_data_set_is_written_once_and_then_does_nothing(tmp_path):
    assert write_demo_dataset(tmp_path, **TINY) is True
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_demo_dataset(tmp_path, **TINY) is False
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    assert json.loads((tmp_path / "demo.json").read_text()) == {**TINY, "format_version": 1}


@pytest.mark.parametrize("change", [{"seed": 8}, {"train_images": 3}, {"val_images": 2}])
def test_a_demo_data_set_with_other_settings_is_refused_with_both_named(change, tmp_path):
    settings = {**TINY, "format_version": 1}
    (tmp_path / "demo.json").write_text(json.dumps(settings))
    with pytest.raises(StorageError) as caught:
        write_demo_dataset(tmp_path, **{**TINY, **change})
    keys = "set data.generate_images=2,1,7 to use this one"
    assert all(str(part) in str(caught.value) for part in (tmp_path, settings, {**settings, **change}, keys))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("file", "text", "root", "message"),
    [
        ("demo.json", json.dumps({**TINY, "format_version": 0}), ".", "'format_version': 0"),
        *[("demo.json", text, ".", "demo.json that cannot be read") for text in ("{", "[1, 2]", "\x00")],
        ("train2017/mine.jpg", "mine", ".", "not empty and holds no demo.json.*data.root.*data.train_json"),
        ("file", "text", "file", "this is a file"),
        ("file", "text", "file/data", "cannot write the demo data set"),
    ],
)
def test_a_root_that_cannot_be_used_is_refused_and_untouched(tmp_path, file, text, root, message):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    before = digests(tmp_path)
    with pytest.raises(StorageError, match=message):
        write_demo_dataset(tmp_path / root, **TINY)
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["annotations/instances_train2017.json"], True),
        (["annotations/instances_train2017.json", "demo.json"], False),
        (["annotations/instances_train2017.json", "demo.partial"], False),
        (["annotations/instances_val2017.json", "train2017/a.jpg"], False),
    ],
)
def test_own_data_is_distinguished_from_generated_data(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert holds_own_data(tmp_path) is expected
    assert holds_own_data(tmp_path / "nowhere") is False


def test_an_interrupted_generation_is_repeated(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(demo_dataset, "_annotation", lambda *_: 1 / 0)
        write_demo_dataset(tmp_path / "demo", **TINY)
    assert (tmp_path / "demo" / "demo.partial").exists() and not (tmp_path / "demo" / "demo.json").exists()
    (tmp_path / "demo" / "train2017" / "left_over.jpg").write_bytes(b"half")
    assert write_demo_dataset(tmp_path / "demo", **TINY) is True
    write_demo_dataset(tmp_path / "clean", **TINY)
    assert digests(tmp_path / "demo") == digests(tmp_path / "clean")


@pytest.mark.parametrize("name", ["train_images", "val_images"])
def test_a_split_without_images_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="data.generate_images is (0,1|2,0)"):
        write_demo_dataset(tmp_path / "demo", **{**TINY, name: 0})
    assert not (tmp_path / "demo").exists()
