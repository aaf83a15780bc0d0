"""Image files as RGB arrays, and a message that names the file when one cannot be used."""

import io
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image

from maskperf.data.coco.index import CocoIndex
from maskperf.errors import DataError, Problem

# Trap: without this list Pillow also tries formats that start other programs (EPS) or take scripts.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
CHECK_THREADS = 8
MOST_PIXELS_AT_ONCE = 200_000_000  # of the images that are decoded beside each other when all are checked
TURNED_ORIENTATIONS = (5, 6, 7, 8)  # by 90 degrees, so that a viewer shows height and width exchanged
DECODING_BYTES_PER_PIXEL = 13  # measured: 3 for a JPEG, 10 for a PNG, 13 for a TIFF
FIX_FILE = "Fetch or export it again, remove it from the JSON, or go on without such images: data.skip_bad=true."

# Pillow warns at half of a limit of its own and stops at the limit. Here `max_pixels` alone decides, before any pixel.
Image.MAX_IMAGE_PIXELS = None

Demand = Callable[[tuple[int, int]], None]


def decode_image(
    path: Path, *, image_id: int | str, expected_size_hw: tuple[int, int], max_pixels: int, channels: str = "RGB"
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the picture; gray is repeated, transparency dropped, EXIF rotation ignored as in the benchmark.

    `channels` is their order: "RGB" or "BGR".

    Errors: DataError with one problem for a file that is missing, no image, cut short, of 16 bits, of another size
    than `expected_size_hw`, or of more than `max_pixels`.
    """
    make = partial(Problem, file=str(path), where=f"image id {image_id}", fix=FIX_FILE)
    try:
        data = path.read_bytes()
    except OSError as error:
        problem = "The image does not exist." if isinstance(error, FileNotFoundError) else "The image cannot be read."
        raise DataError([make(field="file", value=str(error.strerror), message=problem)]) from error
    if not data:
        raise DataError([make(field="file", value="0 bytes", message="The image is empty.")])

    def demand(size_hw: tuple[int, int]) -> None:
        _demand_size(size_hw, expected_size_hw, data, make)
        _demand_few_pixels(size_hw, max_pixels, make)

    picture = _decode_jpeg(data, demand, channels) if data.startswith(b"\xff\xd8") else None
    if picture is not None:
        return picture
    rgb = _decode_with_pillow(data, demand, make)
    return rgb if channels == "RGB" else np.ascontiguousarray(rgb[:, :, ::-1])


def check_images(
    index: CocoIndex,
    positions: Sequence[int],
    *,
    max_pixels: int,
    limit_seconds: int | float = math.inf,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[tuple[int, Problem]], int]:
    """Return the problems of these images, each decoded, with their positions; and how many the time did not reach.

    `progress` is told how many are done, and of how many.
    """
    deadline = time.monotonic() + limit_seconds

    def problem_of(position: int) -> Problem | None | bool:
        if time.monotonic() >= deadline:
            return False
        size_hw = (int(index.sizes_hw[position, 0]), int(index.sizes_hw[position, 1]))
        image_id = index.shown_id(position)
        path = index.image_path(position)
        try:
            decode_image(path, image_id=image_id, expected_size_hw=size_hw, max_pixels=max_pixels)
        except DataError as error:
            return error.problems[0]
        return None

    problems, num_skipped = [], 0
    with ThreadPoolExecutor(_num_threads(index, positions)) as pool:
        for done, (position, found) in enumerate(zip(positions, pool.map(problem_of, positions), strict=True), start=1):
            if found is False:
                num_skipped += 1
            elif found is not None:
                problems.append((position, found))
            if progress is not None:
                progress(done, len(positions))
    return problems, num_skipped


def _num_threads(index: CocoIndex, positions: Sequence[int]) -> int:
    """Return fewer threads for very large images, so that their pixels have room beside each other."""
    largest = index.sizes_hw[list(positions)].astype(np.int64).prod(axis=1).max(initial=1)
    return int(np.clip(MOST_PIXELS_AT_ONCE // largest, 1, CHECK_THREADS))


def _decode_jpeg(data: bytes, demand: Demand, channels: str) -> np.ndarray | None:
    """Return the same pixels as Pillow, sooner; None for what simplejpeg refuses, so that Pillow decides."""
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # Trap: a rare chroma subsampling is a KeyError
        return None
    if color_space in ("CMYK", "YCCK"):
        return None
    demand((height, width))
    try:
        return simplejpeg.decode_jpeg(data, colorspace=channels, fastdct=False, fastupsample=False)
    except ValueError:
        return None


def _decode_with_pillow(data: bytes, demand: Demand, make: partial) -> np.ndarray:
    start = data[:12].hex(" ")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's plug-ins raise errors of many kinds on broken bytes
        problem = f"The file is not an image of a known format ({', '.join(FORMATS)}), or its head is broken."
        raise DataError([make(field="file", value=f"starts with {start}", message=problem)]) from error
    demand((image.height, image.width))
    if is_deeper_than_8_bits(image):
        problem = "The image has more than 8 bits per channel; its bright parts would all become white."
        fix = "Save it with 8 bits per channel."
        raise DataError([make(field="mode", value=f"{image.format} {image.mode}", message=problem, fix=fix)])
    try:
        image.load()
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # as above
        problem = "The image is cut short or broken."
        raise DataError([make(field="pixels", value=f"{len(data)} bytes, {error}", message=problem)]) from error


def is_deeper_than_8_bits(image: Image.Image) -> bool:
    """Return whether an opened image has samples that do not fit a byte."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return True
    layout = image.tile[0][3] if image.tile else ""  # how the samples lie in the file, for example "RGB;16B"
    return image.format in ("PNG", "TIFF") and any(mark in str(layout) for mark in (";16B", ";16L", ";16N"))


def _demand_size(size_hw: tuple[int, int], expected_size_hw: tuple[int, int], data: bytes, make: partial) -> None:
    """Raise DataError when the picture is not of the size the JSON gives; done before its pixels are decoded."""
    if size_hw == expected_size_hw:
        return
    value = f"{size_hw[0]} x {size_hw[1]} in the file, {expected_size_hw[0]} x {expected_size_hw[1]} in the JSON"
    problem = "The image's height x width is not the JSON's."
    fix = "Write the size of the file into the JSON, with the annotations to match."
    if size_hw == expected_size_hw[::-1]:
        orientation = _exif_orientation(data)
        if orientation in TURNED_ORIENTATIONS:
            value += f", EXIF orientation {orientation}"
            problem = "The sides are swapped: the file's EXIF rotation is ignored here, as in the benchmark."
            fix = "Save the image already rotated and without the EXIF mark, or annotate it as it is stored."
        else:
            problem = "Width and height are swapped in the JSON."
            fix = "Exchange the two in the image's entry of `images`."
    raise DataError([make(field="height, width", value=value, message=problem, fix=fix)])


def _exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation that is ignored; 1 where there is none, and for a TIFF, which Pillow turns."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        return 1 if image.format == "TIFF" else int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above; the size was read by another decoder, or the mark itself is broken
        return 1


def _demand_few_pixels(size_hw: tuple[int, int], max_pixels: int, make: partial) -> None:
    """Raise DataError when the picture is larger than allowed; done before its pixels are decoded."""
    pixels = size_hw[0] * size_hw[1]
    if pixels > max_pixels:
        value = f"{size_hw[0]} x {size_hw[1]}, {pixels:,} pixels"
        problem = f"The image is very large: the limit is {max_pixels:,} pixels."
        fix = (
            f"Set data.max_image_pixels={pixels} or more (each such image takes up to "
            f"{pixels * DECODING_BYTES_PER_PIXEL / 1e9:.1f} GB of memory while it is decoded), or cut it into tiles."
        )
        raise DataError([make(field="height, width", value=value, message=problem, fix=fix)])
