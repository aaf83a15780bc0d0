"""A look at the first and last bytes of every image, before a run: fast where all is well, and remembered."""

import os
import stat
import struct
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import FileIO
from itertools import chain

import numpy as np
from PIL import Image

from maskperf.data.coco.index import CocoIndex
from maskperf.data.coco.table import NO_SOURCE, REST_NS, Table, load_table, save_table, table_paths
from maskperf.data.images.decode import CHECK_THREADS, FORMATS, check_images, is_deeper_than_8_bits
from maskperf.errors import Problem

KIND = "images"
SMALLEST_KEPT_SET = 2_000  # images; fewer are looked at anew in a moment
CHUNK_IMAGES = 128
HEAD_BYTES = 8_192
TAIL_BYTES = 64  # some cameras and editors write a few bytes behind the end mark
MOST_SEGMENTS = 1_000
EXIF_BYTES = 4_096  # the orientation is among the first entries

JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # the kinds that all decoders know
JPEG_SEGMENTS = (0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))  # may stand before the frame, and have a length
JPEG_END = b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PNG_END = b"IEND\xaeB`\x82"
ORIENTATION_TAG = 0x0112
TIFF_OFFSETS_AND_COUNTS = ((273, 279), (324, 325))  # of strips; of tiles
RAW_BITS = {"1;I": 1, "L": 8, "RGB": 24}  # of a pixel of a PPM, PGM or PBM


@dataclass(frozen=True)
class Look:
    """What a look at an image file found. Where it is not sure, only decoding the file can tell."""

    is_sure: bool  # a known format of 8 bits, the size and the limit of pixels kept, and the end is there
    orientation: int = 1  # of EXIF


@dataclass(frozen=True)
class _Known:
    """What is remembered of a file that was found good."""

    file_bytes: int
    modified_ns: int
    size_hw: tuple[int, int]
    orientation: int
    is_decoded: bool  # all of it, not only looked at


def check_headers(
    index: CocoIndex,
    *,
    max_pixels: int,
    skip: Collection[int] = (),
    decode: bool = False,
    afresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[tuple[int, Problem]], tuple[str, ...]]:
    """Return the problems of all images but those at the positions `skip`, with their positions; and notices.

    What the head and the end of a file cannot settle is settled by decoding it, so that the rules and the words are
    those of `decode_image`, and a file with something behind its end is no problem. Good files of a large set are
    remembered beside the JSON by size and time of change: a second look only asks the file system. With `decode` all
    images are decoded, and `progress` is told how many of how many; `afresh`: as if nothing were remembered.
    """
    skipped = set(skip)
    positions = [position for position in range(len(index.image_ids)) if position not in skipped]
    is_kept_set = len(index.image_ids) >= SMALLEST_KEPT_SET
    known, notices = _load_known(index) if is_kept_set and not afresh else ({}, [])
    settled_ns = time.time_ns() - REST_NS
    found = _look_at_all(index, positions, known, max_pixels)
    unsure = [
        position for position, (is_sure, state) in found.items() if not is_sure or (decode and not state.is_decoded)
    ]
    problems, _ = check_images(index, unsure, max_pixels=max_pixels, progress=progress)
    bad = {position for position, _ in problems}
    good = {position: state for position, (_, state) in found.items() if position not in bad and state is not None}
    turned = [position for position, state in good.items() if state.orientation != 1]
    if turned:
        what = f"{len(turned)} images have an EXIF orientation other than 1: ignored, as in the benchmark"
        notices.append(f"{what} ({index.first_ids(turned)})")
    if is_kept_set:
        decoded = set(unsure)
        entries = {
            index.file_names[position]: replace(state, is_decoded=True) if position in decoded else state
            for position, state in good.items()
            if state.modified_ns < settled_ns  # one changed a moment ago may be changed once more without a new time
        }
        if any(known.get(name) != entry for name, entry in entries.items()):
            notices += _keep(index, entries)
    return problems, tuple(notices)


