"""RoIAlign over the feature pyramid, unaligned, two samples per bin and axis, without a compiled extension."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.ops.boxes import box_area
from maskperf.ops.kernels.selection import has_kernel
from maskperf.techniques import active

SAMPLES = 2  # per bin and axis
WIDE = 2 * SAMPLES  # cells of a bin along one axis
NARROW = 3  # where the two samples of a bin are at most a cell apart, they share one


@has_kernel("roi_align")
def pyramid_roi_align(
    features: list[Tensor],
    boxes: Float[Tensor, "images rois 4"],
    *,
    size: int,
    strides: tuple[int, ...],
    image_offsets: Int[Tensor, " images_plus_1"] | None = None,
    most_of_image: int = 0,
) -> Float[Tensor, "images_rois channels size size"]:
    """Return each box's pooled map, channels-last, from the level of the pyramid that fits its size.

    start = x1 / stride, extent = max((x2 - x1) / stride, 1): no half-pixel shift and no "+1" (csrc/ROIAlign of the
    reference). Differentiable in the features, not in the boxes.
    `image_offsets`: boxes of all images are in one row, in the order of images; image i has the boxes
    image_offsets[i]:image_offsets[i + 1], `most_of_image` at most. Boxes after the last image's give no gradient.
    The plain form never waits for the device: all levels lie one after the other as rows of a channels-last table,
    and a bin is a weighted bag of 16 rows, so forward and backward are one `embedding_bag`.
    """
    if features[0].dtype == torch.bfloat16:
        features = [feature.float() for feature in features]  # the plain forms give weights the format of the maps
    if active().grouped_roi_align and boxes.device.type == "cpu" and image_offsets is None:
        return _GroupedRoiAlign.apply(boxes.detach(), size, strides, *features)
    images, rows = features[0].shape[0], boxes.detach().flatten(0, 1)
    if image_offsets is None:
        image_offsets = torch.arange(images + 1, device=boxes.device) * boxes.shape[1]
    sizes_hw = [(feature.shape[2], feature.shape[3]) for feature in features]
    levels, sides, cells, weights = _samples(rows, sizes_hw, size, strides)
    starts = np.cumsum([0, *(images * height * width for height, width in sizes_hw[:-1])]).tolist()
    first_cell = _of_level(levels, starts) + image_of_row(image_offsets, len(rows)) * sides[:, 0] * sides[:, 1]
    columns, lines = cells.unbind(1)
    lines = first_cell[:, None, None] + lines * sides[:, :1, None]
    column_weights, line_weights = weights.unbind(1)
    is_real = torch.arange(len(rows), device=rows.device) < image_offsets[-1]
    # axes: roi, bin row, bin column, y sample and neighbour, x sample and neighbour
    index = lines[:, :, None, :, None] + columns[:, None, :, None, :]
    shares = line_weights[:, :, None, :, None] * column_weights[:, None, :, None, :] / SAMPLES**2
    shares = (shares * is_real.view(-1, 1, 1, 1, 1)).reshape(-1, WIDE**2)
    table = torch.cat([_table(feature) for feature in features])
    bins = F.embedding_bag(index.reshape(-1, WIDE**2), table, mode="sum", per_sample_weights=shares.to(table.dtype))
    return bins.view(-1, size, size, table.shape[1]).permute(0, 3, 1, 2)


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


def _samples(
    boxes: Float[Tensor, "rois 4"], level_sizes_hw: list[tuple[int, int]], size: int, strides: tuple[int, ...]
) -> tuple[Int[Tensor, " rois"], Int[Tensor, "rois 2"], Int[Tensor, "rois 2 size 4"], Float[Tensor, "rois 2 size 4"]]:
    """Return each RoI's level, width and height of that level, and its `axis_samples` along x and along y."""
    levels = assign_levels(boxes, len(strides))
    heights, widths = zip(*level_sizes_hw, strict=True)
    sides = torch.stack([_of_level(levels, widths), _of_level(levels, heights)], dim=1)
    corners = boxes / _of_level(levels, strides)[:, None].to(boxes.dtype)  # strides are powers of two: exact
    extents = (corners[:, 2:] - corners[:, :2]).clamp(min=1.0)
    cells, weights = axis_samples(corners[:, :2].flatten(), extents.flatten(), sides.flatten(), size)
    return levels, sides, cells.view(-1, 2, size, WIDE), weights.view(-1, 2, size, WIDE)


def _of_level(levels: Int[Tensor, " rois"], values: Sequence[int]) -> Int[Tensor, " rois"]:
    """Return each RoI's value. The values go along with the calls: a table would have to be copied to the device."""
    chosen = torch.full_like(levels, values[0])
    for level, value in enumerate(values[1:], start=1):
        chosen = chosen.masked_fill(levels == level, value)
    return chosen


