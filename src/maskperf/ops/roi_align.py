"""RoIAlign over the feature pyramid, unaligned, two samples per bin and axis, without a compiled extension."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.ops.boxes import box_area

SAMPLES = 2  # per bin and axis


def assign_levels(boxes: Float[Tensor, "*batch 4"], num_levels: int) -> Int[Tensor, "*batch"]:
    """Returns the level (0 is P2) of each box: floor(4 + log2(sqrt(area) / 224 + 1e-6)), clamped.

    Source: Lin et al. 2017, equation 1; the epsilon inside the logarithm is `modeling/poolers.py`.
    """
    side = torch.sqrt(box_area(boxes).clamp(min=0))
    level = torch.floor(4 + torch.log2(side / 224 + 1e-6))
    return level.clamp(min=2, max=1 + num_levels).to(torch.int64) - 2


def _axis_samples(
    start: Float[Tensor, " rois"], extent: Float[Tensor, " rois"], length: Int[Tensor, " rois"], size: int
) -> tuple[Tensor, Tensor]:
    """Returns, for one axis, the two neighbours (rois, size * 2, 2) of each sample and their weights.

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
    neighbours = torch.stack([low, torch.minimum(low + 1, last)], dim=-1).to(torch.int64)
    weights = torch.stack([1 - high_weight, high_weight], dim=-1) * inside[..., None]
    return neighbours, weights


def _bag_rows(
    boxes: Float[Tensor, "images rois 4"], level_sizes_hw: list[tuple[int, int]], size: int, strides: tuple[int, ...]
) -> tuple[Int[Tensor, "bins 16"], Float[Tensor, "bins 16"]]:
    """Returns, for every output bin, the 16 rows of the flat pyramid that make it up and their weights."""
    images, rois = boxes.shape[:2]
    device = boxes.device
    heights, widths = torch.tensor(level_sizes_hw).unbind(1)
    cells = heights * widths * images
    starts = cells.cumsum(0) - cells
    table = torch.stack([heights, widths, starts, torch.tensor(strides)]).to(device, non_blocking=True)
    levels = assign_levels(boxes, len(strides)).flatten()
    height, width, start, stride = table[:, levels]
    flat = boxes.reshape(-1, 4) / stride[:, None].to(boxes.dtype)  # strides are powers of two: exact
    extent = (flat[:, 2:] - flat[:, :2]).clamp(min=1.0)
    x_index, x_weight = _axis_samples(flat[:, 0], extent[:, 0], width, size)
    y_index, y_weight = _axis_samples(flat[:, 1], extent[:, 1], height, size)
    image = torch.arange(images, device=device).repeat_interleave(rois, output_size=images * rois)
    base = start + image * height * width
    rows = base[:, None, None] + y_index * width[:, None, None]  # roi, y sample, y neighbour
    # axes: roi, bin row, bin column, y sample, y neighbour, x sample, x neighbour
    y_axes = (-1, size, 1, SAMPLES, 2, 1, 1)
    x_axes = (-1, 1, size, 1, 1, SAMPLES, 2)
    index = rows.view(y_axes) + x_index.view(x_axes)
    weight = y_weight.view(y_axes) * x_weight.view(x_axes) / SAMPLES**2
    return index.reshape(-1, 16), weight.reshape(-1, 16)


def pyramid_roi_align(
    features: list[Tensor], boxes: Float[Tensor, "images rois 4"], *, size: int, strides: tuple[int, ...]
) -> Float[Tensor, "images_rois channels size size"]:
    """Returns each box's pooled map, from the level of the pyramid that fits its size.

    start = x1 / stride, extent = max((x2 - x1) / stride, 1): no half-pixel shift and no "+1" (csrc/ROIAlign of the
    reference). All levels lie one after the other as rows of a channels-last table, and a bin is a weighted bag of
    16 rows, so forward and backward are one `embedding_bag`. Differentiable in the features, not in the boxes.
    """
    channels = features[0].shape[1]
    level_sizes = [(feature.shape[2], feature.shape[3]) for feature in features]
    index, weight = _bag_rows(boxes.detach(), level_sizes, size, strides)
    table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in features])
    bins = F.embedding_bag(index, table, mode="sum", per_sample_weights=weight.to(table.dtype))
    return bins.view(-1, size, size, channels).permute(0, 3, 1, 2)


def roi_align_reference(
    feature: Float[Tensor, "channels height width"], box: Float[Tensor, " 4"], *, size: int, scale: float
) -> Float[Tensor, "channels size size"]:
    """Returns the pooled map of one box on one level, sample by sample: the slow, obvious form."""
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
