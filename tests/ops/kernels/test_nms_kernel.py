import pytest
import torch
from crowded_boxes import FAR, FLAT, NEAR_A, NEXT_PIXEL, PIXEL, A, crowded_boxes
from kernel_device import DEVICE, seeded
from reference_operators import nms_reference

from maskperf.ops.kernels.nms import BITS_OF_WORD, nms_sorted
from maskperf.ops.nms import nms_sorted as reference


def survivors(boxes: torch.Tensor, valid: torch.Tensor, iou_threshold: float = 0.5) -> torch.Tensor:
    """Return what the kernel finds, after a comparison with the reference."""
    found = nms_sorted(boxes.to(DEVICE), valid.to(DEVICE), iou_threshold).cpu()
    assert found.dtype == torch.bool
    assert torch.equal(found, reference(boxes, valid, iou_threshold))
    return found


@pytest.mark.parametrize("count", [1, BITS_OF_WORD - 1, BITS_OF_WORD, BITS_OF_WORD + 1, 3 * BITS_OF_WORD + 7])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.7])
def test_equals_the_reference_on_any_number_of_boxes(count, iou_threshold):
    boxes = crowded_boxes(2, count, seed=count)
    valid = torch.rand((2, count), generator=seeded(1)) < 0.9
    found = survivors(boxes, valid, iou_threshold)
    assert count == 1 or 0 < found.sum() < valid.sum()


@pytest.mark.parametrize("whole", [True, False])
def test_equals_the_slow_reference_with_equal_scores(whole):
    boxes = crowded_boxes(1, 100, seed=7, whole=whole)[0]
    scores = torch.randint(0, 4, (100,), generator=seeded(2)) / 4
    order = torch.argsort(scores, descending=True, stable=True)
    found = survivors(boxes[order][None], torch.ones((1, 100), dtype=torch.bool))
    assert order[found[0]].tolist() == nms_reference(boxes, scores, 0.5)


# Neighbours overlap by 7 / 13 and the next but one by 4 / 16: a block needs all its rounds.
CHAIN = [(3.0 * step, 0.0, 3.0 * step + 9, 0.0) for step in range(2 * BITS_OF_WORD + 5)]
APART = [(20.0 * number, 0.0, 20.0 * number + 9, 9.0) for number in range(2 * BITS_OF_WORD + 1)]


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")
@pytest.mark.parametrize(
    ("rows", "invalid", "iou_threshold", "count"),
    [
        # Ten pixels and some of them: the overlap is the threshold, whether float32 rounds that up or down.
        *(([(0.0, 0.0, 9.0, 0.0), (0.0, 0.0, tenths - 1.0, 0.0)], 0, tenths / 10, 2) for tenths in range(1, 10)),
        *(
            ([(0.0, 0.0, 9.0, 0.0), (0.0, 0.0, tenths - 1.0, 0.0)], 0, tenths / 10 - 0.001, 1)
            for tenths in range(1, 10)
        ),
        (CHAIN, 0, 0.5, -(-len(CHAIN) // 2)),
        (CHAIN, 0, 0.2, -(-len(CHAIN) // 3)),
        ([*APART, NEAR_A], 0, 0.5, len(APART)),  # suppressed by one far before it
        ([A] * 70, 0, 0.5, 1),
        ([A] * 70, 66, 0.5, 1),
        ([A] * 80, 80, 0.5, 0),
        ([A, NEAR_A, FAR], 0, 0.5, 2),
        ([A, NEAR_A, FAR], 1, 0.5, 2),
        ([PIXEL, NEXT_PIXEL, PIXEL], 0, 0.5, 2),
        ([FLAT, FLAT, A], 0, 0.5, 3),  # 0 / 0 is not above the threshold
    ],
)
def test_equals_the_reference_on_known_boxes_of_which_the_first_are_not_valid(rows, invalid, iou_threshold, count):
    valid = torch.arange(len(rows)) >= invalid
    assert survivors(torch.tensor([rows]), valid[None], iou_threshold).sum() == count


def test_groups_do_not_touch_each_other():
    boxes = torch.cat([crowded_boxes(2, 70, seed=3), torch.zeros(1, 70, 4)])
    valid = torch.rand((3, 70), generator=seeded(0)) < 0.8
    together = survivors(boxes, valid)
    for group in range(3):
        assert torch.equal(together[group], survivors(boxes[[group]], valid[[group]])[0])
    assert together[2].sum() == 1


def test_empty_groups():
    for shape in ((3, 0), (0, 7)):
        assert survivors(torch.zeros((*shape, 4)), torch.zeros(shape, dtype=torch.bool)).shape == shape


def test_inputs_of_other_strides_are_left_alone():
    boxes = crowded_boxes(2, 20, seed=1).transpose(0, 1).contiguous().transpose(0, 1)
    valid = torch.ones((20, 2), dtype=torch.bool).T
    before = boxes.clone()
    assert not bool(survivors(boxes, valid, 0.3).all())
    assert torch.equal(boxes, before)
    assert bool(valid.all())
