"""Masks that are run-length encoded, read at the pixels a mask target needs, without decoding them."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskperf.structures import RUN_LENGTH_STRIDE, RunLengths


def crop_run_lengths(
    masks: RunLengths, objects: Int[Tensor, " crops"], boxes: Float[Tensor, "crops 4"], size: int
) -> Bool[Tensor, "crops size size"]:
    """Return the mask of each object inside its box, on a grid of size x size; empty for objects without runs.

    The box (x2 - x1, no "+1", at least 1) is stretched over the grid as for polygons. A cell of the grid has the value
    of the pixel of the original mask that its center lies in: decode, resize by nearest neighbor, crop. Where the
    image was mirrored, so is the mask, column by column. Outside the image there is no object.
    Shapes depend on the arguments' shapes alone, and nothing waits for the device.
    Source: COCO's run-length encoding (`common/maskApi.h`). The reference trains on polygons alone.
    """
    slots = (len(masks.run_offsets) - 1) // len(masks.sizes_hw)
    images = objects // slots
    original_hw, resized_hw = masks.original_sizes_hw[images].double(), masks.sizes_hw[images].double()
    centers = (torch.arange(size, device=boxes.device, dtype=torch.float64) + 0.5) / size
    corners = boxes.double()
    sides = (corners[:, 2:] - corners[:, :2]).clamp(min=1)
    x = corners[:, :1] + centers * sides[:, :1]
    y = corners[:, 1:2] + centers * sides[:, 1:]
    x = torch.where(masks.is_mirrored[images][:, None], resized_hw[:, 1:] - x, x)
    columns = (x * (original_hw / resized_hw)[:, 1:]).floor().to(torch.int64)
    rows = (y * (original_hw / resized_hw)[:, :1]).floor().to(torch.int64)
    heights, widths = masks.original_sizes_hw[images].unsqueeze(-1).unbind(1)
    is_inside = ((rows >= 0) & (rows < heights))[:, :, None] & ((columns >= 0) & (columns < widths))[:, None, :]
    pixels = (columns * heights)[:, None, :] + rows[:, :, None]
    keys = torch.where(is_inside, pixels, 0) + (objects * RUN_LENGTH_STRIDE)[:, None, None]
    ended = torch.searchsorted(masks.ends, keys, right=True) - masks.run_offsets[objects][:, None, None]
    return is_inside & (ended % 2 == 1)
