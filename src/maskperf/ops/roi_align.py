"""RoIAlign over the feature pyramid, unaligned, two samples per bin and axis, without a compiled extension."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.ops.kernels.selection import load, uses_kernels
from maskperf.ops.roi_align_grouped import grouped_roi_align
from maskperf.ops.roi_align_samples import SAMPLES, assign_levels, axis_samples, image_of_row
from maskperf.techniques import active


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
    """Returns each box's pooled map, channels-last, from the level of the pyramid that fits its size.

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
    """Returns what `pyramid_roi_align` returns, on any device and without waiting for it.

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
