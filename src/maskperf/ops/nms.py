"""Non-maximum suppression with inclusive corners; suppresses where the overlap is above the threshold."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maskperf.ops.boxes import pairwise_iou


def nms_reference(boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], iou_threshold: float) -> list[int]:
    """Returns the indices kept by the greedy rule, best score first: the slow, obvious form of one group."""
    kept: list[int] = []
    for index in torch.argsort(scores, descending=True, stable=True).tolist():
        overlaps = [pairwise_iou(boxes[index : index + 1], boxes[other : other + 1]).item() for other in kept]
        if all(overlap <= iou_threshold for overlap in overlaps):
            kept.append(index)
    return kept


def nms_sorted(
    boxes: Float[Tensor, "groups boxes 4"], valid: Bool[Tensor, "groups boxes"], iou_threshold: float
) -> Bool[Tensor, "groups boxes"]:
    """Returns which boxes survive, for groups whose boxes are already sorted by falling score.

    Invalid boxes neither survive nor suppress. The number of steps is the number of boxes, whatever their values,
    so nothing waits for the device.
    Cost: groups x boxes x boxes overlaps.
    """
    suppresses = pairwise_iou(boxes, boxes) > iou_threshold
    suppresses = suppresses.triu(diagonal=1)  # only later boxes are suppressed
    alive = valid.clone()
    for index in range(boxes.shape[1] - 1):
        alive &= ~(suppresses[:, index] & alive[:, index : index + 1])
    return alive
