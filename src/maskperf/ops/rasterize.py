"""COCO's polygon rasteriser as tensor code: equal to pycocotools pixel for pixel, without sorting or loops."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskperf.ops.kernels.selection import load, uses_kernels
from maskperf.structures import Polygons
from maskperf.techniques import active

_UPSAMPLING = 5  # the contour is walked on a grid of fifths of a pixel (common/maskApi.c, rleFrPoly)
_MAX_ELEMENTS = 1 << 21  # edges x columns, and cells of rings, worked on at a time: bounds the memory


@dataclass(frozen=True)
class _Edges:
    """The sides of all rings of some masks, on the grid of fifths of each mask's canvas, as whole numbers."""

    start: Float[Tensor, "edges 2"]
    end: Float[Tensor, "edges 2"]
    rings: Int[Tensor, " edges"]
    ring_owners: Int[Tensor, " rings"]  # the mask of each ring
    valid: Bool[Tensor, " edges"] | None  # None: all are real


def _round_half_up_to_zero(x: Tensor) -> Tensor:
    return torch.trunc(x + 0.5)


def _edge_crossings(start: Tensor, end: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return (crosses, y) of edges (..., 2) with columns (...): whether the contour passes from grid x 5c+2 to
    5c+3, and the smaller grid y of the two points there. Coordinates are whole numbers in float64.

    An edge is walked along its longer axis (ties: x) from the end with the smaller coordinate, the other coordinate
    rounded by "add 0.5, truncate". On a flat edge the crossing is at a known step; on a steep one the step is found
    by division and put right by one either way with the very expression of the walk.
    """
    delta = end - start
    flat = delta[..., 0].abs() >= delta[..., 1].abs()
    swap = torch.where(flat, delta[..., 0] < 0, delta[..., 1] < 0)[..., None]
    start, end = torch.where(swap, end, start), torch.where(swap, start, end)
    x0, y0, x1, y1 = (*start.unbind(-1), *end.unbind(-1))
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


def _ranges(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return start, start + 1, ... of every range, one range after the other, and the number of its range."""
    owners = torch.repeat_interleave(lengths)
    before = lengths.cumsum(0) - lengths
    return torch.arange(len(owners), device=starts.device) + (starts - before)[owners], owners


def _list_edges(polygons: Polygons, objects: Int[Tensor, " masks"], boxes: Tensor, size: int) -> _Edges:
    """Return the edges that there are. Their number is only known once it was counted, so not for a device that must
    not be waited for."""
    first_ring = polygons.ring_offsets[objects]
    source, ring_owners = _ranges(first_ring, polygons.ring_offsets[objects + 1] - first_ring)
    first_point = polygons.point_offsets[source]
    num_points = polygons.point_offsets[source + 1] - first_point
    index, rings = _ranges(first_point, num_points)
    start = _crop(polygons.points[index], boxes, ring_owners[rings], size)
    following = torch.arange(1, len(index) + 1, device=index.device)
    last = num_points.cumsum(0) - 1
    filled = num_points > 0
    following[last[filled]] = (last + 1 - num_points)[filled]
    return _Edges(start, start[following], rings, ring_owners, None)


def _pad_edges(polygons: Polygons, objects: Int[Tensor, " masks"], boxes: Tensor, size: int) -> _Edges:
    """Return room for as many edges and rings as any object has, for every mask: shapes that the host knows."""
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
    masks = torch.arange(len(objects), device=device)
    rings = torch.where(valid, ring[index] - first_ring[:, None], 0) + masks[:, None] * polygons.max_rings
    owners = masks.repeat_interleave(polygons.max_points)
    points, ends = polygons.points[index.flatten()], polygons.points[following[index.flatten()]]
    return _Edges(
        start=_crop(points, boxes, owners, size),
        end=_crop(ends, boxes, owners, size),
        rings=rings.flatten(),
        ring_owners=masks.repeat_interleave(polygons.max_rings),
        valid=valid.flatten(),
    )


def _crop(points: Tensor, boxes: Tensor, owners: Tensor, size: int) -> Tensor:
    """Move and scales points (edges, 2) so that the box of each one's mask becomes a canvas of `size`, in float32 as
    the reference does, then onto the grid of fifths in float64."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    ratios = (size / sides.double()).float()
    local = (points - boxes[owners, :2]) * ratios[owners]
    return _round_half_up_to_zero(local.double() * _UPSAMPLING)


def rasterize_crops(
    polygons: Polygons,
    objects: Int[Tensor, " masks"],
    boxes: Float[Tensor, "masks 4"],
    size: int,
) -> Bool[Tensor, "masks size size"]:
    """Return the union of the polygons of each object inside its box, on a canvas of size x size.

    The box (x2 - x1, no "+1", at least 1) is stretched to the canvas; points outside are not clipped.
    The Triton kernel takes a size of 64 at most.
    Source: COCO's `rleFrPoly`; spec of the benchmark: `structures/segmentation_mask.py`.
    """
    if uses_kernels(boxes.device):
        return load("rasterize").rasterize_crops(polygons, objects, boxes, size)
    return rasterize_by_crossings(polygons, objects, boxes, size)


def rasterize_by_crossings(
    polygons: Polygons,
    objects: Int[Tensor, " masks"],
    boxes: Float[Tensor, "masks 4"],
    size: int,
) -> Bool[Tensor, "masks size size"]:
    """Return what `rasterize_crops` returns, on any device: the kernel's plain twin.

    On a CPU it works on the edges that there are and the columns they cross, whose number has to be read first.
    Otherwise each object has room for as many edges as any, and each edge meets every column.
    The memory does not grow with the number of masks; that for one mask grows with its object's points.
    """
    if polygons.points.shape[0] == 0:
        return torch.zeros(len(objects), size, size, dtype=torch.bool, device=boxes.device)
    if active().sparse_mask_targets and boxes.device.type == "cpu":
        costs, crossings_of = _listed_costs(polygons, objects, size), _listed_crossings
    else:
        costs, crossings_of = _padded_costs(polygons, objects, size), _padded_crossings
    lengths = _chunk_lengths(costs)
    chunks = [
        _fill(crossings_of(polygons, part, box, size), len(part), size)
        for part, box in zip(objects.split(lengths), boxes.split(lengths), strict=True)
    ]
    return torch.cat(chunks) if chunks else torch.zeros(0, size, size, dtype=torch.bool, device=boxes.device)


def _padded_costs(polygons: Polygons, objects: Tensor, size: int) -> list[int]:
    """Return how many elements the work on each mask may need."""
    return [size * polygons.max_points + size * (size + 1) * polygons.max_rings] * len(objects)


def _listed_costs(polygons: Polygons, objects: Tensor, size: int) -> list[int]:
    first, last = polygons.ring_offsets[objects], polygons.ring_offsets[objects + 1]
    num_points = polygons.point_offsets[last] - polygons.point_offsets[first]
    return (size * num_points + size * (size + 1) * (last - first)).tolist()


def _chunk_lengths(costs: list[int]) -> list[int]:
    """Return how many masks to work on at a time, so that each part stays below the limit or is a single mask."""
    lengths: list[int] = []
    so_far = 0
    for cost in costs:
        if not lengths or so_far + cost > _MAX_ELEMENTS:
            lengths.append(0)
            so_far = 0
        lengths[-1] += 1
        so_far += cost
    return lengths


@dataclass(frozen=True)
class _Crossings:
    """Where the edges of some masks may cross the columns of their canvases."""

    ring_columns: Int[Tensor, " pairs"]  # ring * size + column
    grid_y: Float[Tensor, " pairs"]
    crosses: Bool[Tensor, " pairs"]
    ring_owners: Int[Tensor, " rings"]  # the mask of each ring


def _listed_crossings(polygons: Polygons, objects: Tensor, boxes: Tensor, size: int) -> _Crossings:
    """Return the pairs of every edge with the columns it meets."""
    edges = _list_edges(polygons, objects, boxes, size)
    left, right = torch.minimum(edges.start[:, 0], edges.end[:, 0]), torch.maximum(edges.start[:, 0], edges.end[:, 0])
    first = ((left - _UPSAMPLING // 2) / _UPSAMPLING).ceil().clamp(0, size).to(torch.int64)
    last = ((right - _UPSAMPLING // 2 - 1) / _UPSAMPLING).floor().clamp(-1, size - 1).to(torch.int64)
    columns, pairs = _ranges(first, (last + 1 - first).clamp(min=0))
    crosses, grid_y = _edge_crossings(edges.start[pairs], edges.end[pairs], columns.double())
    return _Crossings(edges.rings[pairs] * size + columns, grid_y, crosses, edges.ring_owners)


def _padded_crossings(polygons: Polygons, objects: Tensor, boxes: Tensor, size: int) -> _Crossings:
    """Return the pairs of every edge with every column: as many as the host expects."""
    edges = _pad_edges(polygons, objects, boxes, size)
    assert edges.valid is not None
    columns = torch.arange(size, device=edges.start.device)
    crosses, grid_y = _edge_crossings(edges.start[:, None], edges.end[:, None], columns.double())
    crosses = crosses & edges.valid[:, None]
    ring_columns = (edges.rings[:, None] * size + columns).flatten()
    return _Crossings(ring_columns, grid_y.flatten(), crosses.flatten(), edges.ring_owners)


def _fill(crossings: _Crossings, num_masks: int, size: int) -> Bool[Tensor, "masks size size"]:
    """Return the pixels inside of an odd number of crossings of some ring."""
    device = crossings.grid_y.device
    y = ((crossings.grid_y + 0.5) / _UPSAMPLING - 0.5).clamp(min=0, max=size).ceil().to(torch.int64)
    # Each crossing toggles the fill from row y on, in its column and ring; bytes wrap at 256, which keeps the parity.
    index = crossings.ring_columns * (size + 1) + torch.where(crossings.crosses, y, size)
    num_rings = len(crossings.ring_owners)
    toggles = torch.zeros(num_rings * size * (size + 1), dtype=torch.uint8, device=device)
    toggles.scatter_add_(0, index, torch.ones_like(index, dtype=torch.uint8))
    toggles = toggles.view(num_rings, size, size + 1)[..., :size]
    filled = toggles.cumsum(dim=2, dtype=torch.uint8) % 2
    masks = torch.zeros(num_masks, size, size, dtype=torch.int32, device=device)
    masks.index_add_(0, crossings.ring_owners, filled.to(torch.int32))
    return (masks > 0).transpose(1, 2)  # columns were first
