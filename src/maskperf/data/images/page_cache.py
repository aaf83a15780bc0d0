"""The operating system's memory of files, which the benchmark wants empty when a run starts."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def forget_files(paths: Iterable[Path]) -> bool:
    """Return whether the system was asked to drop these files, and all files in these folders, from its cache.

    Needs no rights; reads nothing. False where the system has no such call. Missing files are passed over.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    os.sync()  # only pages that are on the disk can be dropped
    for path in paths:
        if path.is_dir():
            for file in _files_under(path):
                _forget(file)
        elif path.is_file():
            _forget(path)
    return True


def forget_all_files(switch: Path = DROP_CACHES) -> bool:
    """Return whether the system dropped all files from its cache, which only root may ask for."""
    try:
        os.sync()
        switch.write_text("3\n")
    except OSError:
        return False
    return True


def _files_under(folder: str | Path) -> Iterator[str]:
    # the folder's own list tells files from folders; asking for each of 118,287 pictures takes seconds
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_under(entry.path)
            elif entry.is_file():
                yield entry.path


def _forget(file: str | Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
