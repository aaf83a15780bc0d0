"""maskperf's side of every benchmark, in this process and tiny."""

from dataclasses import replace

import pytest
import torch
from small_batches import SMALL

from maskperf.bench.maskperf_data import detected, index, loader, scored
from maskperf.bench.maskperf_network import demo_chunk, infer, step
from maskperf.bench.maskperf_operators import mask_targets, nms, roi_align
from maskperf.bench.peers.torch_work import PASSING_PER_IMAGE, passing, sharpen
from maskperf.bench.plan import LEARNING_RATE
from maskperf.bench.synthetic import write_batch, write_candidates, write_mask_rois, write_pyramid
from maskperf.bench.synthetic_coco import large_json, result_files, write_detections, write_images
from maskperf.config import SpeedConfig, SystemConfig
from maskperf.overrides import to_json_text, with_overrides
from maskperf.recipes import coco

SIZE_HW = (64, 96)
IMAGES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    write_batch(path / "batch.npz", size_hw=SIZE_HW, images=IMAGES, objects=3, classes=4, seed=0)
    return path


def inputs(folder, case="", **more):
    config = coco()
    data = replace(config.data, short_side=64, long_side=96)
    config = replace(config, model=SMALL, data=data, system=SystemConfig(device="cpu"))
    shared = {"case": case, "threads": 1, "device": "cpu", "config": to_json_text(config)}
    return shared | {"learning_rate": LEARNING_RATE, "batch": str(folder / "batch.npz")} | more


def test_a_step_works_on_positive_rois_and_hardly_moves_the_losses(folder):
    work, facts = step(inputs(folder))
    assert (facts["items"], facts["rois"]) == (IMAGES, [16, 16]) and facts["flop"] > 1e7
    assert all(3 <= positive <= 4 for positive in facts["positive_rois"])  # a quarter of the RoIs at most
    assert facts["speed"] == {"without": (), "precision": "auto"}
    assert facts["messages"] == ["precision: float32 throughout"]
    again = work()["losses"]
    assert again == pytest.approx(facts["first_losses"], rel=1e-3) and min(again.values()) > 0


def test_detections_of_random_weights_are_many(folder):
    work, facts = infer(inputs(folder))
    assert len(facts["detections"]) == IMAGES and min(facts["detections"]) > 20
    assert work()["detections"] == facts["detections"]


def test_a_sharpened_classifier_lets_the_wanted_number_pass():
    torch.manual_seed(0)
    linear = torch.nn.Linear(32, 81)
    hidden = torch.randn(1000, 32)
    with torch.no_grad():
        sharpen(linear, linear(hidden), images=1)
        logits = linear(hidden)
    assert passing(logits, 0.0) == pytest.approx(PASSING_PER_IMAGE, rel=0.02)


@pytest.mark.parametrize(("case", "boxes", "side"), [("7x7 forward", 512, 7), ("14x14 forward+backward", 128, 14)])
def test_boxes_are_pooled(folder, case, boxes, side):
    write_pyramid(folder / "pyramid.npz", size_hw=SIZE_HW, images=1, channels=4, seed=0)
    work, facts = roi_align(inputs(folder, case, pyramid=str(folder / "pyramid.npz")))
    assert facts == {"items": boxes, "item": "boxes"}
    found = work()
    if "backward" in case:
        assert [gradient.shape[1:] for gradient in found] == [(4, 16 >> level, 24 >> level) for level in range(4)]
    else:
        assert found.shape == (boxes, 4, side, side) and not found.requires_grad


@pytest.mark.parametrize("case", ["levels", "classes"])
def test_boxes_are_suppressed(folder, case):
    write_candidates(folder / "candidates.npz", size_hw=(32, 32), images=1, seed=0)
    work, facts = nms(inputs(folder, case, candidates=str(folder / "candidates.npz")))
    assert 0 < facts["kept"] == int(work().sum()) < facts["items"]


def test_polygons_become_targets(folder):
    path = folder / "mask_rois.npz"
    write_mask_rois(path, batch=folder / "batch.npz", size_hw=SIZE_HW, seed=0)
    work, facts = mask_targets(inputs(folder, mask_rois=str(path)))
    assert 0.3 < facts["filled_share"] < 0.9
    _, same = mask_targets(inputs(folder, "28x28 of run lengths", mask_rois=str(path)))
    assert abs(same["filled_share"] - facts["filled_share"]) < 0.03  # the same masks, by pixels of the image
    assert work().shape[-2:] == (28, 28)


@pytest.mark.parametrize("case", ["one thread", "decoded alone"])
def test_images_become_batches(folder, tmp_path, case):
    path = write_images(tmp_path, images=4, seed=0)
    work, facts = loader(inputs(folder, case, pictures_json=str(path), images_per_batch=2))
    assert facts == {"items": 4, "item": "images"}
    assert work() is None


@pytest.mark.parametrize("case", ["first read", "later read"])
def test_a_large_file_is_read_and_nothing_stays_of_its_links(folder, tmp_path, case):
    path = large_json(tmp_path, images=20, seed=0)
    work, facts = index(inputs(folder, case, large_json=str(path)))
    before = set(tmp_path.iterdir())
    assert work() is None and facts["mib"] > 0
    assert set(tmp_path.iterdir()) == before


def test_results_are_scored(folder, tmp_path):
    path = large_json(tmp_path, images=5, seed=1)
    work, facts = scored(inputs(folder, large_json=str(path), **result_files(tmp_path, path, seed=0)))
    assert facts["items"] == 5
    found = work()
    assert 0 < found["mask_ap"] < found["box_ap"] < 1


def test_detections_become_scores(folder, tmp_path):
    path = large_json(tmp_path, images=3, seed=2)
    write_detections(tmp_path / "detections.npz", truth_json=path, seed=0)
    given = inputs(folder, large_json=str(path), detections=str(tmp_path / "detections.npz"))
    work, facts = detected(given)
    found = work()
    assert facts == {"items": 3, "item": "images"} and found["coded_seconds"] > 0
    assert 0.1 < found["mask_ap"] < 1 and 0.1 < found["box_ap"] < 1


def test_training_goes_on_from_chunk_to_chunk_on_the_same_batches_for_all(folder, tmp_path):
    write_images(tmp_path, images=8, seed=0)
    layout = {"json": tmp_path / "instances.json", "images": tmp_path}
    pairs = [f"data.{split}_{kind}={path}" for split in ("train", "val") for kind, path in layout.items()]
    pairs += ["data.short_side=64", "data.long_side=96", "optimizer.learning_rate=0.001", "system.device=cpu", "seed=0"]
    config = replace(with_overrides(coco(), pairs), model=replace(SMALL, num_classes=81))
    losses = []
    for speed in (config.speed, SpeedConfig(without=("all",), precision="float32")):
        work, facts = demo_chunk(inputs(folder, config=to_json_text(replace(config, speed=speed)), steps=2))
        assert facts == {"items": 4, "item": "images", "messages": ["precision: float32 throughout"]}
        losses.append([loss for _ in range(2) for loss in work().values()])
    assert len(set(losses[0])) == 4  # of four steps
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
