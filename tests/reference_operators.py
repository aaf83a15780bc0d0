"""Operators in their slow, obvious form."""

import math
from itertools import product

import torch
import torch.nn.functional as F

from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.roi_align import assign_levels


def nms_reference(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> list[int]:
    """Return the indices of the boxes that the greedy rule keeps, best score first."""
    kept: list[int] = []
    for index in torch.argsort(scores, descending=True, stable=True).tolist():
        overlaps = [pairwise_iou(boxes[index : index + 1], boxes[other : other + 1]) for other in kept]
        if not any(overlap > iou_threshold for overlap in overlaps):  # compared in float32, as a tensor
            kept.append(index)
    return kept


def roi_align_reference(
    feature: torch.Tensor, box: torch.Tensor, *, size: int, stride: int, is_aligned: bool = False, samples: int = 2
) -> torch.Tensor:
    """Return the pooled map (channels, size, size) of one box on one level, sample by sample.

    `samples` of a bin and axis; 0: as many as the bin has cells. As in detectron2's ROIAlign and torchvision's
    roi_align; neither aligned nor with other samples than two, as in the reference's.
    """
    x1, y1, x2, y2 = (box / stride - 0.5 * is_aligned).tolist()
    width, height = (side if is_aligned else max(side, 1.0) for side in (x2 - x1, y2 - y1))
    rows, columns = (samples or max(math.ceil(side / size), 1) for side in (height, width))
    pooled = feature.new_zeros(len(feature), size, size)
    for row, column, i, j in product(range(size), range(size), range(rows), range(columns)):
        x, y = x1 + (column + (j + 0.5) / columns) * (width / size), y1 + (row + (i + 0.5) / rows) * (height / size)
        pooled[:, row, column] += _bilinear(feature, x, y) / (rows * columns)
    return pooled


def _bilinear(feature: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Return the map at one point: zero more than a cell outside, the border's value up to there."""
    height, width = feature.shape[1:]
    if not (-1 <= x <= width and -1 <= y <= height):
        return feature.new_zeros(len(feature))
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    upper = feature[:, top, left] * (1 - (x - left)) + feature[:, top, right] * (x - left)
    lower = feature[:, bottom, left] * (1 - (x - left)) + feature[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def pyramid_roi_align_reference(
    features: list[torch.Tensor], boxes: torch.Tensor, size: int, strides: tuple[int, ...]
) -> torch.Tensor:
    """Return the pooled maps of the boxes (images, rois, 4), one after the other, each from its level."""
    levels = assign_levels(boxes, len(strides)).tolist()
    return torch.stack(
        [
            roi_align_reference(features[level][image], box, size=size, stride=strides[level])
            for image in range(len(boxes))
            for box, level in zip(boxes[image], levels[image], strict=True)
        ]
    )


def paste_reference(mask_probs: torch.Tensor, boxes: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Return each detection's mask (detections, height, width) on the image, one detection and one step at a time."""
    pasted = torch.zeros((len(boxes), *size_hw), dtype=torch.bool)
    for image, probs, (x1, y1, x2, y2) in zip(pasted, mask_probs, boxes, strict=True):
        growth = (len(probs) + 2) / len(probs)
        half_width, half_height = (x2 - x1) * 0.5 * growth, (y2 - y1) * 0.5 * growth
        centre_x, centre_y = (x1 + x2) * 0.5, (y1 + y2) * 0.5
        left, top = int(centre_x - half_width), int(centre_y - half_height)
        right, bottom = int(centre_x + half_width), int(centre_y + half_height)
        size = (max(bottom - top + 1, 1), max(right - left + 1, 1))
        padded = F.pad(probs, (1, 1, 1, 1))[None, None]
        resized = F.interpolate(padded, size=size, mode="bilinear", align_corners=False)[0, 0]
        rows, columns = range(max(top, 0), min(bottom + 1, size_hw[0])), range(max(left, 0), min(right + 1, size_hw[1]))
        if len(rows) and len(columns):
            inside = resized[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            image[rows.start : rows.stop, columns.start : columns.stop] = inside > 0.5
    return pasted
