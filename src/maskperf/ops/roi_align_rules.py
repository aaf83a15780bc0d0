"""RoIAlign as other families of weights have it: pixel centres half a cell in, and as many samples as a bin has cells.

The reference's own rule has faster ways, in ops/roi_align.py.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.ops.roi_align import image_of_row

MAX_ENTRIES = 1 << 22  # of all bags at a time: bounds the memory


@dataclass(frozen=True)
class RoiAlignRule:
    """How a box is laid over a map, and which level of the pyramid that is."""

    is_aligned: bool  # minus half a cell and no least extent, or as it is and one cell at least
    samples: int  # per bin and axis; 0: as many as the bin has cells, rounded up
    level_epsilons: tuple[float, float]  # inside the logarithm, outside of it


def roi_align_by_rule(
    features: list[Tensor],
    boxes: Float[Tensor, "images rois 4"],
    *,
    size: int,
    strides: tuple[int, ...],
    rule: RoiAlignRule,
    image_offsets: Int[Tensor, " images_plus_1"] | None = None,
) -> Float[Tensor, "images_rois channels size size"]:
    """Return each box's pooled map, as `pyramid_roi_align`, for boxes whose x2 and y2 are their edges.

    With a fixed number of samples nothing is read from the device; else the sizes of the boxes are.
    Source: torchvision's and detectron2's RoIAlign and level assignment.
    """
    images, rows = features[0].shape[0], boxes.detach().flatten(0, 1)
    if image_offsets is None:
        image_offsets = torch.arange(images + 1, device=boxes.device) * boxes.shape[1]
    levels = levels_by_rule(rows, len(strides), rule)
    heights, widths = zip(*((feature.shape[2], feature.shape[3]) for feature in features), strict=True)
    starts = np.cumsum([0, *(images * height * width for height, width in zip(heights, widths, strict=True))])
    facts = torch.tensor([widths, heights, strides, starts[:-1].tolist()], device=rows.device)[:, levels]
    sides, stride, first_cell = facts[:2].t(), facts[2, :, None], facts[3]
    first_cell = first_cell + image_of_row(image_offsets, len(rows)) * sides[:, 0] * sides[:, 1]
    corners = rows / stride - (0.5 if rule.is_aligned else 0.0)
    extents = corners[:, 2:] - corners[:, :2]
    extents = extents.clamp(min=0.0 if rule.is_aligned else 1.0)
    counts = torch.full_like(sides, rule.samples) if rule.samples else (extents / size).ceil().clamp(min=1).long()
    table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1]) for feature in features]).float()
    most = counts.amax(dim=1)
    is_real = torch.arange(len(rows), device=rows.device) < image_offsets[-1]
    parts, order = [], []
    for slots in [rule.samples] if rule.samples else most.unique().tolist():
        chosen = torch.arange(len(rows), device=rows.device) if rule.samples else (most == slots).nonzero()[:, 0]
        for own in chosen.split(max(1, MAX_ENTRIES // (size * (slots + 2)) ** 2)):
            values = (corners[own, :2], extents[own], sides[own], counts[own])
            cells, weights = _axis_cells(*values, size=size, slots=slots, is_merged=not rule.samples)
            (columns, lines), (column_shares, line_shares) = cells.unbind(1), weights.unbind(1)
            index = first_cell[own, None, None] + lines * sides[own, :1, None]
            index = index[:, :, None, :, None] + columns[:, None, :, None, :]
            shares = line_shares[:, :, None, :, None] * column_shares[:, None, :, None, :]
            shares = (shares * is_real[own].view(-1, 1, 1, 1, 1)).to(table.dtype)
            bags = index.flatten(0, 2).flatten(1), table, shares.flatten(0, 2).flatten(1)
            parts.append(F.embedding_bag(bags[0], bags[1], mode="sum", per_sample_weights=bags[2]))
            order.append(own)
    bins = torch.cat([table.new_zeros(0, table.shape[1]), *parts]).view(-1, size, size, table.shape[1])
    positions = torch.argsort(torch.cat(order)) if order else torch.zeros(0, dtype=torch.int64)
    return bins[positions].permute(0, 3, 1, 2)


def levels_by_rule(boxes: Float[Tensor, "rois 4"], num_levels: int, rule: RoiAlignRule) -> Int[Tensor, " rois"]:
    """Return the level (0 is P2) of each box, from its area without a "+1"."""
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1).sqrt()
    inside, outside = rule.level_epsilons
    level = torch.floor(4 + torch.log2(side / 224 + inside) + outside)
    return level.clamp(min=2, max=1 + num_levels).to(torch.int64) - 2


def _axis_cells(
    starts: Float[Tensor, "rois 2"],
    extents: Float[Tensor, "rois 2"],
    lengths: Int[Tensor, "rois 2"],
    counts: Int[Tensor, "rois 2"],
    *,
    size: int,
    slots: int,
    is_merged: bool,
) -> tuple[Int[Tensor, "rois 2 size cells"], Float[Tensor, "rois 2 size cells"]]:
    """Return the cells that the samples of each bin lie between, along x and along y, and their shares of the mean.

    Cells are merged where samples are at most one cell apart: then a bin meets `slots` + 2 of them at most.
    """
    sample = torch.arange(slots, device=starts.device)
    offsets = (sample + 0.5) / counts[..., None]
    bins = torch.arange(size, device=starts.device)[:, None]
    position = starts[..., None, None] + (bins + offsets[:, :, None]) * (extents / size)[..., None, None]
    last = (lengths - 1)[..., None, None].to(position.dtype)
    inside = (position >= -1) & (position <= last + 1) & (sample < counts[..., None])[:, :, None]
    position = torch.minimum(position.clamp(min=0), last)
    low = position.floor()
    share = inside / counts[..., None, None]
    weights = torch.stack([1 - (position - low), position - low], dim=-1) * share[..., None]
    cells = torch.stack([low, torch.minimum(low + 1, last)], dim=-1).to(torch.int64)
    cells, weights = cells.flatten(3), weights.flatten(3)
    if not is_merged:
        return cells, weights
    first = cells[..., :1]
    merged = weights.new_zeros(*weights.shape[:3], slots + 2)
    merged.scatter_add_(3, (cells - first).clamp(max=slots + 1), weights)  # beyond: samples that do not count
    window = first + torch.arange(slots + 2, device=first.device)
    return torch.minimum(window, (lengths - 1)[..., None, None]), merged
