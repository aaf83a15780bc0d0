import pytest
import torch
from random_pyramids import AT_THE_BORDER, STRIDES, random_pyramid, random_rois
from reference_operators import pyramid_roi_align_reference

from maskperf.ops.roi_align import assign_levels, pyramid_roi_align
from maskperf.techniques import plain, using

FORMS = pytest.mark.parametrize(
    "align", [pyramid_roi_align, using(plain())(pyramid_roi_align)], ids=["grouped", "flat"]
)


def pool(features: list[torch.Tensor], rows: list, size: int, align=pyramid_roi_align) -> torch.Tensor:
    """Return the pooled maps of boxes of one image, in the precision of the features."""
    boxes = torch.tensor([rows], dtype=features[0].dtype)
    return align(features, boxes, size=size, strides=STRIDES[: len(features)])


@FORMS
@pytest.mark.parametrize(
    ("padded_hw", "size", "rois", "seed"),
    [((256, 320), 7, 60, 1), ((256, 320), 14, 20, 2), ((75, 201), 7, 40, 4)],  # 19 x 51, 10 x 26, 5 x 13 and 3 x 7
)
def test_equals_the_reference_on_random_boxes_of_all_levels(align, padded_hw, size, rois, seed):
    features, boxes = random_pyramid(2, 3, padded_hw), random_rois(2, rois, padded_hw, seed)
    expected = pyramid_roi_align_reference(features, boxes, size, STRIDES)
    assert set(assign_levels(boxes, 4).flatten().tolist()) == {0, 1, 2, 3}
    pooled = align(features, boxes, size=size, strides=STRIDES)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-11)
    single = align([f.float() for f in features], boxes.float(), size=size, strides=STRIDES)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("box", AT_THE_BORDER)
@FORMS
def test_equals_the_reference_on_boxes_at_the_border_and_outside(align, box):
    features = random_pyramid(1, 2, (96, 128), seed=5)
    boxes = torch.tensor([[box]], dtype=torch.float64)
    expected = pyramid_roi_align_reference(features, boxes, 7, STRIDES)
    torch.testing.assert_close(pool(features, [box], 7, align), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("side_px", "level"), [(50, 0), (150, 1), (300, 2), (500, 3)])
