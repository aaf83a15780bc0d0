import math
from dataclasses import replace

import pytest
import torch
from by_hand import overlap_by_hand
from golden_reference import flat_polygons

from maskperf.config import ModelConfig
from maskperf.model.mask_rcnn import STRIDES
from maskperf.model.proposals import append_truth, select_proposals
from maskperf.ops.anchors import pyramid_anchors
from maskperf.structures import RpnOutput, Targets

CONFIG = ModelConfig(candidates_per_level=(12, 10), proposals_train=25, proposals_test=15)
LEVEL_SIZES = ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))
LEVEL_COUNTS = tuple(3 * height * width for height, width in LEVEL_SIZES)
SIZES_HW = torch.tensor([[30, 45], [32, 40], [25, 48]])
ANCHORS = pyramid_anchors(LEVEL_SIZES, STRIDES, (8, 16, 32, 64, 96), (0.5, 1.0, 2.0), torch.device("cpu"))


def random_rpn(seed):
    generator = torch.Generator().manual_seed(seed)
    deltas = torch.randn(3, sum(LEVEL_COUNTS), 4, generator=generator) * 0.4
    deltas[:, ::7, 2:] += 5.0  # these leave the image on all sides
    return RpnOutput(logits=torch.randn(3, sum(LEVEL_COUNTS), generator=generator) * 2, deltas=deltas)


def decode_by_hand(deltas, anchor, height, width):
    sides = [anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1]
    box = [0.0] * 4
    for axis, limit in ((0, width - 1), (1, height - 1)):
        centre = deltas[axis] * sides[axis] + anchor[axis] + 0.5 * sides[axis]
        side = math.exp(min(deltas[2 + axis], math.log(1000 / 16))) * sides[axis]
        box[axis] = min(max(centre - 0.5 * side, 0.0), limit)
        box[2 + axis] = min(max(centre + 0.5 * side - 1, 0.0), limit)
    return box


def level_by_hand(scores, deltas, anchors, size_hw, limit, nms_iou):
    """Return the surviving (score, box) of one level of one image, best first."""
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[:limit]
    kept = []
    for index in ranked:
        box = decode_by_hand(deltas[index], anchors[index], *size_hw)
        if all(overlap_by_hand(box, other) <= nms_iou for _, other in kept):
            kept.append((scores[index], box))
    return kept


def proposals_reference(rpn, config, training):
    """Return for each image a list of (score, box): the slow, obvious form of `select_proposals`."""
    limit = config.candidates_per_level[0 if training else 1]
    anchors = ANCHORS.tolist()
    found = []
    for image in range(len(SIZES_HW)):
        scores, deltas = rpn.logits[image].sigmoid().tolist(), rpn.deltas[image].tolist()
        entries, start = [], 0
        for count in LEVEL_COUNTS:
            part = slice(start, start + count)
            level = (scores[part], deltas[part], anchors[part])
            entries += level_by_hand(*level, SIZES_HW[image].tolist(), limit, config.rpn_nms_iou)
            start += count
        found.append(entries)
    if not training:
        return [sorted(entries, key=lambda entry: -entry[0])[: config.proposals_test] for entries in found]
    pools = [found] if config.proposal_quota == "pooled" else [[entries] for entries in found]
    for pool in pools:
        best = sorted((score for entries in pool for score, _ in entries), reverse=True)[: config.proposals_train]
        for entries in pool:
            entries[:] = [entry for entry in entries if entry[0] in best]
    return found


def select(rpn, config, training):
    """Return the proposals, which carry no gradient."""
    for values in (rpn.logits, rpn.deltas):
        values.requires_grad_()
    return select_proposals(rpn, ANCHORS, LEVEL_COUNTS, SIZES_HW, config=config, training=training)


def assert_same(proposals, expected):
    assert proposals.valid.sum(dim=1).tolist() == [len(entries) for entries in expected]
    for image, entries in enumerate(expected):
        valid = proposals.valid[image]
        scores = torch.tensor([score for score, _ in entries])
        boxes = torch.tensor([box for _, box in entries]).view(-1, 4)
        torch.testing.assert_close(proposals.scores[image][valid], scores, rtol=1e-6, atol=0)
        torch.testing.assert_close(proposals.boxes[image][valid], boxes, rtol=1e-5, atol=1e-4)
    assert not proposals.boxes.requires_grad and not proposals.scores.requires_grad
    assert proposals.boxes[~proposals.valid].abs().sum() == 0
    assert proposals.scores[~proposals.valid].abs().sum() == 0


