import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import overlap_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st

from maskperf.ops.boxes import MAX_LOG_RATIO, box_area, clip_boxes, decode_boxes, encode_boxes, pairwise_iou

ONES = (1.0, 1.0, 1.0, 1.0)
HEAD = (10.0, 10.0, 5.0, 5.0)
FIRST = torch.tensor([[10.0, 20.0, 49.0, 79.0]])
SECOND = torch.tensor([[15.0, 25.0, 60.0, 90.0]])


def random_boxes(count: int, seed: int) -> torch.Tensor:
    """Return float64 boxes of many sizes in a field of 200 x 200 pixels, crowded enough to overlap."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand((count, 2), generator=generator, dtype=torch.float64) * 200 - 20
    sides = torch.rand((count, 2), generator=generator, dtype=torch.float64) ** 2 * 150
    return torch.cat([corners, corners + sides], dim=1)


@st.composite
def box_lists(draw, min_size: int = 1):
    corner = st.floats(-50, 1500, allow_nan=False)
    side = st.floats(0, 800, allow_nan=False)
    rows = draw(st.lists(st.tuples(corner, corner, side, side), min_size=min_size, max_size=6))
    return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float64)


def test_area_counts_both_corner_pixels_and_is_zero_or_negative_only_for_crossed_corners():
    boxes = [[10.0, 20.0, 49.0, 79.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.5, 1.0], [5.0, 5.0, 4.0, 9.0], [5, 5, 3, 9]]
    assert box_area(torch.tensor(boxes)).tolist() == [2400.0, 1.0, 3.0, 0.0, -5.0]


def test_iou_equals_that_of_one_pair_at_a_time():
    first, second = random_boxes(40, 1), random_boxes(30, 2)
    expected = np.array([[overlap_by_hand(a, b) for b in second.tolist()] for a in first.tolist()])
    assert (expected > 0.1).sum() > 50  # the case is worth something
    np.testing.assert_allclose(pairwise_iou(first, second).numpy(), expected, rtol=1e-12, atol=1e-12)
    assert pairwise_iou(FIRST, SECOND).item() == pytest.approx(0.548277, abs=5e-7)  # without the "+1": 0.541593
    single = pairwise_iou(first.float(), second.float())
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-5, atol=1e-6)


def test_iou_of_a_batch_is_taken_image_by_image():
    first = random_boxes(24, 3).view(3, 8, 4)
    second = random_boxes(15, 4).view(3, 5, 4)
    together = pairwise_iou(first, second)
    assert together.shape == (3, 8, 5)
    for image in range(3):
        assert torch.equal(together[image], pairwise_iou(first[image], second[image]))
    assert torch.equal(pairwise_iou(first[:1], second)[2], pairwise_iou(first[0], second[2]))  # anchors are shared


@settings(max_examples=60)
@given(first=box_lists(), second=box_lists())
def test_iou_is_symmetric_between_zero_and_one_and_one_with_itself(first, second):
    overlaps = pairwise_iou(first, second)
    assert torch.equal(overlaps, pairwise_iou(second, first).T)
    assert bool(((overlaps >= 0) & (overlaps <= 1 + 1e-12)).all())
    itself = pairwise_iou(first, first).diagonal()
    torch.testing.assert_close(itself, torch.ones_like(itself), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        ((0, 0, 9, 9), (10, 0, 19, 9), 0),  # side by side
        ((0, 0, 9, 9), (9, 0, 18, 9), 10 / 190),  # sharing a column of pixels
        ((3, 4, 3, 4), (3, 4, 3, 4), 1),  # one pixel each
        ((3, 4, 3, 4), (4, 4, 4, 4), 0),
        ((5, 5, 4, 4), (0, 0, 9, 9), 0),  # without area
    ],
)
def test_overlaps_at_the_borders(first, second, overlap):
    pair = (torch.tensor([box], dtype=torch.float32) for box in (first, second))
    assert pairwise_iou(*pair).item() == pytest.approx(overlap)


def test_empty_sets_of_boxes_keep_their_shapes():
    none = torch.zeros((0, 4))
    assert pairwise_iou(none, FIRST).shape == (0, 1)
    assert pairwise_iou(FIRST, none).shape == (1, 0)
    assert box_area(none).shape == (0,)
    assert encode_boxes(none, none, ONES).shape == (0, 4)
    assert decode_boxes(none, none, ONES).shape == (0, 4)
    assert clip_boxes(torch.zeros((2, 0, 4)), torch.tensor([[5, 7], [9, 9]])).shape == (2, 0, 4)


def test_clipping_uses_the_size_of_each_image():
    boxes = [[0.0, 0.5, 99.0, 49.0], [99.5, 3.0, 140.0, 60.0], [-9.0, -8.0, -1.0, 4.0], [-3.0, -4.0, 700.0, 900.0]]
    clipped = clip_boxes(torch.tensor([boxes] * 2), torch.tensor([[50, 100], [480, 640]]))
    assert clipped[0].tolist() == [[0, 0.5, 99, 49], [99, 3, 99, 49], [0, 0, 0, 4], [0, 0, 99, 49]]
    assert clipped[1].tolist() == [[0, 0.5, 99, 49], [99.5, 3, 140, 60], [0, 0, 0, 4], [0, 0, 639, 479]]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(ONES, (0.2, 0.133333, 0.139762, 0.095310)), (HEAD, (2.0, 1.333333, 0.698810, 0.476551))],
)
def test_offsets_have_the_known_values(weights, expected):
    offsets = encode_boxes(SECOND, FIRST, weights)[0]
    assert offsets.tolist() == pytest.approx(expected, abs=6e-7)
    decoded = decode_boxes(offsets[None], FIRST, weights)
    assert decoded[0].tolist() == pytest.approx(SECOND[0].tolist(), abs=2e-5)


@pytest.mark.parametrize(
    ("growth", "weights", "factors"),
    [
        ((MAX_LOG_RATIO, MAX_LOG_RATIO), ONES, (62.5, 62.5)),
        ((4.2, 100.0), ONES, (62.5, 62.5)),
        ((5.0, 40.0), HEAD, (math.e, 62.5)),  # clamped after the weights are taken out: divided by 5, 1 and 8
        ((-12.0, -12.0), ONES, (math.exp(-12.0),) * 2),  # shrinking is not clamped
        ((0.0, 0.0), HEAD, (1.0, 1.0)),
    ],
)
def test_growth_is_clamped_at_sixty_two_and_a_half_times(growth, weights, factors):
    assert abs(MAX_LOG_RATIO - 4.135166556742356) < 1e-15
    anchor = torch.tensor([[0.0, 0.0, 7.0, 15.0]], dtype=torch.float64)  # 8 x 16 pixels
    box = decode_boxes(torch.tensor([[0.0, 0.0, *growth]], dtype=torch.float64), anchor, weights)[0]
    assert (box[2] - box[0] + 1).item() == pytest.approx(8 * factors[0])
    assert (box[3] - box[1] + 1).item() == pytest.approx(16 * factors[1])


@settings(max_examples=60)
@given(
    centre=st.tuples(st.floats(-500, 2000), st.floats(-500, 2000)),
    sides=st.tuples(st.floats(1, 900), st.floats(1, 900)),
    shift=st.tuples(st.floats(-300, 300), st.floats(-300, 300)),
    ratio=st.tuples(st.floats(0.001, 62), st.floats(0.001, 62)),
    weights=st.sampled_from([ONES, HEAD]),
)
def test_decoding_undoes_encoding(centre, sides, shift, ratio, weights):
    def box(middle, extent):
        corner = [m - e / 2 for m, e in zip(middle, extent, strict=True)]
        far = [c + e - 1 for c, e in zip(corner, extent, strict=True)]
        return torch.tensor([[*corner, *far]], dtype=torch.float64)

    anchor = box(centre, sides)
    truth = box([c + s for c, s in zip(centre, shift, strict=True)], [s * r for s, r in zip(sides, ratio, strict=True)])
    decoded = decode_boxes(encode_boxes(truth, anchor, weights), anchor, weights)
    torch.testing.assert_close(decoded, truth, rtol=0, atol=1e-7)


def test_a_box_without_sides_is_encoded_as_minus_infinity_not_as_nan():
    flat = torch.tensor([[10.0, 20.0, 9.0, 19.0]])
    offsets = encode_boxes(flat, FIRST, ONES)[0]
    assert offsets[2:].tolist() == [-math.inf, -math.inf]
    assert bool(torch.isfinite(offsets[:2]).all())


def test_gradient_of_decoding_is_right():
    anchors = random_boxes(5, 5)
    generator = torch.Generator().manual_seed(6)
    deltas = torch.randn((5, 4), generator=generator, dtype=torch.float64)
    deltas[0, 2:] = 30.0  # clamped: no gradient there
    deltas.requires_grad_()
    anchors.requires_grad_()
    assert torch.autograd.gradcheck(lambda d, a: decode_boxes(d, a, HEAD), (deltas, anchors))
    decode_boxes(deltas, anchors.detach(), HEAD).sum().backward()
    assert deltas.grad[0, 2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("beta", "weights"), [(1 / 9, ONES), (1.0, HEAD)])
def test_gradient_of_the_box_loss_over_encoded_offsets_is_right(beta, weights):
    truth, anchors = random_boxes(8, 7).requires_grad_(), random_boxes(8, 8)
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn((8, 4), generator=generator, dtype=torch.float64)
    noise[:4] *= beta / 3  # some terms in the quadratic part, some in the linear one
    predicted = (encode_boxes(truth, anchors, weights) + noise).detach().requires_grad_()

    def loss(prediction, boxes):
        return F.smooth_l1_loss(prediction, encode_boxes(boxes, anchors, weights), beta=beta, reduction="none")

    assert bool((noise.abs() < beta).any())
    assert bool((noise.abs() > beta).any())
    assert torch.autograd.gradcheck(loss, (predicted, truth))
