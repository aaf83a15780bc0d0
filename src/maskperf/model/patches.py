"""The 3x3 cells of the pyramid around chosen cells: what a 3x3 convolution reads to compute these cells alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maskperf.ops.kernels.selection import has_kernel

OFFSETS = (-1, 0, 1)


@has_kernel("patches")
def cell_patches(
    features: list[Tensor], cells: Int[Tensor, "images samples"]
) -> Float[Tensor, "images samples nine channels"]:
    """Return the nine cells around each cell, row by row, with zeros outside of its map.

    Cells are counted over all levels of an image, P2 first, row by row. Shapes do not depend on values.
    """
    images, channels = features[0].shape[:2]
    image = torch.arange(images, device=cells.device)[:, None, None]
    # The levels are added in place: together they would take five times the memory.
    patches, start = features[0].new_zeros(images * cells.shape[1] * len(OFFSETS) ** 2, channels), 0
    for feature in features:
        height, width = feature.shape[2:]
        local = cells - start
        start += height * width
        on_level = (local >= 0) & (local < height * width)
        local = torch.where(on_level, local, 0)
        rows, row_inside = _neighbours(local // width, height)
        columns, column_inside = _neighbours(local % width, width)
        index = ((image * height + rows)[..., None] * width + columns[..., None, :]).flatten(2)
        inside = (row_inside[..., None] & column_inside[..., None, :]).flatten(2) & on_level[..., None]
        table = feature.permute(0, 2, 3, 1).reshape(-1, channels)  # no copy where the feature is channels-last
        patches.add_(table.index_select(0, index.flatten()).masked_fill(~inside.view(-1, 1), 0.0))
    return patches.view(*cells.shape, len(OFFSETS) ** 2, channels)


def _neighbours(index: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the indices before, at and after (..., 3), clamped, and which are on the map."""
    neighbours = torch.stack([index + offset for offset in OFFSETS], dim=-1)
    inside = (neighbours >= 0) & (neighbours < length)
    return neighbours.clamp(0, length - 1), inside
