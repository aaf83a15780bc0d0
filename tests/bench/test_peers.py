"""The peers themselves, where there is a Python that has them: MASKPERF_PEER_PYTHON=/opt/peer/bin/python."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from maskperf.bench.plan import CASES, Plan
from maskperf.bench.session import measure_case
from maskperf.config import ModelConfig
from maskperf.recipes import coco

PYTHON = os.environ.get("MASKPERF_PEER_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="MASKPERF_PEER_PYTHON names no Python with torchvision")


def measured(tmp_path: Path, name: str):
    config = replace(coco(), model=replace(coco().model, backbone_weights=""))
    sizes = {"size_hw": (64, 96), "images": 2, "objects": 4, "repeats": 1, "clock": "cpu"}
    plan = Plan(config=config, peer_python=PYTHON, cache=tmp_path, **sizes)
    case = next(case for case in CASES if case.name == name)
    result = measure_case(case, plan, tmp_path, lambda message: None)
    assert result.sides[0].times_as_long is None
    assert all(side.times_as_long.median > 0 for side in result.sides[1:])
    return result.sides


def test_both_sides_of_a_step_work_on_the_same(tmp_path):
    maskperf, peer = measured(tmp_path, "training step")
    assert peer.name == "torchvision"
    limit = ModelConfig().roi_samples_per_image
    for facts in (maskperf.facts, peer.facts):
        counts = zip(facts["positive_rois"], facts["rois"], strict=True)
        assert all(4 <= positive < rois <= limit for positive, rois in counts)
        assert facts["items"] == 2
    assert 0.1 < peer.facts["flop"] / maskperf.facts["flop"] < 10


def test_suppression_keeps_about_as_many_boxes(tmp_path):
    maskperf, peer = measured(tmp_path, "classes")
    assert peer.facts["items"] == maskperf.facts["items"]
    assert peer.facts["kept"] == pytest.approx(maskperf.facts["kept"], rel=0.1)  # maskperf counts the corner pixels


def test_mask_targets_are_filled_alike(tmp_path):
    maskperf, peer = measured(tmp_path, "28x28")
    assert peer.facts["filled_share"] == pytest.approx(maskperf.facts["filled_share"], abs=0.1)


def test_scores_of_all_engines_are_equal(tmp_path):
    maskperf, *peers = measured(tmp_path, "boxes and masks scored")
    assert peers[0].name == "pycocotools"
    for peer in peers:
        assert peer.facts["box_ap"] == pytest.approx(maskperf.facts["box_ap"], abs=1e-9)
        assert peer.facts["mask_ap"] == pytest.approx(maskperf.facts["mask_ap"], abs=1e-9)


def test_both_sides_make_batches_of_the_same_images(tmp_path):
    maskperf, peer = measured(tmp_path, "one thread")
    assert maskperf.facts["items"] == peer.facts["items"] >= 2


def test_the_scores_of_detections_are_near_although_the_boxes_are_counted_otherwise(tmp_path):
    maskperf, peer = measured(tmp_path, "from detections to scores")
    assert maskperf.facts["items"] == peer.facts["items"] == 2
    for ap in ("box_ap", "mask_ap"):  # maskperf adds a pixel to the sides
        assert peer.facts[ap] == pytest.approx(maskperf.facts[ap], abs=0.05)
