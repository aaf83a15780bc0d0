"""The plain network against `detect`, and its suppression against the fast one."""

import numpy as np
import pytest
import torch
from small_weights import write_small_weights

import maskperf
from maskperf.evaluation.detect import detect
from maskperf.export.network import PlainNetwork, survivors
from maskperf.model.conventions import edges
from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.nms import nms_sorted
from maskperf.structures import Images

SIZE_HW = (96, 96)


@pytest.fixture(scope="module", params=["reference", "torchvision", "torchvision_v2"])
def model(request, tmp_path_factory):
    pairs = (f"model.conventions={request.param}",)
    path, _ = write_small_weights(tmp_path_factory.mktemp("network"), images=1, pairs=pairs)
    loaded = maskperf.load(path, device="cpu")
    with torch.no_grad():
        loaded.network.rpn["head"].cls_logits.weight.mul_(10)  # far enough apart that no two scores are equal
    return loaded


def test_the_plain_network_finds_what_detect_finds(model):
    network = PlainNetwork(model.network, model.config.data, SIZE_HW, list(model.categories), survivors).eval()
    generator = np.random.default_rng(4)
    images = torch.from_numpy(generator.integers(0, 255, (3, *SIZE_HW, 3), np.uint8))
    sizes_hw = torch.tensor([[96, 96], [64, 90], [33, 50]])
    with torch.no_grad():
        boxes, scores, labels, masks = network(images, sizes_hw)
        pixels = network._normalized(images, sizes_hw)
        if model.network.conventions.deviations_bgr:  # the model divides by them itself
            pixels = pixels * torch.tensor(model.network.conventions.deviations_bgr).view(1, 3, 1, 1)
        expected = detect(model.network, Images(pixels, sizes_hw))
    found = scores > 0
    slots = expected.scores.shape[1]
    assert found.sum() == expected.valid.sum() > 10 and not scores[:, slots:].any()
    expected_boxes = edges(expected.boxes, model.network.conventions) * expected.valid[..., None]
    assert (boxes[:, :slots] - expected_boxes).abs().max() < 1e-3  # pixels; sums in another order
    assert (scores[:, :slots] - expected.scores).abs().max() < 1e-5
    ids = torch.tensor([0, *model.categories])
    assert torch.equal(labels[:, :slots], ids[expected.labels])
    shown = masks[:, :slots] - expected.mask_probs * expected.valid[..., None, None]
    assert shown.abs().max() < 1e-4
    assert not boxes[~found].any() and not labels[~found].any() and not masks[~found].any()


@pytest.mark.parametrize("seed", range(5))
def test_the_loop_ends_with_the_survivors_of_going_through_in_order(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 120, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 20], dim=2)
    valid = torch.rand(2, 120, generator=generator) < 0.8
    suppresses = (pairwise_iou(boxes, boxes) > 0.3).float().triu(diagonal=1)
    found = survivors(suppresses, valid.float())
    assert torch.equal(found > 0, nms_sorted(boxes, valid, 0.3)) and 0 < found.sum() < valid.sum()


def test_a_chain_of_suppressions_is_followed_to_its_end():
    count = 40
    chain = torch.zeros(1, count, count)
    chain[0, torch.arange(count - 1), torch.arange(1, count)] = 1
    assert torch.equal(survivors(chain, torch.ones(1, count))[0], (torch.arange(count) % 2 == 0).float())
