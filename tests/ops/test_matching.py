from unittest import mock

import numpy as np
import pytest
import torch

from maskperf.ops import matching
from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.matching import Matches, match_boxes

RPN = {"positive_iou": 0.7, "negative_iou": 0.3, "keep_best_of_truth": True}
THRESHOLDS_ALONE = {**RPN, "keep_best_of_truth": False}
BOX_HEAD = {"positive_iou": 0.5, "negative_iou": 0.5, "keep_best_of_truth": False}


def match_one_by_one(iou: np.ndarray, valid: np.ndarray, rule: dict) -> tuple[list[int], str]:
    """Return the slot and the kind of every box of one image, one box and one ground truth at a time."""
    low, high = np.float32(rule["negative_iou"]), np.float32(rule["positive_iou"])
    real = [slot for slot in range(iou.shape[1]) if valid[slot]]
    slots, kinds = [], []
    for row in iou:
        best = max((row[slot] for slot in real), default=np.float32(-1))
        slots.append(next((slot for slot in real if row[slot] == best), 0))
        kinds.append("p" if best >= high else "n" if best < low else "i")
    if rule["keep_best_of_truth"]:
        for slot in real:
            for box in np.flatnonzero(iou[:, slot] == max(iou[:, slot])):
                kinds[box] = "p"
    return slots, "".join(kinds)


def kinds_of(matches: Matches, image: int = 0) -> str:
    """Return a letter for each box: positive, negative or ignored."""
    assert not bool((matches.positive & matches.negative).any())
    pairs = zip(matches.positive[image].tolist(), matches.negative[image].tolist(), strict=True)
    return "".join("p" if positive else "n" if negative else "i" for positive, negative in pairs)


def match_overlaps(iou: torch.Tensor, valid: torch.Tensor, rule: dict) -> Matches:
    """Return the matches of boxes (images, boxes, slots) that overlap so much."""
    images, boxes, slots = iou.shape
    with mock.patch.object(matching, "pairwise_iou", lambda truth, boxes: iou.mT.clone()):
        return match_boxes(torch.zeros(images, boxes, 4), torch.zeros(images, slots, 4), valid, **rule)


@pytest.mark.parametrize(
    ("shared_px", "kind_of_anchor", "kind_of_roi"),
    [(2, "n", "n"), (3, "i", "n"), (4, "i", "n"), (5, "i", "p"), (6, "i", "p"), (7, "p", "p")],
)
def test_an_overlap_equal_to_a_threshold_belongs_to_the_side_above(shared_px, kind_of_anchor, kind_of_roi):
    # The truth is `shared_px` of the ten pixels of the box, so the overlap is exactly shared_px / 10 in float32.
    box, truth = torch.tensor([[[0.0, 0.0, 9.0, 0.0]]]), torch.tensor([[[0.0, 0.0, shared_px - 1.0, 0.0]]])
    assert pairwise_iou(box, truth).item() == np.float32(shared_px) / np.float32(10)
    for rule, kind in ((THRESHOLDS_ALONE, kind_of_anchor), (BOX_HEAD, kind_of_roi)):
        assert kinds_of(match_boxes(box, truth, torch.tensor([[True]]), **rule)) == kind


BELOW = [float(np.nextafter(np.float32(threshold), np.float32(0))) for threshold in (0.3, 0.7)]


