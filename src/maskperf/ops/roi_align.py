"""RoIAlign over the feature pyramid, unaligned, two samples per bin and axis, without a compiled extension.

`flat_roi_align` runs on any device. `grouped_roi_align` is for a processor: RoIs in groups that read the same level,
so that neither pyramid nor gradient is copied. `roi_align_reference` is the slow, obvious form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.ops.boxes import box_area
from maskperf.ops.kernels.selection import load, uses_kernels
from maskperf.techniques import active

SAMPLES = 2  # per bin and axis
WIDE = 2 * SAMPLES  # cells of a bin along one axis
NARROW = 3  # where the two samples of a bin are at most a cell apart, they share one


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


def _bag_rows(
    boxes: Float[Tensor, "rois 4"],
    image: Int[Tensor, " rois"],
    images: int,
    level_sizes_hw: list[tuple[int, int]],
    size: int,
    strides: tuple[int, ...],
) -> tuple[Int[Tensor, "bins 16"], Float[Tensor, "bins 16"]]:
    """Returns, for every output bin, the 16 rows of the flat pyramid that make it up and their weights."""
    heights, widths = zip(*level_sizes_hw, strict=True)
    cells = [height * width * images for height, width in level_sizes_hw]
    starts = [sum(cells[:number]) for number in range(len(cells))]
    levels = assign_levels(boxes, len(strides))
    height, width, start, stride = (_of_level(levels, values) for values in (heights, widths, starts, strides))
    flat = boxes / stride[:, None].to(boxes.dtype)  # strides are powers of two: exact
    extent = (flat[:, 2:] - flat[:, :2]).clamp(min=1.0)
    x_index, x_weight = axis_samples(flat[:, 0], extent[:, 0], width, size)
    y_index, y_weight = axis_samples(flat[:, 1], extent[:, 1], height, size)
    base = start + image * height * width
    rows = base[:, None, None] + y_index * width[:, None, None]  # roi, bin row, y sample and neighbour
    # axes: roi, bin row, bin column, y sample and neighbour, x sample and neighbour
    y_axes = (-1, size, 1, 2 * SAMPLES, 1)
    x_axes = (-1, 1, size, 1, 2 * SAMPLES)
    index = rows.view(y_axes) + x_index.view(x_axes)
    weight = y_weight.view(y_axes) * x_weight.view(x_axes) / SAMPLES**2
    return index.reshape(-1, 16), weight.reshape(-1, 16)


def _of_level(levels: Int[Tensor, " rois"], values: Sequence[int]) -> Int[Tensor, " rois"]:
    """Return each RoI's value. The values go along with the calls: a table would have to be copied to the device."""
    chosen = torch.full_like(levels, values[0])
    for level, value in enumerate(values[1:], start=1):
        chosen = chosen.masked_fill(levels == level, value)
    return chosen


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
    """
    device = features[0].device
    packing = {"image_offsets": image_offsets, "most_of_image": most_of_image}
    if uses_kernels(device):
        return load("roi_align").pyramid_roi_align(features, boxes, size=size, strides=strides, **packing)
    if features[0].dtype == torch.bfloat16:
        features = [feature.float() for feature in features]  # the plain forms give weights the format of the maps
    if active().grouped_roi_align and device.type == "cpu" and image_offsets is None:
        return grouped_roi_align(features, boxes, size=size, strides=strides)
    return flat_roi_align(features, boxes, size=size, strides=strides, image_offsets=image_offsets)


def flat_roi_align(
    features: list[Tensor],
    boxes: Float[Tensor, "images rois 4"],
    *,
    size: int,
    strides: tuple[int, ...],
    image_offsets: Int[Tensor, " images_plus_1"] | None = None,
) -> Float[Tensor, "images_rois channels size size"]:
    """Return what `pyramid_roi_align` returns, on any device and without waiting for it.

    All levels lie one after the other as rows of a channels-last table, and a bin is a weighted bag of 16 rows, so
    forward and backward are one `embedding_bag`.
    """
    channels = features[0].shape[1]
    level_sizes = [(feature.shape[2], feature.shape[3]) for feature in features]
    images, rows = features[0].shape[0], boxes.detach().flatten(0, 1)
    if image_offsets is None:
        image_offsets = torch.arange(images + 1, device=boxes.device) * boxes.shape[1]
    image = image_of_row(image_offsets, len(rows))
    index, weight = _bag_rows(rows, image, images, level_sizes, size, strides)
    is_real = torch.arange(len(rows), device=rows.device) < image_offsets[-1]
    weight = weight * is_real.repeat_interleave(size**2, output_size=len(rows) * size**2)[:, None]
    table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in features])
    bins = F.embedding_bag(index, table, mode="sum", per_sample_weights=weight.to(table.dtype))
    return bins.view(-1, size, size, channels).permute(0, 3, 1, 2)


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
    """Return what `pyramid_roi_align` returns, up to rounding, without a copy of the pyramid.

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
    """Return the gradient of every level, channels-last."""
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
    """Return how many entries each cell of the pyramid has and, cell by cell, their bins and weights."""
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
    """Return the RoIs of which all bins are narrow, then the others; within each by level and line of their middle."""
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
    """Return the bags of these RoIs from the samples along x and along y."""
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


def roi_align_reference(
    feature: Float[Tensor, "channels height width"], box: Float[Tensor, " 4"], *, size: int, scale: float
) -> Float[Tensor, "channels size size"]:
    """Return the pooled map of one box on one level, sample by sample: the slow, obvious form."""
    channels, height, width = feature.shape
    x1, y1, x2, y2 = (box * scale).tolist()
    bin_width, bin_height = max(x2 - x1, 1.0) / size, max(y2 - y1, 1.0) / size
    pooled = feature.new_zeros(channels, size, size)
    for row in range(size):
        for column in range(size):
            for y_step in range(SAMPLES):
                for x_step in range(SAMPLES):
                    y = y1 + (row + (y_step + 0.5) / SAMPLES) * bin_height
                    x = x1 + (column + (x_step + 0.5) / SAMPLES) * bin_width
                    pooled[:, row, column] += _bilinear(feature, x, y, width, height) / SAMPLES**2
    return pooled


def _bilinear(feature: Tensor, x: float, y: float, width: int, height: int) -> Tensor:
    if y < -1 or y > height or x < -1 or x > width:
        return feature.new_zeros(feature.shape[0])
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    dx, dy = x - left, y - top
    upper = feature[:, top, left] * (1 - dx) + feature[:, top, right] * dx
    lower = feature[:, bottom, left] * (1 - dx) + feature[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy
