import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from maskperf.data.coco.document import read_document
from maskperf.demo.dataset import write_demo_dataset
from maskperf.errors import DataError, StorageError
from maskperf.pictures import pictures
from maskperf.pictures.pictures import GridItem, choose_images, decode_outline, grid_from_results, prediction_grid

# pycocotools' decode predates numpy 2 and says so.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def item(height: int = 90, width: int = 120, *, names: tuple[str, ...] = ("cat",), found: int = 1) -> GridItem:
    mask = np.zeros((height, width), dtype=bool)
    mask[10:40, 20:60] = True
    return GridItem(
        pixels=np.full((height, width, 3), 90, dtype=np.uint8),
        truth_boxes=[[20, 10, 40, 30]] * len(names),
        truth_masks=[mask] * len(names),
        truth_names=names,
        predicted_boxes=[[22.5, 9.5, 41.0, 30.0]] * found,
        predicted_masks=[mask] * found,
        predicted_names=["dog"] * found,
        scores=[0.875] * found,
        caption="000000000001.jpg",
    )


def page_of(path: Path) -> np.ndarray:
    with Image.open(path) as page:
        assert page.format == "PNG"
        return np.asarray(page.convert("RGB"))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_picture_adds_to_a_page_of_bounded_width(count, tmp_path):
    prediction_grid([item(480, 640)] * count, ["cat", "dog"], tmp_path / "page.png")
    page = page_of(tmp_path / "page.png")
    assert page.shape[1] == (982 if count <= 2 else 1948)
    rows = count if count <= 2 else (count + 1) // 2
    assert page.shape[0] > rows * 345


def test_the_page_of_the_same_items_is_the_same(tmp_path):
    for name in ("one.png", "two.png"):
        prediction_grid([item(), item(160, 120)], ["cat", "dog"], tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_truth_is_on_the_left_and_predictions_on_the_right(tmp_path):
    prediction_grid([item()], ["cat", "dog"], tmp_path / "page.png")
    page = page_of(tmp_path / "page.png")[: -pictures.LEGEND_LINE_PX - 8]
    cat, dog = ((page == colour).all(axis=-1).any(axis=0).nonzero()[0] for colour in ((230, 57, 70), (251, 120, 20)))
    middle = page.shape[1] // 2
    assert cat.size > 100 and cat.max() < middle and dog.size > 100 and dog.min() > middle


def test_the_legend_shows_what_occurs_only_and_wraps(tmp_path):
    many = tuple(f"category number {index}" for index in range(30))
    prediction_grid([item(found=0)], ["cat", *many], tmp_path / "few.png")
    prediction_grid([item(names=many, found=0)], ["cat", *many], tmp_path / "many.png")
    added = page_of(tmp_path / "many.png").shape[0] - page_of(tmp_path / "few.png").shape[0]
    assert added >= 3 * pictures.LEGEND_LINE_PX and added % pictures.LEGEND_LINE_PX == 0


@pytest.mark.parametrize("name", ["", "\n", "x" * 5000, "\u732b", "\U0001f408", "\ud83d", "a\x00b", "\u0641\u0644"])
def test_odd_names_are_drawn(name, tmp_path):
    prediction_grid([item(names=(name,))], [name], tmp_path / "page.png")
    assert page_of(tmp_path / "page.png").shape[1] < 2000


def test_pictures_without_objects_or_detections_are_drawn(tmp_path):
    prediction_grid([item(names=(), found=0)], [], tmp_path / "page.png")
    assert page_of(tmp_path / "page.png").shape[0] > 270


def test_no_pictures_or_lists_of_unequal_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        prediction_grid([], ["cat"], tmp_path / "page.png")
    uneven = GridItem(**{**vars(item()), "scores": [0.5, 0.6]})
    with pytest.raises(ValueError, match="zip"):
        prediction_grid([uneven], ["cat"], tmp_path / "page.png")


def test_a_page_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="no_such_folder"):
        prediction_grid([item()], ["cat"], tmp_path / "no_such_folder" / "page.png")


def test_all_ways_to_write_an_outline_decode_to_the_same_mask():
    expected = np.zeros((5, 7), dtype=bool)
    expected[1:3, 2:6] = True
    polygons = [[2.0, 1.0, 4.0, 1.0, 4.0, 3.0, 2.0, 3.0], [4.0, 1.0, 6.0, 1.0, 6.0, 3.0, 4.0, 3.0]]
    counts = {"counts": [11, 2, 3, 2, 3, 2, 3, 2, 7], "size": [5, 7]}
    packed = coco_masks.encode(np.asfortranarray(expected.astype(np.uint8)))
    as_text = {"counts": packed["counts"].decode(), "size": [5, 7]}
    for outline in (polygons, counts, packed, as_text):
        np.testing.assert_array_equal(decode_outline(outline, (5, 7)), expected)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "data"
    write_demo_dataset(root, train_images=1, val_images=18, seed=5)
    return root


