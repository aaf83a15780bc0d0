"""Check of the first and last bytes of every image before a run; good files are remembered."""

import os
import stat
import struct
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import BinaryIO, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from maskperf.config import DataConfig
from maskperf.data.coco.document import counted
from maskperf.data.coco.index import CocoIndex
from maskperf.data.coco.table import REST_NS, Table, load_table, save_table, table_paths
from maskperf.data.images.decode import (
    CHECK_THREADS,
    FORMATS,
    JPEG_START,
    check_images,
    exif_orientation,
    is_deeper_than_8_bits,
)
from maskperf.errors import Problem

KIND = "images"
MIN_REMEMBERED_SET = 2_000  # images; fewer are checked again in a moment
CHUNK_IMAGES = 128
HEAD_BYTES = 1 << 13
LONGER_HEAD_BYTES = (1 << 16, 1 << 20, 0)  # read of a JPEG in addition: profiles and thumbnails come before its frame
TAIL_BYTES = 64  # some cameras and editors write a few bytes behind the end marker
JPEG_END, PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"
JPEG_FRAMES = b"\xc0\xc1\xc2"  # the kinds that all decoders know
EXIF = b"Exif\0\0"
TIFF_OFFSETS_AND_COUNTS = ((273, 279), (324, 325))  # of strips; of tiles


class _Known(NamedTuple):
    """What is remembered of a good file."""

    file_bytes: int
    modified_ns: int
    height: int
    width: int
    orientation: int = 1
    is_decoded: bool = False  # all of it, not only its head and end


NO_FILE = _Known(0, 0, 0, 0)


def check_headers(
    index: CocoIndex,
    data: DataConfig,
    *,
    skip: Collection[int] = (),
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[tuple[int, Problem]], tuple[str, ...]]:
    """Return (position, problem) of every bad image, those at the positions `skip` excepted, and notices.

    A file whose head and end do not prove it good is decoded, so the rules are those of `decode_image`. Good files of
    a large set are remembered beside the JSON by size and modification time. With `data.skip_bad` each is decoded
    once; `decode` decodes all, whatever is remembered, and calls `progress(done, total)`.
    """
    max_pixels, decodes = data.max_image_pixels, decode or data.skip_bad
    is_remembered_set = len(index.image_ids) >= MIN_REMEMBERED_SET
    known, notices = _load_known(index) if is_remembered_set and not decode else ({}, [])
    settled_ns = time.time_ns() - REST_NS  # a file changed just now may change again without a new time
    positions = np.setdiff1d(np.arange(len(index.image_ids)), list(skip)).tolist()
    chunks = [positions[start : start + CHUNK_IMAGES] for start in range(0, len(positions), CHUNK_IMAGES)]
    look = partial(_look_at_position, index, known=known, max_pixels=max_pixels)
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        looks = pool.map(lambda chunk: [look(position) for position in chunk], chunks)
        found = dict(zip(positions, chain.from_iterable(looks), strict=True))
    unsure = [at for at, (is_sure, state) in found.items() if not is_sure or (decodes and not state.is_decoded)]
    problems, _ = check_images(index, unsure, max_pixels=max_pixels, progress=progress)
    good = {at: state for at, (_, state) in found.items()}
    good |= {at: good[at]._replace(is_decoded=True) for at in unsure}
    for position, _ in problems:
        del good[position]
    turned = [index.shown_id(position) for position, state in good.items() if state.orientation != 1]
    if turned:
        notices.append(counted("images have an EXIF orientation other than 1: ignored, as in the benchmark", turned))
    entries = {index.file_names[at]: state for at, state in good.items() if state.modified_ns < settled_ns}
    if is_remembered_set and any(known.get(name) != entry for name, entry in entries.items()):
        notices += _remember(index, entries)
    return problems, tuple(notices)


