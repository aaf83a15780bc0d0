"""A mask in COCO's format: polygons around its pieces, run lengths, a box."""

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_masks

Polygon = list[tuple[int, int]]


def trace_outline(mask: Bool[np.ndarray, "height width"]) -> list[Polygon]:
    """Return the polygons around every piece of the mask, as the corners where they turn.

    Points are pixel corners (x, y): pixel (0, 0) has corners 0 and 1. Outer polygons have a positive `polygon_area`,
    holes a negative one. Pixels that touch only at a corner belong to different pieces.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # The piece lies to the right of its boundary: top sides run east (0), right sides south (1), then west, north.
    sides = ((padded[:-2, 1:-1], 0, 0), (padded[1:-1, 2:], 1, 0), (padded[2:, 1:-1], 1, 1), (padded[1:-1, :-2], 0, 1))
    leaving: dict[tuple[int, int], int] = {}  # corner to direction
    crossings: set[tuple[int, int]] = set()  # corners where two pixels touch; two sides leave them
    unused: dict[tuple[tuple[int, int], int], None] = {}  # an ordered set of (corner, direction)
    for direction, (neighbour, shift_x, shift_y) in enumerate(sides):
        ys, xs = np.nonzero(inside & ~neighbour)
        for corner in zip((xs + shift_x).tolist(), (ys + shift_y).tolist(), strict=True):
            if corner in leaving:
                crossings.add(corner)
            leaving[corner] = direction
            unused[corner, direction] = None
    polygons = []
    while unused:
        polygons.append(_walk_polygon(*next(iter(unused)), leaving, crossings, unused))
    return polygons


def _walk_polygon(corner: tuple[int, int], direction: int, leaving: dict, crossings: set, unused: dict) -> Polygon:
    """Return the polygon that starts with that side, and remove its sides from `unused`."""
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    polygon, previous = [], -1
    while (corner, direction) in unused:
        del unused[corner, direction]
        if direction != previous:
            polygon.append(corner)
        previous = direction
        corner = (corner[0] + steps[direction][0], corner[1] + steps[direction][1])
        # At a crossing the right turn stays with the pixel walked along so far.
        direction = (direction + 1) % 4 if corner in crossings else leaving[corner]
    return polygon


def polygon_area(polygon: Polygon) -> float:
    """Return the area inside a polygon, negative for a polygon around a hole."""
    points = np.array(polygon)
    following = np.roll(points, -1, axis=0)
    return float((points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]).sum()) / 2


def run_lengths(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """Return COCO's uncompressed counts: pixels off, on, off and so on, column after column."""
    flat = mask.flatten(order="F")
    return np.diff([0, *np.flatnonzero(np.diff(flat, prepend=False)), flat.size]).tolist()


def tight_box(mask: Bool[np.ndarray, "height width"]) -> list[float]:
    """Return [x, y, width, height] around the pixels of a mask that has some."""
    return coco_masks.toBbox(coco_masks.encode(np.asfortranarray(mask, np.uint8))).tolist()
