"""What was read of an instances JSON, in one binary file that all processes map into their memory.

A table is never believed without proof. It belongs to the JSON if that still has the same size, times and inode, and
had rested for some seconds when it was read, so that no later change can have left them as they were; or else if its
SHA-256 is the same. The table itself carries a checksum.
"""

import hashlib
import mmap
import os
import time
import zlib
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import msgspec
import numpy as np

from maskperf.errors import StorageError
from maskperf.files import replace_file, sha256_of_file

MAGIC = b"maskperf table 4"  # the number changes with the form of the file, and with the rules of reading a JSON
PREFIX_BYTES = len(MAGIC) + 12  # and length (8 bytes) and CRC-32 (4 bytes) of the head
ALIGNMENT = 64
REST_NS = 5_000_000_000  # coarser than the clock of any file system
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Table:
    """Named arrays and named lists of texts."""

    arrays: dict[str, np.ndarray]
    texts: dict[str, tuple[str, ...]]


class FileState(msgspec.Struct, frozen=True):
    """What the file system reports of a file, and whether its last change was long past."""

    size: int
    modified_ns: int
    changed_ns: int  # of the inode; nobody can set this one back
    inode: int
    is_settled: bool


NO_SOURCE = FileState(size=0, modified_ns=0, changed_ns=0, inode=0, is_settled=False)  # of what proves itself


class _Entry(msgspec.Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the start of the body


class _Head(msgspec.Struct, frozen=True):
    source: FileState
    source_sha256: str
    body_bytes: int
    body_crc32: int
    entries: tuple[_Entry, ...]
    texts: dict[str, tuple[str, ...]]


def file_state(path: Path) -> FileState:
    """Return the state of a file that will be read after this call.

    Errors: OSError.
    """
    now_ns = time.time_ns()
    found = path.stat()
    is_settled = max(found.st_mtime_ns, found.st_ctime_ns) + REST_NS < now_ns
    return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, is_settled)


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
        try:
            with open(path, "rb") as file:
                head, body_start = _read_head(file)
                if (of_any_json or _is_of(head, json_path)) and _is_whole(file, head, body_start):
                    return _mapped(file, head, body_start)
        except (OSError, ValueError):  # not there, or not a table; msgspec's errors are ValueErrors
            continue
    return None


def save_table(json_path: Path, kind: str, table: Table, *, source: FileState, sha256: str) -> str:
    """Return why the table could not be saved; nothing where it was. `source` is the state before the JSON was read.

    Several processes may do this at once: a name always points to a whole table.
    """
    blobs, entries, offset, checksum = [], [], 0, 0
    for name, array in table.arrays.items():
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        entries.append(_Entry(name, array.dtype.str, array.shape, offset))
        for blob in (data, bytes(-len(data) % ALIGNMENT)):
            blobs.append(blob)
            offset += len(blob)
            checksum = zlib.crc32(blob, checksum)
    head = msgspec.json.encode(_Head(source, sha256, offset, checksum, tuple(entries), table.texts))
    head += b" " * (-(PREFIX_BYTES + len(head)) % ALIGNMENT)
    prefix = MAGIC + len(head).to_bytes(8, "little") + zlib.crc32(head).to_bytes(4, "little")

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


def _read_head(file: BufferedIOBase) -> tuple[_Head, int]:
    """Return the head and where the body starts; ValueError where there is no head of this version."""
    prefix = file.read(PREFIX_BYTES)
    length = int.from_bytes(prefix[len(MAGIC) : -4], "little")
    text = file.read(min(length, os.fstat(file.fileno()).st_size))
    if not prefix.startswith(MAGIC) or zlib.crc32(text) != int.from_bytes(prefix[-4:], "little"):
        raise ValueError("no table of this version, or a damaged one")
    return msgspec.json.decode(text, type=_Head), PREFIX_BYTES + length


def _is_of(head: _Head, json_path: Path) -> bool:
    now, then = file_state(json_path), head.source
    if now.size != then.size:
        return False
    same = (now.modified_ns, now.changed_ns, now.inode) == (then.modified_ns, then.changed_ns, then.inode)
    return (same and then.is_settled) or sha256_of_file(json_path) == head.source_sha256


def _is_whole(file: BufferedIOBase, head: _Head, body_start: int) -> bool:
    """Read the body and compare length and checksum."""
    if os.fstat(file.fileno()).st_size != body_start + head.body_bytes:
        return False
    checksum, buffer = 0, memoryview(bytearray(CHUNK_BYTES))
    while length := file.readinto(buffer):
        checksum = zlib.crc32(buffer[:length], checksum)
    return checksum == head.body_crc32


def _mapped(file: BufferedIOBase, head: _Head, body_start: int) -> Table:
    # Nobody writes into a table under its name, so what was checked is what is mapped, also after a replacement.
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {}
    for entry in head.entries:
        count = int(np.prod(entry.shape, dtype=np.int64))
        flat = np.frombuffer(memory, np.dtype(entry.dtype), count=count, offset=body_start + entry.offset)
        arrays[entry.name] = flat.reshape(entry.shape)
    return Table(arrays, head.texts)