def _table(maps: Float[Tensor, "n channels height width"]) -> Float[Tensor, "cells channels"]:
    """Return the maps as a table with a row for each cell: a view where they are channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


class Bags(NamedTuple):
    """RoIs whose bins are bags of equally many cells, levels ascending."""

    rois: Int[Tensor, " rois"]  # numbers in the caller's order
    level_counts: list[int]  # RoIs of every level of the pyramid
    cells: Int[Tensor, "rois bins entries"]  # rows of the level's table: image, line, column
    weights: Float[Tensor, "rois bins entries"]


class _GroupedRoiAlign(torch.autograd.Function):
    """`pyramid_roi_align` on a CPU, up to rounding, without a copy of the pyramid or of its gradient.

    The RoIs are taken level by level and, within a level, from top to bottom, so the cells they share are still in the
    cache. In the backward pass a cell's gradient is a weighted bag of bins: the same entries, sorted by cell, and each
    gradient map is written once. Both directions sum in a fixed order. Reads sizes back: not for an accelerator.
    """

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, size: int, strides: tuple[int, ...], *features: Tensor) -> Tensor:
        sizes_hw = [(feature.shape[2], feature.shape[3]) for feature in features]
        ctx.bags = pyramid_bags(boxes, sizes_hw, size, strides)
        ctx.shapes = [feature.shape for feature in features]
        tables = [_table(feature) for feature in features]
        pooled = tables[0].new_empty((boxes.shape[0] * boxes.shape[1], size * size, tables[0].shape[1]))
        for bags in ctx.bags:
            weights = bags.weights.to(pooled.dtype)
            parts = (part.split(bags.level_counts) for part in (bags.rois, bags.cells, weights))
            for table, rois, cells, shares in zip(tables, *parts, strict=True):
                if len(rois):
                    index, shares = cells.flatten(0, 1), shares.flatten(0, 1)
                    maps = F.embedding_bag(index, table, mode="sum", per_sample_weights=shares)
                    pooled.index_copy_(0, rois, maps.view(len(rois), *pooled.shape[1:]))
        return pooled.unflatten(1, (size, size)).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.bags:
            return None, None, None, *(gradient.new_zeros(shape) for shape in ctx.shapes)
        rows = _table(gradient)
        cell_counts = [images * height * width for images, _, height, width in ctx.shapes]
        lengths, bin_rows, weights = _entries_by_cell(ctx.bags, cell_counts)
        maps = []
        start = 0
        for (images, channels, height, width), level_lengths in zip(
            ctx.shapes, lengths.split(cell_counts), strict=True
        ):
            part = slice(start, start + int(level_lengths.sum()))
            start = part.stop
            starts = (level_lengths.cumsum(0) - level_lengths).to(torch.int32)
            shares = weights[part].to(rows.dtype)
            table = F.embedding_bag(bin_rows[part], rows, starts, mode="sum", per_sample_weights=shares)
            maps.append(table.view(images, height, width, channels).permute(0, 3, 1, 2))
        return None, None, None, *maps


def _entries_by_cell(
    all_bags: list[Bags], cell_counts: list[int]
) -> tuple[Int[Tensor, " cells"], Int[Tensor, " entries"], Float[Tensor, " entries"]]:
    """Return how many entries each cell of the pyramid has and, cell by cell, their bins and weights."""
    level_starts = torch.tensor(np.cumsum([0, *cell_counts[:-1]]), dtype=torch.int32)
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
    """Return the RoIs of which all bins are narrow, then the others; within each by level and line of their middle."""
    images, per_image = boxes.shape[:2]
    levels, sides, cells, weights = _samples(boxes.flatten(0, 1), level_sizes_hw, size, strides)
    wide = (cells[..., SAMPLES] - cells[..., 0] > 1).flatten(1).any(dim=1)
    first_lines = sides[:, 1] * torch.arange(images).repeat_interleave(per_image)
    middles = first_lines + cells[:, 1, size // 2, 0]
    group = wide * len(strides) + levels
    tallest = images * max(height for height, _ in level_sizes_hw)
    order = torch.argsort(group * tallest + middles, stable=True)
    counts = torch.bincount(group, minlength=2 * len(strides)).view(2, -1).tolist()
    all_bags = []
    for is_narrow, rois, level_counts in zip(
        (True, False), order.split([sum(part) for part in counts]), counts, strict=True
    ):
        if len(rois):
            own = [values.index_select(0, rois) for values in (cells, weights, sides, first_lines)]
            all_bags.append(Bags(rois, level_counts, *_entries(*own, is_narrow=is_narrow)))
    return all_bags


def _entries(
    cells: Int[Tensor, "rois 2 size 4"],
    weights: Float[Tensor, "rois 2 size 4"],
    sides: Int[Tensor, "rois 2"],
    first_lines: Int[Tensor, " rois"],
    *,
    is_narrow: bool,
) -> tuple[Int[Tensor, "rois bins entries"], Float[Tensor, "rois bins entries"]]:
    """Return the cells of all bins of these RoIs and their weights, from the samples along x and along y."""
    if is_narrow:
        cells, weights = _merged(cells, weights, sides)
    columns, lines = cells.unbind(1)
    row_starts = (lines + first_lines[:, None, None]) * sides[:, :1, None]
    column_weights, line_weights = weights.unbind(1)
    return (
        _outer(np.add, row_starts.to(torch.int32), columns.to(torch.int32)),
        _outer(np.multiply, line_weights / SAMPLES**2, column_weights),
    )


def _merged(
    cells: Int[Tensor, "rois 2 size 4"], weights: Float[Tensor, "rois 2 size 4"], sides: Int[Tensor, "rois 2"]
) -> tuple[Int[Tensor, "rois 2 size 3"], Float[Tensor, "rois 2 size 3"]]:
    """Return the same bags with three cells, for samples on equal or neighbouring cells: equal cells become one."""
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
