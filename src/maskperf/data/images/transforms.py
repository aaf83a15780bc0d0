"""Resize, flip and normalization of a picture and its targets, by the reference's rules."""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

Picture = UInt8[np.ndarray, "height width 3"]


def target_size_hw(size_hw: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Return height and width after the resize: short side as asked, unless the long one would pass its limit.

    The limit bounds the short side, rounded half to even; the long side then follows, truncated, and may pass the
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
    picture: Picture, size_hw: tuple[int, int], *, is_mirrored: bool
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Returns the picture, in any order of channels, at the new height and width, and after that perhaps mirrored.

    The columns are resized before the rows, as by every Pillow before version 13.
    """
    is_resized = picture.shape[:2] != size_hw
    if not is_resized and not is_mirrored:
        return picture
    image = Image.fromarray(picture)
    if size_hw[0] < image.height:  # Trap: where rows shrink most, Pillow 13 begins with them and rounds otherwise
        image = image.resize((size_hw[1], image.height), Image.Resampling.BILINEAR)
    if is_resized:
        image = image.resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)
    if is_mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def resize_boxes(
    boxes: Float32[np.ndarray, "boxes 4"], old_size_hw: tuple[int, int], new_size_hw: tuple[int, int]
) -> Float32[np.ndarray, "boxes 4"]:
    """Returns the boxes times the actual ratio of each axis; both corners alike, without a +1."""
    return boxes * np.tile(_ratios_xy(old_size_hw, new_size_hw), 2)


def resize_points(
    points: Float32[np.ndarray, "points 2"], old_size_hw: tuple[int, int], new_size_hw: tuple[int, int]
) -> Float32[np.ndarray, "points 2"]:
    """Returns the points times the actual ratio of each axis."""
    return points * _ratios_xy(old_size_hw, new_size_hw)


def flip_boxes(boxes: Float32[np.ndarray, "boxes 4"], width: int) -> Float32[np.ndarray, "boxes 4"]:
    """Return the boxes of the mirrored picture: x1' = width - x2 - 1, x2' = width - x1 - 1."""
    flipped = boxes.copy()
    flipped[:, 0] = np.float32(width) - boxes[:, 2] - np.float32(1)
    flipped[:, 2] = np.float32(width) - boxes[:, 0] - np.float32(1)
    return flipped


def flip_points(points: Float32[np.ndarray, "points 2"], width: int) -> Float32[np.ndarray, "points 2"]:
    """Return the points of the mirrored picture: x' = width - x - 1, the reference's rule for polygons too."""
    flipped = points.copy()
    flipped[:, 0] = np.float32(width) - points[:, 0] - np.float32(1)
    return flipped


def normalize(rgb: Picture, means_bgr: tuple[float, float, float]) -> Float32[np.ndarray, "3 height width"]:
    """Return the picture as channels B, G, R, range 0 to 255, minus the mean of each."""
    pixels = np.empty((3, *rgb.shape[:2]), np.float32)
    for channel, mean in enumerate(means_bgr):
        np.subtract(rgb[:, :, 2 - channel], np.float32(mean), out=pixels[channel])
    return pixels


def normalize_into(
    canvas: Float32[np.ndarray, "canvas_height canvas_width 3"], bgr: Picture, means_bgr: tuple[float, float, float]
) -> None:
    """Fills the canvas: the picture minus the mean of each channel at its top left, and zeros.

    The same numbers as `normalize`, in one pass over long rows.
    """
    (height, width), row_length = bgr.shape[:2], canvas.shape[1] * 3
    rows, filled = canvas.reshape(-1, row_length), width * 3
    np.copyto(rows[:height, :filled], bgr.reshape(height, filled))
    rows[:height, :filled] -= np.tile(np.array(means_bgr, np.float32), width)
    rows[:height, filled:] = 0
    rows[height:] = 0


def _ratios_xy(old_size_hw: tuple[int, int], new_size_hw: tuple[int, int]) -> np.ndarray:
    return np.array([new_size_hw[1] / old_size_hw[1], new_size_hw[0] / old_size_hw[0]], np.float32)
