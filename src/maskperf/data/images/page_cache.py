"""The operating system's page cache, which the benchmark wants empty when a run starts."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def forget_files(paths: Iterable[Path]) -> bool:
    """Ask the system to drop these files, and all files in these folders, from its cache; False without such a call.

    Needs no rights; reads nothing. Missing files are passed over.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    os.sync()  # only pages that are on the disk can be dropped
    for path in paths:
        below = (f"{folder}/{name}" for folder, _, names in os.walk(path) for name in names)
        for file in [path] if path.is_file() else below:  # not asked for each whether it is a file: that takes seconds
            with suppress(OSError):
                descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
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
