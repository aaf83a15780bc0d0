"""RoIAlign for a processor: RoIs in groups that read the same level, so that neither pyramid nor gradient is copied."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.ops.roi_align_samples import SAMPLES, assign_levels, axis_samples

WIDE = 2 * SAMPLES  # cells of a bin along one axis
NARROW = 3  # where the two samples of a bin are at most a cell apart, they share one


@dataclass(frozen=True, kw_only=True)
class LevelBags:
    """The RoIs of one level; every bin of theirs is a weighted bag of the level's cells."""

    level: int
    rois: Int[Tensor, " rois"]  # numbers in the caller's order
    bag_lengths: Int[Tensor, " bins"]
    cells: Int[Tensor, " entries"]  # rows of the level's table: image, line, column
    weights: Float[Tensor, " entries"]


@dataclass(frozen=True, kw_only=True)
class _OrderedRois:
    """The RoIs in the order of work."""

    numbers: Int[Tensor, " rois"]  # in the caller's order
    columns: Int[Tensor, "rois size 4"]
    column_weights: Float[Tensor, "rois size 4"]
    lines: Int[Tensor, "rois size 4"]
    line_weights: Float[Tensor, "rois size 4"]
    first_lines: Int[Tensor, " rois"]  # of the RoI's image, all images of the level below each other
    counts: list[tuple[int, int]]  # per level: RoIs of which all bins are narrow, others


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
    def forward(ctx, boxes: Tensor, size: int, strides: tuple[int, ...], *features: Tensor) -> Tensor:
        sizes_hw = [(feature.shape[2], feature.shape[3]) for feature in features]
        ctx.bags = pyramid_bags(boxes, sizes_hw, size, strides)
        ctx.shapes = [feature.shape for feature in features]
        rois, channels = boxes.shape[0] * boxes.shape[1], features[0].shape[1]
        pooled = features[0].new_empty((rois, size * size, channels))
        for bags in ctx.bags:
            table = _table(features[bags.level])
            starts = _starts(bags.bag_lengths)
            weights = bags.weights.to(table.dtype)
            maps = F.embedding_bag(bags.cells, table, starts, mode="sum", per_sample_weights=weights)
            pooled.index_copy_(0, bags.rois, maps.view(-1, size * size, channels))
        return pooled.view(rois, size, size, channels).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        return None, None, None, *_feature_gradients(ctx.bags, gradient, ctx.shapes)


