"""Synthetic feature pyramids and RoIs."""

import torch

STRIDES = (4, 8, 16, 32)


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
