"""Boxes with inclusive corners: area, overlap, clipping, and the coder between boxes and offsets."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RPN_BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MAX_LOG_RATIO = math.log(1000.0 / 16.0)  # upper clamp of the decoded width and height (modeling/box_coder.py)


def box_area(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Return (x2 - x1 + 1) * (y2 - y1 + 1)."""
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def pairwise_iou(
    first: Float[Tensor, "*#batch a 4"], second: Float[Tensor, "*#batch b 4"]
) -> Float[Tensor, "*#batch a b"]:
    """Return intersection over union of every pair, with the "+1" of inclusive corners.

    Source: `structures/boxlist_ops.py` of the reference; the order of operations is kept, so ties stay ties.
    Cost: five matrices of the size of the result at most.
    """
    # Coordinate by coordinate, each in one piece: several times as fast on a CPU as with steps of four.
    first_columns = first.movedim(-1, 0).contiguous()[..., :, None]
    second_columns = second.movedim(-1, 0).contiguous()[..., None, :]
    intersection = _overlap(first_columns, second_columns, axis=0).mul_(_overlap(first_columns, second_columns, axis=1))
    union = box_area(first)[..., :, None] + box_area(second)[..., None, :]
    return intersection.div_(union.sub_(intersection))


def _overlap(first: Tensor, second: Tensor, axis: int) -> Tensor:
    """Return the length two boxes share on an axis (0: x, 1: y), 0 where they are apart. Coordinates come first."""
    low = torch.maximum(first[axis], second[axis])
    high = torch.minimum(first[axis + 2], second[axis + 2])
    return high.sub_(low).add_(1).clamp_(min=0)


def clip_boxes(
    boxes: Float[Tensor, "images boxes 4"], sizes_hw: Int[Tensor, "images 2"], *, has_plus_one: bool = True
) -> Float[Tensor, "images boxes 4"]:
    """Return the boxes with x in [0, width - 1] and y in [0, height - 1] of their image.

    Without a "+1" the edges are in [0, width] and [0, height]; outside of the image a box has no area.
    """
    limits = sizes_hw.flip(1).repeat(1, 2).to(boxes.dtype)[:, None, :] - 1  # width, height, width, height
    if not has_plus_one:
        shift = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        return torch.minimum((boxes + shift).clamp(min=0), limits + 1) - shift
    return torch.minimum(boxes.clamp(min=0), limits)


def encode_boxes(
    truth: Float[Tensor, "*batch 4"], anchors: Float[Tensor, "*batch 4"], weights: tuple[float, float, float, float]
) -> Float[Tensor, "*batch 4"]:
    """Return the offsets (dx, dy, dw, dh) that turn `anchors` into `truth`, times `weights`.

    Source: `modeling/box_coder.py` of the reference.
    """
    anchor_sides = anchors[..., 2:] - anchors[..., :2] + 1
    anchor_centres = anchors[..., :2] + 0.5 * anchor_sides
    truth_sides = truth[..., 2:] - truth[..., :2] + 1
    truth_centres = truth[..., :2] + 0.5 * truth_sides
    shifts = truth_centres - anchor_centres
    growths = torch.log(truth_sides / anchor_sides)
    # Column by column: a tensor made of the weights would be a blocking copy to the device.
    columns = [
        weights[0] * shifts[..., 0] / anchor_sides[..., 0],
        weights[1] * shifts[..., 1] / anchor_sides[..., 1],
        weights[2] * growths[..., 0],
        weights[3] * growths[..., 1],
    ]
    return torch.stack(columns, dim=-1)


def decode_boxes(
    deltas: Float[Tensor, "*batch 4"],
    anchors: Float[Tensor, "*batch 4"],
    weights: tuple[float, float, float, float],
    *,
    limits_shrinking: bool = False,
) -> Float[Tensor, "*batch 4"]:
    """Return the boxes that offsets make of anchors; x2 = centre + width / 2 - 1. The inverse of `encode_boxes`."""
    anchor_sides = anchors[..., 2:] - anchors[..., :2] + 1
    anchor_centres = anchors[..., :2] + 0.5 * anchor_sides
    columns = [deltas[..., axis] / weights[axis] for axis in range(4)]
    centres = torch.stack(columns[:2], dim=-1) * anchor_sides + anchor_centres
    least = -MAX_LOG_RATIO if limits_shrinking else None
    sides = torch.exp(torch.stack(columns[2:], dim=-1).clamp(min=least, max=MAX_LOG_RATIO)) * anchor_sides
    return torch.cat([centres - 0.5 * sides, centres + 0.5 * sides - 1], dim=-1)


def are_at_least(boxes: Float[Tensor, "*batch 4"], least: float) -> Bool[Tensor, "*batch"]:
    """Return whether both sides of a box have so many pixels; with 0.0, any at all."""
    shorter = (boxes[..., 2:] - boxes[..., :2] + 1).amin(dim=-1)
    return shorter >= least if least else shorter > 0
