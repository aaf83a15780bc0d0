import numpy as np
import pytest
from pycocotools import mask as coco_masks

from maskperf.bench.synthetic import (
    CLASSES,
    MASK_ROIS,
    POOLS,
    shifted,
    synthetic_boxes,
    synthetic_ring,
    write_batch,
    write_candidates,
    write_mask_rois,
    write_pyramid,
)

SIZE_HW = (96, 160)


def small_batch(path, seed=0):
    write_batch(path, size_hw=SIZE_HW, images=2, objects=3, classes=5, seed=seed)
    with np.load(path) as arrays:
        return dict(arrays)


def assert_inside(boxes, size_hw):
    assert (boxes[..., 2:] - boxes[..., :2] > 0).all()
    assert (boxes >= 0).all()
    assert (boxes[..., [0, 2]] <= size_hw[1]).all()
    assert (boxes[..., [1, 3]] <= size_hw[0]).all()


@pytest.mark.parametrize("size_hw", [(64, 96), (800, 1344), (1344, 800)])
def test_boxes_are_inside_and_of_all_scales(size_hw):
    boxes = synthetic_boxes(np.random.default_rng(0), 2000, size_hw)
    assert_inside(boxes, size_hw)
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    largest = min(600, 0.8 * min(size_hw))
    assert sides.min() < 20
    assert sides.max() > 0.8 * largest


def test_a_ring_fills_its_box():
    box = np.array([10, 20, 50, 90], np.float32)
    ring = synthetic_ring(np.random.default_rng(1), box)
    np.testing.assert_allclose([*ring.min(axis=0), *ring.max(axis=0)], box, rtol=1e-6)


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


def test_masks_of_a_batch_are_its_polygons(tmp_path):
    arrays = small_batch(tmp_path / "batch.npz")
    masks = np.unpackbits(arrays["masks"], axis=3, count=SIZE_HW[1]).reshape(6, *SIZE_HW)
    offsets = arrays["point_offsets"]
    for number, mask in enumerate(masks):
        ring = arrays["points"][offsets[number] : offsets[number + 1]]
        np.testing.assert_allclose(ring.min(axis=0), arrays["boxes"].reshape(-1, 4)[number, :2], rtol=1e-5)
        codes = coco_masks.frPyObjects([ring.ravel().astype(float).tolist()], *SIZE_HW)
        mine = coco_masks.encode(np.asfortranarray(mask[:, :, None]))
        assert coco_masks.iou(mine, codes, [0])[0, 0] > 0.6  # the two draw the outline itself differently
    assert arrays["labels"].min() >= 1
    assert arrays["labels"].max() <= 4


def test_the_pyramid_has_four_levels_and_boxes_for_both_pools(tmp_path):
    write_pyramid(tmp_path / "p.npz", size_hw=SIZE_HW, images=2, channels=3, seed=0)
    with np.load(tmp_path / "p.npz") as arrays:
        assert [arrays[f"level_{number}"].shape for number in range(4)] == [
            (2, 3, 24, 40),
            (2, 3, 12, 20),
            (2, 3, 6, 10),
            (2, 3, 3, 5),
        ]
        for name, (_, count) in POOLS.items():
            assert arrays[f"boxes_{name}"].shape == (2, count, 4)
            assert_inside(arrays[f"boxes_{name}"], SIZE_HW)


def test_candidates_fall_in_score_and_are_grouped(tmp_path):
    write_candidates(tmp_path / "c.npz", size_hw=SIZE_HW, images=2, seed=0)
    with np.load(tmp_path / "c.npz") as arrays:
        for name, groups in (("levels", 10), ("classes", 2 * CLASSES)):
            scores, valid = arrays[f"{name}_scores"], arrays[f"{name}_valid"]
            assert len(valid) == groups
            assert (np.diff(scores, axis=1) <= 0).all()
            assert ((scores > 0) == valid).all()
            assert (arrays[f"{name}_boxes"][~valid] == 0).all()
        assert arrays["classes_valid"].sum() == 2 * 1000


def test_mask_rois_name_their_object(tmp_path):
    arrays = small_batch(tmp_path / "batch.npz")
    write_mask_rois(tmp_path / "m.npz", tmp_path / "batch.npz", size_hw=SIZE_HW, seed=0)
    with np.load(tmp_path / "m.npz") as found:
        assert found["rois"].shape == (2, MASK_ROIS, 4)
        assert (found["labels"][1] == arrays["labels"][1][found["slots"][1]]).all()
