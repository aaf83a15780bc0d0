"""Image files as RGB arrays, and a message that names the file when one cannot be used."""

import io
import math
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from maskperf.data.coco.index import CocoIndex
from maskperf.errors import DataError, Problem

# Trap: without this list Pillow also tries formats that start other programs (EPS) or take scripts.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
JPEG_START = b"\xff\xd8"
CHECK_THREADS = 8
MAX_PIXELS_AT_ONCE = 200_000_000  # of the images that are decoded at the same time when all are checked
TURNED_ORIENTATIONS = (5, 6, 7, 8)  # by 90 degrees, so that a viewer shows height and width exchanged
DECODING_BYTES_PER_PIXEL = 13  # measured: 3 for a JPEG, 10 for a PNG, 13 for a TIFF
FIX_FILE = "Fetch or export it again, remove it from the JSON, or go on without such images: data.skip_bad=true."
FIX_SINGLE_FILE = "Fetch or export it again, or leave it out."

# Pillow warns at half of a limit of its own and stops at the limit. Here `max_pixels` alone decides, before any pixel.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")  # of EXIF that is broken


class _BadImage(Exception):
    """Field, value and message of an image's problem, and its fix unless that is `FIX_FILE`."""


def decode_image(
    path: Path,
    *,
    image_id: int | str | None = None,
    expected_size_hw: tuple[int, int] | None,
    max_pixels: int,
    channels: str = "RGB",
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image with its `channels` in the order "RGB" or "BGR"; of no data set where `image_id` is None.

    Gray is repeated, transparency dropped, EXIF rotation ignored as in the benchmark. Without an expected size any is
    taken.

    Errors: DataError with one problem for a file that is missing, no image, cut short, of 16 bits, of another size
    than `expected_size_hw`, or of more than `max_pixels`.
    """
    try:
        data = _read(path)
        check_size = partial(_check_size, expected_size_hw=expected_size_hw, max_pixels=max_pixels, data=data)
        image = _decode_jpeg(data, check_size, channels) if data.startswith(JPEG_START) else None
        if image is None:
            image = _decode_with_pillow(data, check_size)
            image = np.ascontiguousarray(image[:, :, ::-1]) if channels == "BGR" else image
        return image
    except _BadImage as error:
        is_single = image_id is None
        field, value, message, fix = (*error.args, FIX_SINGLE_FILE if is_single else FIX_FILE)[:4]
        where = "whole file" if is_single else f"image id {image_id}"
        problem = Problem(file=str(path), where=where, field=field, value=value, message=message, fix=fix)
        raise DataError([problem]) from error


def decode_at(
    index: CocoIndex, position: int, *, max_pixels: int, channels: str = "RGB"
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image of a data set at this position; otherwise as `decode_image`."""
    height, width = index.sizes_hw[position].tolist()
    path, image_id = index.image_path(position), index.shown_id(position)
    return decode_image(
        path, image_id=image_id, expected_size_hw=(height, width), max_pixels=max_pixels, channels=channels
    )


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        message = "The image does not exist." if isinstance(error, FileNotFoundError) else "The image cannot be read."
        raise _BadImage("file", str(error.strerror), message) from error
    if not data:
        raise _BadImage("file", "0 bytes", "The image is empty.")
    return data


def check_images(
    index: CocoIndex,
    positions: Sequence[int],
    *,
    max_pixels: int,
    limit_seconds: int | float = math.inf,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[tuple[int, Problem]], int]:
    """Decode these images; return (position, problem) of the bad ones, and how many the time limit left unchecked.

    `progress(done, total)` is called after each image.
    """
    deadline = time.monotonic() + limit_seconds

    def check(position: int) -> tuple[bool, Problem | None]:
        if time.monotonic() >= deadline:
            return False, None
        try:
            decode_at(index, position, max_pixels=max_pixels)
        except DataError as error:
            return True, error.problems[0]
        return True, None

    # fewer threads for very large images, so that their pixels fit into memory at the same time
    largest = index.sizes_hw[list(positions)].astype(np.int64).prod(axis=1).max(initial=1)
    num_threads = int(np.clip(MAX_PIXELS_AT_ONCE // largest, 1, CHECK_THREADS))
    problems, num_unchecked = [], 0
    with ThreadPoolExecutor(num_threads) as pool:
        checks = zip(positions, pool.map(check, positions), strict=True)
        for done, (position, (is_checked, problem)) in enumerate(checks, start=1):
            num_unchecked += not is_checked
            if problem is not None:
                problems.append((position, problem))
            if progress is not None:
                progress(done, len(positions))
    return problems, num_unchecked


def is_deeper_than_8_bits(image: ImageFile) -> bool:
    """Return whether an opened image has samples that do not fit a byte."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return True
    layout = image.tile[0][3] if image.tile else ""  # of the samples in the file, for example "RGB;16B"
    return image.format in ("PNG", "TIFF") and any(mark in str(layout) for mark in (";16B", ";16L", ";16N"))


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation in an opened image's EXIF; 1 where it has none, or a broken one."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in _decode_with_pillow
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def _decode_jpeg(data: bytes, check_size: Callable[[tuple[int, int]], None], channels: str) -> np.ndarray | None:
    """Return the same pixels as Pillow, sooner; None for what simplejpeg refuses, so that Pillow decides."""
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        if color_space in ("CMYK", "YCCK"):
            return None
        check_size((height, width))
        return simplejpeg.decode_jpeg(data, colorspace=channels, fastdct=False, fastupsample=False)
    except (ValueError, KeyError):  # Trap: a rare chroma subsampling is a KeyError
        return None


def _decode_with_pillow(data: bytes, check_size: Callable[[tuple[int, int]], None]) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's plug-ins raise errors of many kinds on broken bytes
        message = f"The file is not an image of a known format ({', '.join(FORMATS)}), or its head is broken."
        raise _BadImage("file", f"starts with {data[:12].hex(' ')}", message) from error
    check_size((image.height, image.width))
    if is_deeper_than_8_bits(image):
        message = "The image has more than 8 bits per channel; its bright parts would all become white."
        raise _BadImage("mode", f"{image.format} {image.mode}", message, "Save it with 8 bits per channel.")
    try:
        image.load()
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # as above
        raise _BadImage("pixels", f"{len(data)} bytes, {error}", "The image is cut short or broken.") from error


def _check_size(
    size_hw: tuple[int, int], *, expected_size_hw: tuple[int, int] | None, max_pixels: int, data: bytes
) -> None:
    """Raise _BadImage unless the image has the JSON's size and at most `max_pixels`; before its pixels are decoded."""
    pixels = size_hw[0] * size_hw[1]
    if expected_size_hw is not None and size_hw != expected_size_hw:
        value = f"{size_hw[0]} x {size_hw[1]} in the file, {expected_size_hw[0]} x {expected_size_hw[1]} in the JSON"
        message = "The image's height x width is not the JSON's."
        fix = "Write the size of the file into the JSON, with the annotations to match."
        if size_hw == expected_size_hw[::-1]:
            message = "Width and height are swapped in the JSON."
            fix = "Exchange the two in the image's entry of `images`."
            orientation = 1
            with suppress(Exception):  # as above; the size was read by another decoder
                orientation = exif_orientation(Image.open(io.BytesIO(data), formats=FORMATS))
            if orientation in TURNED_ORIENTATIONS:
                value += f", EXIF orientation {orientation}"
                message = "The sides are swapped: the file's EXIF rotation is ignored here, as in the benchmark."
                fix = "Save the image already rotated and without the EXIF mark, or annotate it as it is stored."
        raise _BadImage("height, width", value, message, fix)
    if pixels > max_pixels:
        value = f"{size_hw[0]} x {size_hw[1]}, {pixels:,} pixels"
        memory = f"each such image takes up to {pixels * DECODING_BYTES_PER_PIXEL / 1e9:.1f} GB of memory while decoded"
        fix = f"Set data.max_image_pixels={pixels} or more ({memory}), or cut it into tiles."
        message = f"The image is very large: the limit is {max_pixels:,} pixels."
        raise _BadImage("height, width", value, message, fix)
