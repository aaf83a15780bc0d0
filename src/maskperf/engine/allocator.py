"""The C library's memory allocator: does a process keep the memory that it has freed."""

import ctypes
import sys
from functools import cache

# Numbers of mallopt's options. Source: malloc.h of glibc.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER = -1  # as a size without sign: larger than any memory


@cache
def keep_freed_memory() -> bool:
    """Make this process keep freed memory for its next use; return False without glibc.

    By default glibc returns each large block to the system, and the next step gets it anew, in pages that the kernel
    has to clear one by one. Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return library.mallopt(M_MMAP_MAX, 0) == 1 and library.mallopt(M_TRIM_THRESHOLD, NEVER) == 1
