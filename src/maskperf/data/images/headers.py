"""Check of the first and last bytes of every image before a run; good files are remembered."""

import os
import stat
import struct
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from maskperf.data.coco.index import CocoIndex
from maskperf.data.coco.table import REST_NS, Table, load_table, save_table, table_paths
from maskperf.data.images.decode import CHECK_THREADS, FORMATS, check_images, exif_orientation, is_deeper_than_8_bits
from maskperf.errors import Problem

KIND = "images"
MIN_REMEMBERED_SET = 2_000  # images; fewer are checked again in a moment
CHUNK_IMAGES = 128
HEAD_BYTES = 8_192
TAIL_BYTES = 64  # some cameras and editors write a few bytes behind the end marker

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
JPEG_FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)  # the kinds that all decoders know
JPEG_SEGMENTS = (0xFFC4, 0xFFCC, 0xFFDB, 0xFFDD, 0xFFFE, *range(0xFFE0, 0xFFF0))  # may come before the frame
JPEG_EXIF = 0xFFE1
PNG_END = b"IEND\xaeB`\x82"
TIFF_OFFSETS_AND_COUNTS = ((273, 279), (324, 325))  # of strips; of tiles
RAW_BITS = {"1;I": 1, "L": 8, "RGB": 24}  # of a pixel of a PPM, PGM or PBM
UNKNOWN_END = float("inf")


class _Known(NamedTuple):
    """What is remembered of a good file."""

    file_bytes: int
    modified_ns: int
    height: int
    width: int
    orientation: int
    is_decoded: bool  # all of it, not only its head and end


def check_headers(
    index: CocoIndex,
    *,
    max_pixels: int,
    skip: Collection[int] = (),
    decode: bool = False,
    afresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[tuple[int, Problem]], tuple[str, ...]]:
    """Return (position, problem) of every bad image, those at the positions `skip` excepted, and notices.

    A file whose head and end do not prove it good is decoded, so the rules are those of `decode_image`. Good files of
    a large set are remembered beside the JSON by size and modification time. `decode` decodes all images and calls
    `progress(done, total)`; `afresh` ignores what is remembered.
    """
    skipped = set(skip)
    positions = [position for position in range(len(index.image_ids)) if position not in skipped]
    is_remembered_set = len(index.image_ids) >= MIN_REMEMBERED_SET
    known, notices = _load_known(index) if is_remembered_set and not afresh else ({}, [])
    settled_ns = time.time_ns() - REST_NS
    found = _look_at_all(index, positions, known, max_pixels)
    unsure = [
        position
        for position, (is_sure, state) in found.items()
        if not is_sure or state is None or (decode and not state.is_decoded)
    ]
    problems, _ = check_images(index, unsure, max_pixels=max_pixels, progress=progress)
    bad = {position for position, _ in problems}
    good = {position: state for position, (_, state) in found.items() if position not in bad and state is not None}
    turned = [position for position, state in good.items() if state.orientation != 1]
    if turned:
        what = f"{len(turned)} images have an EXIF orientation other than 1: ignored, as in the benchmark"
        notices.append(f"{what} ({index.first_ids(turned)})")
    if is_remembered_set:
        decoded = set(unsure)
        entries = {
            index.file_names[position]: state._replace(is_decoded=state.is_decoded or position in decoded)
            for position, state in good.items()
            if state.modified_ns < settled_ns  # a file changed just now may change again without a new time
        }
        if any(known.get(name) != entry for name, entry in entries.items()):
            notices += _remember(index, entries)
    return problems, tuple(notices)


def look_at(path: str, *, expected_size_hw: tuple[int, int], max_pixels: int) -> tuple[bool, int]:
    """Return whether an image file is surely good, and its EXIF orientation; reads a few kilobytes."""
    if expected_size_hw[0] * expected_size_hw[1] > max_pixels:
        return False, 1
    try:
        with open(path, "rb", buffering=HEAD_BYTES) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            tail = os.pread(file.fileno(), TAIL_BYTES, max(file_bytes - TAIL_BYTES, 0))
            if file.read(len(JPEG_START)) == JPEG_START:
                size_hw, orientation = _jpeg_head(file)
                is_complete = JPEG_END in tail
            else:
                size_hw, orientation, is_complete = _other_head(file, file_bytes, tail)
    except Exception:  # Pillow's plug-ins raise errors of many kinds on broken bytes; the file may be gone, or a folder
        return False, 1
    return is_complete and size_hw == expected_size_hw, orientation


