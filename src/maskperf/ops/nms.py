"""Non-maximum suppression with inclusive corners; suppresses where the overlap is above the threshold."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.kernels.selection import has_kernel

_BLOCK = 64  # boxes
_MAX_OVERLAPS = 1 << 24  # worked on at a time: bounds the memory


@has_kernel("nms")
def nms_sorted(
    boxes: Float[Tensor, "groups boxes 4"], valid: Bool[Tensor, "groups boxes"], iou_threshold: float
) -> Bool[Tensor, "groups boxes"]:
    """Return which boxes survive, for groups whose boxes are already sorted by falling score.

    Invalid boxes neither survive nor suppress. The number of steps is the number of boxes, whatever their values, so
    nothing waits for the device. Cost: half of boxes x boxes overlaps per group, a bounded number of them at a time.
    """
    per_chunk = max(1, _MAX_OVERLAPS // (_BLOCK * max(1, boxes.shape[1])))
    parts = zip(boxes.split(per_chunk), valid.split(per_chunk), strict=True)
    return torch.cat([_survivors(part, part_valid, iou_threshold) for part, part_valid in parts])


def _survivors(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Block by block: first the boxes of a block among themselves, then what is left of it against all later ones."""
    alive = valid.clone()
    for start in range(0, boxes.shape[1], _BLOCK):
        block = alive[:, start : start + _BLOCK]
        size = block.shape[1]
        suppresses = pairwise_iou(boxes[:, start : start + size], boxes[:, start:]) > iou_threshold
        inside = suppresses[:, :, :size].triu(diagonal=1)  # only later boxes are suppressed
        for row, is_alive in zip(inside.unbind(1), block.split(1, dim=1), strict=True):
            block &= ~(row & is_alive)
        alive[:, start + size :] &= ~(suppresses[:, :, size:] & block[:, :, None]).any(dim=1)
    return alive
