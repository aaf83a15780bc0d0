import pytest
import torch
from kernel_device import DEVICE, stored_as

from maskperf.ops.kernels.pyramid import TILE_SIDE
from maskperf.ops.kernels.roi_align import ROIS_AT_A_TIME, pyramid_gradient, pyramid_roi_align
from maskperf.ops.roi_align import assign_levels
from maskperf.ops.roi_align import pyramid_roi_align as operator
from maskperf.techniques import plain, using

flat_roi_align = using(plain())(operator)

STRIDES = (4, 8, 16, 32)
AT_THE_BORDER = (
    (10.0, 10.0, 10.0, 10.0),  # a point
    (10.3, 20.6, 11.1, 21.9),  # less than a cell
    (30.0, 5.0, 28.0, 4.0),  # corners swapped
    (-3.0, -3.0, 2.0, 2.0),
    (0.0, 0.0, 127.0, 95.0),  # the whole canvas
    (120.0, 88.0, 128.0, 96.0),  # ends on the border of the map
    (126.0, 40.0, 150.0, 50.0),
    (40.0, -30.0, 50.0, 130.0),
    (-60.0, -60.0, -20.0, -20.0),  # outside
    (140.0, 10.0, 180.0, 30.0),
    (-500.0, -400.0, 700.0, 600.0),
)


