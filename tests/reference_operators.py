"""Operators in their slow, obvious form."""

from itertools import product

import torch

from maskperf.ops.boxes import pairwise_iou


def nms_reference(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> list[int]:
    """Return the indices of the boxes that the greedy rule keeps, best score first."""
    kept: list[int] = []
    for index in torch.argsort(scores, descending=True, stable=True).tolist():
        overlaps = [pairwise_iou(boxes[index : index + 1], boxes[other : other + 1]) for other in kept]
        if not any(overlap > iou_threshold for overlap in overlaps):  # compared in float32, as a tensor
            kept.append(index)
    return kept


def roi_align_reference(feature: torch.Tensor, box: torch.Tensor, *, size: int, scale: float) -> torch.Tensor:
    """Return the pooled map (channels, size, size) of one box on one level, sample by sample."""
    channels, height, width = feature.shape
    x1, y1, x2, y2 = (box * scale).tolist()
    bin_width, bin_height = max(x2 - x1, 1.0) / size, max(y2 - y1, 1.0) / size
    pooled = feature.new_zeros(channels, size, size)
    for row, column, y_offset, x_offset in product(range(size), range(size), (0.25, 0.75), (0.25, 0.75)):
        x, y = x1 + (column + x_offset) * bin_width, y1 + (row + y_offset) * bin_height
        if -1 <= x <= width and -1 <= y <= height:
            x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
            left, top = int(x), int(y)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            upper = feature[:, top, left] * (1 - (x - left)) + feature[:, top, right] * (x - left)
            lower = feature[:, bottom, left] * (1 - (x - left)) + feature[:, bottom, right] * (x - left)
            pooled[:, row, column] += (upper * (1 - (y - top)) + lower * (y - top)) / 4
    return pooled
