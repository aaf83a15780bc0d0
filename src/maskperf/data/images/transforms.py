"""Resize, flip and normalization of an image and its targets, by the reference's rules."""

import math

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

SizeHw = tuple[int, int]
PILLOW_RULES = ("reference", "detectron2")  # of data.resize: their pixels come from Pillow


def target_size_hw(size_hw: SizeHw, short_side: int, long_side: int, rule: str = "reference") -> SizeHw:
    """Return height and width after the resize: the short side as asked, unless the long one would exceed its limit.

    The limit bounds the short side, rounded half to even; the long side then follows, truncated, and may exceed the
    limit by a pixel. No side is below one pixel. Other rules keep the limit, and round both sides: torchvision down,
    detectron2 and mmdetection half up.
    Source: the reference's resize transform, and those of the others.
    """
    height, width = size_hw
    shorter, longer = min(size_hw), max(size_hw)
    if rule == "detectron2":
        scale = short_side / shorter
        sides = (short_side, scale * width) if height < width else (scale * height, short_side)
        shrink = long_side / max(sides) if max(sides) > long_side else 1.0
        return max(int(sides[0] * shrink + 0.5), 1), max(int(sides[1] * shrink + 0.5), 1)
    if rule != "reference":
        scale, half = min(short_side / shorter, long_side / longer), 0.5 if rule == "mmdetection" else 0.0
        return max(math.floor(height * scale + half), 1), max(math.floor(width * scale + half), 1)
    if longer / shorter * short_side > long_side:
        short_side = max(round(long_side * shorter / longer), 1)
    if shorter == short_side:
        return height, width
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def resize_and_mirror(
    pixels: UInt8[np.ndarray, "height width 3"], size_hw: SizeHw, *, is_mirrored: bool, rule: str = "reference"
) -> UInt8[np.ndarray, "new_height new_width 3"] | Float32[np.ndarray, "new_height new_width 3"]:
    """Return the image at the new height and width, and after that perhaps mirrored.

    The columns are resized before the rows, as by every Pillow before version 13. By other rules each new pixel lies
    between four old ones, also where the image shrinks; torchvision does not round it to bytes.
    """
    if rule not in PILLOW_RULES:
        resized = _between_four(pixels, size_hw)
        resized = resized if rule == "torchvision" else np.rint(resized)
        return resized[:, ::-1] if is_mirrored else resized
    is_resized = pixels.shape[:2] != size_hw
    if not is_resized and not is_mirrored:
        return pixels
    image = Image.fromarray(pixels)
    if size_hw[0] < image.height:  # Trap: where rows shrink most, Pillow 13 begins with them and rounds otherwise
        image = image.resize((size_hw[1], image.height), Image.Resampling.BILINEAR)
    if is_resized:
        image = image.resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)
    if is_mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def _between_four(
    pixels: UInt8[np.ndarray, "height width 3"], size_hw: SizeHw
) -> Float32[np.ndarray, "new_height new_width 3"]:
    """Return each new pixel as the bilinear mean of the four old ones around its centre."""
    image = pixels.astype(np.float32)
    for axis, new in enumerate(size_hw):
        old = image.shape[axis]
        place = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
        place = np.maximum(place, np.float32(0))
        low = np.minimum(place.astype(np.int64), old - 1)
        share = (place - low.astype(np.float32)).reshape(-1, *[1] * (2 - axis))
        below, above = image.take(low, axis=axis), image.take(np.minimum(low + 1, old - 1), axis=axis)
        image = below * (1 - share) + above * share
    return image


def move_points(
    points: Float32[np.ndarray, "points 2"],
    old_hw: SizeHw,
    new_hw: SizeHw,
    *,
    is_mirrored: bool,
    rule: str = "reference",
) -> Float32[np.ndarray, "points 2"]:
    """Return the points times each axis's ratio, then perhaps mirrored.

    In the reference x' = width - x - 1; by other rules x' = width - x.
    """
    moved = points * np.array([new_hw[1] / old_hw[1], new_hw[0] / old_hw[0]], np.float32)
    if is_mirrored:
        moved[:, 0] = np.float32(new_hw[1]) - moved[:, 0] - np.float32(rule == "reference")
    return moved


def move_boxes(
    boxes: Float32[np.ndarray, "boxes 4"],
    old_hw: SizeHw,
    new_hw: SizeHw,
    *,
    is_mirrored: bool,
    rule: str = "reference",
) -> Float32[np.ndarray, "boxes 4"]:
    """Return the boxes with both corners moved as by `move_points`, without a +1; by other rules their edges."""
    own = boxes if rule == "reference" else boxes + np.array([0, 0, 1, 1], np.float32)
    moved = move_points(own.reshape(-1, 2), old_hw, new_hw, is_mirrored=is_mirrored, rule=rule).reshape(-1, 4)
    moved = moved[:, [2, 1, 0, 3]] if is_mirrored else moved
    return moved if rule == "reference" else moved - np.array([0, 0, 1, 1], np.float32)


def normalize_into(
    output: Float32[np.ndarray, "padded_height padded_width 3"],
    bgr: UInt8[np.ndarray, "height width 3"] | Float32[np.ndarray, "height width 3"],
    means_bgr: tuple[float, float, float],
) -> None:
    """Write the image minus the mean of each channel to the top left of `output`, and zeros to the rest."""
    (height, width), row_length = bgr.shape[:2], output.shape[1] * 3
    rows, filled = output.reshape(-1, row_length), width * 3  # one pass over long rows
    np.copyto(rows[:height, :filled], bgr.reshape(height, filled))
    rows[:height, :filled] -= np.tile(np.array(means_bgr, np.float32), width)
    rows[:height, filled:] = 0
    rows[height:] = 0
