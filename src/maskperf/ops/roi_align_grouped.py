"""RoIAlign for a processor: RoIs in groups that read the same level, so that neither pyramid nor gradient is copied."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.ops.roi_align_samples import SAMPLES, assign_levels, axis_samples

WIDE = 2 * SAMPLES  # cells of a bin along one axis
NARROW = 3  # where the two samples of a bin are at most a cell apart, they share one


@dataclass(frozen=True, kw_only=True)
class Bags:
    """RoIs whose bins are bags of equally many cells, levels ascending."""

    rois: Int[Tensor, " rois"]  # numbers in the caller's order
    level_counts: list[int]  # RoIs of every level of the pyramid
    cells: Int[Tensor, "rois bins entries"]  # rows of the level's table: image, line, column
    weights: Float[Tensor, "rois bins entries"]


def grouped_roi_align(
    features: list[Tensor], boxes: Float[Tensor, "images rois 4"], *, size: int, strides: tuple[int, ...]
) -> Float[Tensor, "images_rois channels size size"]:
    """Returns what `pyramid_roi_align` returns, up to rounding, without a copy of the pyramid.

    The RoIs are taken level by level and, within a level, from top to bottom, so the cells they share are still in the
    cache. In the backward pass a cell's gradient is a weighted bag of bins: the same entries, sorted by cell, and each
    gradient map is written once. Both directions sum in a fixed order. Reads sizes back: not for an accelerator.
    """
    return _GroupedRoiAlign.apply(boxes.detach(), size, strides, *features)


class _GroupedRoiAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boxes: Tensor, size: int, strides: tuple[int, ...], *features: Tensor) -> Tensor:
        sizes_hw = [(feature.shape[2], feature.shape[3]) for feature in features]
        ctx.bags = pyramid_bags(boxes, sizes_hw, size, strides)
        ctx.shapes = [feature.shape for feature in features]
        rois, channels = boxes.shape[0] * boxes.shape[1], features[0].shape[1]
        pooled = features[0].new_empty((rois, size * size, channels))
        for bags in ctx.bags:
            _pool([_table(feature) for feature in features], bags, pooled)
        return pooled.view(rois, size, size, channels).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *_feature_gradients(ctx.bags, gradient, ctx.shapes)


def _pool(tables: list[Tensor], bags: Bags, pooled: Float[Tensor, "all_rois bins channels"]) -> None:
    """Write the maps of these RoIs to their places in `pooled`."""
    weights = bags.weights.to(pooled.dtype)
    parts = (part.split(bags.level_counts) for part in (bags.rois, bags.cells, weights))
    for table, rois, cells, shares in zip(tables, *parts, strict=True):
        if len(rois) == 0:
            continue
        maps = F.embedding_bag(cells.flatten(0, 1), table, mode="sum", per_sample_weights=shares.flatten(0, 1))
        pooled.index_copy_(0, rois, maps.view(len(rois), *pooled.shape[1:]))


def _table(maps: Float[Tensor, "n channels height width"]) -> Float[Tensor, "cells channels"]:
    """Return the maps as a table with a row for each cell: a view where they are channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _feature_gradients(
    all_bags: list[Bags], gradient: Float[Tensor, "rois channels size size"], shapes: list[torch.Size]
) -> list[Tensor]:
    """Returns the gradient of every level, channels-last."""
    if not all_bags:
        return [gradient.new_zeros(shape) for shape in shapes]
    rows = _table(gradient)
    cell_counts = [images * height * width for images, _, height, width in shapes]
    lengths, bin_rows, weights = _entries_by_cell(all_bags, cell_counts)
    maps = []
    start = 0
    for (images, channels, height, width), level_lengths in zip(shapes, lengths.split(cell_counts), strict=True):
        part = slice(start, start + int(level_lengths.sum()))
        start = part.stop
        starts = (level_lengths.cumsum(0) - level_lengths).to(torch.int32)
        weights_part = weights[part].to(rows.dtype)
        table = F.embedding_bag(bin_rows[part], rows, starts, mode="sum", per_sample_weights=weights_part)
        maps.append(table.view(images, height, width, channels).permute(0, 3, 1, 2))
    return maps


def _entries_by_cell(
    all_bags: list[Bags], cell_counts: list[int]
) -> tuple[Int[Tensor, " cells"], Int[Tensor, " entries"], Float[Tensor, " entries"]]:
    """Returns how many entries each cell of the pyramid has and, cell by cell, their bins and weights."""
    level_starts = torch.tensor([sum(cell_counts[:level]) for level in range(len(cell_counts))]).to(torch.int32)
    cells, bin_rows = [], []
    for bags in all_bags:
        bins = bags.cells.shape[1]
        starts = level_starts.repeat_interleave(torch.tensor(bags.level_counts))
        cells.append((bags.cells + starts[:, None, None]).flatten())
        rows = (bags.rois[:, None] * bins + torch.arange(bins)).to(torch.int32)
        bin_rows.append(rows[..., None].expand_as(bags.cells).flatten())
    all_cells = torch.cat(cells)
    order = torch.sort(all_cells, stable=True).indices
    lengths = torch.bincount(all_cells, minlength=sum(cell_counts))
    weights = torch.cat([bags.weights.flatten() for bags in all_bags])
    return lengths, torch.cat(bin_rows).index_select(0, order), weights.index_select(0, order)


