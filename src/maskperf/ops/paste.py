"""From the small mask of a detection to the pixels of the whole image."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

MASK_THRESHOLD = 0.5


def paste_canvases(boxes: Float[Tensor, "detections 4"], mask_size: int) -> Int[Tensor, "detections 4"]:
    """Returns the pixels (x1, y1, x2, y2), both corners inclusive, that each mask with its ring of zeros is drawn on.

    The box grows about its centre by (mask_size + 2) / mask_size, because the ring adds one mask pixel on each side;
    the "+1" of the pixel convention is not applied to the half sides. Corners are truncated towards zero.
    A canvas may lie partly or wholly outside the image.
    Source: the reference's mask head inference, `expand_boxes` and `paste_mask_in_image`.
    """
    growth = (mask_size + 2) / mask_size
    centres = (boxes[:, :2] + boxes[:, 2:]) * 0.5
    half_sides = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * growth
    return torch.cat([centres - half_sides, centres + half_sides], dim=1).to(torch.int64)


def paste_masks(
    mask_probs: Float[Tensor, "detections mask mask"],
    boxes: Float[Tensor, "detections 4"],
    size_hw: tuple[int, int],
) -> Bool[Tensor, "detections height width"]:
    """Returns each detection's mask on the whole image, true where the resized probability is above one half.

    `boxes` are at the scale of the image of `size_hw`. Works on the CPU, wherever the inputs are, as the reference
    does: the last bit of a resize decides pixels at one half.
    The result is stored column by column, so that a run-length encoder takes it without another copy.
    """
    height, width = size_hw
    count, mask_size = mask_probs.shape[:2]
    pasted = np.zeros((count, width, height), dtype=bool)  # numpy copies small turned regions much faster than torch
    ringed = F.pad(mask_probs.detach().cpu().float(), (1, 1, 1, 1))[:, None, None]  # detections 1 1 mask+2 mask+2
    canvases = paste_canvases(boxes.detach().cpu().float(), mask_size)
    for index, (x1, y1, x2, y2) in enumerate(canvases.tolist()):
        left, right = max(x1, 0), min(x2 + 1, width)
        top, bottom = max(y1, 0), min(y2 + 1, height)
        if right <= left or bottom <= top:
            continue
        canvas_hw = (y2 - y1 + 1, x2 - x1 + 1)
        resized = F.interpolate(ringed[index], size=canvas_hw, mode="bilinear", align_corners=False)[0, 0]
        visible = resized.numpy()[top - y1 : bottom - y1, left - x1 : right - x1]
        pasted[index, left:right, top:bottom] = (visible > MASK_THRESHOLD).T
    return torch.from_numpy(pasted).transpose(1, 2)


def paste_masks_reference(
    mask_probs: Float[Tensor, "detections mask mask"],
    boxes: Float[Tensor, "detections 4"],
    size_hw: tuple[int, int],
) -> Bool[Tensor, "detections height width"]:
    """Returns what `paste_masks` returns, one detection and one step of the rule at a time."""
    pasted = [_paste_one(probs, box, size_hw) for probs, box in zip(mask_probs, boxes, strict=True)]
    return torch.stack(pasted) if pasted else torch.zeros((0, *size_hw), dtype=torch.bool)


def _paste_one(probs: Tensor, box: Tensor, size_hw: tuple[int, int]) -> Tensor:
    mask_size = len(probs)
    ringed = torch.zeros((mask_size + 2, mask_size + 2))
    ringed[1:-1, 1:-1] = probs
    x1, y1, x2, y2 = box
    half_width = (x2 - x1) * 0.5 * ((mask_size + 2) / mask_size)
    half_height = (y2 - y1) * 0.5 * ((mask_size + 2) / mask_size)
    centre_x, centre_y = (x1 + x2) * 0.5, (y1 + y2) * 0.5
    left, top = int(centre_x - half_width), int(centre_y - half_height)
    right, bottom = int(centre_x + half_width), int(centre_y + half_height)
    canvas_height, canvas_width = max(bottom - top + 1, 1), max(right - left + 1, 1)
    resized = F.interpolate(
        ringed[None, None], size=(canvas_height, canvas_width), mode="bilinear", align_corners=False
    )[0, 0]
    image = torch.zeros(size_hw, dtype=torch.bool)
    rows = range(max(top, 0), min(bottom + 1, size_hw[0]))
    columns = range(max(left, 0), min(right + 1, size_hw[1]))
    if len(rows) and len(columns):
        inside = resized[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        image[rows.start : rows.stop, columns.start : columns.stop] = inside > MASK_THRESHOLD
    return image
