"""Resize, flip and normalization of an image and its targets, by the reference's rules."""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

SizeHw = tuple[int, int]


def target_size_hw(size_hw: SizeHw, short_side: int, long_side: int) -> SizeHw:
    """Return height and width after the resize: the short side as asked, unless the long one would exceed its limit.

    The limit bounds the short side, rounded half to even; the long side then follows, truncated, and may exceed the
    limit by a pixel. No side is below one pixel.
    Source: the reference's resize transform.
    """
    height, width = size_hw
    shorter, longer = min(size_hw), max(size_hw)
    if longer / shorter * short_side > long_side:
        short_side = max(round(long_side * shorter / longer), 1)
    if shorter == short_side:
        return height, width
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def resize_and_mirror(
    pixels: UInt8[np.ndarray, "height width 3"], size_hw: SizeHw, *, is_mirrored: bool
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Return the image at the new height and width, and after that perhaps mirrored.

    The columns are resized before the rows, as by every Pillow before version 13.
    """
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


def move_points(
    points: Float32[np.ndarray, "points 2"], old_hw: SizeHw, new_hw: SizeHw, *, is_mirrored: bool
) -> Float32[np.ndarray, "points 2"]:
    """Return the points times each axis's ratio, then perhaps mirrored: x' = width - x - 1, as in the reference."""
    moved = points * np.array([new_hw[1] / old_hw[1], new_hw[0] / old_hw[0]], np.float32)
    if is_mirrored:
        moved[:, 0] = np.float32(new_hw[1]) - moved[:, 0] - np.float32(1)
    return moved


def move_boxes(
    boxes: Float32[np.ndarray, "boxes 4"], old_hw: SizeHw, new_hw: SizeHw, *, is_mirrored: bool
) -> Float32[np.ndarray, "boxes 4"]:
    """Return the boxes with both corners moved as by `move_points`, without a +1."""
    moved = move_points(boxes.reshape(-1, 2), old_hw, new_hw, is_mirrored=is_mirrored).reshape(-1, 4)
    return moved[:, [2, 1, 0, 3]] if is_mirrored else moved


def normalize_into(
    output: Float32[np.ndarray, "padded_height padded_width 3"],
    bgr: UInt8[np.ndarray, "height width 3"],
    means_bgr: tuple[float, float, float],
) -> None:
    """Write the image minus the mean of each channel to the top left of `output`, and zeros to the rest."""
    (height, width), row_length = bgr.shape[:2], output.shape[1] * 3
    rows, filled = output.reshape(-1, row_length), width * 3  # one pass over long rows
    np.copyto(rows[:height, :filled], bgr.reshape(height, filled))
    rows[:height, :filled] -= np.tile(np.array(means_bgr, np.float32), width)
    rows[:height, filled:] = 0
    rows[height:] = 0
