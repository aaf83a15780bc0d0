import numpy as np
import pytest
import torch
from golden_reference import flat_polygons

from maskperf.losses.rpn import assign_anchors
from maskperf.ops import matching
from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.matching import Matches, match_anchors, match_to_truth
from maskperf.structures import Targets

RPN = {"positive_iou": 0.7, "negative_iou": 0.3, "keep_best_of_truth": True}
BOX_HEAD = {"positive_iou": 0.5, "negative_iou": 0.5, "keep_best_of_truth": False}


def match_one_by_one(iou: np.ndarray, valid: np.ndarray, rule: dict) -> tuple[list[int], list[str]]:
    """Return the slot and the kind of every box of one image, one box and one ground truth at a time."""
    low, high = np.float32(rule["negative_iou"]), np.float32(rule["positive_iou"])
    real = [slot for slot in range(iou.shape[1]) if valid[slot]]
    slots, kinds = [], []
    for row in iou:
        best = max((row[slot] for slot in real), default=np.float32(-1))
        slots.append(next((slot for slot in real if row[slot] == best), 0))
        kinds.append("positive" if best >= high else "negative" if best < low else "ignored")
    if rule["keep_best_of_truth"]:
        for slot in real:
            highest = max(iou[:, slot])
            for box in range(len(iou)):
                if iou[box, slot] == highest:
                    kinds[box] = "positive"
    return slots, kinds


def kinds_of(matches: Matches, image: int = 0) -> list[str]:
    assert not bool((matches.positive & matches.negative).any())
    pairs = zip(matches.positive[image].tolist(), matches.negative[image].tolist(), strict=True)
    return ["positive" if positive else "negative" if negative else "ignored" for positive, negative in pairs]


def match(iou: list[list[float]], rule: dict, valid: list[bool] | None = None) -> Matches:
    overlaps = torch.tensor([iou])
    real = torch.ones((1, overlaps.shape[2]), dtype=torch.bool) if valid is None else torch.tensor([valid])
    return match_to_truth(overlaps, real, **rule)


def targets_of(*images: list[tuple[float, float, float, float]]) -> Targets:
    """Return ground truth without polygons, padded with slots of zeros."""
    slots = max(1, *(len(boxes) for boxes in images))
    boxes = torch.zeros(len(images), slots, 4)
    labels = torch.zeros(len(images), slots, dtype=torch.int64)
    for image, rows in enumerate(images):
        if rows:
            boxes[image, : len(rows)] = torch.tensor(rows)
            labels[image, : len(rows)] = 1
    empty = flat_polygons([], [0] * (len(images) * slots + 1))
    return Targets(boxes=boxes, labels=labels, valid=labels > 0, polygons=empty)


@pytest.mark.parametrize(("shared_px", "kind"), [(2, "negative"), (3, "ignored"), (6, "ignored"), (7, "positive")])
def test_an_overlap_equal_to_a_threshold_belongs_to_the_side_above(shared_px, kind):
    # The truth is `shared_px` of the ten pixels of the anchor, so the overlap is exactly shared_px / 10 in float32.
    anchor, truth = torch.tensor([[0.0, 0.0, 9.0, 0.0]]), torch.tensor([[0.0, 0.0, shared_px - 1.0, 0.0]])
    iou = pairwise_iou(anchor, truth)[None]
    assert iou.item() == np.float32(shared_px) / np.float32(10)
    rule = {**RPN, "keep_best_of_truth": False}
    assert kinds_of(match_to_truth(iou, torch.tensor([[True]]), **rule)) == [kind]


@pytest.mark.parametrize(("shared_px", "kind"), [(4, "negative"), (5, "positive"), (6, "positive")])
def test_the_box_head_has_no_band_between_positive_and_negative(shared_px, kind):
    proposal, truth = torch.tensor([[0.0, 0.0, 9.0, 0.0]]), torch.tensor([[0.0, 0.0, shared_px - 1.0, 0.0]])
    iou = pairwise_iou(proposal, truth)[None]
    assert kinds_of(match_to_truth(iou, torch.tensor([[True]]), **BOX_HEAD)) == [kind]