@pytest.mark.parametrize(
    ("iou", "rule", "valid", "kinds", "slots"),
    [
        ([[BELOW[0]], [BELOW[1]]], THRESHOLDS_ALONE, [1], "ni", [0, 0]),
        ([[0.4], [0.1], [0.4], [0.35], [0.4]], RPN, [1], "pnpip", [0] * 5),  # all that share the best of a truth
        ([[0.2], [0.05]], RPN, [1], "pn", [0, 0]),  # however low it is
        # Box 0 is the best that truth 1 has (0.2), but it overlaps truth 0 more, whose best is box 1.
        ([[0.5, 0.2], [0.8, 0.1]], RPN, [1, 1], "pp", [0, 0]),
        ([[0.8, 0.8, 0.2], [0.1, 0.3, 0.3]], RPN, [1, 1, 1], "pp", [0, 1]),  # of equal overlaps the first truth
        # As in the reference: all boxes share the best overlap of truth 1, which is 0.
        ([[0.9, 0.0], [0.4, 0.0], [0.0, 0.0]], RPN, [1, 1], "ppp", [0, 0, 0]),
        ([[0.9, 0.0], [0.4, 0.0], [0.0, 0.0]], BOX_HEAD, [1, 1], "pnn", [0, 0, 0]),
        # Only slot 1 is real; the others would win by threshold and by best of truth.
        ([[0.9, 0.2, 1.0], [0.0, 0.1, 0.0], [0.95, 0.75, 0.0]], RPN, [0, 1, 0], "nnp", [1, 1, 1]),
        ([[0.9, 0.2], [0.0, 1.0]], RPN, [0, 0], "nn", [0, 0]),  # without truth every box is negative
        ([[0.9, 0.2], [0.0, 1.0]], BOX_HEAD, [0, 0], "nn", [0, 0]),
    ],
)
def test_matches_of_known_overlaps(iou, rule, valid, kinds, slots):
    matches = match_overlaps(torch.tensor([iou]), torch.tensor([valid], dtype=torch.bool), rule)
    assert (kinds_of(matches), matches.slots[0].tolist()) == (kinds, slots)


@pytest.mark.parametrize("rule", [RPN, BOX_HEAD])
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_rule_box_by_box_on_random_overlaps_with_many_ties(rule, seed):
    generator = np.random.default_rng(seed)
    images, boxes, slots = 5, 30, 4
    # Tenths, so that ties and exact thresholds are everywhere; low ones are more common, as in real images.
    tenths = np.minimum(
        generator.integers(0, 11, (images, boxes, slots)), generator.integers(0, 11, (images, 1, slots))
    )
    iou = tenths.astype(np.float32) / np.float32(10)
    valid = generator.random((images, slots)) < 0.7
    valid[0] = False
    matches = match_overlaps(torch.from_numpy(iou), torch.from_numpy(valid), rule)
    for image in range(images):
        found = matches.slots[image].tolist(), kinds_of(matches, image)
        assert found == match_one_by_one(iou[image], valid[image], rule)


@pytest.mark.parametrize("overlaps_at_a_time", [1, 3 * 60 * 2, 1 << 21])
@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_random_boxes_are_matched_by_their_overlaps_some_truths_at_a_time(
    monkeypatch, seed, is_shared, overlaps_at_a_time
):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 40, (1 if is_shared else 3, 60, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(5, 30, corners.shape, generator=generator)], dim=2).float()
    truth = boxes[0, torch.randint(0, 60, (3, 7), generator=generator)]  # some boxes fit, some truths are equal
    truth = truth + torch.randint(-3, 4, (3, 7, 1), generator=generator)
    truth[0, 0] += 500  # overlaps nothing
    valid = torch.arange(7) < torch.tensor([[7], [3], [0]])
    iou = pairwise_iou(boxes, truth).numpy()
    monkeypatch.setattr(matching, "_MAX_OVERLAPS", overlaps_at_a_time)
    matches = match_boxes(boxes, truth, valid, **RPN)
    for image in range(3):
        found = matches.slots[image].tolist(), kinds_of(matches, image)
        assert found == match_one_by_one(iou[image], valid[image].numpy(), RPN)
    assert matches.slots.unique().numel() > 3


def test_no_boxes_have_no_matches():
    matches = match_boxes(torch.zeros(2, 0, 4), torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), **BOX_HEAD)
    assert matches.slots.shape == matches.positive.shape == matches.negative.shape == (2, 0)
