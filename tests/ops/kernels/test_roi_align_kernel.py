import pytest
import random_pyramids
import torch
from kernel_device import DEVICE, both_ways, fill_freed_memory, seeded, stored_as
from random_pyramids import AT_THE_BORDER, STRIDES

from maskperf.ops.kernels.pyramid import TILE_SIDE
from maskperf.ops.kernels.roi_align import ROIS_AT_A_TIME, pyramid_roi_align
from maskperf.ops.roi_align import assign_levels
from maskperf.ops.roi_align import pyramid_roi_align as operator
from maskperf.techniques import plain, using

flat_roi_align = using(plain())(operator)


def random_pyramid(*shape, dtype=torch.float32, seed: int = 0) -> list[torch.Tensor]:
    return [level.to(dtype) for level in random_pyramids.random_pyramid(*shape, seed=seed)]


def random_rois(*shape, seed: int) -> torch.Tensor:
    return random_pyramids.random_rois(*shape, seed=seed).float()


def random_map(*shape: int, seed: int) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=seeded(seed))]


def pool_both_ways(features: list[torch.Tensor], boxes: torch.Tensor, size: int) -> list[list[torch.Tensor]]:
    """Return the pooled maps and the gradients of all levels: of the kernel, and of the reference in float32."""
    options = {"size": size, "strides": STRIDES[: len(features)]}
    return both_ways(
        lambda maps: pyramid_roi_align(maps, boxes.to(DEVICE), **options),
        lambda maps: flat_roi_align(maps, boxes, **options),
        features,
    )


def assert_equal_in_float32(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        # A cell sums up to some dozens of numbers around 1, in another order.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


# Samples at -1 and 0, just below -1, at the last cell and the length, and just above the length.
ENDS = [(-6.0, 2.0), (-6.01, 1.99), (-10.0, -2.0), (26.0, 34.0), (26.01, 34.01), (34.0, 42.0), (22.0, 30.0)]
ON_THE_BORDER = [*((x1, 10.0, x2, 18.0) for x1, x2 in ENDS), *((10.0, y1, 18.0, y2) for y1, y2 in ENDS)]
OF_EACH_LEVEL = [(8.0, 8.0, 8.0 + side, 6.0 + side) for side in (60, 150, 300, 500)]
# Maps, boxes and size of the pooled maps.
CASES = {
    "random boxes": lambda: (random_pyramid(2, 5, (96, 128)), random_rois(2, 3, (96, 128), seed=6), 7),
    "odd sizes": lambda: (random_pyramid(2, 5, (75, 201)), random_rois(2, 3, (75, 201), seed=6), 7),
    "14 x 14": lambda: (random_pyramid(2, 5, (75, 201)), random_rois(2, 1, (75, 201), seed=6), 14),
    "boxes of each level": lambda: (random_pyramid(1, 3, (96, 128)), torch.tensor([OF_EACH_LEVEL]), 3),
    "at the border and outside": lambda: (random_pyramid(1, 2, (96, 128), seed=5), torch.tensor([AT_THE_BORDER]), 2),
    "samples on the very border": lambda: (random_map(1, 1, 8, 8, seed=3), torch.tensor([ON_THE_BORDER]), 1),
    "another layout": lambda: ([turned_level()], random_rois(2, 2, (52, 40), seed=2), 4),
    "more channels than a program takes": lambda: (
        random_pyramid(1, 300, (24, 20)), torch.tensor([[(1.0, 2.0, 15.0, 17.0), (3.0, -5.0, 30.0, 9.0)]]), 1),
    **{
        f"a map of {height} x {width}": lambda size=(height, width): (
            random_map(1, 1, *size, seed=size[0]), torch.tensor([[(0.0, 0.0, 40.0, 36.0), (-4.0, 3.0, 7.0, 90.0)]]), 3)
        for height, width in ((1, 1), (TILE_SIDE + 1, 2 * TILE_SIDE - 1))
    },
}  # fmt: skip


def turned_level() -> torch.Tensor:
    level = random_pyramid(2, 3, (40, 52))[0].permute(0, 1, 3, 2)
    assert not level.is_contiguous(memory_format=torch.channels_last)
    return level


@pytest.mark.parametrize("name", CASES)
def test_maps_and_gradients_equal_the_reference(name):
    features, boxes, size = CASES[name]()
    found, expected = pool_both_ways(features, boxes, size)
    assert_equal_in_float32(found, expected)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    if name == "boxes of each level":
        assert assign_levels(boxes, 4).tolist() == [[0, 1, 2, 3]] and all(bool(level.any()) for level in expected)
    if name == "at the border and outside":
        assert not bool(found[0][8:10].any())  # outside
    if name == "samples on the very border":
        assert len(set(found[0].flatten().tolist())) > 8


@pytest.mark.parametrize("size", [2, 5])
def test_bfloat16_is_summed_in_float32_and_rounded_once(size):
    boxes = random_rois(2, 2, (96, 128), seed=8)
    found, expected = pool_both_ways(random_pyramid(2, 4, (96, 128), dtype=torch.bfloat16), boxes, size)
    for one, other in zip(found, expected, strict=True):
        # The sums are right to 16 bits, the parts of the weights; that can be the next of the 8 bits stored.
        torch.testing.assert_close(one.float(), stored_as(torch.bfloat16, other).float(), rtol=2.0**-7, atol=1e-4)
        assert (one == stored_as(torch.bfloat16, other)).float().mean() > 0.9


def test_more_boxes_than_are_listed_at_a_time():
    rows = [(number % 12, number % 7, number % 12 + 5, number % 7 + 9) for number in range(ROIS_AT_A_TIME.value + 2)]
    found, expected = pool_both_ways(random_map(1, 2, 5, 6, seed=4), torch.tensor([rows]).float(), 1)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=2e-5)  # a cell sums up 130 numbers


