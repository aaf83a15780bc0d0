import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from maskperf.bench import synthetic, synthetic_coco
from maskperf.bench.synthetic import BOXES_OF_POOL, CLASSES, MASK_ROIS, shifted, synthetic_boxes
from maskperf.bench.synthetic_coco import DETECTIONS, SIZES_HW, large_json, size_of
from maskperf.config import NUM_TRAIN_FILES
from maskperf.data.coco.index import read_coco
from maskperf.evaluation.scores import GroundTruth, score

SIZE_HW = (96, 160)


def small_batch(path, seed=0):
    synthetic.write_batch(path, size_hw=SIZE_HW, images=2, objects=3, classes=5, seed=seed)
    with np.load(path) as arrays:
        return dict(arrays)


def assert_inside(boxes, size_hw):
    assert (boxes[..., 2:] - boxes[..., :2] > 0).all() and (boxes >= 0).all()
    assert (boxes <= [size_hw[1], size_hw[0], size_hw[1], size_hw[0]]).all()


@pytest.mark.parametrize("size_hw", [(64, 96), (800, 1344), (1344, 800)])
def test_boxes_are_inside_and_of_all_scales(size_hw):
    boxes = synthetic_boxes(np.random.default_rng(0), 2000, size_hw)
    assert_inside(boxes, size_hw)
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    assert sides.min() < 20 and sides.max() > 0.8 * min(600, 0.8 * min(size_hw))


def test_shifted_boxes_stay_inside_and_near():
    random = np.random.default_rng(2)
    boxes = synthetic_boxes(random, 500, SIZE_HW)
    moved = shifted(random, boxes, 0.1, SIZE_HW)
    assert (moved[:, 2:] - moved[:, :2] >= 1).all()
    assert np.abs(moved - boxes).mean() < 0.1 * (boxes[:, 2:] - boxes[:, :2]).mean() + 1


def test_a_batch_depends_on_its_seed_alone(tmp_path):
    first, again = small_batch(tmp_path / "a.npz"), small_batch(tmp_path / "b.npz")
    assert all((first[name] == again[name]).all() for name in first)
    assert (small_batch(tmp_path / "c.npz", seed=1)["pixels"] != first["pixels"]).any()


def test_polygons_fill_their_boxes_and_are_the_masks_of_a_batch(tmp_path):
    arrays = small_batch(tmp_path / "batch.npz")
    masks = np.unpackbits(arrays["masks"], axis=3, count=SIZE_HW[1]).reshape(6, *SIZE_HW)
    offsets = arrays["point_offsets"]
    for number, mask in enumerate(masks):
        polygon = arrays["points"][offsets[number] : offsets[number + 1]]
        filled = [*polygon.min(axis=0), *polygon.max(axis=0)]
        np.testing.assert_allclose(filled, arrays["boxes"].reshape(-1, 4)[number], rtol=1e-5)
        codes = coco_masks.frPyObjects([polygon.ravel().astype(float).tolist()], *SIZE_HW)
        mine = coco_masks.encode(np.asfortranarray(mask[:, :, None]))
        assert coco_masks.iou(mine, codes, [0])[0, 0] > 0.6  # the two draw the outline itself differently
    assert arrays["labels"].min() >= 1 and arrays["labels"].max() <= 4


def test_the_pyramid_has_four_levels_and_boxes_for_both_pools(tmp_path):
    synthetic.write_pyramid(tmp_path / "p.npz", size_hw=SIZE_HW, images=2, channels=3, seed=0)
    with np.load(tmp_path / "p.npz") as arrays:
        for number in range(4):
            assert arrays[f"level_{number}"].shape == (2, 3, 24 >> number, 40 >> number)
        for name, count in BOXES_OF_POOL.items():
            assert arrays[f"boxes_{name}"].shape == (2, count, 4)
            assert_inside(arrays[f"boxes_{name}"], SIZE_HW)


def test_candidates_fall_in_score_and_are_grouped(tmp_path):
    synthetic.write_candidates(tmp_path / "c.npz", size_hw=SIZE_HW, images=2, seed=0)
    with np.load(tmp_path / "c.npz") as arrays:
        for name, groups in (("levels", 10), ("classes", 2 * CLASSES)):
            scores, valid = arrays[f"{name}_scores"], arrays[f"{name}_valid"]
            assert len(valid) == groups
            assert (np.diff(scores, axis=1) <= 0).all() and ((scores > 0) == valid).all()
            assert (arrays[f"{name}_boxes"][~valid] == 0).all()
        assert arrays["classes_valid"].sum() == 2 * 1000