def look_at(path: str, *, expected_size_hw: tuple[int, int], max_pixels: int) -> Look:
    """Return what the head and the end of an image file tell; reads a few kilobytes."""
    unsure = Look(is_sure=False)
    if expected_size_hw[0] * expected_size_hw[1] > max_pixels:
        return unsure
    try:
        with open(path, "rb", buffering=0) as file:
            descriptor = file.fileno()
            file_bytes = os.fstat(descriptor).st_size
            head = os.pread(descriptor, HEAD_BYTES, 0)
            tail = head[-TAIL_BYTES:]
            if file_bytes > len(head):
                tail = os.pread(descriptor, TAIL_BYTES, max(file_bytes - TAIL_BYTES, 0))
            if head.startswith(b"\xff\xd8"):
                size_hw, orientation = _jpeg_head(_reader(descriptor, head))
                is_whole = JPEG_END in tail
            elif head.startswith(PNG_START):
                size_hw, orientation = _png_head(head)
                is_whole = PNG_END in tail
            else:
                size_hw, orientation, is_whole = _other_head(file, file_bytes, head, tail)
    except Exception:  # Pillow's plug-ins raise errors of many kinds on broken bytes; the file may be gone, or a folder
        return unsure
    return Look(is_sure=is_whole and size_hw == expected_size_hw, orientation=orientation)


def _look_at_all(
    index: CocoIndex, positions: Sequence[int], known: dict[str, _Known], max_pixels: int
) -> dict[int, tuple[bool, _Known | None]]:
    """Return for each position whether the file is surely good, and what to remember of it then; None for no file."""
    folder, sizes = str(index.image_folder), index.sizes_hw.tolist()

    def see(position: int) -> tuple[bool, _Known | None]:
        name, (height, width) = index.file_names[position], sizes[position]
        path = f"{folder}/{name}"
        try:
            state = os.stat(path)
        except (OSError, ValueError):
            return False, None
        if not stat.S_ISREG(state.st_mode):
            return False, None
        before, now = known.get(name), (state.st_size, state.st_mtime_ns, (height, width))
        is_same = before is not None and (before.file_bytes, before.modified_ns, before.size_hw) == now
        if is_same and height * width <= max_pixels:
            return True, before
        look = look_at(path, expected_size_hw=(height, width), max_pixels=max_pixels)
        return look.is_sure, _Known(*now, look.orientation, is_decoded=False)

    chunks = [positions[start : start + CHUNK_IMAGES] for start in range(0, len(positions), CHUNK_IMAGES)]
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        seen = pool.map(lambda chunk: [see(position) for position in chunk], chunks)
        return dict(zip(positions, chain.from_iterable(seen), strict=True))


def _reader(descriptor: int, head: bytes) -> Callable[[int, int], bytes]:
    """Return a function for the bytes at a place, of that number if the file has them; most are read already."""

    def read(place: int, length: int) -> bytes:
        return head[place : place + length] if place + length <= len(head) else os.pread(descriptor, length, place)

    return read


def _jpeg_head(read: Callable[[int, int], bytes]) -> tuple[tuple[int, int] | None, int]:
    """Return height and width, None for what is unusual, and the EXIF orientation."""
    place, orientation = 2, 1
    for _ in range(MOST_SEGMENTS):
        segment = read(place, 10)
        if len(segment) < 10 or segment[0] != 0xFF:
            break
        code = segment[1]
        if code in JPEG_FRAMES:
            precision, height, width = struct.unpack_from(">BHH", segment, 4)
            return ((height, width) if precision == 8 else None), orientation
        if code == 0xFF:  # a byte that only fills
            place += 1
            continue
        if code not in JPEG_SEGMENTS:
            break
        length = int.from_bytes(segment[2:4])
        if code == 0xE1 and segment.endswith(b"Exif\0\0"):
            orientation = _orientation(read(place + 10, min(max(length - 8, 0), EXIF_BYTES)))
        place += 2 + length
    return None, orientation


def _png_head(head: bytes) -> tuple[tuple[int, int] | None, int]:
    """Return height and width, None for one of 16 bits, and the EXIF orientation."""
    width, height, depth = struct.unpack_from(">IIB", head, len(PNG_START))
    exif = head.find(b"eXIf")
    orientation = _orientation(head[exif + 4 : exif + 4 + EXIF_BYTES]) if exif > 0 else 1
    return ((height, width) if depth <= 8 else None), orientation


