import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskperf.ops import nms
from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.nms import nms_reference, nms_sorted

A = (0.0, 0.0, 9.0, 9.0)
NEAR_A = (1.0, 0.0, 10.0, 9.0)  # overlaps A by 90 / 110
FAR = (50.0, 50.0, 59.0, 59.0)


def crowded_boxes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes in whole pixels around a few centres, and scores in tenths, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randint(0, 60, (5, 2), generator=generator)
    corners = centres[torch.randint(0, 5, (count,), generator=generator)]
    corners = corners + torch.randint(-6, 7, (count, 2), generator=generator)
    sides = torch.randint(8, 20, (count, 2), generator=generator)
    scores = torch.randint(0, 11, (count,), generator=generator) / 10
    return torch.cat([corners, corners + sides], dim=1).float(), scores


def kept_by_sorting(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> list[int]:
    """Return the indices that `nms_sorted` keeps, best score first, equal scores in their order."""
    order = torch.argsort(scores, descending=True, stable=True)
    alive = nms_sorted(boxes[order][None], torch.ones((1, len(boxes)), dtype=torch.bool), iou_threshold)
    return order[alive[0]].tolist()


def survivors(rows: list, valid: list[bool] | None = None, iou_threshold: float = 0.5) -> list[bool]:
    real = torch.tensor([valid if valid else [True] * len(rows)])
    return nms_sorted(torch.tensor([rows]), real, iou_threshold)[0].tolist()


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_twin_on_crowded_boxes_with_equal_scores(iou_threshold, seed):
    boxes, scores = crowded_boxes(45, seed)
    kept = kept_by_sorting(boxes, scores, iou_threshold)
    assert kept == nms_reference(boxes, scores, iou_threshold)
    assert 3 < len(kept) < 45
    assert len(scores.unique()) < 12


@pytest.mark.parametrize("function", [kept_by_sorting, nms_reference])
def test_of_equal_boxes_with_equal_scores_the_first_is_kept(function):
    boxes, scores = torch.tensor([FAR, A, A, A]), torch.tensor([0.1, 0.5, 0.5, 0.5])
    assert function(boxes, scores, 0.5) == [1, 0]


@pytest.mark.parametrize("function", [kept_by_sorting, nms_reference])
def test_a_suppressed_box_suppresses_nothing(function):
    # The boxes overlap their neighbours by 7 / 13 and the next but one by 4 / 16.
    boxes = torch.tensor([[3.0 * step, 0.0, 3.0 * step + 9, 0.0] for step in range(5)])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    assert function(boxes, scores, 0.5) == [0, 2, 4]
    assert function(boxes, scores, 0.2) == [0, 3]


@pytest.mark.parametrize("function", [kept_by_sorting, nms_reference])
@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_box_whose_overlap_equals_the_threshold_is_kept(function, tenths):
    # Ten pixels and `tenths` of them: the overlap is tenths / 10, whether float32 rounds that up or down.
    boxes = torch.tensor([[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, tenths - 1.0, 0.0]])
    scores = torch.tensor([0.9, 0.8])
    assert function(boxes, scores, tenths / 10) == [0, 1]
    assert function(boxes, scores, tenths / 10 - 0.001) == [0]


def test_invalid_boxes_neither_survive_nor_suppress():
    assert survivors([A, NEAR_A, FAR]) == [True, False, True]
    assert survivors([A, NEAR_A, FAR], valid=[False, True, True]) == [False, True, True]
    assert survivors([A, NEAR_A, FAR], valid=[True, True, False]) == [True, False, False]
    assert survivors([A, NEAR_A, FAR], valid=[False, False, False]) == [False, False, False]


@pytest.mark.parametrize("seed", range(3))
def test_invalid_boxes_act_as_if_they_were_absent(seed):
    boxes, _ = crowded_boxes(60, seed)
    valid = torch.rand(60, generator=torch.Generator().manual_seed(seed + 50)) < 0.6
    alive = nms_sorted(boxes[None], valid[None], 0.5)[0]
    without = nms_sorted(boxes[valid][None], torch.ones((1, int(valid.sum())), dtype=torch.bool), 0.5)[0]
    assert torch.equal(alive[valid], without)
    assert not bool(alive[~valid].any())


def test_groups_do_not_touch_each_other():
    boxes = torch.stack([crowded_boxes(40, seed)[0] for seed in range(5)] + [torch.zeros(40, 4)])
    valid = torch.rand((6, 40), generator=torch.Generator().manual_seed(0)) < 0.8
    together = nms_sorted(boxes, valid, 0.5)
    for group in range(6):
        assert torch.equal(together[group], nms_sorted(boxes[[group]], valid[[group]], 0.5)[0])
    assert together[5].sum() == 1  # equal boxes: the first valid one


@pytest.mark.parametrize("limit", [1, 40 * 40 * 2])
def test_the_number_of_groups_at_a_time_does_not_matter(monkeypatch, limit):
    boxes = torch.stack([crowded_boxes(40, seed)[0] for seed in range(5)])
    valid = torch.rand((5, 40), generator=torch.Generator().manual_seed(1)) < 0.8
    at_once = nms_sorted(boxes, valid, 0.5)
    monkeypatch.setattr(nms, "_MAX_OVERLAPS", limit)
    assert torch.equal(nms_sorted(boxes, valid, 0.5), at_once)


def test_inputs_are_left_alone():
    boxes, valid = crowded_boxes(20, 1)[0][None], torch.ones((1, 20), dtype=torch.bool)
    before = boxes.clone()
    assert not bool(nms_sorted(boxes, valid, 0.3).all())
    assert torch.equal(boxes, before)
    assert bool(valid.all())


def test_empty_groups_and_single_boxes():
    assert nms_sorted(torch.zeros((3, 0, 4)), torch.zeros((3, 0), dtype=torch.bool), 0.5).shape == (3, 0)
    assert nms_sorted(torch.zeros((0, 7, 4)), torch.zeros((0, 7), dtype=torch.bool), 0.5).shape == (0, 7)
    assert nms_reference(torch.zeros((0, 4)), torch.zeros(0), 0.5) == []
    assert survivors([A]) == [True]
    assert survivors([A], valid=[False]) == [False]


def test_one_pixel_boxes_and_boxes_without_area_are_handled():
    pixel, neighbour, flat = (3.0, 3.0, 3.0, 3.0), (4.0, 3.0, 4.0, 3.0), (8.0, 8.0, 7.0, 7.0)
    assert survivors([pixel, neighbour, pixel]) == [True, True, False]
    # Two boxes without area have no overlap (0 / 0): both stay, here and in the twin.
    assert survivors([flat, flat, A]) == [True, True, True]
    assert nms_reference(torch.tensor([flat, flat, A]), torch.tensor([0.9, 0.8, 0.7]), 0.5) == [0, 1, 2]


def assert_greedy(boxes: torch.Tensor, valid: torch.Tensor, iou_threshold: float) -> None:
    """Check the two statements that together define the greedy rule for one group of sorted boxes."""
    alive = nms_sorted(boxes[None], valid[None], iou_threshold)[0]
    above = pairwise_iou(boxes, boxes) > iou_threshold
    earlier = torch.ones_like(above).triu(diagonal=1)
    suppressed_by_survivor = (above & earlier & alive[:, None]).any(dim=0)
    assert not bool((alive & suppressed_by_survivor).any())
    assert torch.equal(valid & ~alive, valid & suppressed_by_survivor)
    assert not bool((alive & ~valid).any())


@pytest.mark.parametrize("block", [1, 7, 64, 300])
@pytest.mark.parametrize("seed", range(3))
def test_the_size_of_the_blocks_does_not_matter(monkeypatch, seed, block):
    boxes, _ = crowded_boxes(200, seed)
    valid = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.9
    monkeypatch.setattr(nms, "_BLOCK", block)
    assert_greedy(boxes, valid, 0.5)
    assert 10 < nms_sorted(boxes[None], valid[None], 0.5).sum() < 150


@pytest.mark.parametrize("iou_threshold", [0.5, 0.7])
def test_many_boxes_follow_the_greedy_rule(iou_threshold):
    boxes, _ = crowded_boxes(600, 9)
    assert_greedy(boxes, torch.ones(600, dtype=torch.bool), iou_threshold)


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 9), st.integers(0, 9), st.booleans()),
        min_size=1,
        max_size=25,
    ),
    iou_threshold=st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]),
)
def test_survivors_do_not_overlap_and_every_removed_box_has_a_better_survivor(rows, iou_threshold):
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in rows], dtype=torch.float32)
    assert_greedy(boxes, torch.tensor([is_valid for *_, is_valid in rows]), iou_threshold)
