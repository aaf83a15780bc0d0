"""Permissions as other users meet them, for tests that may run as root, whom nothing is forbidden."""

import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534
UMASKS = (0o022, 0o002, 0o077, 0o027)


@contextmanager
def umask(mask: int):
    """Inside, new files lack the permissions of `mask`."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Return the permissions of all files below a folder, as octal text, by name."""
    return {path.name: f"{stat.S_IMODE(path.stat().st_mode):o}" for path in folder.rglob("*") if path.is_file()}


@contextmanager
def open_folder():
    """Inside, there is a folder that every user may look into; those of pytest are for one alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@contextmanager
def common_user():
    """Inside, this process has no more rights than anybody; it is somebody else where it was root."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
