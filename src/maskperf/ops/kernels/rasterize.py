"""COCO's polygon rasteriser as one Triton kernel: equal to pycocotools pixel for pixel, without sorting or loops.

Reference: ops/rasterize.py, whose closed form of the crossings this is.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from maskperf.ops.kernels.values import jit, load_box
from maskperf.structures import Polygons

MAX_SIZE = 64  # rows of a column are the bits of a word
EDGES = tl.constexpr(16)  # worked on at a time


def rasterize_crops(
    polygons: Polygons, objects: Int64[Tensor, " masks"], boxes: Float32[Tensor, "masks 4"], size: int
) -> Bool[Tensor, "masks size size"]:
    """Return the union of the polygons of each object inside its box, on a grid of size x size, at most 64.

    The box (x2 - x1, no "+1", at least 1) is stretched to the grid; points outside are not clipped.
    Source: COCO's `rleFrPoly`; spec of the benchmark: `structures/segmentation_mask.py`.
    """
    if size > MAX_SIZE:
        raise ValueError(f"size {size}: a mask has at most {MAX_SIZE} rows")
    masks = torch.zeros(len(objects), size, size, dtype=torch.bool, device=boxes.device)
    if len(objects) > 0 and polygons.points.shape[0] > 0:
        outlines = (polygons.points.contiguous(), polygons.point_offsets, polygons.polygon_offsets)
        # A rounding left out by fused products would move a crossing.
        _draw[masks.shape[:1]](masks, outlines, objects.contiguous(), boxes.contiguous(), size, enable_fp_fusion=False)
    return masks


@jit
def _truncate(x):
    return x.to(tl.int64).to(tl.float64)


@jit
def _on_grid(points, index, box, x_ratio, y_ratio, mask):
    """Return x and y of points on the grid of fifths: moved and scaled in float32, then rounded, as float64."""
    x = (tl.load(points + index * 2, mask=mask, other=0.0) - box[0]) * x_ratio
    y = (tl.load(points + index * 2 + 1, mask=mask, other=0.0) - box[1]) * y_ratio
    x, y = _truncate(x.to(tl.float64) * 5.0 + 0.5), _truncate(y.to(tl.float64) * 5.0 + 0.5)
    return x[:, None], y[:, None]


@jit
def _flat_crossing(x0, y0, delta_x, delta_y, before):
    """Return whether an edge that is walked along x steps from grid x `before` to the next, and the smaller y there.

    A step is one grid x, and the walk rounds y by "add 0.5, truncate".
    """
    slope = delta_y / tl.maximum(delta_x, 1.0)
    step = before - x0
    here, after = _truncate(y0 + slope * step + 0.5), _truncate(y0 + slope * (step + 1.0) + 0.5)
    return (step >= 0.0) & (step < delta_x), tl.minimum(here, after)


@jit
def _is_past(x0, slope, delta_x, before, step):
    """Return whether an edge that is walked along y has left the grid x `before` behind after so many steps."""
    x = _truncate(x0 + slope * step + 0.5)
    return tl.where(delta_x > 0.0, x > before, x <= before)


@jit
def _steep_crossing(x0, y0, delta_x, delta_y, before):
    """Return the same for an edge that is walked along y: the step is found by division and put right by the walk."""
    slope = delta_x / tl.maximum(delta_y, 1.0)
    guess = tl.ceil((before + 0.5 - x0) / tl.where(slope == 0.0, 1.0, slope))
    first = guess + 2.0
    for back in tl.static_range(4):
        step = guess + (1.0 - back)
        first = tl.where(_is_past(x0, slope, delta_x, before, step), step, first)
    starts_before = ~_is_past(x0, slope, delta_x, before, tl.zeros_like(first))
    crosses = starts_before & _is_past(x0, slope, delta_x, before, delta_y) & (delta_x != 0.0)
    return crosses, y0 + tl.maximum(first, 1.0) - 1.0


@jit
def _toggled_rows(start_x, start_y, end_x, end_y, before, SIZE: tl.constexpr):
    """Return the rows (bits) of each column whose fill each edge toggles: those from its crossing down."""
    delta_x, delta_y = end_x - start_x, end_y - start_y
    is_flat = tl.abs(delta_x) >= tl.abs(delta_y)
    is_swapped = tl.where(is_flat, delta_x < 0.0, delta_y < 0.0)
    x0, y0 = tl.where(is_swapped, end_x, start_x), tl.where(is_swapped, end_y, start_y)
    delta_x, delta_y = tl.where(is_swapped, -delta_x, delta_x), tl.where(is_swapped, -delta_y, delta_y)
    flat_crosses, flat_y = _flat_crossing(x0, y0, delta_x, delta_y, before)
    steep_crosses, steep_y = _steep_crossing(x0, y0, delta_x, delta_y, before)
    grid_y = tl.where(is_flat, flat_y, steep_y)
    y = tl.ceil(tl.minimum(tl.maximum((grid_y + 0.5) / 5.0 - 0.5, 0.0), SIZE * 1.0)).to(tl.int64)
    crosses = tl.where(is_flat, flat_crosses, steep_crosses) & (y < SIZE)
    all_rows = tl.full(y.shape, -1, tl.int64)
    return tl.where(crosses, all_rows << tl.minimum(y, SIZE - 1), 0)


@jit
def _draw(masks, outlines, objects, boxes, SIZE: tl.constexpr):
    """One program: one mask. A column is a word of bits; what an edge toggles is combined by exclusive or."""
    COLUMNS: tl.constexpr = triton.next_power_of_2(SIZE)
    points, point_offsets, polygon_offsets = outlines
    mask = tl.program_id(0).to(tl.int64)
    box = load_box(boxes + mask * 4)
    x_ratio = (SIZE / tl.maximum(box[2] - box[0], 1.0).to(tl.float64)).to(tl.float32)
    y_ratio = (SIZE / tl.maximum(box[3] - box[1], 1.0).to(tl.float64)).to(tl.float32)
    column = tl.arange(0, COLUMNS)
    before = (column * 5 + 2).to(tl.float64)[None, :]  # grid x on the left side of the column's crossings
    of_object = tl.load(objects + mask)
    filled = tl.zeros([COLUMNS], tl.int64)
    for polygon in range(tl.load(polygon_offsets + of_object), tl.load(polygon_offsets + of_object + 1)):
        first, last = tl.load(point_offsets + polygon), tl.load(point_offsets + polygon + 1)
        toggled = tl.zeros([EDGES, COLUMNS], tl.int64)
        for start in range(first, last, EDGES):
            point = start + tl.arange(0, EDGES)
            following = tl.where(point + 1 == last, first, point + 1)
            start_x, start_y = _on_grid(points, point, box, x_ratio, y_ratio, point < last)
            end_x, end_y = _on_grid(points, following, box, x_ratio, y_ratio, point < last)
            rows = _toggled_rows(start_x, start_y, end_x, end_y, before, SIZE)
            toggled = toggled ^ tl.where((point < last)[:, None], rows, 0)
        filled = filled | tl.xor_sum(toggled, axis=0)
    row = column[:, None]
    is_filled = ((filled[None, :] >> row.to(tl.int64)) & 1) != 0
    offset = mask * SIZE * SIZE + row * SIZE + column[None, :]
    tl.store(masks + offset, is_filled, mask=(row < SIZE) & (column < SIZE)[None, :])