def _look_at_position(
    index: CocoIndex, position: int, *, known: dict[str, _Known], max_pixels: int
) -> tuple[bool, _Known]:
    """Return whether the file is surely good, and what to remember of it if it is."""
    name, (height, width) = index.file_names[position], index.sizes_hw[position].tolist()
    if height * width > max_pixels:
        return False, NO_FILE
    path = f"{index.image_folder}/{name}"
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return False, NO_FILE
    if not stat.S_ISREG(state.st_mode):
        return False, NO_FILE
    before, now = known.get(name), _Known(state.st_size, state.st_mtime_ns, height, width)
    if before is not None and before[:4] == now[:4]:
        return True, before
    is_sure, orientation = look_at(path, expected_size_hw=(height, width))
    return is_sure, now._replace(orientation=orientation)


def look_at(path: str, *, expected_size_hw: tuple[int, int]) -> tuple[bool, int]:
    """Return whether an image file is surely good, and its EXIF orientation; reads a few kilobytes."""
    try:
        with open(path, "rb", buffering=HEAD_BYTES) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            tail = os.pread(file.fileno(), TAIL_BYTES, max(num_bytes - TAIL_BYTES, 0))
            head = file.read(HEAD_BYTES)
            if head.startswith(JPEG_START):
                is_good, head = _jpeg_head(file, head, expected_size_hw)
                if EXIF not in head:
                    return is_good and JPEG_END in tail, 1
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                is_good = image.size == expected_size_hw[::-1] and not is_deeper_than_8_bits(image)
                return is_good and _is_complete(image, num_bytes, tail), exif_orientation(image)
    except Exception:  # Pillow's plug-ins raise errors of many kinds on broken bytes; the file may be gone, or a folder
        return False, 1


def _jpeg_head(file: BinaryIO, head: bytes, size_hw: tuple[int, int]) -> tuple[bool, bytes]:
    """Return whether a JPEG has this size and a frame that all decoders know, and the bytes before its frame."""
    for num_bytes in LONGER_HEAD_BYTES:
        try:
            found_hw = simplejpeg.decode_jpeg_header(head)[:2]
            at = head.find(struct.pack(">BHH", 8, *size_hw))  # bits, height, width; the kind of the frame is before
            return found_hw == size_hw and at > 2 and head[at - 3] in JPEG_FRAMES, head[:at]
        except ValueError:  # the frame comes later
            head += file.read(num_bytes)
    return False, head


def _is_complete(image: ImageFile, num_bytes: int, tail: bytes) -> bool:
    """Return whether the end of an opened image's file is surely there."""
    if isinstance(image, TiffImageFile):
        for offsets_tag, counts_tag in TIFF_OFFSETS_AND_COUNTS:
            offsets, counts = image.tag_v2.get(offsets_tag), image.tag_v2.get(counts_tag)
            if offsets and counts and len(offsets) == len(counts):
                return max(map(sum, zip(offsets, counts, strict=True))) <= num_bytes
    ends = {"JPEG": JPEG_END in tail, "PNG": PNG_END in tail, "GIF": tail.rstrip(b"\0").endswith(b";"), "WEBP": True}
    return ends.get(str(image.format), False)  # Pillow has read all of a WEBP


def _load_known(index: CocoIndex) -> tuple[dict[str, _Known], list[str]]:
    """Return what is remembered of good files, by name, and notices."""
    table = load_table(index.json_path, KIND, of_any_json=True)
    if table is not None and "states" in table.arrays:
        states = map(_Known._make, table.arrays["states"].tolist())
        return dict(zip(table.texts["file_names"], states, strict=True)), []
    damaged = [path for path in table_paths(index.json_path, KIND) if path.exists()]
    return {}, [
        f"{path}: damaged, or of another version; the headers of all images are read anew" for path in damaged[:1]
    ]


def _remember(index: CocoIndex, entries: dict[str, _Known]) -> list[str]:
    """Write what is known of good files beside the JSON; return notices."""
    states = np.array(list(entries.values()), np.int64).reshape(-1, len(_Known._fields))
    table = Table({"states": states}, {"file_names": tuple(entries)})
    reason = save_table(index.json_path, KIND, table)
    return [f"which images are good could not be saved; the next start reads them again ({reason})"] if reason else []