def test_the_largest_overlap_below_a_threshold_stays_below():
    below = [float(np.nextafter(np.float32(t), np.float32(0))) for t in (0.3, 0.7)]
    rule = {**RPN, "keep_best_of_truth": False}
    assert kinds_of(match([[below[0]], [below[1]]], rule)) == ["negative", "ignored"]


def test_all_boxes_with_the_best_overlap_of_a_truth_become_positive():
    matches = match([[0.4], [0.1], [0.4], [0.35], [0.4]], RPN)
    assert kinds_of(matches) == ["positive", "negative", "positive", "ignored", "positive"]


def test_a_best_overlap_below_the_negative_threshold_is_positive_too():
    assert kinds_of(match([[0.2], [0.05]], RPN)) == ["positive", "negative"]


def test_a_box_chosen_by_one_truth_keeps_its_own_best_truth():
    # Box 0 is the best that truth 1 has (0.2), but it overlaps truth 0 more (0.5), whose best is box 1.
    matches = match([[0.5, 0.2], [0.8, 0.1]], RPN)
    assert kinds_of(matches) == ["positive", "positive"]
    assert matches.slots.tolist() == [[0, 0]]


def test_of_equal_overlaps_the_first_truth_is_taken():
    assert match([[0.8, 0.8, 0.2], [0.1, 0.3, 0.3]], RPN).slots.tolist() == [[0, 1]]


def test_a_truth_that_overlaps_nothing_makes_every_box_positive():
    # As in the reference: all boxes share the best overlap of truth 1, which is 0.
    matches = match([[0.9, 0.0], [0.4, 0.0], [0.0, 0.0]], RPN)
    assert kinds_of(matches) == ["positive", "positive", "positive"]
    assert matches.slots.tolist() == [[0, 0, 0]]
    assert kinds_of(match([[0.9, 0.0], [0.4, 0.0], [0.0, 0.0]], BOX_HEAD)) == ["positive", "negative", "negative"]


def test_padded_slots_never_match():
    # Only slot 1 is real; the overlaps of the other slots would win by threshold and by best of truth.
    matches = match([[0.9, 0.2, 1.0], [0.0, 0.1, 0.0], [0.95, 0.75, 0.0]], RPN, valid=[False, True, False])
    assert kinds_of(matches) == ["negative", "negative", "positive"]
    assert matches.slots.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("rule", [RPN, BOX_HEAD])
def test_without_truth_every_box_is_negative(rule):
    matches = match([[0.9, 0.2], [0.0, 1.0]], rule, valid=[False, False])
    assert kinds_of(matches) == ["negative", "negative"]
    assert matches.slots.tolist() == [[0, 0]]


@pytest.mark.parametrize("rule", [RPN, BOX_HEAD])
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_twin_on_random_overlaps_with_many_ties(rule, seed):
    generator = np.random.default_rng(seed)
    images, boxes, slots = 5, 30, 4
    # Tenths, so that ties and exact thresholds are everywhere; low ones are more common, as in real pictures.
    tenths = np.minimum(
        generator.integers(0, 11, (images, boxes, slots)), generator.integers(0, 11, (images, 1, slots))
    )
    iou = tenths.astype(np.float32) / np.float32(10)
    valid = generator.random((images, slots)) < 0.7
    valid[0] = False
    matches = match_to_truth(torch.from_numpy(iou), torch.from_numpy(valid), **rule)
    for image in range(images):
        slots_expected, kinds_expected = match_one_by_one(iou[image], valid[image], rule)
        assert kinds_of(matches, image) == kinds_expected
        assert matches.slots[image].tolist() == slots_expected


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_twin_on_random_boxes(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 40, (3, 66, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(5, 30, (3, 66, 2), generator=generator)], dim=2).float()
    iou = pairwise_iou(boxes[:, 6:], boxes[:, :6])
    valid = torch.arange(6) < torch.tensor([[6], [3], [1]])
    matches = match_to_truth(iou, valid, **RPN)
    for image in range(3):
        slots, kinds = match_one_by_one(iou[image].numpy(), valid[image].numpy(), RPN)
        assert (matches.slots[image].tolist(), kinds_of(matches, image)) == (slots, kinds)
    assert {"positive", "negative", "ignored"} == {kind for image in range(3) for kind in kinds_of(matches, image)}