def _look_at_all(
    index: CocoIndex, positions: Sequence[int], known: dict[str, _Known], max_pixels: int
) -> dict[int, tuple[bool, _Known | None]]:
    """Return by position whether the file is surely good, and what to remember of it then; None without a file."""
    folder, sizes = str(index.image_folder), index.sizes_hw.tolist()

    def look(position: int) -> tuple[bool, _Known | None]:
        name, (height, width) = index.file_names[position], sizes[position]
        path = f"{folder}/{name}"
        try:
            state = os.stat(path)
        except (OSError, ValueError):
            return False, None
        if not stat.S_ISREG(state.st_mode):
            return False, None
        before, now = known.get(name), (state.st_size, state.st_mtime_ns, height, width)
        if before is not None and before[:4] == now and height * width <= max_pixels:
            return True, before
        is_sure, orientation = look_at(path, expected_size_hw=(height, width), max_pixels=max_pixels)
        return is_sure, _Known(*now, orientation, is_decoded=False)

    chunks = [positions[start : start + CHUNK_IMAGES] for start in range(0, len(positions), CHUNK_IMAGES)]
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        looks = pool.map(lambda chunk: [look(position) for position in chunk], chunks)
        return dict(zip(positions, chain.from_iterable(looks), strict=True))


def _jpeg_head(file: BinaryIO) -> tuple[tuple[int, int] | None, int]:
    """Return height and width, None for what is unusual, and the EXIF orientation."""
    position, orientation = len(JPEG_START), 1
    while True:
        file.seek(position)
        marker, length = struct.unpack(">HH", file.read(4))
        if marker in JPEG_FRAMES:
            precision, height, width = struct.unpack(">BHH", file.read(5))
            return ((height, width) if precision == 8 else None), orientation
        if marker not in JPEG_SEGMENTS:
            return None, orientation
        if marker == JPEG_EXIF:
            orientation = max(orientation, exif_orientation(file.read(max(length - 2, 0))))
        position += 2 + length


def _other_head(file: BinaryIO, file_bytes: int, tail: bytes) -> tuple[tuple[int, int] | None, int, bool]:
    """Return height and width, None for deep samples, the EXIF orientation, and whether the end is surely there."""
    with Image.open(file, formats=FORMATS) as image:
        size_hw = None if is_deeper_than_8_bits(image) else (image.height, image.width)
        orientation = exif_orientation(image.info.get("exif", b""))
        if image.format == "PNG":
            is_complete = PNG_END in tail
        elif image.format == "GIF":
            is_complete = tail.rstrip(b"\0").endswith(b";")
        elif image.format == "WEBP":
            is_complete = int.from_bytes(os.pread(file.fileno(), 4, 4), "little") + 8 <= file_bytes
        else:
            is_complete = _end_of_pixels(image) <= file_bytes
    return size_hw, orientation, is_complete


def _end_of_pixels(image: ImageFile) -> int | float:
    """Return the end of the pixels in a TIFF, BMP or PPM, in bytes; infinity where it is unknown."""
    if isinstance(image, TiffImageFile):
        for offsets_tag, counts_tag in TIFF_OFFSETS_AND_COUNTS:
            offsets, counts = image.tag_v2.get(offsets_tag), image.tag_v2.get(counts_tag)
            if offsets and counts and len(offsets) == len(counts):
                return max(map(sum, zip(offsets, counts, strict=True)))
        return UNKNOWN_END
    if len(image.tile) != 1 or image.tile[0][0] != "raw":
        return UNKNOWN_END
    offset, layout = image.tile[0][2:]
    if isinstance(layout, tuple):  # BMP: also the bytes of a row, and the direction of the rows
        return offset + layout[1] * image.height
    return offset + -(-image.width * RAW_BITS[layout] // 8) * image.height if layout in RAW_BITS else UNKNOWN_END


def _load_known(index: CocoIndex) -> tuple[dict[str, _Known], list[str]]:
    """Return what is remembered of good files, by name, and notices."""
    table = load_table(index.json_path, KIND, of_any_json=True)
    if table is not None:
        try:
            states = [_Known(*state) for state in table.arrays["states"].tolist()]
            return dict(zip(table.texts["file_names"], states, strict=True)), []
        except (KeyError, TypeError, ValueError):
            pass
    damaged = [path for path in table_paths(index.json_path, KIND) if path.exists()]
    if not damaged:
        return {}, []
    return {}, [f"{damaged[0]}: damaged, or of another version; the headers of all images are read anew"]


def _remember(index: CocoIndex, entries: dict[str, _Known]) -> list[str]:
    """Write what is known of good files beside the JSON; return notices."""
    states = np.array(list(entries.values()), np.int64).reshape(-1, len(_Known._fields))
    table = Table({"states": states}, {"file_names": tuple(entries)})
    reason = save_table(index.json_path, KIND, table)
    return [f"which images are good could not be saved; the next start reads them again ({reason})"] if reason else []
