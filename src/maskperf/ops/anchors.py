"""Anchors: rounded base boxes and their grid over the padded feature maps."""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rounding = Literal["sides", "corners", "none"]


def cell_anchors(
    stride: int, size: int, ratios: tuple[float, ...], rounding: Rounding = "sides"
) -> Float[Tensor, "ratios 4"]:
    """Return the anchors of the first cell of a level, one per ratio h/w.

    Sides are rounded half to even before scaling by size / stride, and the centre is (stride - 1) / 2:
    at stride 32 the height of ratio 0.5 is 176, not 184. Source: `modeling/rpn/anchor_generator.py`.
    Other families have the centre 0 and sides without a "+1", their corners rounded (torchvision) or not (detectron2).
    """
    if rounding != "sides":
        heights = size * torch.tensor(ratios).sqrt()
        corners = torch.stack([-size / torch.tensor(ratios).sqrt(), -heights], dim=1) / 2
        corners = corners.round() if rounding == "corners" else corners
        return torch.cat([corners, -corners - 1], dim=1)  # inclusive
    centre = (stride - 1) / 2
    rows = []
    for ratio in ratios:
        width = np.round(np.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        half_width = (width * size / stride - 1) / 2
        half_height = (height * size / stride - 1) / 2
        rows.append([centre - half_width, centre - half_height, centre + half_width, centre + half_height])
    return torch.tensor(np.array(rows), dtype=torch.float32)


def level_anchors(
    cell: Float[Tensor, "ratios 4"], stride: int | tuple[int, int], size_hw: tuple[int, int]
) -> Float[Tensor, "anchors 4"]:
    """Return the anchors of a level in the order row, column, ratio; the stride may differ down and across."""
    height, width = size_hw
    down, across = (stride, stride) if isinstance(stride, int) else stride
    shift_y, shift_x = torch.meshgrid(torch.arange(height) * down, torch.arange(width) * across, indexing="ij")
    shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], dim=-1).to(torch.float32)
    return (shifts[:, :, None, :] + cell).reshape(-1, 4)


@lru_cache(maxsize=256)
def pyramid_anchors(
    level_sizes_hw: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    sizes: tuple[int, ...],
    ratios: tuple[float, ...],
    device: torch.device,
    rounding: Rounding = "sides",
    padded_hw: tuple[int, int] | None = None,
) -> Float[Tensor, "anchors 4"]:
    """Return the anchors of all levels, P2 first. Made once per set of sizes and kept on the device.

    With `padded_hw` anchors are as far apart as that size has pixels for a cell, rounded down, as in torchvision.
    """
    levels = []
    for stride, size, size_hw in zip(strides, sizes, level_sizes_hw, strict=True):
        apart = stride if padded_hw is None else (padded_hw[0] // size_hw[0], padded_hw[1] // size_hw[1])
        levels.append(level_anchors(cell_anchors(stride, size, ratios, rounding), apart, size_hw))
    return torch.cat(levels).to(device, non_blocking=True)


def anchor_visibility(
    anchors: Float[Tensor, "anchors 4"], sizes_hw: Int[Tensor, "images 2"]
) -> Bool[Tensor, "images anchors"]:
    """Return whether an anchor lies inside the image without padding: x1, y1 >= 0, x2 < width, y2 < height."""
    inside_left_top = (anchors[:, :2] >= 0).all(dim=1)
    limits = sizes_hw.flip(1).to(anchors.dtype)  # width, height
    inside_right_bottom = (anchors[None, :, 2:] < limits[:, None, :]).all(dim=2)
    return inside_left_top & inside_right_bottom
