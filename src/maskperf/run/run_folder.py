"""The folder that holds everything a run leaves behind."""

import fcntl
import os
import shutil
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

from maskperf.errors import StorageError

_made_folders: list[Path] = []  # those that this process made, the innermost last
_current_folders: list[Path] = []  # the last one is that of the run now going on in this process


def create_run_folder(run_dir: str, recipe: str, suffix: str = "") -> Path:
    """Return a new, empty folder: `run_dir`, or runs/<recipe>-<date>-<time><suffix> where that is empty text.

    A default name that is taken gets a number. The folder becomes that of `current_run_folder`.

    Errors: as `require_run_folder`.
    """
    require_run_folder(run_dir)
    folder = Path(run_dir or f"runs/{recipe}-{time.strftime('%Y%m%d-%H%M%S')}{suffix}")
    made = [path for path in reversed((folder, *folder.parents)) if not path.exists()]
    try:
        if run_dir:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _claim_default_folder(folder)
    except OSError as error:
        reason = error.strerror or error
        fix = "Fix: choose another folder with run_dir=..."
        raise StorageError(f"{folder}: the folder cannot be made ({reason}). {fix}") from error
    _made_folders[:] = [*made[:-1], folder] if made else []
    _current_folders.append(folder.absolute())
    return folder


def discard_run_folder(folder: Path) -> None:
    """Remove what `create_run_folder` made last: the folder with its files, and its parents that hold nothing else.

    A folder that was there before is emptied; it was empty. Where something cannot be removed, it stays.
    """
    was_there = folder not in _made_folders
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        if was_there:
            folder.mkdir()
        for parent in reversed(_made_folders[:-1]):
            parent.rmdir()
    _made_folders.clear()
    forget_run_folder()


def claim_run_folder(folder: Path) -> int:
    """Return a descriptor that keeps others from going on with this run until it is closed.

    The folder becomes that of `current_run_folder`. On a file system without locks nobody is kept off.
    Errors: StorageError where another process is at this run.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    _current_folders.append(folder.absolute())
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        fix = "wait for its end, end it, or name another run: resume=FOLDER"
        raise StorageError(f"{folder}: another process is at this run. Fix: {fix}") from error
    except OSError:
        pass
    return descriptor


def require_run_folder(run_dir: str) -> None:
    """Raise a StorageError where the folder is a file, holds anything or cannot be made; empty text: one in runs."""
    folder = Path(run_dir or "runs")
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        problem, fix = "", "choose another run_dir"
        if not nearest.is_dir():
            problem = "a file is in the way"
        elif run_dir and nearest == folder and any(folder.iterdir()):
            problem = "the folder is not empty, and a run never writes over another"
            fix += ", or move the folder away"
        elif not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
            problem = "no permission to write there"
    except OSError as error:
        problem = f"the folder cannot be made ({error.strerror or error})"
    if problem:
        raise StorageError(f"run_dir={folder}: {problem}. Fix: {fix}")


def current_run_folder() -> Path | None:
    """Return the folder that `create_run_folder` made last in this process, None before there is one."""
    return _current_folders[-1] if _current_folders else None


def forget_run_folder() -> None:
    """Forget the folder of an earlier command of this process."""
    _current_folders.clear()


def _claim_default_folder(base: Path) -> Path:
    base.parent.mkdir(parents=True, exist_ok=True)
    folder = base
    for number in count(2):
        with suppress(FileExistsError):
            folder.mkdir()
            break
        folder = base.with_name(f"{base.name}-{number}")
    return folder
