"""Writing files whole, their digests, and text that is safe to show."""

import difflib
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from maskperf.errors import StorageError

LINE_BREAKS = re.compile("[\t\n\x0b\x0c\r\x85\u2028\u2029]+")
# Control characters, unpaired surrogates (from file names that are not UTF-8), marks that change the direction of
# writing (a name could pose as another one), and two noncharacters.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
REPLACEMENT_CHARACTER = "\ufffd"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it: readers see the old file or the new one.

    The permissions are those that the umask leaves, whatever `write` does.

    Errors: StorageError where the file cannot be written; an existing file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # the name must never point to data that a power cut can lose
        temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{path}: cannot be written ({reason}). Fix: free some space there, or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is only ever replaced as a whole a second name, or a copy where there are no links."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8; otherwise as `replace_file`."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def pretty_json(value: Any) -> str:
    """Return `value` as indented JSON that ends with a line break; numbers that are not finite become null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(text: str) -> str:
    """Return the text on one line, with U+FFFD for each character that cannot be shown or that could deceive."""
    if text.isascii() and text.isprintable():
        return text
    return UNPRINTABLE.sub(REPLACEMENT_CHARACTER, LINE_BREAKS.sub(" ", text))


def did_you_mean(name: str, valid: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return "; did you mean NAME?" with the valid name nearest to `name`, or empty text where none is near."""
    nearest = difflib.get_close_matches(name, list(valid), n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def suggestion(name: str, names: Collection[str]) -> str:
    """Return the end of an error message: the one of `names` nearest to `name`, or all of them."""
    return did_you_mean(name, names) or f"; choose from {', '.join(names)}"
