import pytest
import torch
from kernel_device import DEVICE, both_ways, fill_freed_memory, seeded, stored_as

from maskperf.model.patches import cell_patches as patches_by_level
from maskperf.ops.kernels.patches import SAMPLES_AT_A_TIME, cell_patches
from maskperf.ops.kernels.pyramid import TILE_SIDE

SIZES_HW = ((9, 12), (5, 6), (3, 3), (1, 1))
NUM_CELLS = sum(height * width for height, width in SIZES_HW)


def levels(channels: int, images: int = 2, sizes_hw=SIZES_HW, dtype=torch.float32) -> list[torch.Tensor]:
    generator = seeded(channels)
    maps = [torch.randn(images, channels, *size, generator=generator).to(dtype) for size in sizes_hw]
    return [level.contiguous(memory_format=torch.channels_last) for level in maps]


def random_cells(*shape: int) -> torch.Tensor:
    return torch.randint(0, NUM_CELLS, shape, generator=seeded(shape[-1]))


def checked(features: list[torch.Tensor], cells: torch.Tensor) -> list[torch.Tensor]:
    """Return patches and gradients of the kernels, equal to those of the reference bit for bit.

    The reference, on a CPU in float32, adds in the order of the samples too.
    """
    found, expected = both_ways(
        lambda maps: cell_patches(maps, cells.to(DEVICE)), lambda maps: patches_by_level(maps, cells), features
    )
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in found[1:])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, stored_as(one.dtype, other))
    return found


def test_every_cell_of_every_level_has_its_own_neighbours_and_zeros_outside():
    patches, *_ = checked(levels(5), torch.arange(NUM_CELLS).repeat(2, 1))
    assert patches[0, 0, :4].abs().max() == 0 < patches[0, 0, 4:6].abs().min()  # left of and above the first cell


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 16, 150])
def test_equals_the_reference_on_random_cells(channels, dtype):
    checked(levels(channels, dtype=dtype), random_cells(2, 30))


def test_more_samples_than_are_read_at_a_time_and_cells_that_are_taken_often():
    cells = random_cells(1, SAMPLES_AT_A_TIME.value + 44)
    cells[0, 20:60], cells[0, 290:] = 7, 7
    _, gradient, *_ = checked(levels(2, images=1), cells)
    assert gradient[0, :, 0, 7].abs().min() > 0


@pytest.mark.parametrize("size", [(1, 1), (TILE_SIDE + 1, 2 * TILE_SIDE - 1), (TILE_SIDE, TILE_SIDE)])
def test_patches_on_the_borders_of_tiles_and_maps(size):
    checked(levels(3, sizes_hw=(size,)), torch.arange(size[0] * size[1]).flip(0).repeat(2, 1))


def test_cells_that_no_patch_meets_get_zero_and_other_cells_leave_no_trace_even_of_nan():
    features = [level.to(DEVICE).requires_grad_() for level in levels(4)]
    with torch.no_grad():
        features[1].fill_(float("nan"))
    fill_freed_memory(features)
    patches = cell_patches(features, torch.tensor([[0], [NUM_CELLS - 1]], device=DEVICE))
    assert bool(patches.isfinite().all())
    gradients = torch.autograd.grad(patches.sum(), features)
    assert [float(level.sum()) for level in gradients] == [4 * 4, 0, 0, 4]
    assert not bool(gradients[0][1].any())


def test_one_level_of_another_layout_is_enough():
    features = levels(3)
    features[1] = features[1].contiguous()
    patches = cell_patches([level.to(DEVICE) for level in features], random_cells(2, 9).to(DEVICE))
    assert torch.equal(patches.cpu(), patches_by_level(features, random_cells(2, 9)))


def test_no_samples_give_no_patches_and_zero_gradients():
    features = [level.to(DEVICE).requires_grad_() for level in levels(3)]
    patches = cell_patches(features, torch.zeros((2, 0), dtype=torch.int64, device=DEVICE))
    assert patches.shape == (2, 0, 9, 3)
    gradients = torch.autograd.grad(patches.sum(), features)
    assert not any(bool(level.any()) for level in gradients)
