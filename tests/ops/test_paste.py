import pytest
import torch

from maskperf.ops.paste import paste_canvases, paste_masks, paste_masks_reference

MASK_SIZE = 28


def ramp_masks(count: int) -> torch.Tensor:
    """Returns smooth masks with both sides of one half in each."""
    coarse = torch.rand((count, 1, 5, 5), generator=torch.Generator().manual_seed(count))
    return torch.nn.functional.interpolate(coarse, size=(MASK_SIZE, MASK_SIZE), mode="bilinear")[:, 0]


def random_boxes(count: int, size_hw: tuple[int, int], seed: int) -> torch.Tensor:
    """Returns boxes of all sizes, many of them partly or wholly outside the image."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([size_hw[1], size_hw[0]]).float()
    corners = (torch.rand((count, 2), generator=generator) * 2.4 - 0.7) * extent
    sides = torch.rand((count, 2), generator=generator) ** 3 * extent * 3
    return torch.cat([corners, corners + sides], dim=1)


@pytest.mark.parametrize(
    ("box", "canvas", "canvas_size"),
    [
        ((10.3, 20.7, 49.6, 79.2), [8, 18, 51, 81], (44, 64)),
        ((0.4, 0.2, 20.9, 11.0), [0, 0, 21, 11], (22, 12)),
    ],
)
def test_canvas_corners_are_truncated_towards_zero(box, canvas, canvas_size):
    found = paste_canvases(torch.tensor([box]), MASK_SIZE)[0].tolist()
    assert found == canvas
    assert (found[2] - found[0] + 1, found[3] - found[1] + 1) == canvas_size


@pytest.mark.parametrize("paste", [paste_masks, paste_masks_reference])
def test_full_mask_fills_its_canvas_but_for_the_fading_ring(paste):
    boxes = torch.tensor([[10.3, 20.7, 49.6, 79.2]])
    pasted = paste(torch.ones((1, MASK_SIZE, MASK_SIZE)), boxes, (100, 90))[0]
    # Column 8 of the canvas samples the ringed map at 0.5 * 30 / 44 - 0.5 < 0, all ring: 0. Column 9 at 0.52: 0.52.
    # Column 10 at 1.2: 1. Rows 18 to 21 likewise: 0, 0.20, 0.67, 1. Mirrored at the other ends.
    # A pixel is the product of its row and its column, so the four corners (0.67 * 0.52) are not mask.
    expected = torch.zeros((100, 90), dtype=torch.bool)
    expected[20:80, 9:51] = True
    for row, column in ((20, 9), (20, 50), (79, 9), (79, 50)):
        expected[row, column] = False
    assert torch.equal(pasted, expected)


@pytest.mark.parametrize("paste", [paste_masks, paste_masks_reference])
def test_a_probability_of_exactly_one_half_is_not_mask(paste):
    boxes = torch.tensor([[0.0, 0.0, 29.0, 29.0]])
    half = torch.full((1, MASK_SIZE, MASK_SIZE), 0.5)
    assert not paste(half, boxes, (40, 40)).any()
    assert paste(half + 1e-3, boxes, (40, 40)).any()


@pytest.mark.parametrize("size_hw", [(60, 81), (37, 24), (1, 50), (40, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_reference_on_random_boxes(size_hw, seed):
    probs, boxes = ramp_masks(60), random_boxes(60, size_hw, seed)
    assert torch.equal(paste_masks(probs, boxes, size_hw), paste_masks_reference(probs, boxes, size_hw))


def test_equals_the_reference_on_noise_masks_and_inner_boxes():
    generator = torch.Generator().manual_seed(3)
    probs = torch.rand((80, MASK_SIZE, MASK_SIZE), generator=generator)
    boxes = random_boxes(80, (90, 120), 9).clamp(min=0).minimum(torch.tensor([119.0, 89.0, 119.0, 89.0]))
    pasted = paste_masks(probs, boxes, (90, 120))
    assert torch.equal(pasted, paste_masks_reference(probs, boxes, (90, 120)))
    assert pasted.any(dim=(1, 2)).sum() > 20


@pytest.mark.parametrize(
    "box",
    [
        (5.0, 5.0, 5.0, 5.0),  # one pixel
        (5.2, 5.2, 5.3, 5.3),
        (-0.4, -0.4, 0.3, 0.3),
        (8.0, 8.0, 6.0, 6.0),  # corners swapped
        (-2000.0, -1500.0, 2200.0, 1900.0),
        (-30.0, -30.0, -12.0, -12.0),
        (49.0, 3.0, 80.0, 20.0),
        (50.9, 3.0, 80.0, 20.0),
    ],
)
def test_equals_the_reference_on_extreme_boxes(box):
    probs, boxes = ramp_masks(1), torch.tensor([box])
    assert torch.equal(paste_masks(probs, boxes, (40, 50)), paste_masks_reference(probs, boxes, (40, 50)))


def test_a_one_pixel_box_still_pastes_one_pixel():
    pasted = paste_masks(torch.ones((1, MASK_SIZE, MASK_SIZE)), torch.tensor([[5.0, 6.0, 5.0, 6.0]]), (10, 10))[0]
    assert pasted.nonzero().tolist() == [[6, 5]]


def test_boxes_outside_the_image_paste_nothing():
    boxes = torch.tensor([[-40.0, 2.0, -10.0, 20.0], [5.0, 60.0, 20.0, 90.0]])
    assert not paste_masks(torch.ones((2, MASK_SIZE, MASK_SIZE)), boxes, (40, 50)).any()


def test_no_detections_give_no_masks():
    empty = torch.zeros((0, MASK_SIZE, MASK_SIZE))
    assert paste_masks(empty, torch.zeros((0, 4)), (7, 9)).shape == (0, 7, 9)
    assert paste_masks_reference(empty, torch.zeros((0, 4)), (7, 9)).shape == (0, 7, 9)


def test_the_result_is_stored_column_by_column():
    pasted = paste_masks(ramp_masks(3), random_boxes(3, (20, 30), 0), (20, 30))
    assert pasted.transpose(1, 2).is_contiguous()