def test_more_padded_slots_change_nothing():
    iou = torch.rand((2, 20, 3), generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, True, True], [True, False, False]])
    padded = torch.cat([iou, torch.full((2, 20, 4), 0.99)], dim=2)
    short = match_to_truth(iou, valid, **RPN)
    long = match_to_truth(padded, torch.nn.functional.pad(valid, (0, 4)), **RPN)
    assert torch.equal(short.slots, long.slots)
    assert torch.equal(short.positive, long.positive)
    assert torch.equal(short.negative, long.negative)


def test_no_boxes_give_empty_matches():
    matches = match_to_truth(torch.zeros((2, 0, 3)), torch.ones((2, 3), dtype=torch.bool), **BOX_HEAD)
    assert matches.slots.shape == matches.positive.shape == matches.negative.shape == (2, 0)


def assign(anchors: list, visible: list, targets: Targets) -> Matches:
    return assign_anchors(torch.tensor(anchors), torch.tensor(visible), targets, positive_iou=0.7, negative_iou=0.3)


def test_an_object_whose_best_anchor_is_invisible_has_no_positive_anchor():
    # Overlaps with the truth: 0.625, 0.5 and 0. The best is below 0.7, so only "best of its truth" makes it positive.
    anchors = [[0.0, 0.0, 9.0, 4.0], [0.0, 0.0, 9.0, 3.0], [50.0, 50.0, 59.0, 59.0]]
    targets = targets_of([(0.0, 0.0, 9.0, 7.0)])
    assert kinds_of(assign(anchors, [[True, True, True]], targets)) == ["positive", "ignored", "negative"]
    assert kinds_of(assign(anchors, [[False, True, True]], targets)) == ["ignored", "ignored", "negative"]


def test_invisible_anchors_are_ignored_whatever_they_match():
    anchors = [[0.0, 0.0, 9.0, 9.0], [50.0, 50.0, 59.0, 59.0], [0.0, 0.0, 9.0, 9.0]]
    targets = targets_of([(0.0, 0.0, 9.0, 9.0)])
    assert kinds_of(assign(anchors, [[False, False, True]], targets)) == ["ignored", "ignored", "positive"]


def test_each_image_has_its_own_truth_and_visibility():
    anchors = [[0.0, 0.0, 9.0, 9.0], [50.0, 50.0, 59.0, 59.0]]
    targets = targets_of([(0.0, 0.0, 9.0, 9.0)], [(70.0, 0.0, 79.0, 9.0), (50.0, 50.0, 59.0, 59.0)], [])
    matches = assign(anchors, [[True, True], [True, False], [True, True]], targets)
    assert kinds_of(matches, 0) == ["positive", "negative"]
    assert kinds_of(matches, 1) == ["positive", "ignored"]  # the first truth ties at 0 with every anchor
    assert kinds_of(matches, 2) == ["negative", "negative"]  # and padded slots match nothing, not even pixel (0, 0)


@pytest.mark.parametrize("overlaps_at_a_time", [1, 3 * 60 * 2, 1 << 21])
@pytest.mark.parametrize("seed", range(4))
def test_matching_a_few_truths_at_a_time_equals_matching_all_at_once(monkeypatch, seed, overlaps_at_a_time):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 40, (60, 2), generator=generator)
    anchors = torch.cat([corners, corners + torch.randint(5, 30, (60, 2), generator=generator)], dim=1).float()
    truth = anchors[torch.randint(0, 60, (3, 7), generator=generator)]  # some anchors fit, some truths are equal
    truth = truth + torch.randint(-3, 4, (3, 7, 1), generator=generator)
    truth[0, 0] += 500  # overlaps nothing
    valid = torch.arange(7) < torch.tensor([[7], [3], [0]])
    wanted = match_to_truth(pairwise_iou(anchors[None], truth), valid, **RPN)
    monkeypatch.setattr(matching, "_MAX_OVERLAPS", overlaps_at_a_time)
    found = match_anchors(anchors, truth, valid, positive_iou=0.7, negative_iou=0.3)
    assert torch.equal(found.slots, wanted.slots)
    assert torch.equal(found.positive, wanted.positive)
    assert torch.equal(found.negative, wanted.negative)
    assert wanted.slots.unique().numel() > 3
