"""Short measurements of the disk and of the preparation of images."""

import io
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from maskperf.machine.facts import DiskSpeed

FILE_MIB = 256
BLOCK_BYTES = 2**20
IMAGE_BYTES = 150_000  # about the mean size of a file of train2017
WRITE_SECONDS = 4.0
READ_SECONDS = 2.0
ROOM_FACTOR = 4  # so much more than the file must be free


def measure_disk(folder: Path, threads: int) -> DiskSpeed:
    """Measure the disk below `folder` with a file of up to 256 MiB.

    What was written leaves the page cache before it is read. The file has no name, so nothing is left behind, even
    where this process is killed.

    Errors: OSError where the folder cannot be written or is too full.
    """
    if os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize < ROOM_FACTOR * FILE_MIB * BLOCK_BYTES:
        raise OSError(f"less than {ROOM_FACTOR * FILE_MIB // 1024} GiB free")
    with tempfile.TemporaryFile(dir=folder) as file:
        descriptor = file.fileno()
        size, write_seconds = _write(descriptor)
        _forget(descriptor)
        read, read_seconds = _read_through(descriptor, size)
        _forget(descriptor)
        images, image_seconds = _read_images(descriptor, size, threads)
    return DiskSpeed(
        place=str(folder),
        write_mib_per_second=size / 2**20 / write_seconds,
        read_mib_per_second=read / 2**20 / read_seconds,
        pictures_per_second=images / image_seconds,
        threads=threads,
    )


def measure_rate(work: Callable[[], object], seconds: float) -> float:
    """Return the calls of `work` per second in one thread: the best of three parts of the time, after one trial."""
    work()
    best = 0.0
    for _ in range(3):
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds / 3:
            work()
            count += 1
        best = max(best, count / spent)
    return best


def make_jpeg(
    random: np.random.Generator, size_hw: tuple[int, int], rough_hw: tuple[int, int] = (60, 80), noise: float = 9.0
) -> bytes:
    """Return a synthetic JPEG file about as large as COCO's: rough shapes, enlarged from a small image, and noise."""
    rough = Image.fromarray(random.integers(0, 256, (*rough_hw, 3), np.uint8))
    smooth = np.asarray(rough.resize(size_hw[::-1], Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + random.normal(0, noise, smooth.shape)
    data = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def _write(descriptor: int) -> tuple[int, float]:
    """Return the bytes that reached the disk and the seconds this took; stops early on a slow disk."""
    block = os.urandom(BLOCK_BYTES)  # some disks compress what repeats
    size, start = 0, time.perf_counter()
    while size < FILE_MIB * BLOCK_BYTES and time.perf_counter() - start < WRITE_SECONDS:
        mixed = size.to_bytes(8, "little") + block[8:]
        size += os.write(descriptor, mixed)
        if size % (32 * BLOCK_BYTES) == 0:
            os.fsync(descriptor)
    os.fsync(descriptor)
    return size, time.perf_counter() - start


def _forget(descriptor: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_through(descriptor: int, size: int) -> tuple[int, float]:
    read, start = 0, time.perf_counter()
    while read < size and time.perf_counter() - start < READ_SECONDS:
        read += len(os.pread(descriptor, BLOCK_BYTES, read))
    return read, time.perf_counter() - start


def _read_images(descriptor: int, size: int, threads: int) -> tuple[int, float]:
    """Return how many pieces of the size of an image were read in random order, each once, and the seconds."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
    offsets = (np.random.default_rng(0).permutation(size // IMAGE_BYTES) * IMAGE_BYTES).tolist()
    start = time.perf_counter()

    def read(offset: int) -> bool:
        if time.perf_counter() - start > READ_SECONDS:
            return False
        return len(os.pread(descriptor, IMAGE_BYTES, offset)) == IMAGE_BYTES

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(read, offsets))
    return done, time.perf_counter() - start
