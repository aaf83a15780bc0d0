"""The sizes that batches are padded to, and which images share one."""

import numpy as np
from jaxtyping import Int

from maskperf.config import DataConfig
from maskperf.data.images.transforms import SizeHw, target_size_hw

# Long side over short side of most photographs. What is longer has room for the longest side that is allowed.
ASPECTS = (4 / 3, 3 / 2)

Buckets = tuple[SizeHw, ...]


def bucket_sizes(data: DataConfig) -> Buckets:
    """Return the padded sizes (height, width) by rising area, a portrait one before its landscape twin.

    Three for each direction, fewer where the limits leave no room between them: 800 x 1088, 1216 and 1344 for the
    benchmark's 800 and 1333 pixels.

    A larger padded size changes the activations near the image's right and lower border, because a layer with a bias
    makes numbers out of the zeros around it (the losses move by some 1e-4 of their value for the same anchors and
    RoIs), and which anchors and RoIs are drawn. So does the reference's padding to the largest image of a batch.
    """
    short = min(largest_short_side(data), data.long_side)
    lengths = [min(int(short * aspect), data.long_side) for aspect in ASPECTS]
    sides = {round_up(length, data.size_divisor) for length in (*lengths, data.long_side)}
    height = round_up(short, data.size_divisor)
    both_ways = {pair for side in sides for pair in ((side, height), (height, side))}
    return tuple(sorted(both_ways, key=lambda pair: (pair[0] * pair[1], -pair[0])))


def largest_short_side(data: DataConfig) -> int:
    """Return the largest number of pixels that a training image's shorter side may have. No jitter exceeds it."""
    return max(data.short_sides or (data.short_side,))


def padded_size(size_hw: SizeHw, buckets: Buckets, size_divisor: int) -> SizeHw:
    """Return the first bucket that holds an image of this size, else the size itself in multiples of the divisor."""
    for height, width in buckets:
        if size_hw[0] <= height and size_hw[1] <= width:
            return height, width
    return round_up(size_hw[0], size_divisor), round_up(size_hw[1], size_divisor)


def image_buckets(
    sizes_hw: Int[np.ndarray, "images 2"], data: DataConfig, *, min_images: int = 1
) -> Int[np.ndarray, "images 2"]:
    """Return the padded size of each image, given the sizes of the files.

    With `data.short_sides` or `data.scale_jitter` it holds the image at the largest size that may be drawn.
    An image that is larger than all buckets has its own size in multiples of the divisor. Images of a bucket that
    has fewer than `min_images` move to the smallest other one that holds it and is in use, if there is such a one.
    """
    buckets, short_side = bucket_sizes(data), largest_short_side(data)
    distinct, which = np.unique(sizes_hw, axis=0, return_inverse=True)
    resized = [target_size_hw(tuple(size_hw), short_side, data.long_side, data.resize) for size_hw in distinct.tolist()]
    padded = np.array([padded_size(size_hw, buckets, data.size_divisor) for size_hw in resized], np.int64)
    padded = padded.reshape(-1, 2)
    counts = np.bincount(which, minlength=len(padded))
    for bucket in buckets:  # the smallest first, so that what was joined may move on
        is_own = (padded == bucket).all(axis=1)
        if 0 < counts[is_own].sum() < min_images:
            holds_it = (padded >= bucket).all(axis=1) & (padded != bucket).any(axis=1)
            in_use = set(map(tuple, padded[holds_it].tolist()))
            padded[is_own] = next((other for other in buckets if other in in_use), bucket)
    return padded[which]


def group_numbers(padded_sizes: Int[np.ndarray, "images 2"]) -> Int[np.ndarray, " images"]:
    """Return a number from 0 for each image, the same for all images that have the same padded size."""
    return np.unique(padded_sizes, axis=0, return_inverse=True)[1]


def round_up(length: int, divisor: int) -> int:
    """Return the smallest multiple of the divisor that is not below the length."""
    return -(-length // divisor) * divisor