@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0, 5), (1, 6, 0)])
def test_boxes_packed_over_the_images_are_pooled_as_in_their_own_images(counts):
    """Two empty slots come last; they must add nothing."""
    features, offsets = random_pyramid(3, 2, (64, 96), seed=1), torch.tensor([0, *counts]).cumsum(0)
    packed = torch.cat([random_rois(1, sum(counts), (64, 96), seed=2), torch.zeros(1, 2, 4)], dim=1)
    options = {"size": 3, "strides": STRIDES}
    on_device = {"image_offsets": offsets.to(DEVICE), "most_of_image": max(counts)}
    results = both_ways(
        lambda maps: pyramid_roi_align(maps, packed.to(DEVICE), **options, **on_device)[: sum(counts)],
        lambda maps: flat_roi_align(maps, packed, **options, image_offsets=offsets)[: sum(counts)],
        features,
    )
    assert_equal_in_float32(*results)
    alone = [
        flat_roi_align([level[[image]] for level in features], packed[:, start:end], **options)
        for image, (start, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:], strict=False))
    ]
    torch.testing.assert_close(results[1][0], torch.cat(alone))


def pooled_on_device(features: list[torch.Tensor], boxes: torch.Tensor, size: int) -> tuple[list, torch.Tensor]:
    features = [level.to(DEVICE).requires_grad_() for level in features]
    fill_freed_memory(features)
    return features, pyramid_roi_align(features, boxes.to(DEVICE), size=size, strides=STRIDES)


def test_cells_that_no_box_meets_get_zero():
    features, pooled = pooled_on_device(random_pyramid(1, 2, (96, 128)), torch.tensor([[(5.0, 5.0, 9.0, 9.0)]]), 2)
    gradients = torch.autograd.grad(pooled.sum(), features)
    assert float(gradients[0].sum()) == pytest.approx(2 * 4)
    assert not bool(gradients[0][:, :, 4:].any())
    assert not any(bool(level.any()) for level in gradients[1:])


def test_no_boxes_give_no_maps_and_zero_gradients():
    features, pooled = pooled_on_device(random_pyramid(2, 3, (20, 24)), torch.zeros((2, 0, 4)), 7)
    assert pooled.shape == (0, 3, 7, 7)
    assert not any(bool(level.any()) for level in torch.autograd.grad(pooled.sum(), features))


def test_the_gradient_has_the_same_bits_every_time():
    features, pooled = pooled_on_device(random_pyramid(1, 3, (40, 52)), random_rois(1, 3, (40, 52), seed=3), 3)
    first, second = (torch.autograd.grad(pooled.square().sum(), features, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_boxes_get_no_gradient():
    boxes = torch.tensor([[(5.0, 5.0, 19.0, 9.0)]], requires_grad=True)
    features, pooled = pooled_on_device(random_pyramid(1, 1, (20, 24)), boxes, 1)
    pooled.sum().backward()
    assert boxes.grad is None
    assert features[0].grad.sum().item() == pytest.approx(1.0)
