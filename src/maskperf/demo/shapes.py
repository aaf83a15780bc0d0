"""The eight categories of the demo images: outline, colour and pattern of each.

Coordinates (u, v) belong to one shape: u to its right, v to its bottom; the shape fits into the unit disc.
A signed distance is negative inside, in units of the shape's radius.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STAR_INNER_RADIUS = 0.5
LEAF_ARC_CENTRE = 0.886  # two arcs of this centre and radius meet at the tips (-1, 0) and (1, 0)
LEAF_ARC_RADIUS = 1.336


Field = Callable[[np.ndarray, np.ndarray], np.ndarray]  # a function of (u, v)


@dataclass(frozen=True)
class Category:
    """One category of the annotations, and how its shapes look."""

    id: int
    name: str
    supercategory: str
    distance: Field
    pattern: Field  # 1 keeps the colour, 0 is black, 2 is white
    hsv: tuple[float, float, float]
    largest_turn: float  # radians, to either side


def _spot(u: np.ndarray, v: np.ndarray, centre: tuple[float, float], radius: float) -> np.ndarray:
    """Return a soft round spot, 1 at its centre."""
    return np.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / radius**2)


def _apple_body(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    dent = 0.2 * np.exp(-((np.abs(u) / 0.3) ** 2)) * (v < 0)
    return np.hypot(u, v - 0.1) - 0.85 + dent


def _apple(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    stalk = np.maximum(np.abs(u - 0.1 * v) - 0.1, np.abs(v + 0.72) - 0.26)
    return np.minimum(_apple_body(u, v), stalk)


def _apple_pattern(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    skin = 1.08 - 0.38 * (u**2 + v**2) + 0.55 * _spot(u, v, (-0.33, -0.25), 0.22)
    return np.where(_apple_body(u, v) < 0, skin, 0.3)


def _crate(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.7


def _crate_pattern(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    planks = np.where(np.abs(np.sin(v * 8)) < 0.2, 0.55, 0.95)
    brace = np.where(np.abs(np.abs(u - v) - 0.16) < 0.04, 0.55, 1.12)
    inner = np.where(np.abs(u - v) < 0.2, brace, planks)
    border = np.maximum(np.abs(u), np.abs(v))
    return np.where(border > 0.53, 1.08, np.where(border > 0.48, 0.5, inner))


def _tent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    roof = (np.abs(u) * 1.5 - (v + 0.85) * 0.8) / math.hypot(1.5, 0.8)
    return np.maximum(roof, v - 0.6)


def _tent_pattern(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    cloth = np.where(u < 0, 1.12, 0.8) * np.where(np.abs(np.sin(v * 6)) < 0.14, 0.82, 1)
    return np.where(np.abs(u) < (v + 0.15) * 0.38, 0.38, cloth)


def _star_fold(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance from the centre, and the angle from the nearest tip, -pi/5 to pi/5."""
    angle = np.arctan2(u, -v)
    fifth = 2 * math.pi / 5
    return np.hypot(u, v), angle - fifth * np.round(angle / fifth)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    radius, angle = _star_fold(u, v)
    inner_x = STAR_INNER_RADIUS * math.cos(math.pi / 5)
    inner_y = STAR_INNER_RADIUS * math.sin(math.pi / 5)
    edge_length = math.hypot(1 - inner_x, inner_y)
    along, aside = radius * np.cos(angle), np.abs(radius * np.sin(angle))
    return ((along - 1) * inner_y + aside * (1 - inner_x)) / edge_length


def _star_pattern(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    radius, angle = _star_fold(u, v)
    return np.where(angle < 0, 1.18, 0.84) - 0.12 * radius


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    across = np.maximum(np.abs(u) - 0.92, np.abs(v) - 0.33)
    down = np.maximum(np.abs(u) - 0.33, np.abs(v) - 0.92)
    return np.minimum(across, down)


def _cross_pattern(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    raised = np.where(u + v < 0, 1.12, 0.95)
    return np.where(_cross(u, v) < -0.13, raised, np.where(u + v < 0, 0.86, 0.7))


def _moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 0.95, 0.74 - np.hypot(u - 0.5, v))


def _moon_pattern(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    craters = _spot(u, v, (-0.62, -0.15), 0.13) + _spot(u, v, (-0.5, 0.4), 0.1) + _spot(u, v, (-0.3, -0.68), 0.1)
    return 1.22 - 0.25 * np.hypot(u + 0.6, v) - 0.45 * craters


def _cherries(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(np.hypot(u + 0.52, v - 0.1) - 0.43, np.hypot(u - 0.52, v + 0.1) - 0.43)


def _cherries_pattern(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    from_centre = _cherries(u, v) + 0.43
    shine = _spot(u, v, (-0.66, -0.04), 0.13) + _spot(u, v, (0.38, -0.24), 0.13)
    return 1.08 - 1.7 * from_centre**2 + 0.75 * shine


def _leaf(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, np.abs(v) + LEAF_ARC_CENTRE) - LEAF_ARC_RADIUS


def _leaf_pattern(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    veins = np.where(np.sin((u - 0.8 * np.abs(v)) * 17) > 0, 1.06, 0.74)
    return np.where(np.abs(v) < 0.055, 1.45, veins)


ANY_TURN = math.pi
SMALL_TURN = 0.6

CATEGORIES = (
    Category(1, "apple", "food", _apple, _apple_pattern, (0.0, 0.85, 0.85), SMALL_TURN),
    Category(2, "crate", "goods", _crate, _crate_pattern, (0.08, 0.62, 0.72), SMALL_TURN),
    Category(4, "tent", "outdoor", _tent, _tent_pattern, (0.6, 0.72, 0.85), SMALL_TURN),
    Category(7, "star", "sky", _star, _star_pattern, (0.145, 0.82, 0.95), ANY_TURN),
    Category(8, "cross", "sign", _cross, _cross_pattern, (0.49, 0.7, 0.8), ANY_TURN),
    Category(11, "moon", "sky", _moon, _moon_pattern, (0.73, 0.45, 0.88), ANY_TURN),
    Category(13, "cherries", "food", _cherries, _cherries_pattern, (0.91, 0.8, 0.75), ANY_TURN),
    Category(16, "leaf", "plant", _leaf, _leaf_pattern, (0.32, 0.7, 0.68), ANY_TURN),
)
