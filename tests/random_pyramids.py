"""Synthetic feature pyramids and RoIs."""

import torch

STRIDES = (4, 8, 16, 32)
AT_THE_BORDER = (  # of an image of 96 x 128
    (10.0, 10.0, 10.0, 10.0),  # a point
    (10.3, 20.6, 11.1, 21.9),  # less than a cell
    (30.0, 5.0, 28.0, 4.0),  # corners swapped
    (-3.0, -3.0, 2.0, 2.0),
    (0.0, 0.0, 127.0, 95.0),  # the whole image
    (120.0, 88.0, 128.0, 96.0),  # ends on the border of the map
    (126.0, 40.0, 150.0, 50.0),
    (40.0, -30.0, 50.0, 130.0),
    (-60.0, -60.0, -20.0, -20.0),  # outside
    (140.0, 10.0, 180.0, 30.0),
    (-500.0, -400.0, 700.0, 600.0),
    (124.0, 92.0, 127.0, 95.0),  # the last row and column
)


def random_pyramid(images: int, channels: int, padded_hw: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(-(-padded_hw[0] // stride), -(-padded_hw[1] // stride)) for stride in STRIDES]
    return [torch.randn((images, channels, *size), generator=generator, dtype=torch.float64) for size in sizes]


def random_rois(images: int, rois: int, padded_hw: tuple[int, int], seed: int) -> torch.Tensor:
    """Return boxes from a point to wider than the canvas, on all four levels; many leave the canvas."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([padded_hw[1], padded_hw[0]], dtype=torch.float64)
    scale = 1000 ** torch.rand((images, rois, 1), generator=generator, dtype=torch.float64) - 1
    sides = scale * 2 ** torch.randn((images, rois, 2), generator=generator, dtype=torch.float64)
    centres = (torch.rand((images, rois, 2), generator=generator, dtype=torch.float64) * 1.6 - 0.3) * extent
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=2)