def random_pyramid(
    images: int, channels: int, padded_hw: tuple[int, int], dtype=torch.float32, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(images, channels, -(-padded_hw[0] // stride), -(-padded_hw[1] // stride)) for stride in STRIDES]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def random_rois(images: int, rois: int, padded_hw: tuple[int, int], seed: int) -> torch.Tensor:
    """Return boxes from a point to wider than the canvas, on all four levels; many leave the canvas."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([padded_hw[1], padded_hw[0]])
    scale = 1000 ** torch.rand((images, rois, 1), generator=generator) - 1
    sides = scale * 2 ** torch.randn((images, rois, 2), generator=generator)
    centres = (torch.rand((images, rois, 2), generator=generator) * 1.6 - 0.3) * extent
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=2)


def pool_both_ways(
    features: list[torch.Tensor], boxes: torch.Tensor, size: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the pooled maps and the gradients of all levels: of the kernel, and of the twin in float32."""
    strides = STRIDES[: len(features)]
    shape = (boxes.shape[0] * boxes.shape[1], features[0].shape[1], size, size)
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(99)).to(features[0].dtype)
    found, expected = [], []
    for function, device, dtype, results in (
        (pyramid_roi_align, DEVICE, features[0].dtype, found),
        (flat_roi_align, "cpu", torch.float32, expected),
    ):
        levels = [level.to(device, dtype).requires_grad_() for level in features]
        pooled = function(levels, boxes.to(device), size=size, strides=strides)
        gradients = torch.autograd.grad(pooled, levels, wanted.to(device, dtype))
        assert {tensor.dtype for tensor in (pooled, *gradients)} == {dtype}
        results += [tensor.detach().cpu() for tensor in (pooled, *gradients)]
    return found, expected


def assert_equal_in_float32(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        # A cell sums up to some dozens of numbers around 1, in another order.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("size", "canvas", "rois"), [(7, (96, 128), 3), (7, (75, 201), 3), (14, (75, 201), 1)])
def test_equals_the_twin_on_random_boxes(size, canvas, rois):
    boxes = random_rois(2, rois, canvas, seed=6)
    found, expected = pool_both_ways(random_pyramid(2, 5, canvas), boxes, size)
    assert_equal_in_float32(found, expected)
    assert sum(bool(level.any()) for level in expected[1:]) >= min(rois, 2)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_boxes_of_each_level_are_pooled_from_it():
    boxes = torch.tensor([[(8.0, 8.0, 8.0 + side, 6.0 + side) for side in (60, 150, 300, 500)]])
    assert assign_levels(boxes, 4).tolist() == [[0, 1, 2, 3]]
    found, expected = pool_both_ways(random_pyramid(1, 3, (96, 128)), boxes, 3)
    assert_equal_in_float32(found, expected)
    assert all(bool(level.any()) for level in expected)


def test_equals_the_twin_on_boxes_at_the_border_and_outside():
    boxes = torch.tensor([AT_THE_BORDER])
    found, expected = pool_both_ways(random_pyramid(1, 2, (96, 128), seed=5), boxes, 2)
    assert_equal_in_float32(found, expected)
    outside = found[0][8:10]
    assert not bool(outside.any())


def test_equals_the_twin_where_samples_fall_on_the_very_border():
    # Samples at -1 and 0, just below -1, at the last cell and the length, and just above the length.
    rows = [(-6.0, 2.0), (-6.01, 1.99), (-10.0, -2.0), (26.0, 34.0), (26.01, 34.01), (34.0, 42.0), (22.0, 30.0)]
    boxes = torch.tensor([[(x1, 10.0, x2, 18.0) for x1, x2 in rows] + [(10.0, y1, 18.0, y2) for y1, y2 in rows]])
    level = torch.randn((1, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    found, expected = pool_both_ways([level], boxes, 1)
    assert_equal_in_float32(found, expected)
    assert len(set(found[0].flatten().tolist())) > 8


@pytest.mark.parametrize("size", [2, 5])
def test_bfloat16_is_summed_in_float32_and_rounded_once(size):
    boxes = random_rois(2, 2, (96, 128), seed=8)
    found, expected = pool_both_ways(random_pyramid(2, 4, (96, 128), torch.bfloat16), boxes, size)
    for one, other in zip(found, expected, strict=True):
        # The sums are right to 16 bits, the parts of the weights; that can be the next of the 8 bits kept.
        torch.testing.assert_close(one.float(), stored_as(torch.bfloat16, other).float(), rtol=2.0**-7, atol=1e-4)
        assert (one == stored_as(torch.bfloat16, other)).float().mean() > 0.9


def test_one_level_of_another_layout_is_enough():
    level = random_pyramid(2, 3, (40, 52))[0].permute(0, 1, 3, 2)
    assert not level.is_contiguous(memory_format=torch.channels_last)
    found, expected = pool_both_ways([level], random_rois(2, 2, (52, 40), seed=2), 4)
    assert_equal_in_float32(found, expected)


def test_more_channels_than_a_program_takes():
    features = random_pyramid(1, 300, (24, 20))
    boxes = torch.tensor([[(1.0, 2.0, 15.0, 17.0), (3.0, -5.0, 30.0, 9.0)]])
    found, expected = pool_both_ways(features, boxes, 1)
    assert_equal_in_float32(found, expected)


def test_more_boxes_than_are_listed_at_a_time():
    rows = [(number % 12, number % 7, number % 12 + 5, number % 7 + 9) for number in range(ROIS_AT_A_TIME.value + 2)]
    boxes = torch.tensor([rows]).float()
    level = torch.randn((1, 2, 5, 6), generator=torch.Generator().manual_seed(4)).requires_grad_()
    wanted = torch.randn((len(rows), 2, 1, 1), generator=torch.Generator().manual_seed(5))
    (expected,) = torch.autograd.grad(flat_roi_align([level], boxes, size=1, strides=(4,)), level, wanted)
    (found,) = pyramid_gradient(
        wanted.to(DEVICE),
        boxes[0].to(DEVICE),
        torch.tensor([0, len(rows)], device=DEVICE),
        assign_levels(boxes[0], 1).to(DEVICE),
        shapes=[level.shape],
        strides=(4,),
        most_of_image=len(rows),
    )
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=2e-5)  # a cell sums up 130 numbers


@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 5), (1, 6, 0)])
def test_boxes_packed_over_the_images_are_pooled_as_in_their_own_images(counts):
    """Two empty places come last; they must add nothing."""
    features, offsets = random_pyramid(3, 2, (64, 96), seed=1), torch.tensor([0, *counts]).cumsum(0)
    packed = torch.cat([random_rois(1, sum(counts), (64, 96), seed=2), torch.zeros(1, 2, 4)], dim=1)
    wanted = torch.randn((sum(counts) + 2, 2, 3, 3), generator=torch.Generator().manual_seed(3))
    results = []
    for function, device in ((pyramid_roi_align, DEVICE), (flat_roi_align, "cpu")):
        levels = [level.to(device).requires_grad_() for level in features]
        more = {"most_of_image": max(counts)} if function is pyramid_roi_align else {}
        pooled = function(levels, packed.to(device), size=3, strides=STRIDES, image_offsets=offsets.to(device), **more)
        gradients = torch.autograd.grad(pooled, levels, wanted.to(device))
        results.append([pooled.detach().cpu()[: sum(counts)], *(gradient.cpu() for gradient in gradients)])
    assert_equal_in_float32(*results)
    alone = torch.cat(
        [
            flat_roi_align([level[[image]] for level in features], packed[:, start:end], size=3, strides=STRIDES)
            for image, (start, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:], strict=False))
        ]
    )
    torch.testing.assert_close(results[1][0], alone)


