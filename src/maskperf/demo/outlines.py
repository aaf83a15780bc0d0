"""What COCO's format says about a mask: rings around its pieces, run lengths, a box."""

import numpy as np
from jaxtyping import Bool

Ring = list[tuple[int, int]]


def trace_outline(mask: Bool[np.ndarray, "height width"]) -> list[Ring]:
    """Return the rings around every piece of the mask, as the corners where they turn.

    Points are pixel corners (x, y): pixel (0, 0) has corners 0 and 1. Outer rings have a positive `ring_area`,
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
    rings = []
    while unused:
        rings.append(_walk_ring(*next(iter(unused)), leaving, crossings, unused))
    return rings


def _walk_ring(corner: tuple[int, int], direction: int, leaving: dict, crossings: set, unused: dict) -> Ring:
    """Return the ring that starts with that side, and takes its sides out of `unused`."""
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    ring, previous = [], -1
    while (corner, direction) in unused:
        del unused[corner, direction]
        if direction != previous:
            ring.append(corner)
        previous = direction
        corner = (corner[0] + steps[direction][0], corner[1] + steps[direction][1])
        # At a crossing the right turn stays with the pixel walked along so far.
        direction = (direction + 1) % 4 if corner in crossings else leaving[corner]
    return ring


def ring_area(ring: Ring) -> float:
    """Return the area inside a ring, negative for a ring around a hole."""
    points = np.array(ring)
    following = np.roll(points, -1, axis=0)
    return float((points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]).sum()) / 2


def run_lengths(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """Return COCO's uncompressed counts: pixels off, on, off and so on, column after column."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    return [0, *counts] if flat[0] else counts


def tight_box(mask: Bool[np.ndarray, "height width"]) -> list[float]:
    """Return [x, y, width, height] around the pixels of a mask that has some."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(xs[0]), float(ys[0]), float(xs[-1] - xs[0] + 1), float(ys[-1] - ys[0] + 1)]