def _table(maps: Float[Tensor, "n channels height width"]) -> Float[Tensor, "cells channels"]:
    """Returns the maps as a table with a row for each cell: a view where they are channels-last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _starts(lengths: Int[Tensor, " bags"]) -> Int[Tensor, " bags"]:
    """Returns where each bag begins in a row of all entries."""
    return (lengths.cumsum(0) - lengths).to(torch.int32)


def _feature_gradients(
    levels: list[LevelBags], gradient: Float[Tensor, "rois channels size size"], shapes: list[torch.Size]
) -> list[Tensor]:
    """Returns the gradient of every level, channels-last."""
    if not levels:
        return [gradient.new_zeros(shape) for shape in shapes]
    rows, bins = _table(gradient), gradient.shape[2] * gradient.shape[3]
    cell_counts = [images * height * width for images, _, height, width in shapes]
    lengths, bin_rows, weights = _entries_by_cell(levels, bins, cell_counts)
    maps = []
    start = 0
    for (images, channels, height, width), level_lengths in zip(shapes, lengths.split(cell_counts), strict=True):
        part = slice(start, start + int(level_lengths.sum()))
        start = part.stop
        weights_part = weights[part].to(rows.dtype)
        table = F.embedding_bag(
            bin_rows[part], rows, _starts(level_lengths), mode="sum", per_sample_weights=weights_part
        )
        maps.append(table.view(images, height, width, channels).permute(0, 3, 1, 2))
    return maps


def _entries_by_cell(
    levels: list[LevelBags], bins: int, cell_counts: list[int]
) -> tuple[Int[Tensor, " cells"], Int[Tensor, " entries"], Float[Tensor, " entries"]]:
    """Returns how many entries each cell of the pyramid has and, cell by cell, their bins and weights."""
    within = torch.arange(bins)
    cells, bin_rows = [], []
    for bags in levels:
        cells.append(bags.cells + sum(cell_counts[: bags.level]))
        rows = (bags.rois[:, None] * bins + within).flatten().to(torch.int32)
        bin_rows.append(rows.repeat_interleave(bags.bag_lengths, output_size=len(bags.cells)))
    all_cells = torch.cat(cells)
    order = torch.sort(all_cells, stable=True).indices
    lengths = torch.bincount(all_cells, minlength=sum(cell_counts))
    weights = torch.cat([bags.weights for bags in levels])
    return lengths, torch.cat(bin_rows).index_select(0, order), weights.index_select(0, order)


def pyramid_bags(
    boxes: Float[Tensor, "images rois 4"], level_sizes_hw: list[tuple[int, int]], size: int, strides: tuple[int, ...]
) -> list[LevelBags]:
    """Returns the bags of the levels that have RoIs, levels ascending."""
    rois = _in_order(boxes, level_sizes_hw, size, strides)
    levels = []
    start = 0
    for level, (narrow, wide) in enumerate(rois.counts):
        if narrow + wide == 0:
            continue
        lengths = torch.tensor([NARROW**2, WIDE**2]).repeat_interleave(torch.tensor([narrow, wide]) * size**2)
        cells = torch.empty(int(lengths.sum()), dtype=torch.int32)
        weights = torch.empty(len(cells), dtype=boxes.dtype)
        middle, end = start + narrow, start + narrow + wide
        written = 0
        for part, side in ((slice(start, middle), NARROW), (slice(middle, end), WIDE)):
            entries = slice(written, written + (part.stop - part.start) * (size * side) ** 2)
            _write_entries(cells[entries], weights[entries], rois, part, side=side, size_hw=level_sizes_hw[level])
            written = entries.stop
        numbers = rois.numbers[start:end]
        levels.append(LevelBags(level=level, rois=numbers, bag_lengths=lengths, cells=cells, weights=weights))
        start = end
    return levels


def _in_order(
    boxes: Float[Tensor, "images rois 4"], level_sizes_hw: list[tuple[int, int]], size: int, strides: tuple[int, ...]
) -> _OrderedRois:
    """Returns the RoIs by level, bag length, image and the line of their middle."""
    images, per_image = boxes.shape[:2]
    levels = assign_levels(boxes, len(strides)).flatten()
    heights, widths = torch.tensor(level_sizes_hw)[levels].unbind(1)
    corners = boxes.reshape(-1, 4) / torch.tensor(strides)[levels, None].to(boxes.dtype)  # powers of two: exact
    extents = (corners[:, 2:] - corners[:, :2]).clamp(min=1.0)
    columns, column_weights = axis_samples(corners[:, 0], extents[:, 0], widths, size)
    lines, line_weights = axis_samples(corners[:, 1], extents[:, 1], heights, size)
    gaps = torch.cat([cells[..., SAMPLES] - cells[..., 0] for cells in (columns, lines)], dim=1)
    group = 2 * levels + (gaps > 1).any(dim=1)
    first_lines = heights * torch.arange(images).repeat_interleave(per_image)
    middles = first_lines + lines[:, size // 2, 0]
    tallest = images * max(height for height, _ in level_sizes_hw)
    order = torch.argsort(group * tallest + middles, stable=True)
    counts = torch.bincount(group, minlength=2 * len(strides)).tolist()
    return _OrderedRois(
        numbers=order,
        columns=columns[order],
        column_weights=column_weights[order],
        lines=lines[order],
        line_weights=line_weights[order],
        first_lines=first_lines[order],
        counts=list(zip(counts[::2], counts[1::2], strict=True)),
    )


def _write_entries(
    cells: Int[Tensor, " entries"],
    weights: Float[Tensor, " entries"],
    rois: _OrderedRois,
    part: slice,
    *,
    side: int,
    size_hw: tuple[int, int],
) -> None:
    """Writes the cells and weights of all bins of a part of the RoIs, side * side for each bin."""
    columns, column_weights = rois.columns[part], rois.column_weights[part]
    lines, line_weights = rois.lines[part], rois.line_weights[part]
    if side == NARROW:
        columns, column_weights = _merged(columns, column_weights, size_hw[1])
        lines, line_weights = _merged(lines, line_weights, size_hw[0])
    row_starts = (lines + rois.first_lines[part, None, None]) * size_hw[1]
    _write_outer(np.add, row_starts.to(torch.int32), columns.to(torch.int32), cells)
    _write_outer(np.multiply, line_weights / SAMPLES**2, column_weights, weights)


def _merged(
    cells: Int[Tensor, "rois size 4"], weights: Float[Tensor, "rois size 4"], length: int
) -> tuple[Int[Tensor, "rois size 3"], Float[Tensor, "rois size 3"]]:
    """Returns the same bags with three cells, for samples on equal or neighbouring cells: equal cells become one."""
    steps = torch.arange(NARROW)
    first = cells[..., :1]
    shares = weights[..., None] * ((cells - first)[..., None] == steps)
    return (first + steps).clamp(max=length - 1), shares.sum(dim=2)


def _write_outer(combine: np.ufunc, lines: Tensor, columns: Tensor, entries: Tensor) -> None:
    """Writes line with column for every entry of every bin, from two (rois, size, side).

    Numpy, because torch would share each of these small loops between threads, and waiting for a thread that another
    program holds up costs more than the loop.
    """
    rois, size, side = columns.shape
    # Both written out to the full bag first: the large loop then runs over a whole bag at a time.
    full_lines = np.repeat(lines.numpy(), side, axis=2)[:, :, None]
    full_columns = np.tile(columns.numpy(), (1, 1, side))[:, None]
    combine(full_lines, full_columns, out=entries.view(rois, size, size, side * side).numpy())
