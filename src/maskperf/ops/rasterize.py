"""COCO's polygon rasteriser as tensor code: equal to pycocotools pixel for pixel, without sorting or loops."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskperf.ops.kernels.selection import has_kernel
from maskperf.structures import Polygons
from maskperf.techniques import active

_UPSAMPLING = 5  # the contour is walked on a grid of fifths of a pixel (common/maskApi.c, rleFrPoly)
_MAX_ELEMENTS = 1 << 21  # edges x columns, and cells of polygons, worked on at a time: bounds the memory


@has_kernel("rasterize")
def rasterize_crops(
    polygons: Polygons, objects: Int[Tensor, " masks"], boxes: Float[Tensor, "masks 4"], size: int
) -> Bool[Tensor, "masks size size"]:
    """Return the union of the polygons of each object inside its box, on a grid of size x size.

    The box (x2 - x1, no "+1", at least 1) is stretched over the grid; points outside are not clipped.
    The Triton kernel takes a size of 64 at most. The plain form on a CPU works on the edges that there are and the
    columns they cross, whose numbers have to be read first. Elsewhere each object has room for as many edges as any,
    and each edge meets every column: shapes that the host knows.
    The memory does not grow with the number of masks; that for one mask grows with its object's points.
    Source: COCO's `rleFrPoly`; spec of the benchmark: `structures/segmentation_mask.py`.
    """
    if polygons.points.shape[0] == 0 or len(objects) == 0:
        return torch.zeros(len(objects), size, size, dtype=torch.bool, device=boxes.device)
    is_listed = active().sparse_mask_targets and boxes.device.type == "cpu"
    edges = _edges_of(polygons)
    lengths = _chunk_lengths(_costs(polygons, objects, size, is_listed))
    chunks = zip(objects.split(lengths), boxes.split(lengths), strict=True)
    return torch.cat([_draw(polygons, edges, part, box, size, is_listed=is_listed) for part, box in chunks])


def _edges_of(polygons: Polygons) -> tuple[Float[Tensor, "points 2 2"], Int[Tensor, " points"]]:
    """Return the two ends of the edge that begins at each point, and the polygon it belongs to."""
    offsets = polygons.point_offsets
    point = torch.arange(len(polygons.points), device=offsets.device)
    polygon = torch.searchsorted(offsets, point, right=True).sub_(1).clamp_(max=len(offsets) - 2)
    following = torch.where(point + 1 == offsets[polygon + 1], offsets[polygon], point + 1)
    # Points added for room belong to no polygon and have no edge.
    ends = polygons.points[following.clamp(max=len(point) - 1)]
    return torch.stack([polygons.points, ends], dim=1), polygon


def _costs(polygons: Polygons, objects: Int[Tensor, " masks"], size: int, is_listed: bool) -> list[int]:
    """Return how many elements the work on each mask may need."""
    if not is_listed:
        return [size * polygons.max_points + size * (size + 1) * polygons.max_polygons] * len(objects)
    first, last = polygons.polygon_offsets[objects], polygons.polygon_offsets[objects + 1]
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


def _draw(
    polygons: Polygons,
    edges: tuple[Tensor, Tensor],
    objects: Int[Tensor, " masks"],
    boxes: Float[Tensor, "masks 4"],
    size: int,
    *,
    is_listed: bool,
) -> Bool[Tensor, "masks size size"]:
    """Return the pixels inside of an odd number of crossings of some polygon."""
    first_polygon, last_polygon = polygons.polygon_offsets[objects], polygons.polygon_offsets[objects + 1]
    first, last = polygons.point_offsets[first_polygon], polygons.point_offsets[last_polygon]
    index, masks, _ = _ranges(first, last - first, None if is_listed else polygons.max_points)
    is_real = index < last[masks]
    index = torch.where(is_real, index, 0)
    _, mask_of_slot, before = _ranges(
        first_polygon, last_polygon - first_polygon, None if is_listed else polygons.max_polygons
    )
    slots = before[masks] + torch.where(is_real, edges[1][index] - first_polygon[masks], 0)
    start, end = _to_grid(edges[0][index], boxes, masks, size).unbind(1)
    first_column, num_columns = torch.zeros_like(index), torch.zeros_like(index)
    if is_listed:
        left, right = torch.minimum(start[:, 0], end[:, 0]), torch.maximum(start[:, 0], end[:, 0])
        first_column = ((left - _UPSAMPLING // 2) / _UPSAMPLING).ceil().clamp(0, size).to(torch.int64)
        last_column = ((right - _UPSAMPLING // 2 - 1) / _UPSAMPLING).floor().clamp(-1, size - 1).to(torch.int64)
        num_columns = (last_column + 1 - first_column).clamp(min=0)
    columns, pairs, _ = _ranges(first_column, num_columns, None if is_listed else size)
    crosses, grid_y = _edge_crossings(start[pairs], end[pairs], columns.double())
    y = ((grid_y + 0.5) / _UPSAMPLING - 0.5).clamp(min=0, max=size).ceil().to(torch.int64)
    # Each crossing toggles the fill from row y on, in its column and polygon; bytes wrap at 256, which keeps parity.
    places = (slots[pairs] * size + columns) * (size + 1) + torch.where(crosses & is_real[pairs], y, size)
    toggles = torch.zeros(len(mask_of_slot) * size * (size + 1), dtype=torch.uint8, device=boxes.device)
    toggles.scatter_add_(0, places, torch.ones_like(places, dtype=torch.uint8))
    filled = toggles.view(-1, size, size + 1)[..., :size].cumsum(dim=2, dtype=torch.uint8) % 2
    masks = torch.zeros(len(objects), size, size, dtype=torch.int32, device=boxes.device)
    masks.index_add_(0, mask_of_slot, filled.to(torch.int32))
    return (masks > 0).transpose(1, 2)  # columns were first


def _ranges(starts: Tensor, lengths: Tensor, room: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return start, start + 1, ... of every range, the range of each of these, and how many come before each range.

    With `room` every range is so long, whatever its length: then nothing waits for the device.
    """
    if room is None:
        owners = torch.repeat_interleave(lengths)
    else:
        owners = torch.arange(len(starts), device=starts.device).repeat_interleave(room)
        lengths = torch.full_like(lengths, room)
    before = lengths.cumsum(0) - lengths
    return torch.arange(len(owners), device=starts.device) + (starts - before)[owners], owners, before


def _to_grid(edges: Float[Tensor, "edges 2 2"], boxes: Tensor, masks: Int[Tensor, " edges"], size: int) -> Tensor:
    """Move and scale edges so that the box of each one's mask fills size x size pixels, in float32 as the reference
    does, then onto the grid of fifths in float64."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    ratios = (size / sides.double()).float()
    local = (edges - boxes[masks, None, :2]) * ratios[masks, None]
    return _round_half_up_to_zero(local.double() * _UPSAMPLING)


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
