"""The operating system's page cache, which the benchmark wants empty when a run starts."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def forget_files(paths: Iterable[Path]) -> bool:
    """Ask the system to drop these files, and all files in these folders, from its cache; False without such a call.

    Needs no rights; reads nothing. Missing files are passed over.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    os.sync()  # only pages that are on the disk can be dropped
    for path in filter(Path.exists, paths):
        for file in _files_under(path) if path.is_dir() else [path]:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    return True


def forget_all_files(switch: Path = DROP_CACHES) -> bool:
    """Drop all files from the system's cache; False where this is not root."""
    try:
        os.sync()
        switch.write_text("3\n")
    except OSError:
        return False
    return True


def _files_under(folder: str | Path) -> Iterator[str]:
    # scandir knows files from folders; asking for each of 118,287 images takes seconds
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_under(entry.path)
            elif entry.is_file():
                yield entry.path
