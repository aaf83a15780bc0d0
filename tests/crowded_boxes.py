"""Boxes of which many overlap, for non-maximum suppression."""

import torch

A = (0.0, 0.0, 9.0, 9.0)
NEAR_A = (1.0, 0.0, 10.0, 9.0)  # overlaps A by 90 / 110
FAR = (50.0, 50.0, 59.0, 59.0)
PIXEL, NEXT_PIXEL, FLAT = (3.0, 3.0, 3.0, 3.0), (4.0, 3.0, 4.0, 3.0), (8.0, 8.0, 7.0, 7.0)


def crowded_boxes(groups: int, count: int, seed: int, whole: bool = True) -> torch.Tensor:
    """Return boxes around a few centres, by default in whole pixels, so that many overlaps are equal."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randint(0, 60, (groups, 5, 2), generator=generator)
    choice = torch.randint(0, 5, (groups, count, 1), generator=generator).expand(-1, -1, 2)
    corners = centres.gather(1, choice) + torch.randint(-6, 7, (groups, count, 2), generator=generator)
    sides = torch.randint(8, 20, (groups, count, 2), generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=2).float()
    return boxes if whole else boxes + torch.rand(boxes.shape, generator=generator)