def pyramid_bags(
    boxes: Float[Tensor, "images rois 4"], level_sizes_hw: list[tuple[int, int]], size: int, strides: tuple[int, ...]
) -> list[Bags]:
    """Returns the RoIs of which all bins are narrow, then the others; within each by level and line of their middle."""
    images, per_image = boxes.shape[:2]
    levels = assign_levels(boxes, len(strides)).flatten()
    sides = torch.tensor([(width, height) for height, width in level_sizes_hw])[levels]  # x first, as in a box
    corners = boxes.reshape(-1, 4) / torch.tensor(strides)[levels, None].to(boxes.dtype)  # powers of two: exact
    starts, extents = corners[:, :2], (corners[:, 2:] - corners[:, :2]).clamp(min=1.0)
    samples = axis_samples(starts.flatten(), extents.flatten(), sides.flatten(), size)
    cells, weights = (values.view(-1, 2, size, WIDE) for values in samples)
    wide = (cells[..., SAMPLES] - cells[..., 0] > 1).flatten(1).any(dim=1)
    first_lines = sides[:, 1] * torch.arange(images).repeat_interleave(per_image)
    middles = first_lines + cells[:, 1, size // 2, 0]
    group = wide * len(strides) + levels
    tallest = images * max(height for height, _ in level_sizes_hw)
    order = torch.argsort(group * tallest + middles, stable=True)
    counts = torch.bincount(group, minlength=2 * len(strides)).view(2, -1).tolist()
    parts = zip((NARROW, WIDE), order.split([sum(part) for part in counts]), counts, strict=True)
    return [
        _bags(
            rois,
            level_counts,
            cells=cells.index_select(0, rois),
            weights=weights.index_select(0, rois),
            sides=sides.index_select(0, rois),
            first_lines=first_lines.index_select(0, rois),
            narrow=side == NARROW,
        )
        for side, rois, level_counts in parts
        if len(rois)
    ]


def _bags(
    rois: Int[Tensor, " rois"],
    level_counts: list[int],
    *,
    cells: Int[Tensor, "rois 2 size 4"],
    weights: Float[Tensor, "rois 2 size 4"],
    sides: Int[Tensor, "rois 2"],
    first_lines: Int[Tensor, " rois"],
    narrow: bool,
) -> Bags:
    """Returns the bags of these RoIs from the samples along x and along y."""
    if narrow:
        cells, weights = _merged(cells, weights, sides)
    columns, lines = cells.unbind(1)
    row_starts = (lines + first_lines[:, None, None]) * sides[:, :1, None]
    column_weights, line_weights = weights.unbind(1)
    return Bags(
        rois=rois,
        level_counts=level_counts,
        cells=_outer(np.add, row_starts.to(torch.int32), columns.to(torch.int32)),
        weights=_outer(np.multiply, line_weights / SAMPLES**2, column_weights),
    )


def _merged(
    cells: Int[Tensor, "rois 2 size 4"], weights: Float[Tensor, "rois 2 size 4"], sides: Int[Tensor, "rois 2"]
) -> tuple[Int[Tensor, "rois 2 size 3"], Float[Tensor, "rois 2 size 3"]]:
    """Returns the same bags with three cells, for samples on equal or neighbouring cells: equal cells become one."""
    first = cells[..., :1]
    offsets = cells - first
    shares = [(weights * (offsets == step)).sum(dim=-1) for step in range(NARROW)]
    return torch.minimum(first + torch.arange(NARROW), (sides - 1)[..., None, None]), torch.stack(shares, dim=-1)


def _outer(combine: np.ufunc, lines: Tensor, columns: Tensor) -> Tensor:
    """Return line with column for every entry of every bin, as (rois, bins, entries), from two (rois, size, side).

    Numpy, because torch would share these small loops between threads, and waiting for a thread that another program
    holds up costs more than the loop.
    """
    rois, size, side = columns.shape
    # Both are first written out to a whole row of bins: the last loop then runs over the row, not over a bin at a time.
    all_lines = np.repeat(np.repeat(lines.numpy(), side, axis=2)[:, :, None], size, axis=2).reshape(rois, size, -1)
    all_columns = np.tile(columns.numpy(), (1, 1, side)).reshape(rois, 1, -1)
    combine(all_lines, all_columns, out=all_lines)
    return torch.from_numpy(all_lines.reshape(rois, size * size, side * side))
