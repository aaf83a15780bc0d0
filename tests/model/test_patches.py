import pytest
import torch
import torch.nn.functional as F

from maskperf.model.patches import cell_patches

SIZES_HW = ((4, 6), (2, 3), (1, 1))


def levels(dtype=torch.float64, channels_last=False):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 5, *size, generator=generator, dtype=dtype) for size in SIZES_HW]
    return [level.contiguous(memory_format=torch.channels_last) if channels_last else level for level in maps]


def all_patches(features):
    """Return the 3x3 cells around every cell (images, cells, 9, channels), by padding and slicing."""
    parts = []
    for feature in features:
        images, channels, height, width = feature.shape
        padded = F.pad(feature, (1, 1, 1, 1))
        shifted = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        parts.append(torch.stack(shifted, dim=1).permute(0, 3, 4, 1, 2).reshape(images, height * width, 9, channels))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("channels_last", [True, False])
def test_every_cell_of_every_level_has_its_own_neighbours_and_zeros_outside(channels_last):
    features = levels(channels_last=channels_last)
    cells = torch.stack([torch.arange(31), torch.arange(31).flip(0)])
    found = cell_patches(features, cells)
    wanted = all_patches(features)
    assert found.shape == (2, 31, 9, 5)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1].flip(0))


def test_gradient_is_added_where_patches_meet_and_is_the_derivative():
    features = [level.requires_grad_() for level in levels(channels_last=True)]
    cells = torch.tensor([[0, 0, 1, 23], [24, 30, 29, 7]])  # a cell twice, corners, all levels
    assert torch.autograd.gradcheck(lambda *maps: cell_patches(list(maps), cells), features)


def test_cells_of_other_levels_leave_no_trace_even_of_numbers_that_are_none():
    features = levels()
    features[1].fill_(torch.nan)
    assert cell_patches(features, torch.tensor([[0, 23], [30, 5]])).isfinite().all()
