"""The folder that holds everything a run leaves behind."""

import os
import time
from pathlib import Path

from maskperf.errors import StorageError

_current_folders: list[Path] = []  # the last one is that of the run now going on in this process


def create_run_folder(run_dir: str, recipe: str) -> Path:
    """Return a new, empty folder: `run_dir`, or runs/<recipe>-<date>-<time> where that is empty text.

    A default name that is taken gets a number. The folder becomes that of `current_run_folder`.

    Errors: StorageError where `run_dir` is a file or holds anything, and where no folder can be made.
    """
    folder = _claim_given_folder(Path(run_dir)) if run_dir else _claim_default_folder(recipe)
    _current_folders.append(folder.absolute())
    return folder


def current_run_folder() -> Path | None:
    """Return the folder that `create_run_folder` made last in this process, None before there is one."""
    return _current_folders[-1] if _current_folders else None


def forget_run_folder() -> None:
    """Forget the folder of an earlier command of this process."""
    _current_folders.clear()


def _claim_given_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = next(folder.iterdir(), None) is None
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(f"run_dir={folder}: a file is in the way. Fix: choose another run_dir") from error
    except OSError as error:
        raise _cannot_make(folder, error) from error
    if not is_empty:
        raise StorageError(
            f"run_dir={folder}: the folder is not empty, and a run never writes over another. "
            "Fix: choose another run_dir, or move the folder away"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"run_dir={folder}: no permission to write there. Fix: choose another run_dir")
    return folder


def _claim_default_folder(recipe: str) -> Path:
    base = Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while True:
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except FileExistsError as error:
            if not folder.parent.is_dir():
                raise _cannot_make(folder, error) from error
            number += 1
        except OSError as error:
            raise _cannot_make(folder, error) from error


def _cannot_make(folder: Path, error: OSError) -> StorageError:
    text = (
        f"{folder}: the folder cannot be made ({error.strerror or error}). Fix: choose another place with run_dir=..."
    )
    return StorageError(text)
