"""What was read of an instances JSON, in one binary file that all processes map into their memory.

A table is never believed without proof. It belongs to the JSON if that still has the same size, times and inode, and
had rested for some seconds when it was read, so that no later change can have left them as they were; or else if its
SHA-256 is the same. The table itself carries a checksum.
"""

import hashlib
import math
import mmap
import os
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import msgspec
import numpy as np

from maskperf.errors import StorageError
from maskperf.files import replace_file, sha256_of_file

MAGIC = b"maskperf table 5"  # the number changes with the form of the file, and with the rules of reading a JSON
PREFIX_BYTES = len(MAGIC) + 12  # and length of the head (8 bytes), and CRC-32 of head and body (4 bytes)
ALIGNMENT = 64
REST_NS = 5_000_000_000  # coarser than the clock of any file system
CHUNK_BYTES = 1 << 20

FileState = tuple[int, int, int, int]  # size, modification time, change time of the inode (nobody sets it back), inode


@dataclass(frozen=True, eq=False)
class Table:
    """Named arrays and named lists of texts."""

    arrays: dict[str, np.ndarray]
    texts: dict[str, tuple[str, ...]]


class _Head(msgspec.Struct, frozen=True):
    state: FileState | None
    sha256: str
    arrays: dict[str, tuple[str, tuple[int, ...], int]]  # dtype, shape, offset from the start of the body
    texts: dict[str, tuple[str, ...]]


def settled_state(path: Path) -> FileState | None:
    """Return the state of a file that will be read after this call; None where it may have changed just now.

    Errors: OSError.
    """
    now_ns = time.time_ns()
    found = path.stat()
    is_settled = max(found.st_mtime_ns, found.st_ctime_ns) + REST_NS < now_ns
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino) if is_settled else None


def table_paths(json_path: Path, kind: str) -> list[Path]:
    """Return where a table may lie: beside its JSON, or in the user's cache where that folder cannot be written."""
    paths = [json_path.parent / f".{json_path.name}.{kind}.table"]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return paths
    key = hashlib.sha256(str(json_path.resolve()).encode()).hexdigest()[:20]
    return [*paths, cache / "maskperf" / f"{json_path.name}.{key}.{kind}.table"]


def load_table(json_path: Path, kind: str, *, of_any_json: bool = False) -> Table | None:
    """Return the cached table of the JSON as it is now, with arrays that cannot be written; None where there is none.

    A table that is cut, damaged, of another version or of another state of the JSON counts as none. `of_any_json`: the
    state of the JSON does not matter, as each entry is compared with what it is about.
    """
    for path in table_paths(json_path, kind):
        with suppress(OSError, ValueError):  # not there, or not a table; msgspec's errors are ValueErrors
            return _read_table(path, None if of_any_json else json_path)
    return None


def save_table(json_path: Path, kind: str, table: Table, *, state: FileState | None = None, sha256: str = "") -> str:
    """Return why the table could not be saved; nothing where it was.

    `state` and `sha256` are those of the JSON that was read, the state from before. Several processes may do this at
    once: a name always points to a whole table.
    """
    blobs: list[bytes | memoryview] = []
    entries, offset = {}, 0
    for name, array in table.arrays.items():
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        entries[name] = (array.dtype.str, array.shape, offset)
        blobs += [data, bytes(-len(data) % ALIGNMENT)]
        offset += len(data) + len(blobs[-1])
    head = msgspec.json.encode(_Head(state, sha256, entries, table.texts))
    head += b" " * (-(PREFIX_BYTES + len(head)) % ALIGNMENT)
    checksum = reduce(lambda value, blob: zlib.crc32(blob, value), [head, *blobs], 0)
    prefix = MAGIC + len(head).to_bytes(8, "little") + checksum.to_bytes(4, "little")

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            file.writelines([prefix, head, *blobs])

    reasons = []
    for path in table_paths(json_path, kind):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, write)
            return ""
        except (OSError, StorageError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            assert isinstance(cause, OSError)
            reasons.append(f"{path.parent}: {cause.strerror}")
    return "; ".join(reasons)


def _read_table(path: Path, json_path: Path | None) -> Table:
    """Return the table in a file; ValueError where it is none of this version, damaged, or of another JSON."""
    with open(path, "rb") as file:
        prefix = file.read(PREFIX_BYTES)
        length = int.from_bytes(prefix[len(MAGIC) : -4], "little")
        text = file.read(min(length, os.fstat(file.fileno()).st_size))
        if not prefix.startswith(MAGIC):
            raise ValueError("another version")
        head = msgspec.json.decode(text, type=_Head)
        is_known = json_path is None or (head.state is not None and head.state == settled_state(json_path))
        if json_path is not None and not is_known and sha256_of_file(json_path) != head.sha256:
            raise ValueError("another JSON")
        checksum = zlib.crc32(text)
        while chunk := file.read(CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
        if checksum != int.from_bytes(prefix[-4:], "little"):
            raise ValueError("damaged")
        # Nobody writes into a table under its name, so what was checked is what is mapped, also after a replacement.
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = PREFIX_BYTES + length
    return Table(
        {
            name: np.frombuffer(memory, dtype, math.prod(shape), start + offset).reshape(shape)
            for name, (dtype, shape, offset) in head.arrays.items()
        },
        head.texts,
    )
