import numpy as np
import pytest
import torch
from reference_operators import paste_reference

from maskperf.ops import paste
from maskperf.ops.paste import edges_of_masks, expand_boxes, paste_edges, paste_masks, sample_positions

MASK_SIZE = 28


def ramp_masks(count: int) -> torch.Tensor:
    """Return smooth masks with both sides of one half in each."""
    coarse = torch.rand((count, 1, 5, 5), generator=torch.Generator().manual_seed(count))
    return torch.nn.functional.interpolate(coarse, size=(MASK_SIZE, MASK_SIZE), mode="bilinear")[:, 0]


def random_boxes(count: int, size_hw: tuple[int, int], seed: int) -> torch.Tensor:
    """Return boxes of all sizes, many of them partly or wholly outside the image."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([size_hw[1], size_hw[0]]).float()
    corners = (torch.rand((count, 2), generator=generator) * 2.4 - 0.7) * extent
    sides = torch.rand((count, 2), generator=generator) ** 3 * extent * 3
    return torch.cat([corners, corners + sides], dim=1)


@pytest.mark.parametrize(
    ("box", "expanded"),
    [((10.3, 20.7, 49.6, 79.2), [8, 18, 51, 81]), ((0.4, 0.2, 20.9, 11.0), [0, 0, 21, 11])],
)
def test_corners_of_expanded_boxes_are_truncated_towards_zero(box, expanded):
    assert expand_boxes(torch.tensor([box]), MASK_SIZE)[0].tolist() == expanded


def test_a_full_mask_fills_its_expanded_box_but_for_the_fading_border():
    boxes = torch.tensor([[10.3, 20.7, 49.6, 79.2]])
    pasted = paste_masks(torch.ones((1, MASK_SIZE, MASK_SIZE)), boxes, (100, 90))[0]
    # Column 8 of the image samples the padded mask at 0.5 * 30 / 44 - 0.5 < 0, all zero. Column 9 at 0.52: 0.52.
    # Column 10 at 1.2: 1. Rows 18 to 21 likewise: 0, 0.20, 0.67, 1. Mirrored at the other ends.
    # A pixel is the product of its row and its column, so the four corners (0.67 * 0.52) are not mask.
    expected = torch.zeros((100, 90), dtype=torch.bool)
    expected[20:80, 9:51] = True
    for row, column in ((20, 9), (20, 50), (79, 9), (79, 50)):
        expected[row, column] = False
    assert torch.equal(pasted, expected)


def test_a_probability_of_exactly_one_half_is_not_mask():
    boxes = torch.tensor([[0.0, 0.0, 29.0, 29.0]])
    half = torch.full((1, MASK_SIZE, MASK_SIZE), 0.5)
    assert not paste_masks(half, boxes, (40, 40)).any()
    assert paste_masks(half + 1e-3, boxes, (40, 40)).any()


@pytest.mark.parametrize("size_hw", [(60, 81), (37, 24), (1, 50), (40, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_masks_equal_the_reference_on_random_boxes(size_hw, seed):
    noise = torch.rand((30, MASK_SIZE, MASK_SIZE), generator=torch.Generator().manual_seed(seed))
    probs, boxes = torch.cat([ramp_masks(60), noise]), random_boxes(90, size_hw, seed)
    pasted = paste_masks(probs, boxes, size_hw)
    assert torch.equal(pasted, paste_reference(probs, boxes, size_hw))
    assert pasted.transpose(1, 2).is_contiguous()  # stored column by column, for run-length encoders


EXTREME_BOXES = [
    (5.0, 6.0, 5.0, 6.0),  # one pixel
    (5.2, 5.2, 5.3, 5.3),
    (-0.4, -0.4, 0.3, 0.3),
    (8.0, 8.0, 6.0, 6.0),  # corners swapped
    (-2000.0, -1500.0, 2200.0, 1900.0),
    (-30.0, -30.0, -12.0, -12.0),
    (49.0, 3.0, 80.0, 20.0),
    (50.9, 3.0, 80.0, 20.0),
    (0.0, -90.0, 49.0, 130.0),  # from the first row to the last: one column's end is the next one's beginning
]


@pytest.mark.parametrize("box", EXTREME_BOXES)
def test_masks_and_edges_of_extreme_boxes(box):
    boxes = torch.tensor([box])
    for probs in (ramp_masks(1), torch.ones((1, MASK_SIZE, MASK_SIZE))):
        assert torch.equal(paste_masks(probs, boxes, (40, 50)), paste_reference(probs, boxes, (40, 50)))
        assert_edges_are_those_of_the_pixels(probs, boxes, (40, 50))


def test_a_one_pixel_box_still_pastes_one_pixel_and_none_outside_of_the_image():
    boxes = torch.tensor([[5.0, 6.0, 5.0, 6.0], [-40.0, 2.0, -10.0, 20.0], [5.0, 60.0, 20.0, 90.0]])
    assert paste_masks(torch.ones((3, MASK_SIZE, MASK_SIZE)), boxes, (10, 10)).nonzero().tolist() == [[0, 6, 5]]


def masks_between(edges: np.ndarray, owners: np.ndarray, count: int, size_hw: tuple[int, int]) -> torch.Tensor:
    """Return the masks that begin and end at these places, drawn one after the other."""
    columns = np.zeros((count, size_hw[0] * size_hw[1]), dtype=bool)
    for owner, begin, end in zip(owners[::2], edges[::2], edges[1::2], strict=True):
        assert begin < end
        columns[owner, begin:end] = True
    return torch.from_numpy(columns).view(count, size_hw[1], size_hw[0]).transpose(1, 2)


def assert_edges_are_those_of_the_pixels(probs, boxes, size_hw):
    edges, owners = paste_edges(probs, boxes, size_hw)
    assert (np.diff(owners) >= 0).all()
    assert (np.diff(edges)[np.diff(owners) == 0] > 0).all()
    assert (np.bincount(owners, minlength=1) % 2 == 0).all()
    assert torch.equal(masks_between(edges, owners, len(probs), size_hw), paste_masks(probs, boxes, size_hw))


def random_probs(kind: str, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((count, MASK_SIZE, MASK_SIZE), generator=generator)
    coarse = torch.randn((count, 1, 4, 4), generator=generator) * 6
    smooth = torch.nn.functional.interpolate(coarse, size=(MASK_SIZE, MASK_SIZE), mode="bicubic")[:, 0].sigmoid()
    kinds = {
        "noise": noise,
        "smooth": smooth,
        "black and white": noise.round(),
        "on the edge": 0.5 + (noise - 0.5) * 1e-6,
        "steps of one half": (noise * 2).round() / 2,
    }
    return kinds[kind]


@pytest.mark.parametrize("kind", ["noise", "smooth", "black and white", "on the edge", "steps of one half"])
@pytest.mark.parametrize("size_hw", [(60, 81), (37, 24), (1, 50), (40, 1), (240, 320)])
def test_edges_are_those_of_the_drawn_masks(kind, size_hw):
    for seed in range(3):
        probs, boxes = random_probs(kind, 40, seed), random_boxes(40, size_hw, seed)
        assert_edges_are_those_of_the_pixels(probs, boxes, size_hw)
        assert_edges_are_those_of_the_pixels(probs, boxes.round(), size_hw)


def test_edges_are_those_of_the_drawn_masks_in_thousands_of_common_cases():
    generator = torch.Generator().manual_seed(11)
    last = torch.tensor([159.0, 119.0])
    for seed in range(20):
        probs = random_probs("smooth", 150, seed)
        corners = torch.rand((150, 2), generator=generator) * (last - 4)
        boxes = torch.cat(
            [corners, (corners + 2 + torch.rand((150, 2), generator=generator) * 90).minimum(last)], dim=1
        )
        assert_edges_are_those_of_the_pixels(probs, boxes, (120, 160))


def test_few_masks_are_drawn_to_find_their_edges(monkeypatch):
    drawn = []

    def watched(probs, boxes, size_hw):
        drawn.append(len(probs))
        return paste_masks(probs, boxes, size_hw)

    monkeypatch.setattr(paste, "paste_masks", watched)
    for seed in range(4):
        paste_edges(random_probs("smooth", 250, seed), random_boxes(250, (120, 160), seed), (120, 160))
    assert sum(drawn) < 50  # of 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 7.0])
def test_a_mask_of_impossible_values_is_as_it_is_drawn_and_leaves_the_others_alone(value):
    probs, boxes = random_probs("smooth", 12, 0), random_boxes(12, (60, 81), 5)
    probs[3, 10, 10] = value
    assert_edges_are_those_of_the_pixels(probs, boxes, (60, 81))


def test_a_mask_over_the_whole_image_has_two_edges():
    edges, owners = paste_edges(torch.ones((1, 28, 28)), torch.tensor([[-900.0, -900.0, 950.0, 940.0]]), (40, 50))
    assert (edges.tolist(), owners.tolist()) == ([0, 2000], [0, 0])


def test_no_detections_have_no_masks_and_no_edges():
    assert paste_masks(torch.zeros((0, 28, 28)), torch.zeros((0, 4)), (7, 9)).shape == (0, 7, 9)
    for boxes in (torch.zeros((0, 4)), torch.tensor([[-40.0, 2.0, -10.0, 20.0]])):
        edges, owners = paste_edges(torch.ones((len(boxes), 28, 28)), boxes, (40, 50))
        assert len(edges) == len(owners) == 0


def test_edges_of_drawn_masks():
    masks = torch.zeros((3, 4, 2), dtype=torch.bool)
    masks[0, 1:3, 0] = True
    masks[2, 3, 0] = masks[2, :2, 1] = masks[2, 3, 1] = True
    edges, owners = edges_of_masks(masks)
    assert edges.tolist() == [1, 3, 3, 6, 7, 8]
    assert owners.tolist() == [0, 0, 2, 2, 2, 2]


@pytest.mark.parametrize("size", [1, 2, 7, 29, 30, 31, 44, 97, 480, 641, 1333])
def test_sample_positions_are_those_torch_uses_along_both_axes(size):
    ramp = torch.arange(30.0)
    columns = torch.nn.functional.interpolate(ramp.expand(1, 1, 2, 30), size=(2, size), mode="bilinear")[0, 0, 0]
    rows = torch.nn.functional.interpolate(ramp[:, None].expand(1, 1, 30, 2), size=(size, 2), mode="bilinear")[
        0, 0, :, 0
    ]
    found = sample_positions(30, size)
    assert found[0] == -np.inf and found[-1] == np.inf
    assert torch.equal(columns, rows)
    # A ramp's values are its positions; each is the sum of two rounded products.
    np.testing.assert_allclose(found[1:-1], columns.numpy(), atol=4e-6)
