import pytest
import torch
from crowded_boxes import FAR, FLAT, NEAR_A, NEXT_PIXEL, PIXEL, A, crowded_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_operators import nms_reference

from maskperf.ops import nms
from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.nms import nms_sorted


def kept_by_sorting(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> list[int]:
    """Return the indices that `nms_sorted` keeps, best score first, equal scores in their order."""
    order = torch.argsort(scores, descending=True, stable=True)
    alive = nms_sorted(boxes[order][None], torch.ones((1, len(boxes)), dtype=torch.bool), iou_threshold)
    return order[alive[0]].tolist()


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_reference_on_crowded_boxes_with_equal_scores(iou_threshold, seed):
    boxes = crowded_boxes(1, 45, seed)[0]
    scores = torch.randint(0, 11, (45,), generator=torch.Generator().manual_seed(seed)) / 10  # many are equal
    kept = kept_by_sorting(boxes, scores, iou_threshold)
    assert kept == nms_reference(boxes, scores, iou_threshold)
    assert 3 < len(kept) < 45
    assert len(scores.unique()) < 12


CHAIN = [(3.0 * step, 0.0, 3.0 * step + 9, 0.0) for step in range(5)]  # neighbours overlap by 7 / 13, others by 4 / 16


@pytest.mark.parametrize(
    ("rows", "valid", "iou_threshold", "expected"),
    [
        ([A, A, A, FAR], [1, 1, 1, 1], 0.5, [1, 0, 0, 1]),  # of equal boxes the first survives
        (CHAIN, [1] * 5, 0.5, [1, 0, 1, 0, 1]),  # a suppressed box suppresses nothing
        (CHAIN, [1] * 5, 0.2, [1, 0, 0, 1, 0]),
        ([A, NEAR_A, FAR], [1, 1, 1], 0.5, [1, 0, 1]),
        ([A, NEAR_A, FAR], [0, 1, 1], 0.5, [0, 1, 1]),  # an invalid box neither survives nor suppresses
        ([A, NEAR_A, FAR], [1, 1, 0], 0.5, [1, 0, 0]),
        ([A, NEAR_A, FAR], [0, 0, 0], 0.5, [0, 0, 0]),
        ([A], [1], 0.5, [1]),
        ([A], [0], 0.5, [0]),
        ([PIXEL, NEXT_PIXEL, PIXEL], [1, 1, 1], 0.5, [1, 1, 0]),
        ([FLAT, FLAT, A], [1, 1, 1], 0.5, [1, 1, 1]),  # without area they have no overlap (0 / 0): both survive
    ],
)
def test_survivors_of_small_groups(rows, valid, iou_threshold, expected):
    alive = nms_sorted(torch.tensor([rows]), torch.tensor([valid], dtype=torch.bool), iou_threshold)
    assert alive[0].int().tolist() == expected


@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_box_whose_overlap_equals_the_threshold_is_kept(tenths):
    # Ten pixels and `tenths` of them: the overlap is tenths / 10, whether float32 rounds that up or down.
    boxes = torch.tensor([[[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, tenths - 1.0, 0.0]]])
    valid = torch.ones((1, 2), dtype=torch.bool)
    assert nms_sorted(boxes, valid, tenths / 10).tolist() == [[True, True]]
    assert nms_sorted(boxes, valid, tenths / 10 - 0.001).tolist() == [[True, False]]


@pytest.mark.parametrize("seed", range(3))
def test_invalid_boxes_act_as_if_they_were_absent(seed):
    boxes = crowded_boxes(1, 60, seed)[0]
    valid = torch.rand(60, generator=torch.Generator().manual_seed(seed + 50)) < 0.6
    alive = nms_sorted(boxes[None], valid[None], 0.5)[0]
    without = nms_sorted(boxes[valid][None], torch.ones((1, int(valid.sum())), dtype=torch.bool), 0.5)[0]
    assert torch.equal(alive[valid], without)
    assert not bool(alive[~valid].any())


@pytest.mark.parametrize("overlaps_at_a_time", [1, 40 * 40 * 2, 1 << 24])
def test_groups_do_not_touch_each_other_and_inputs_stay(monkeypatch, overlaps_at_a_time):
    boxes = torch.cat([crowded_boxes(5, 40, seed=0), torch.zeros(1, 40, 4)])
    valid = torch.rand((6, 40), generator=torch.Generator().manual_seed(0)) < 0.8
    before = boxes.clone(), valid.clone()
    alone = [nms_sorted(boxes[[group]], valid[[group]], 0.5)[0] for group in range(6)]
    monkeypatch.setattr(nms, "_MAX_OVERLAPS", overlaps_at_a_time)
    assert torch.equal(nms_sorted(boxes, valid, 0.5), torch.stack(alone))
    assert alone[5].sum() == 1  # equal boxes: the first valid one
    assert torch.equal(boxes, before[0]) and torch.equal(valid, before[1])


def test_empty_groups():
    assert nms_sorted(torch.zeros((3, 0, 4)), torch.zeros((3, 0), dtype=torch.bool), 0.5).shape == (3, 0)
    assert nms_sorted(torch.zeros((0, 7, 4)), torch.zeros((0, 7), dtype=torch.bool), 0.5).shape == (0, 7)


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
    boxes = crowded_boxes(1, 200, seed)[0]
    valid = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.9
    monkeypatch.setattr(nms, "_BLOCK", block)
    assert_greedy(boxes, valid, 0.5)
    assert 10 < nms_sorted(boxes[None], valid[None], 0.5).sum() < 150


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
