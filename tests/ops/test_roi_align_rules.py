import math

import numpy as np
import pytest
import torch

from maskperf.ops.roi_align_rules import RoiAlignRule, levels_by_rule, roi_align_by_rule

STRIDES = (4, 8, 16, 32)
ALIGNED = RoiAlignRule(is_aligned=True, samples=0, level_epsilons=(1e-8, 0.0))
UNALIGNED = RoiAlignRule(is_aligned=False, samples=2, level_epsilons=(0.0, 1e-6))


def bilinear(feature, y, x):
    """Return the map at one point by the published formula: zero a cell outside, the border's value up to there."""
    height, width = feature.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(feature))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = feature[:, top, left] * (1 - across) + feature[:, top, right] * across
    lower = feature[:, bottom, left] * (1 - across) + feature[:, bottom, right] * across
    return upper * (1 - down) + lower * down


def pooled_slowly(feature, box, stride, size, rule):
    """Return one box's pooled map, sample by sample (Detectron2's ROIAlign, torchvision's roi_align)."""
    offset = 0.5 if rule.is_aligned else 0.0
    x1, y1, x2, y2 = (coordinate / stride - offset for coordinate in box)
    width, height = x2 - x1, y2 - y1
    if not rule.is_aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    rows = rule.samples or max(math.ceil(height / size), 1)
    columns = rule.samples or max(math.ceil(width / size), 1)
    result = np.zeros((len(feature), size, size))
    for i in range(size):
        for j in range(size):
            for row in range(rows):
                for column in range(columns):
                    y = y1 + (i + (row + 0.5) / rows) * height / size
                    x = x1 + (j + (column + 0.5) / columns) * width / size
                    result[:, i, j] += bilinear(feature, y, x) / (rows * columns)
    return result


@pytest.mark.parametrize("rule", [ALIGNED, UNALIGNED], ids=["aligned", "unaligned"])
def test_pooled_maps_equal_the_published_formula(rule):
    generator = torch.Generator().manual_seed(3)
    features = [torch.randn(2, 3, 256 // stride, 320 // stride, generator=generator) for stride in STRIDES]
    boxes = torch.tensor([
        [[10.3, 20.7, 49.6, 79.2], [0.0, 0.0, 320.0, 256.0], [-6.0, 100.0, 318.5, 110.0], [300.2, 5.0, 330.0, 290.0]],
        [[100.0, 100.0, 101.5, 103.0], [3.0, 4.0, 230.0, 240.0], [7.0, 7.0, 119.0, 119.0], [0.0, 0.0, 8.0, 250.0]],
    ])  # fmt: skip
    found = roi_align_by_rule(features, boxes, size=7, strides=STRIDES, rule=rule)
    for number, box in enumerate(boxes.flatten(0, 1)):
        area = float((box[2] - box[0]) * (box[3] - box[1]))
        level = min(max(math.floor(4 + math.log2(math.sqrt(area) / 224)), 2), 5) - 2
        feature = features[level][number // 4].double().numpy()
        wanted = pooled_slowly(feature, box.double().tolist(), STRIDES[level], 7, rule)
        np.testing.assert_allclose(found[number].numpy(), wanted, atol=2e-5)  # float32 positions


@pytest.mark.parametrize("rule", [ALIGNED, UNALIGNED], ids=["aligned", "unaligned"])
def test_the_gradient_is_that_of_the_pooled_maps(rule):
    generator = torch.Generator().manual_seed(4)
    features = [torch.randn(1, 2, 64 // stride, 64 // stride, generator=generator) for stride in STRIDES]
    features = [feature.requires_grad_() for feature in features]
    boxes = torch.tensor([[[3.0, 5.0, 40.0, 61.0], [1.0, 1.0, 64.0, 30.0]]])
    share = torch.randn(2, 2, 7, 7, generator=generator)
    (roi_align_by_rule(features, boxes, size=7, strides=STRIDES, rule=rule) * share).sum().backward()
    step = torch.zeros_like(features[0]).index_fill_(3, torch.tensor([5]), 1.0)
    moved = [features[0].detach() + step, *(feature.detach() for feature in features[1:])]
    plain = [feature.detach() for feature in features]
    pooled = [roi_align_by_rule(maps, boxes, size=7, strides=STRIDES, rule=rule) for maps in (moved, plain)]
    torch.testing.assert_close(features[0].grad[..., 5].sum(), ((pooled[0] - pooled[1]) * share).sum())


def test_levels_change_where_the_family_has_it():
    sides = torch.tensor([111.9, 112.0, 224.0, 447.9, 448.0, 5000.0, 0.0])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sides, sides], dim=1)
    for rule in (ALIGNED, UNALIGNED):
        assert levels_by_rule(boxes, 4, rule).tolist() == [0, 1, 2, 2, 3, 3, 0]


def test_boxes_of_all_images_in_one_row_are_pooled_from_their_own_images():
    generator = torch.Generator().manual_seed(5)
    features = [torch.randn(2, 3, 64 // stride, 64 // stride, generator=generator) for stride in STRIDES]
    boxes = torch.tensor([[[3.0, 5.0, 40.0, 61.0], [1.0, 1.0, 64.0, 30.0]], [[9.0, 9.0, 33.0, 20.0], [0, 0, 50, 50]]])
    options = {"size": 7, "strides": STRIDES, "rule": UNALIGNED}
    wanted = roi_align_by_rule(features, boxes, **options)[:3]
    row = torch.cat([boxes.flatten(0, 1)[:3], torch.ones(1, 4)])[None]
    found = roi_align_by_rule(features, row, **options, image_offsets=torch.tensor([0, 2, 3]))
    torch.testing.assert_close(found[:3], wanted)
    assert not found[3].any()