def test_a_map_of_one_cell_and_tiles_that_are_cut_off():
    boxes = torch.tensor([[(0.0, 0.0, 40.0, 36.0), (-4.0, 3.0, 7.0, 90.0)]])
    for height, width in ((1, 1), (TILE_SIDE + 1, 2 * TILE_SIDE - 1)):
        level = torch.randn((1, 1, height, width), generator=torch.Generator().manual_seed(height))
        found, expected = pool_both_ways([level], boxes, 3)
        assert_equal_in_float32(found, expected)


def test_cells_that_no_box_meets_get_zero():
    features = [level.to(DEVICE).requires_grad_() for level in random_pyramid(1, 2, (96, 128))]
    boxes = torch.tensor([[(5.0, 5.0, 9.0, 9.0)]], device=DEVICE)
    # Freed memory that is full of something else is likely to be used again.
    del_me = [torch.full_like(level, float("nan")) for level in features]
    del del_me
    pooled = pyramid_roi_align(features, boxes, size=2, strides=STRIDES)
    gradients = torch.autograd.grad(pooled.sum(), features)
    assert float(gradients[0].sum()) == pytest.approx(2 * 4)
    assert not bool(gradients[0][:, :, 4:].any())
    assert not any(bool(level.any()) for level in gradients[1:])


def test_no_boxes_give_no_maps_and_zero_gradients():
    features = [level.to(DEVICE).requires_grad_() for level in random_pyramid(2, 3, (20, 24))]
    pooled = pyramid_roi_align(features, torch.zeros((2, 0, 4), device=DEVICE), size=7, strides=STRIDES)
    assert pooled.shape == (0, 3, 7, 7)
    gradients = torch.autograd.grad(pooled.sum(), features)
    assert not any(bool(level.any()) for level in gradients)


def test_the_gradient_has_the_same_bits_every_time():
    features = [level.to(DEVICE).requires_grad_() for level in random_pyramid(1, 3, (40, 52))]
    boxes = random_rois(1, 3, (40, 52), seed=3).to(DEVICE)
    pooled = pyramid_roi_align(features, boxes, size=3, strides=STRIDES)
    first, second = (torch.autograd.grad(pooled.square().sum(), features, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_boxes_get_no_gradient():
    features = [level.to(DEVICE).requires_grad_() for level in random_pyramid(1, 1, (20, 24))]
    boxes = torch.tensor([[(5.0, 5.0, 19.0, 9.0)]], device=DEVICE, requires_grad=True)
    pyramid_roi_align(features, boxes, size=1, strides=STRIDES).sum().backward()
    assert boxes.grad is None
    assert features[0].grad.sum().item() == pytest.approx(1.0)