def test_mask_rois_name_their_object(tmp_path):
    arrays = small_batch(tmp_path / "batch.npz")
    synthetic.write_mask_rois(tmp_path / "m.npz", batch=tmp_path / "batch.npz", size_hw=SIZE_HW, seed=0)
    with np.load(tmp_path / "m.npz") as found:
        assert found["rois"].shape == (2, MASK_ROIS, 4)
        assert (found["labels"][1] == arrays["labels"][1][found["slots"][1]]).all()


def test_images_and_their_json_can_be_trained_on(tmp_path):
    path = synthetic_coco.write_images(tmp_path, images=4, seed=0)
    index = read_coco(path, tmp_path, training=True)
    assert len(index.image_ids) == 4
    for position in range(4):
        with Image.open(index.image_path(position)) as image:
            assert image.size == tuple(index.sizes_hw[position][::-1].tolist())
            assert 50_000 < index.image_path(position).stat().st_size < 400_000  # as COCO's


def test_a_large_json_has_the_annotations_of_its_share_and_no_problem(tmp_path):
    path = large_json(tmp_path, images=300, seed=0)
    document = json.loads(path.read_text(encoding="ascii"))
    crowds = [entry for entry in document["annotations"] if entry["iscrowd"]]
    assert len(document["images"]) == 300 and 5 < len(crowds) < 60
    assert len(document["annotations"]) == round(300 * synthetic_coco.TRAIN_ANNOTATIONS / NUM_TRAIN_FILES)
    index = read_coco(path, tmp_path, training=True)
    assert 280 < len(index.image_ids) < 300  # a few have no annotation
    numbers = [sum(map(len, entry["segmentation"])) for entry in document["annotations"] if not entry["iscrowd"]]
    assert 45 < np.mean(numbers) < 52  # as in train2017
    whole_mib = path.stat().st_size / 300 * NUM_TRAIN_FILES / 2**20
    assert 400 < whole_mib < 470  # the file has 428


def test_a_file_in_the_cache_is_used_again(tmp_path):
    path = large_json(tmp_path, images=8, seed=0)
    before = path.stat().st_mtime_ns
    assert large_json(tmp_path, images=8, seed=0) == path and path.stat().st_mtime_ns == before
    assert large_json(tmp_path, images=8, seed=1) != path
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix in (".part", ".tmp")] == []


def test_the_folder_has_an_image_of_the_right_size_for_every_id(tmp_path):
    folder = synthetic_coco.large_folder(tmp_path, images=2 * len(SIZES_HW) + 1, seed=0)
    for number in range(1, 2 * len(SIZES_HW) + 2):
        with Image.open(folder / f"{number:012d}.jpg") as image:
            assert image.size == size_of(number)[::-1]


def test_results_are_plausible_and_can_be_scored(tmp_path):
    truth_json = large_json(tmp_path, images=12, seed=1)
    files = synthetic_coco.result_files(tmp_path, truth_json, seed=0)
    boxes, masks = (json.loads((tmp_path / name).read_text(encoding="ascii")) for name in files.values())
    assert len(boxes) == len(masks) == 12 * DETECTIONS
    scores = score(GroundTruth(truth_json), boxes, masks, engine="fast")
    assert 0.3 < scores.box_ap < 0.95 and 0.1 < scores.mask_ap < scores.box_ap


def test_detections_have_soft_masks_and_are_sorted_by_score(tmp_path):
    truth_json = large_json(tmp_path, images=2, seed=2)
    synthetic_coco.write_detections(tmp_path / "d.npz", truth_json=truth_json, seed=0)
    with np.load(tmp_path / "d.npz") as arrays:
        probabilities, boxes = arrays["probabilities"], arrays["boxes"]
        assert probabilities.shape == (2, DETECTIONS, 28, 28)
        assert 0 <= probabilities.min() < probabilities.max() <= 1
        assert 0.3 < (probabilities > 0.5).mean() < 0.8
        soft = ((probabilities > 0.1) & (probabilities < 0.9)).mean()
        assert 0.05 < soft < 0.4  # the edges alone
        assert boxes.shape == (2, DETECTIONS, 4) and (boxes[..., 2:] > boxes[..., :2]).all()
        assert (np.diff(arrays["scores"], axis=1) <= 0).all() and arrays["labels"].min() >= 1
        assert arrays["sizes_hw"].tolist() == [list(size_of(number)) for number in arrays["image_ids"].tolist()]
