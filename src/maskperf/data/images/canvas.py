"""The canvases that batches are padded to, and which images share one."""

import numpy as np
from jaxtyping import Int

from maskperf.config import DataConfig
from maskperf.data.images.transforms import target_size_hw

# Long side over short side of most photographs. What is longer has room for the longest side that is allowed.
ASPECTS = (4 / 3, 3 / 2)

SizeHw = tuple[int, int]
Canvases = tuple[SizeHw, ...]


def canvas_buckets(data: DataConfig) -> Canvases:
    """Return the canvases (height, width) by rising area, an upright one before its wide twin.

    Three for each direction, fewer where the limits leave no room between them: 800 x 1088, 1216 and 1344 for the
    benchmark's 800 and 1333 pixels.

    A larger canvas holds the same picture, boxes and targets; the pixels around it are zeros as with the smallest one.
    Not the same are the activations near the picture's right and lower border, because a layer with a bias makes
    numbers out of those zeros: for the same anchors and RoIs the losses move by some 1e-4 of their value. And other
    anchors and RoIs are drawn, because there are more anchors, whose proposals are clipped to the picture. The
    reference's padding to the largest picture of a batch does both as well.
    """
    short = min(data.short_side, data.long_side)
    sides = {_round_up(min(int(short * aspect), data.long_side), data.size_divisor) for aspect in ASPECTS}
    sides.add(_round_up(data.long_side, data.size_divisor))
    height = _round_up(short, data.size_divisor)
    both_ways = {pair for side in sides for pair in ((side, height), (height, side))}
    return tuple(sorted(both_ways, key=lambda pair: (pair[0] * pair[1], -pair[0])))


def canvas_of(size_hw: SizeHw, canvases: Canvases, size_divisor: int) -> SizeHw:
    """Return the first canvas that holds a picture of this size, else the size itself in multiples of the divisor."""
    for height, width in canvases:
        if size_hw[0] <= height and size_hw[1] <= width:
            return height, width
    return _round_up(size_hw[0], size_divisor), _round_up(size_hw[1], size_divisor)


def resized_sizes_hw(sizes_hw: Int[np.ndarray, "images 2"], data: DataConfig) -> Int[np.ndarray, "images 2"]:
    """Return the height and width of each image after the resize."""
    found, which = _distinct(sizes_hw)
    resized = [target_size_hw(size_hw, data.short_side, data.long_side) for size_hw in found]
    return np.array(resized, np.int64).reshape(-1, 2)[which]


def image_canvases(
    sizes_hw: Int[np.ndarray, "images 2"], data: DataConfig, *, least: int = 1
) -> Int[np.ndarray, "images 2"]:
    """Returns the canvas of each image. Sizes are those of the files.

    An image that is larger than all canvases has its own size in multiples of the divisor. Images of a canvas that
    fewer than `least` have move to the smallest other one that holds it and is some image's, if there is such a one.
    """
    canvases = canvas_buckets(data)
    found, which = _distinct(sizes_hw)
    resized = [target_size_hw(size_hw, data.short_side, data.long_side) for size_hw in found]
    owned = np.array([canvas_of(size_hw, canvases, data.size_divisor) for size_hw in resized], np.int64)
    owned = owned.reshape(-1, 2)
    counts = np.bincount(which, minlength=len(owned))
    for canvas in canvases:  # the smallest first, so that what was joined may move on
        is_own = (owned == canvas).all(axis=1)
        if 0 < counts[is_own].sum() < least:
            others = (
                other for other in canvases if other != canvas and other[0] >= canvas[0] and other[1] >= canvas[1]
            )
            owned[is_own] = next((other for other in others if (owned == other).all(axis=1).any()), canvas)
    return owned[which]


def group_numbers(canvases: Int[np.ndarray, "images 2"]) -> Int[np.ndarray, " images"]:
    """Return a number from 0 for each image, the same for all images that have the same canvas."""
    return _distinct(canvases)[1]


def canvas_groups(sizes_hw: Int[np.ndarray, "images 2"], data: DataConfig) -> Int[np.ndarray, " images"]:
    """Return a number for each image, the same for all that have the same canvas. Sizes are those of the files."""
    return group_numbers(image_canvases(sizes_hw, data))


def padding_share(
    sizes_hw: Int[np.ndarray, "images 2"], batches: list[np.ndarray], data: DataConfig, canvases: Canvases = ()
) -> float:
    """Returns which share of the pixels of these batches is padding, from 0 to 1.

    `batches` are positions in `sizes_hw`, the sizes of the files. Without canvases each batch is as large as its
    largest height and width need.
    """
    resized = resized_sizes_hw(sizes_hw, data)
    taken, filled = 0, 0
    for positions in batches:
        height, width = canvas_of(tuple(resized[positions].max(axis=0).tolist()), canvases, data.size_divisor)
        taken += len(positions) * height * width
        filled += int(resized[positions].prod(axis=1).sum())
    return 1 - filled / max(taken, 1)


def _distinct(sizes_hw: np.ndarray) -> tuple[list[SizeHw], np.ndarray]:
    """Return the different sizes, few in a data set, and which of them each image has."""
    as_numbers = sizes_hw[:, 0].astype(np.int64) << 32 | sizes_hw[:, 1].astype(np.int64)
    found, which = np.unique(as_numbers, return_inverse=True)
    return [(number >> 32, number & 0xFFFFFFFF) for number in found.tolist()], which.reshape(-1)


def _round_up(length: int, divisor: int) -> int:
    return -(-length // divisor) * divisor
