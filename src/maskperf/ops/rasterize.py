"""COCO's polygon rasteriser as tensor code: equal to pycocotools pixel for pixel, without sorting or loops."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskperf.structures import Polygons

_UPSAMPLING = 5  # the contour is walked on a grid of fifths of a pixel (common/maskApi.c, rleFrPoly)
_MAX_ELEMENTS = 1 << 22  # edges x columns worked on at a time: bounds the memory


def _round_half_up_to_zero(x: Tensor) -> Tensor:
    return torch.trunc(x + 0.5)


def _edge_crossings(start: Tensor, end: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (crosses, y) of every edge (..., 2) with every column: whether the contour passes from grid x 5c+2 to
    5c+3, and the smaller grid y of the two points there. Coordinates are whole numbers in float64.

    An edge is walked along its longer axis (ties: x) from the end with the smaller coordinate, the other coordinate
    rounded by "add 0.5, truncate". On a flat edge the crossing is at a known step; on a steep one the step is found
    by division and put right by one either way with the very expression of the walk.
    """
    delta = end - start
    flat = delta[..., 0].abs() >= delta[..., 1].abs()
    swap = torch.where(flat, delta[..., 0] < 0, delta[..., 1] < 0)[..., None]
    start, end = torch.where(swap, end, start), torch.where(swap, start, end)
    x0, y0, x1, y1 = (part[..., None] for part in (*start.unbind(-1), *end.unbind(-1)))
    flat = flat[..., None]
    dx, dy = x1 - x0, y1 - y0
    before = columns * _UPSAMPLING + (_UPSAMPLING // 2)  # grid x on the left side of the crossing
    # flat: x steps by one, so the crossing is between steps `before - x0` and the next
    slope = dy / dx.clamp(min=1)
    step = before - x0
    flat_crosses = (step >= 0) & (step < dx)
    flat_y = torch.minimum(_round_half_up_to_zero(y0 + slope * step), _round_half_up_to_zero(y0 + slope * (step + 1)))
    # steep: find the first step whose x is past the crossing
    slope = dx / dy.clamp(min=1)
    rising = dx > 0

    def past(step: Tensor) -> Tensor:
        x = _round_half_up_to_zero(x0 + slope * step)
        return torch.where(rising, x > before, x <= before)

    guess = torch.ceil((before + 0.5 - x0) / torch.where(slope == 0, 1.0, slope))
    first = guess + 2
    for offset in (1, 0, -1, -2):
        first = torch.where(past(guess + offset), guess + offset, first)
    first = first.clamp(min=1)
    steep_crosses = ~past(torch.zeros_like(first)) & past(dy) & (dx != 0)
    crosses = torch.where(flat, flat_crosses, steep_crosses)
    return crosses, torch.where(flat, flat_y, y0 + first - 1)


def _gather_edges(polygons: Polygons, objects: Int[Tensor, " masks"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns start and end points (masks, edges, 2), ring number inside the object, and which edges are real."""
    device = polygons.points.device
    point = torch.arange(polygons.points.shape[0], device=device)
    ring = torch.searchsorted(polygons.point_offsets, point, right=True) - 1
    closes = point + 1 == polygons.point_offsets[ring + 1]
    following = torch.where(closes, polygons.point_offsets[ring], point + 1)
    first_ring = polygons.ring_offsets[objects]
    first_point = polygons.point_offsets[first_ring]
    num_points = polygons.point_offsets[polygons.ring_offsets[objects + 1]] - first_point
    edge = torch.arange(polygons.max_points, device=device)
    valid = edge < num_points[:, None]
    index = torch.where(valid, first_point[:, None] + edge, 0)
    ring_number = torch.where(valid, ring[index] - first_ring[:, None], 0)
    return polygons.points[index], polygons.points[following[index]], ring_number, valid


def _crop(points: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Moves and scales points (masks, edges, 2) so that each box becomes a canvas of `size`, in float32 as the
    reference does, then onto the grid of fifths in float64."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    ratios = (size / sides.double()).float()
    local = (points - boxes[:, None, :2]) * ratios[:, None, :]
    return _round_half_up_to_zero(local.double() * _UPSAMPLING)


def rasterize_crops(
    polygons: Polygons, objects: Int[Tensor, " masks"], boxes: Float[Tensor, "masks 4"], size: int
) -> Bool[Tensor, "masks size size"]:
    """Returns the union of the polygons of each object inside its box, on a canvas of size x size.

    The box (x2 - x1, no "+1", at least 1) is stretched to the canvas; points outside are not clipped.
    Source: COCO's `rleFrPoly`; spec of the benchmark: `structures/segmentation_mask.py`.
    """
    if polygons.points.shape[0] == 0:
        return torch.zeros(len(objects), size, size, dtype=torch.bool, device=boxes.device)
    per_chunk = max(1, _MAX_ELEMENTS // max(1, polygons.max_points * size))
    chunks = [
        _rasterize_chunk(polygons, part, box, size)
        for part, box in zip(objects.split(per_chunk), boxes.split(per_chunk), strict=True)
    ]
    return torch.cat(chunks) if chunks else torch.zeros(0, size, size, dtype=torch.bool, device=boxes.device)


def _rasterize_chunk(polygons: Polygons, objects: Tensor, boxes: Tensor, size: int) -> Tensor:
    start, end, ring_number, valid = _gather_edges(polygons, objects)
    columns = torch.arange(size, device=boxes.device, dtype=torch.float64)
    crosses, grid_y = _edge_crossings(_crop(start, boxes, size), _crop(end, boxes, size), columns)
    crosses &= valid[..., None]
    y = ((grid_y + 0.5) / _UPSAMPLING - 0.5).clamp(min=0, max=size).ceil().to(torch.int64)
    # Each crossing toggles the fill from row y on, in its column and ring; bytes wrap at 256, which keeps the parity.
    row = torch.where(crosses, y, size)
    place = (ring_number[..., None] * size + torch.arange(size, device=boxes.device)) * (size + 1) + row
    toggles = torch.zeros(len(objects), polygons.max_rings * size * (size + 1), dtype=torch.uint8, device=boxes.device)
    toggles.scatter_add_(1, place.flatten(1), torch.ones_like(place.flatten(1), dtype=torch.uint8))
    toggles = toggles.view(len(objects), polygons.max_rings, size, size + 1)[..., :size]
    filled = toggles.cumsum(dim=3, dtype=torch.uint8) % 2 == 1
    return filled.any(dim=1).transpose(1, 2)  # columns were first
