import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_device import DEVICE, seeded

from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.kernels.matching import BOXES_AT_A_TIME, match_boxes
from maskperf.ops.matching import Matches
from maskperf.ops.matching import match_boxes as reference
from maskperf.structures import map_tensors

RPN = {"positive_iou": 0.7, "negative_iou": 0.3}
ROIS = {"positive_iou": 0.5, "negative_iou": 0.5}
NAN = float("nan")
OF_NO_NUMBERS = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def on_device(boxes: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor, **rule) -> Matches:
    found = match_boxes(boxes.to(DEVICE), truth.to(DEVICE), valid.to(DEVICE), **rule)
    return map_tensors(torch.Tensor.cpu, found)


def assert_same(found: Matches, expected: Matches) -> None:
    torch.testing.assert_close(vars(found), vars(expected), rtol=0, atol=0)


def match_both_ways(boxes: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor) -> tuple[Matches, Matches]:
    """Return what the kernels find for the first image's boxes as anchors, and for all boxes as RoIs, after a
    comparison with the references."""
    anchors = on_device(boxes[:1], truth, valid, keep_best_of_truth=True, **RPN)
    assert_same(anchors, reference(boxes[:1], truth, valid, keep_best_of_truth=True, **RPN))
    rois = on_device(boxes, truth, valid, keep_best_of_truth=False, **ROIS)
    expected = reference(boxes, truth, valid, keep_best_of_truth=False, **ROIS)
    no_number = (pairwise_iou(boxes, truth).isnan() & valid[:, None]).any(dim=2)
    assert not bool((rois.positive | rois.negative)[no_number].any())
    expected.slots[no_number] = rois.slots[no_number]  # means nothing there
    assert_same(rois, expected)
    return anchors, rois


SIDES = st.integers(-1, 12)  # of 0 pixels and fewer too, as no box of a data set is
CORNERS = st.integers(0, 16)


@st.composite
def boxes_with_ties(draw, number: int) -> list[tuple[float, ...]]:
    kinds = st.tuples(CORNERS, CORNERS, SIDES, SIDES)
    rows = [(x, y, x + width, y + height) for x, y, width, height in draw(st.lists(kinds, min_size=1, max_size=3))]
    drawn = draw(st.lists(st.sampled_from(rows) | kinds, min_size=number, max_size=number))
    share = draw(st.sampled_from([1.0, 0.25, 1 / 3]))
    return [tuple(value * share for value in row) for row in drawn]


@st.composite
def images(draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return boxes, ground truth and which of it is real, of two images; some boxes may be no numbers."""
    num_boxes, num_slots = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    boxes = torch.tensor([draw(boxes_with_ties(num_boxes)) for _ in range(2)], dtype=torch.float32)
    truth = torch.tensor([draw(boxes_with_ties(num_slots)) for _ in range(2)], dtype=torch.float32)
    valid = torch.tensor([draw(st.lists(st.booleans(), min_size=num_slots, max_size=num_slots)) for _ in range(2)])
    for side in (boxes, truth):
        if draw(st.integers(0, 9)) == 0:
            side[draw(st.integers(0, 1)), draw(st.integers(0, side.shape[1] - 1)), draw(st.integers(0, 3))] = NAN
    return boxes, truth, valid


@OF_NO_NUMBERS
@settings(max_examples=60, deadline=None)
@given(images())
def test_equals_the_references_on_boxes_with_many_ties(two_images):
    match_both_ways(*two_images)


@pytest.mark.parametrize("num_boxes", [1, BOXES_AT_A_TIME - 1, BOXES_AT_A_TIME, 2 * BOXES_AT_A_TIME + 3])
@pytest.mark.parametrize("whole", [True, False])
def test_equals_the_references_on_any_number_of_boxes(num_boxes, whole):
    generator = seeded(num_boxes)

    def draw(count: int) -> torch.Tensor:
        corners = torch.randint(0, 40, (3, count, 2), generator=generator)
        boxes = torch.cat([corners, corners + torch.randint(5, 30, (3, count, 2), generator=generator)], dim=2).float()
        return boxes if whole else boxes + torch.rand(boxes.shape, generator=generator)

    anchors, rois = match_both_ways(draw(num_boxes), draw(6), torch.arange(6) < torch.tensor([[6], [3], [0]]))
    assert anchors.positive[:2].any(dim=1).all()
    assert bool(anchors.negative[2].all())
    assert num_boxes == 1 or (rois.positive.sum() > 0 and 0 < anchors.positive.sum() < anchors.positive.numel())


EDGE = BOXES_AT_A_TIME + 1
SHARED = [(20.0, 20.0, 29.0, 29.0), *[(23.0, 23.0, 32.0, 32.0)] * (EDGE - 1), (20.0, 20.0, 29.0, 29.0)]


@pytest.mark.parametrize(
    ("rows", "truth", "anchors", "rois"),
    [
        # Ten pixels and some of them: the overlap is a number of tenths, whether float32 rounds that up or down.
        *(
            ([(0.0, 0.0, 9.0, 0.0)], (0.0, 0.0, tenths - 1.0, 0.0), [0], [0] if tenths >= 5 else [])
            for tenths in range(1, 11)
        ),
        (SHARED, (20.0, 20.0, 29.0, 24.0), [0, EDGE], [0, EDGE]),  # the best overlap, in two programs
        ([(0.0, 0.0, 9.0, 9.0), (5.0, 5.0, 20.0, 20.0)], (90.0, 90.0, 99.0, 99.0), [0, 1], []),  # none at all
    ],
)
def test_equals_the_references_on_known_boxes_of_which_these_are_positive(rows, truth, anchors, rois):
    found = match_both_ways(torch.tensor([rows]), torch.tensor([[truth]]), torch.tensor([[True]]))
    assert [matches.positive[0].nonzero().flatten().tolist() for matches in found] == [anchors, rois]