def truth_of(boxes):
    """Return targets for three images; an empty list of boxes is an image without truth."""
    slots = max(len(rows) for rows in boxes)
    padded = torch.tensor([rows + [[0.0] * 4] * (slots - len(rows)) for rows in boxes])
    valid = torch.tensor([[slot < len(rows) for slot in range(slots)] for rows in boxes])
    polygons = flat_polygons([], [0] * (len(boxes) * slots + 1))
    return Targets(boxes=padded, labels=valid.long(), valid=valid, polygons=polygons)


def hand_made(anchors, logits, level_counts=None, **changes):
    """Return proposals in one image of 100 x 100 from anchors without offsets."""
    rpn = RpnOutput(logits=torch.tensor([logits]), deltas=torch.zeros(1, len(anchors), 4))
    training = changes.pop("training", True)
    return select_proposals(
        rpn,
        torch.tensor(anchors),
        level_counts or (len(anchors),),
        torch.tensor([[100, 100]]),
        config=replace(CONFIG, **changes),
        training=training,
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("quota", [25, 4, 1000, 5000])  # binding, very small, more than there are; nothing is cut off
@pytest.mark.parametrize("mode", ["pooled", "per_image", "testing"])
def test_proposals_equal_the_slow_twin(seed, quota, mode):
    training = mode != "testing"
    changes = {"proposal_quota": mode} if training else {}
    if quota == 5000:
        changes |= {"candidates_per_level": (2000, 2000)}
    config = replace(CONFIG, proposals_train=quota, proposals_test=quota, **changes)
    rpn = random_rpn(seed)
    assert_same(select(rpn, config, training), proposals_reference(rpn, config, training))


def test_truth_follows_the_proposals_with_score_one_on_top_of_the_quota():
    rpn = random_rpn(4)
    truth = [[[1.0, 2, 20, 21]], [], [[3.0, 4, 30, 24], [5, 6, 11, 12]]]
    joined = append_truth(select(rpn, CONFIG, training=True), truth_of(truth))
    expected = proposals_reference(rpn, CONFIG, training=True)
    wanted = [entries + [(1.0, box) for box in boxes] for entries, boxes in zip(expected, truth, strict=True)]
    assert_same(joined, wanted)
    assert joined.valid.sum() == CONFIG.proposals_train + 3


def test_pooled_quota_can_leave_an_image_without_proposals():
    rpn = random_rpn(5)
    rpn.logits[1] -= 50
    assert select(rpn, replace(CONFIG, proposals_train=8), training=True).valid.sum(dim=1)[1] == 0
    per_image = replace(CONFIG, proposals_train=8, proposal_quota="per_image")
    assert select(rpn, per_image, training=True).valid.sum(dim=1).tolist() == [8, 8, 8]


def test_training_keeps_the_order_of_levels_and_testing_sorts_by_score():
    anchors = [[0.0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 59, 59], [70, 70, 89, 89]]
    logits = [-1.0, 0.0, 2.0, 1.0]
    training = hand_made(anchors, logits, (2, 2), proposals_train=3)
    assert training.boxes[0].tolist() == [anchors[1], anchors[2], anchors[3]]
    testing = hand_made(anchors, logits, (2, 2), proposals_test=3, training=False)
    assert testing.boxes[0].tolist() == [anchors[2], anchors[3], anchors[1]]


def test_suppression_is_within_a_level_and_only_above_the_threshold():
    whole, seven_tenths, eight_tenths = [0.0, 0, 9, 9], [0.0, 0, 6, 9], [0.0, 0, 7, 9]  # IoU with the first: 0.7, 0.8
    logits = [3.0, 2.0, 1.0]
    one_level = hand_made([whole, eight_tenths, seven_tenths], logits)
    assert one_level.boxes[0, :2].tolist() == [whole, seven_tenths]
    assert one_level.valid.tolist() == [[True, True, False]]
    two_levels = hand_made([whole, eight_tenths, seven_tenths], logits, (1, 2))
    assert two_levels.boxes[0, :2].tolist() == [whole, eight_tenths]  # now the second suppresses the third: 0.875


def test_candidates_are_cut_before_the_suppression():
    anchors = [[0.0, 0, 9, 9], [0, 0, 9, 9], [50, 50, 59, 59]]
    proposals = hand_made(anchors, [3.0, 2.0, 1.0], candidates_per_level=(2, 10))
    assert proposals.valid.sum() == 1  # the third was no candidate, the second fell to the first
