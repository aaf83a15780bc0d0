"""Where RoIAlign samples: the pyramid level of a box, and the cells and weights of its samples along one axis."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.ops.boxes import box_area

SAMPLES = 2  # per bin and axis


def assign_levels(boxes: Float[Tensor, "*batch 4"], num_levels: int) -> Int[Tensor, "*batch"]:
    """Return the level (0 is P2) of each box: floor(4 + log2(sqrt(area) / 224 + 1e-6)), clamped.

    Source: Lin et al. 2017, equation 1; the epsilon inside the logarithm is `modeling/poolers.py`.
    """
    side = torch.sqrt(box_area(boxes).clamp(min=0))
    level = torch.floor(4 + torch.log2(side / 224 + 1e-6))
    return level.clamp(min=2, max=1 + num_levels).to(torch.int64) - 2


def axis_samples(
    start: Float[Tensor, " rois"], extent: Float[Tensor, " rois"], length: Int[Tensor, " rois"], size: int
) -> tuple[Int[Tensor, "rois size 4"], Float[Tensor, "rois size 4"]]:
    """Returns, for each bin of one axis, the cells its samples lie between (two per sample) and their weights.

    A sample below -1 or above the length weighs nothing; at or below 0 it sits on the first cell, at the last cell
    or beyond on the last.
    """
    offsets = (torch.arange(size * SAMPLES, device=start.device, dtype=start.dtype) + 0.5) / SAMPLES
    position = start[:, None] + offsets * (extent / size)[:, None]
    last = (length - 1)[:, None].to(start.dtype)
    inside = (position >= -1) & (position <= length[:, None])
    position = torch.minimum(position.clamp(min=0), last)
    low = position.floor()
    high_weight = position - low
    cells = torch.stack([low, torch.minimum(low + 1, last)], dim=-1).to(torch.int64)
    weights = torch.stack([1 - high_weight, high_weight], dim=-1) * inside[..., None]
    return cells.view(-1, size, 2 * SAMPLES), weights.view(-1, size, 2 * SAMPLES)


def image_of_row(image_offsets: Int[Tensor, " images_plus_1"], rows: int) -> Int[Tensor, " rows"]:
    """Return the image of each row, where image i has the rows image_offsets[i]:image_offsets[i + 1].

    Rows after the last image's are given to that one.
    """
    images = len(image_offsets) - 1
    row = torch.arange(rows, device=image_offsets.device)
    return torch.searchsorted(image_offsets, row, right=True).sub_(1).clamp_(max=images - 1)
