import pytest
import torch
from random_pyramids import STRIDES, random_pyramid, random_rois

from maskperf.ops.roi_align import assign_levels, pyramid_bags, pyramid_roi_align
from maskperf.techniques import plain, using

PADDED_HW = (256, 320)


def with_gradients(align, features: list[torch.Tensor], boxes: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Return the pooled maps, then the gradient of every level for a fixed gradient of the maps."""
    features = [feature.detach().clone().requires_grad_() for feature in features]
    pooled = align(features, boxes, size=size, strides=STRIDES)
    generator = torch.Generator().manual_seed(20)
    pooled.backward(torch.randn(pooled.shape, generator=generator, dtype=pooled.dtype))
    return [pooled.detach(), *[feature.grad for feature in features]]


def ordinary_rois(rois: int) -> torch.Tensor:
    """Return boxes of 16 to 600 pixels inside the image, of two images."""
    generator = torch.Generator().manual_seed(21)
    sides = 16 * (600 / 16) ** torch.rand((2, rois, 2), generator=generator, dtype=torch.float64)
    extent = torch.tensor([PADDED_HW[1], PADDED_HW[0]], dtype=torch.float64)
    start = torch.rand((2, rois, 2), generator=generator, dtype=torch.float64) * (extent - 64)
    return torch.cat([start, torch.minimum(start + sides, extent - 1)], dim=2)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [7, 14])
def test_maps_and_gradients_equal_those_of_the_flat_pyramid(size, layout):
    features = [f.contiguous(memory_format=layout) for f in random_pyramid(2, 5, PADDED_HW, seed=22)]
    boxes = torch.cat([ordinary_rois(60), random_rois(2, 60, PADDED_HW, seed=23)], dim=1)
    assert set(assign_levels(boxes, 4).flatten().tolist()) == {0, 1, 2, 3}
    expected = with_gradients(using(plain())(pyramid_roi_align), features, boxes, size)
    for got, wanted in zip(with_gradients(pyramid_roi_align, features, boxes, size), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
    # In float32 the flat form is the oracle of the same boxes in the same precision: sums of some hundred terms.
    single, boxes = [feature.float() for feature in features], boxes.float()
    expected = with_gradients(using(plain())(pyramid_roi_align), single, boxes, size)
    for got, wanted in zip(with_gradients(pyramid_roi_align, single, boxes, size), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


def test_bags_are_short_exactly_where_the_samples_of_a_bin_share_cells():
    near = [10.0, 10.0, 64.0, 64.0]  # 13.5 cells for 14 samples
    far = [10.0, 10.0, 74.0, 74.0]  # 16 cells
    tall = [10.0, 10.0, 20.0, 74.0]
    large = [10.0, 10.0, 220.0, 230.0]  # 26 cells of the second level
    boxes = torch.tensor([[far, large, near, tall]])
    narrow, wide = pyramid_bags(boxes, [(64, 80), (32, 40), (16, 20), (8, 10)], 7, STRIDES)
    assert (narrow.rois.tolist(), wide.rois.tolist()) == ([2], [0, 3, 1])
    assert (narrow.level_counts, wide.level_counts) == ([1, 0, 0, 0], [2, 1, 0, 0])
    assert narrow.cells.shape == narrow.weights.shape == (1, 49, 9)
    assert wide.cells.shape == wide.weights.shape == (3, 49, 16)


@pytest.mark.parametrize(
    ("rows", "levels"), [([[5.0, 5.0, 40.0, 40.0], [100.0, 80.0, 290.0, 250.0]], [0, 1]), ([], [])]
)
def test_a_level_without_boxes_gets_a_gradient_of_zeros(rows, levels):
    features = random_pyramid(1, 2, PADDED_HW)
    boxes = torch.tensor(rows, dtype=torch.float64).view(1, -1, 4)
    assert assign_levels(boxes, 4).tolist() == [levels]
    pooled, *gradients = with_gradients(pyramid_roi_align, features, boxes, 7)
    assert pooled.shape == (len(rows), 2, 7, 7)
    assert [bool(gradient.any()) for gradient in gradients] == [level in levels for level in range(4)]
    assert [gradient.shape for gradient in gradients] == [feature.shape for feature in features]


def test_maps_and_gradients_are_channels_last():
    features = [f.contiguous(memory_format=torch.channels_last) for f in random_pyramid(2, 8, PADDED_HW)]
    for tensor in with_gradients(pyramid_roi_align, features, ordinary_rois(20), 7):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_numbers_depend_neither_on_the_run_nor_on_the_threads():
    features = [feature.float() for feature in random_pyramid(2, 16, PADDED_HW)]
    boxes = torch.cat([ordinary_rois(150), random_rois(2, 50, PADDED_HW, seed=24)], dim=1).float()
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(pyramid_roi_align, features, boxes, 7))
    finally:
        torch.set_num_threads(threads)
    for tensors in zip(*results, strict=True):
        assert all(torch.equal(tensor, tensors[0]) for tensor in tensors)


def test_a_broken_image_does_not_reach_the_maps_of_its_neighbour():
    features = random_pyramid(2, 2, (64, 64))
    for feature in features:
        feature[1] = float("nan")
    # Boxes on the last line of the first image, next to the first line of the second in the table.
    boxes = torch.tensor([[[5.0, 40.0, 30.0, 63.0], [0.0, 0.0, 63.0, 63.0]]] * 2, dtype=torch.float64)
    pooled = pyramid_roi_align(features, boxes, size=7, strides=STRIDES)
    assert bool(pooled[:2].isfinite().all())
    assert not bool(pooled[2:].isfinite().any())
