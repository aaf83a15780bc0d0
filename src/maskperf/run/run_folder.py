"""The folder that holds everything a run leaves behind."""

import os
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

from maskperf.errors import StorageError

_current_folders: list[Path] = []  # the last one is that of the run now going on in this process


def create_run_folder(run_dir: str, recipe: str, suffix: str = "") -> Path:
    """Return a new, empty folder: `run_dir`, or runs/<recipe>-<date>-<time><suffix> where that is empty text.

    A default name that is taken gets a number. The folder becomes that of `current_run_folder`.

    Errors: StorageError where `run_dir` is a file or holds anything, and where no folder can be made.
    """
    folder = Path(run_dir or f"runs/{recipe}-{time.strftime('%Y%m%d-%H%M%S')}{suffix}")
    try:
        if run_dir:
            _claim_given_folder(folder)
        else:
            folder = _claim_default_folder(folder)
    except OSError as error:
        reason = error.strerror or error
        fix = "Fix: choose another folder with run_dir=..."
        raise StorageError(f"{folder}: the folder cannot be made ({reason}). {fix}") from error
    _current_folders.append(folder.absolute())
    return folder


def current_run_folder() -> Path | None:
    """Return the folder that `create_run_folder` made last in this process, None before there is one."""
    return _current_folders[-1] if _current_folders else None


def forget_run_folder() -> None:
    """Forget the folder of an earlier command of this process."""
    _current_folders.clear()


def _claim_given_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = next(folder.iterdir(), None) is None
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(f"run_dir={folder}: a file is in the way. Fix: choose another run_dir") from error
    if not is_empty:
        raise StorageError(
            f"run_dir={folder}: the folder is not empty, and a run never writes over another. "
            "Fix: choose another run_dir, or move the folder away"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"run_dir={folder}: no permission to write there. Fix: choose another run_dir")


def _claim_default_folder(base: Path) -> Path:
    base.parent.mkdir(parents=True, exist_ok=True)
    folder = base
    for number in count(2):
        with suppress(FileExistsError):
            folder.mkdir()
            break
        folder = base.with_name(f"{base.name}-{number}")
    return folder