def test_a_linear_map_gives_the_values_at_the_bin_centres(side_px, level):
    stride, x1, y1, size = STRIDES[level], 41.3, 63.9, 7
    features = []
    for step in STRIDES:
        y, x = torch.meshgrid(*[torch.arange(640 // step, dtype=torch.float64)] * 2, indexing="ij")
        features.append(torch.stack([x, y, 2 * x - 3 * y + 5])[None])
    pooled = pool(features, [[x1, y1, x1 + side_px, y1 + 0.9 * side_px]], size)[0]
    # Sides are x2 - x1, without "+1", and cell 0 is at coordinate 0, without half a pixel.
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    x = ((x1 + steps * side_px) / stride).expand(size, size)
    y = ((y1 + steps * 0.9 * side_px) / stride)[:, None].expand(size, size)
    torch.testing.assert_close(pooled, torch.stack([x, y, 2 * x - 3 * y + 5]), rtol=0, atol=1e-10)


def test_a_small_box_is_widened_to_one_cell():
    x = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    # Half a cell wide from 3.0 on: pooled as if it were one cell wide, so the two bins are centred at 3.25 and 3.75.
    pooled = pool([x], [[12.0, 12.0, 14.0, 14.0]], 2)[0, 0]
    assert pooled.tolist() == [[3.25, 3.75], [3.25, 3.75]]


@pytest.mark.parametrize(
    ("x1", "x2", "share"),
    [
        (-6.0, 2.0, 1.0),  # samples at -1 and 0: still inside
        (-6.01, 1.99, 0.5),  # the first just below -1: weighs nothing
        (-10.0, -2.0, 0.5),  # -2 and -1
        (-14.0, -6.0, 0.0),
        (26.0, 34.0, 1.0),  # 7 and 8, the width: still inside
        (26.01, 34.01, 0.5),
        (34.0, 42.0, 0.0),
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_samples_count_from_minus_one_to_the_length_of_the_map(x1, x2, share, axis):
    ones = torch.ones((1, 1, 8, 8), dtype=torch.float64)
    box = [x1, 10.0, x2, 18.0] if axis == 0 else [10.0, x1, 18.0, x2]
    assert pool([ones], [box], 1).item() == share


@pytest.mark.parametrize(("x1", "x2", "value"), [(-6.0, 2.0, 0.0), (26.0, 34.0, 7.0), (22.0, 30.0, 6.5)])
def test_samples_outside_take_the_value_of_the_border_cell(x1, x2, value):
    x = torch.arange(8, dtype=torch.float64).expand(1, 1, 8, 8)
    # Samples at -1 and 0; at 7 and 8, where the last cell is 7; at 6 and 7.
    assert pool([x], [[x1, 10.0, x2, 18.0]], 1).item() == value
    assert pool([x.transpose(2, 3)], [[10.0, x1, 18.0, x2]], 1).item() == value


@FORMS
def test_gradient_with_respect_to_the_features_is_right(align):
    sizes = [(4, 5), (3, 3), (2, 2), (1, 2)]
    generator = torch.Generator().manual_seed(8)
    features = [torch.randn((2, 2, *size), generator=generator, dtype=torch.float64) for size in sizes]
    features = [feature.requires_grad_() for feature in features]
    rows = [[2.0, 3.0, 11.0, 13.0], [-4.0, 1.0, 18.0, 17.0], [1.0, 1.0, 150.0, 120.0], [-90.0, -80.0, 140.0, 170.0]]
    boxes = torch.tensor([rows, [[-200.0, -190.0, 260.0, 280.0], *rows[:3]]], dtype=torch.float64)
    assert set(assign_levels(boxes, 4).flatten().tolist()) == {0, 1, 2, 3}
    assert torch.autograd.gradcheck(lambda *levels: align(list(levels), boxes, size=2, strides=STRIDES), features)


def test_boxes_get_no_gradient():
    features = [feature.requires_grad_() for feature in random_pyramid(1, 2, (64, 64))]
    boxes = torch.tensor([[[5.0, 5.0, 40.0, 40.0]]], dtype=torch.float64, requires_grad=True)
    pyramid_roi_align(features, boxes, size=7, strides=STRIDES).sum().backward()
    assert boxes.grad is None
    # Every bin is a mean of weights that sum to one, so the gradients of a channel sum to the 49 bins.
    assert features[0].grad.sum(dim=(0, 2, 3)).tolist() == pytest.approx([49.0, 49.0])
    assert not bool(features[1].grad.any())


def square(side_px: float) -> list[float]:
    return [0.0, 0.0, side_px - 1.0, side_px - 1.0]


@pytest.mark.parametrize(
    ("side_px", "level"),
    [(1, 2), (16, 2), (111, 2), (112, 3), (223, 3), (224, 4), (447, 4), (448, 5), (895, 5), (1344, 5)],
)
def test_level_of_a_square_counts_both_corner_pixels(side_px, level):
    assert assign_levels(torch.tensor([square(side_px)]), 4).tolist() == [level - 2]


@pytest.mark.parametrize(("ratio", "level"), [(0.5 - 8e-7, 3), (2 - 0.8e-6, 5), (2 - 1.2e-6, 4), (1 - 1.2e-6, 3)])
def test_the_epsilon_is_added_inside_the_logarithm(ratio, level):
    # Added to the result, it would give 2, 5, 5 and 3.
    box = torch.tensor([square(224 * ratio)], dtype=torch.float64)
    assert assign_levels(box, 4).tolist() == [level - 2]


def test_level_depends_on_the_area_alone():
    wide, tall, degenerate = [5.0, 5.0, 452.0, 60.0], [5.0, 5.0, 60.0, 452.0], [5.0, 5.0, 3.0, 9.0]
    # 448 x 56 = 158.4 squared: P3. A box of negative area counts as empty: P2.
    assert assign_levels(torch.tensor([[wide, tall], [degenerate, square(448)]]), 4).tolist() == [[1, 1], [0, 3]]
