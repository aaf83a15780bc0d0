"""Image files as RGB arrays, and a message that names the file when one cannot be used."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from maskperf.data.coco import CocoIndex
from maskperf.errors import DataError, Fault

# Trap: without this list Pillow also tries formats that start other programs (EPS) or take scripts.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
CHECK_THREADS = 8
MEND_FILE = "Fetch or export the image again, or remove it from the JSON."


def decode_image(
    path: Path, *, image_id: int, expected_size_hw: tuple[int, int], channels: str = "RGB"
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the picture; gray is repeated, transparency dropped, EXIF rotation ignored as in the benchmark.

    `channels` is their order: "RGB" or "BGR".

    Errors: DataError with one fault for a file that is missing, no image, cut short, of 16 bits, or of another size
    than `expected_size_hw`.
    """
    make = partial(Fault, file=str(path), where=f"image id {image_id}", mend=MEND_FILE)
    try:
        data = path.read_bytes()
    except OSError as error:
        problem = "The image does not exist." if isinstance(error, FileNotFoundError) else "The image cannot be read."
        raise DataError([make(field="file", value=str(error.strerror), problem=problem)]) from error
    if not data:
        raise DataError([make(field="file", value="0 bytes", problem="The image is empty.")])
    picture = _decode_jpeg(data, make, expected_size_hw, channels) if data.startswith(b"\xff\xd8") else None
    if picture is not None:
        return picture
    rgb = _decode_with_pillow(data, make, expected_size_hw)
    return rgb if channels == "RGB" else np.ascontiguousarray(rgb[:, :, ::-1])


def check_images(index: CocoIndex, limit_seconds: int | float) -> list[Fault]:
    """Returns the faults of all images; if time ran out, the first of them says how many were not looked at."""
    deadline = time.monotonic() + limit_seconds

    def faults_of(position: int) -> list[Fault] | None:
        if time.monotonic() >= deadline:
            return None
        size_hw = (int(index.sizes_hw[position, 0]), int(index.sizes_hw[position, 1]))
        image_id = int(index.image_ids[position])
        try:
            decode_image(index.image_path(position), image_id=image_id, expected_size_hw=size_hw)
        except DataError as error:
            return error.faults
        return []

    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        results = list(pool.map(faults_of, range(len(index.image_ids))))
    faults = [fault for result in results for fault in result or ()]
    if None in results:
        value = f"{results.count(None)} of {len(results)}"
        problem = f"The check of all images stopped after {limit_seconds:g} s; so many were not looked at."
        mend = "Mend the faults listed, then run again: the others may have faults too."
        folder = str(index.image_folder)
        skipped = Fault(file=folder, where="all images", field="file", value=value, problem=problem, mend=mend)
        faults.insert(0, skipped)
    return faults


def _decode_jpeg(data: bytes, make: partial, expected_size_hw: tuple[int, int], channels: str) -> np.ndarray | None:
    """Returns the same pixels as Pillow, sooner; None for what simplejpeg refuses, so that Pillow decides."""
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # Trap: a rare chroma subsampling is a KeyError
        return None
    if color_space in ("CMYK", "YCCK"):
        return None
    _demand_size((height, width), make, expected_size_hw)
    try:
        return simplejpeg.decode_jpeg(data, colorspace=channels, fastdct=False, fastupsample=False)
    except ValueError:
        return None


def _decode_with_pillow(data: bytes, make: partial, expected_size_hw: tuple[int, int]) -> np.ndarray:
    start = data[:12].hex(" ")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's plug-ins raise errors of many kinds on broken bytes
        problem = f"The file is not an image of a known format ({', '.join(FORMATS)}), or its head is broken."
        raise DataError([make(field="file", value=f"starts with {start}", problem=problem)]) from error
    _demand_size((image.height, image.width), make, expected_size_hw)
    if _is_deeper_than_8_bits(image):
        problem = "The image has more than 8 bits per channel; its bright parts would all become white."
        mend = "Save it with 8 bits per channel."
        raise DataError([make(field="mode", value=f"{image.format} {image.mode}", problem=problem, mend=mend)])
    try:
        return np.array(image.convert("RGB"))
    except Exception as error:  # as above
        problem = "The image is cut short or broken."
        raise DataError([make(field="pixels", value=f"{len(data)} bytes, {error}", problem=problem)]) from error


def _is_deeper_than_8_bits(image: Image.Image) -> bool:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return True
    layout = image.tile[0][3] if image.tile else ""  # how the samples lie in the file, for example "RGB;16B"
    return image.format in ("PNG", "TIFF") and any(mark in str(layout) for mark in (";16B", ";16L", ";16N"))


def _demand_size(size_hw: tuple[int, int], make: partial, expected_size_hw: tuple[int, int]) -> None:
    """Raises DataError when the picture is not of the size the JSON gives; done before its pixels are decoded."""
    if size_hw == expected_size_hw:
        return
    value = f"{size_hw[0]} x {size_hw[1]}"
    problem = f"The image's height x width is not the JSON's {expected_size_hw[0]} x {expected_size_hw[1]}."
    mend = "Write the size of the file into the JSON, with the annotations to match."
    if size_hw == expected_size_hw[::-1]:
        problem += " The sides are swapped: EXIF rotation, which is ignored here as in the benchmark, may be the cause."
        mend = "Save the image already rotated and without the EXIF mark."
    raise DataError([make(field="height, width", value=value, problem=problem, mend=mend)])
