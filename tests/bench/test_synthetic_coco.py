import json

import numpy as np
from PIL import Image

from maskperf.bench.synthetic_coco import (
    SIZES_HW,
    TRAIN_ANNOTATIONS,
    TRAIN_IMAGES,
    large_folder,
    large_json,
    size_of,
    write_pictures,
)
from maskperf.bench.synthetic_results import DETECTIONS, result_files, write_detections
from maskperf.data.coco.index import read_coco
from maskperf.evaluation.scores import GroundTruth, score


def test_pictures_and_their_json_can_be_trained_on(tmp_path):
    path = write_pictures(tmp_path, images=4, seed=0)
    index = read_coco(path, tmp_path, training=True)
    assert len(index.image_ids) == 4
    for position in range(4):
        with Image.open(index.image_path(position)) as picture:
            assert picture.size == tuple(index.sizes_hw[position][::-1].tolist())
            assert 50_000 < index.image_path(position).stat().st_size < 400_000  # as COCO's


def test_a_large_json_has_the_annotations_of_its_share_and_no_problem(tmp_path):
    path = large_json(tmp_path, images=300, seed=0)
    document = json.loads(path.read_text(encoding="ascii"))
    assert len(document["images"]) == 300
    assert len(document["annotations"]) == round(300 * TRAIN_ANNOTATIONS / TRAIN_IMAGES)
    index = read_coco(path, tmp_path, training=True)
    assert 280 < len(index.image_ids) < 300  # a few have no annotation
    crowds = [entry for entry in document["annotations"] if entry["iscrowd"]]
    assert 5 < len(crowds) < 60
    numbers = [sum(map(len, entry["segmentation"])) for entry in document["annotations"] if not entry["iscrowd"]]
    assert 45 < np.mean(numbers) < 52  # as in train2017
    whole_mib = path.stat().st_size / 300 * TRAIN_IMAGES / 2**20
    assert 400 < whole_mib < 470  # the file has 428


def test_a_file_in_the_cache_is_used_again(tmp_path):
    path = large_json(tmp_path, images=8, seed=0)
    before = path.stat().st_mtime_ns
    assert large_json(tmp_path, images=8, seed=0) == path
    assert path.stat().st_mtime_ns == before
    assert large_json(tmp_path, images=8, seed=1) != path
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(".part")] == []


def test_the_folder_has_a_picture_of_the_right_size_for_every_id(tmp_path):
    folder = large_folder(tmp_path, images=2 * len(SIZES_HW) + 1, seed=0)
    for number in range(1, 2 * len(SIZES_HW) + 2):
        with Image.open(folder / f"{number:012d}.jpg") as picture:
            assert picture.size == size_of(number)[::-1]


def test_results_are_plausible_and_can_be_scored(tmp_path):
    truth_json = large_json(tmp_path, images=12, seed=1)
    files = result_files(tmp_path, truth_json, seed=0)
    boxes, masks = (json.loads((tmp_path / name).read_text(encoding="ascii")) for name in files.values())
    assert len(boxes) == len(masks) == 12 * DETECTIONS
    scores = score(GroundTruth(truth_json), boxes, masks, engine="fast")
    assert 0.3 < scores.box_ap < 0.95
    assert 0.1 < scores.mask_ap < scores.box_ap


def test_detections_have_soft_masks_and_are_sorted_by_score(tmp_path):
    write_detections(tmp_path / "d.npz", large_json(tmp_path, images=2, seed=2), seed=0)
    with np.load(tmp_path / "d.npz") as arrays:
        probabilities, boxes = arrays["probabilities"], arrays["boxes"]
        assert probabilities.shape == (2, DETECTIONS, 28, 28)
        assert 0 <= probabilities.min() < probabilities.max() <= 1
        inside = (probabilities > 0.5).mean(axis=(2, 3))
        assert 0.3 < inside.mean() < 0.8
        soft = ((probabilities > 0.1) & (probabilities < 0.9)).mean()
        assert 0.05 < soft < 0.4  # the edges alone
        assert boxes.shape == (2, DETECTIONS, 4)
        assert (boxes[..., 2:] > boxes[..., :2]).all()
        assert (np.diff(arrays["scores"], axis=1) <= 0).all()
        assert arrays["labels"].min() >= 1
        assert arrays["sizes_hw"].tolist() == [list(size_of(number)) for number in arrays["image_ids"].tolist()]