def _orientation(exif: bytes) -> int:
    """Return the orientation of EXIF bytes; 1 where they have none, or a broken one."""
    order = {b"II": "little", b"MM": "big"}.get(exif[:2])
    if order is None:
        return 1
    directory = int.from_bytes(exif[4:8], order)
    for number in range(int.from_bytes(exif[directory : directory + 2], order)):
        entry = exif[directory + 2 + 12 * number :][:12]
        if len(entry) < 12:
            break
        if int.from_bytes(entry[:2], order) == ORIENTATION_TAG:
            value = int.from_bytes(entry[8:10], order)
            return value if 1 <= value <= 8 else 1
    return 1


def _other_head(file: FileIO, file_bytes: int, head: bytes, tail: bytes) -> tuple[tuple[int, int] | None, int, bool]:
    """Return height and width, None for deep samples, the EXIF orientation, and whether the end is surely there."""
    with Image.open(file, formats=FORMATS) as image:
        size_hw = None if is_deeper_than_8_bits(image) else (image.height, image.width)
        orientation = 1  # Pillow turns a TIFF
        if image.format == "GIF":
            is_whole = tail.rstrip(b"\0").endswith(b";")
        elif image.format == "WEBP":
            is_whole = int.from_bytes(head[4:8], "little") + 8 <= file_bytes
            orientation = int(image.getexif().get(ORIENTATION_TAG, 1))
        elif image.format == "TIFF":
            is_whole = _tiff_end(image) <= file_bytes
        else:
            is_whole = _raw_end(image) <= file_bytes
    return size_hw, orientation, is_whole


def _tiff_end(image: Image.Image) -> int | float:
    """Return the place behind the last strip or tile of a TIFF; infinity where it does not tell."""
    for offsets_tag, counts_tag in TIFF_OFFSETS_AND_COUNTS:
        offsets, counts = image.tag_v2.get(offsets_tag), image.tag_v2.get(counts_tag)
        if offsets and counts and len(offsets) == len(counts):
            return max(offset + count for offset, count in zip(offsets, counts, strict=True))
    return float("inf")


def _raw_end(image: Image.Image) -> int | float:
    """Return the place behind the pixels of an image that is not compressed (BMP, PPM); infinity for others."""
    if len(image.tile) != 1 or image.tile[0][0] != "raw":
        return float("inf")
    offset, layout = image.tile[0][2:]
    if isinstance(layout, tuple):  # BMP: also the bytes of a row, and the direction of the rows
        return offset + layout[1] * image.height
    return offset + -(-image.width * RAW_BITS[layout] // 8) * image.height if layout in RAW_BITS else float("inf")


def _load_known(index: CocoIndex) -> tuple[dict[str, _Known], list[str]]:
    """Return what is remembered of good files, by name, and notices."""
    table = load_table(index.json_path, KIND, of_any_json=True)
    if table is not None:
        try:
            sizes_hw = [tuple(size_hw) for size_hw in table.arrays["sizes_hw"].tolist()]
            file_bytes, modified_ns, orientations, decoded = (
                table.arrays[name].tolist() for name in ("file_bytes", "modified_ns", "orientations", "decoded")
            )
            rows = zip(file_bytes, modified_ns, sizes_hw, orientations, decoded, strict=True)
            return dict(zip(table.texts["file_names"], (_Known(*row) for row in rows), strict=True)), []
        except (KeyError, TypeError, ValueError):
            pass
    places = [place for place in table_paths(index.json_path, KIND) if place.exists()]
    if not places:
        return {}, []
    return {}, [f"{places[0]}: damaged, or of another version; the headers of all images are read anew"]


def _keep(index: CocoIndex, entries: dict[str, _Known]) -> list[str]:
    """Return notices, after what is known of good files was written beside the JSON."""
    states = list(entries.values())
    arrays = {
        "file_bytes": np.array([state.file_bytes for state in states], np.int64),
        "modified_ns": np.array([state.modified_ns for state in states], np.int64),
        "sizes_hw": np.array([state.size_hw for state in states], np.int32).reshape(-1, 2),
        "orientations": np.array([state.orientation for state in states], np.uint8),
        "decoded": np.array([state.is_decoded for state in states], np.bool_),
    }
    table = Table(arrays, {"file_names": tuple(entries)})
    reason = save_table(index.json_path, KIND, table, source=NO_SOURCE, sha256="")
    return [f"which images are good could not be kept; the next start reads them again ({reason})"] if reason else []