def perfect_results(json_path: Path) -> tuple[list[dict], list[dict]]:
    document = json.loads(json_path.read_text())
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in document["images"]}
    box_results, mask_results = [], []
    for entry in document["annotations"]:
        if not entry["iscrowd"]:
            code = coco_masks.merge(coco_masks.frPyObjects(entry["segmentation"], *sizes[entry["image_id"]]))
            code["counts"] = code["counts"].decode()
            score = 0.9 if entry["id"] % 2 else 0.3
            shared = {"image_id": entry["image_id"], "category_id": entry["category_id"], "score": score}
            box_results.append({**shared, "bbox": entry["bbox"]})
            mask_results.append({**shared, "segmentation": code})
    return box_results, mask_results


def items_drawn(demo: Path, monkeypatch, **options) -> list[GridItem]:
    drawn = []
    monkeypatch.setattr(pictures, "prediction_grid", lambda items, names, path: drawn.extend(items))
    val_json = demo / "annotations" / "instances_val2017.json"
    results = perfect_results(val_json)
    grid_from_results(read_document(val_json)[0], demo / "val2017", *results, path=demo / "page.png", **options)
    return drawn


def test_results_and_truth_meet_on_the_right_picture(demo, monkeypatch):
    items = items_drawn(demo, monkeypatch, num_images=6, min_score=0.0)
    assert len(items) == 6
    for entry in items:
        single = [place for place, is_crowd in enumerate(entry.truth_is_crowd) if not is_crowd]
        assert [entry.truth_names[place] for place in single] == list(entry.predicted_names)
        assert [entry.truth_boxes[place] for place in single] == list(entry.predicted_boxes)
        for place, found in zip(single, entry.predicted_masks, strict=True):
            np.testing.assert_array_equal(entry.truth_masks[place], found)


def test_detections_below_the_least_score_are_left_out(demo, monkeypatch):
    everything = items_drawn(demo, monkeypatch, num_images=6, min_score=0.0)
    likely = items_drawn(demo, monkeypatch, num_images=6)
    assert 0 < sum(len(entry.scores) for entry in likely) < sum(len(entry.scores) for entry in everything)
    assert {score for entry in likely for score in entry.scores} == {0.9}


def test_a_crowd_is_among_the_pictures_and_empty_ones_are_not(demo):
    document, _, _ = read_document(demo / "annotations" / "instances_val2017.json")
    crowded = {row.image_id for row in document.annotations if row.iscrowd}
    filled = {row.image_id for row in document.annotations}
    for count in (1, 2, 5, 17):
        chosen = [row.id for row in choose_images(document, count)]
        assert len(chosen) == count and chosen == sorted(set(chosen)) and set(chosen) <= filled
        assert crowded & set(chosen)
    assert len(choose_images(document, 1000)) == len(filled) == 17


def test_the_choice_is_spread_over_the_split(demo):
    document, _, _ = read_document(demo / "annotations" / "instances_val2017.json")
    document.annotations = [row for row in document.annotations if not row.iscrowd]
    ids = [row.id for row in choose_images(document, 4)]
    assert ids[0] < 10 and ids[-1] > 26 and all(4 <= gap <= 14 for gap in np.diff(ids))


def test_a_split_without_any_object_still_gives_a_page(demo):
    document, _, _ = read_document(demo / "annotations" / "instances_val2017.json")
    document.annotations = []
    assert len(choose_images(document, 3)) == 3


def test_the_whole_way_writes_a_page(demo, tmp_path):
    val_json = demo / "annotations" / "instances_val2017.json"
    path = tmp_path / "page.png"
    grid_from_results(read_document(val_json)[0], demo / "val2017", *perfect_results(val_json), num_images=3, path=path)
    assert page_of(path).shape[0] > 400


def test_results_that_do_not_belong_together_are_refused(demo, tmp_path):
    val_json = demo / "annotations" / "instances_val2017.json"
    box_results, mask_results = perfect_results(val_json)
    with pytest.raises(ValueError, match="same detections"):
        document, _, _ = read_document(val_json)
        grid_from_results(
            document, demo / "val2017", box_results, mask_results[:-1], num_images=2, path=tmp_path / "page.png"
        )


def test_a_missing_picture_is_named(demo, tmp_path):
    val_json = demo / "annotations" / "instances_val2017.json"
    with pytest.raises(DataError, match=r"0000000000\d\d\.jpg"):
        grid_from_results(read_document(val_json)[0], tmp_path, [], [], num_images=2, path=tmp_path / "page.png")
