"""A file of which only the beginning is there yet, and what is needed to fetch the rest of the very same file."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from maskperf.download.checksums import CHUNK_BYTES, Digests, RunningDigests, replace_text

PARTIAL_SUFFIX = ".partial"
RECORD_SUFFIX = ".json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of the file that the bytes at hand come from; kept beside them as JSON."""

    url: str
    validator: str  # a strong ETag, or else the date of the last change; empty: the server tells neither
    num_bytes: int  # 0: not told


class PartialFile:
    """The bytes of a download so far (`<target>.partial`), their digests, and where they come from.

    What an earlier process left is read once, for the digests; `advance` is told bytes done and bytes in all.
    """

    def __init__(self, target: Path, advance: Callable[[int, int], None]):
        self.target = target
        self.path = target.with_name(target.name + PARTIAL_SUFFIX)
        self.record = target.with_name(target.name + PARTIAL_SUFFIX + RECORD_SUFFIX)
        self.origin = _read_origin(self.record)
        self.size = 0
        self._digests = RunningDigests()
        if self.origin is None or not self.path.is_file():
            self.discard()
            return
        length = self.path.stat().st_size
        with open(self.path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self._note(chunk)
                advance(self.size, length)
        if self.size > self.origin.num_bytes > 0:
            self.discard()

    @property
    def is_complete(self) -> bool:
        """Return whether all bytes are there; False where nobody told how many that are."""
        return self.origin is not None and 0 < self.origin.num_bytes == self.size

    def begin(self, origin: Origin) -> None:
        """Return nothing; what was there is gone."""
        self.discard()
        self.origin = origin
        replace_text(self.record, json.dumps(asdict(origin)) + "\n")

    def append(self, file: BinaryIO, chunk: bytes) -> None:
        """Return nothing; `file` is `path`, open for appending."""
        file.write(chunk)
        self._note(chunk)

    def discard(self) -> None:
        """Return nothing; no byte and no origin is left."""
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)
        self.origin, self.size, self._digests = None, 0, RunningDigests()

    def keep(self) -> None:
        """Return nothing; the file has its name from now on."""
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())  # the name must never point to data that a power cut can lose
        os.replace(self.path, self.target)
        self.record.unlink(missing_ok=True)

    def digests(self) -> Digests:
        """Return the digests of the bytes so far."""
        return self._digests.result()

    def _note(self, chunk: bytes) -> None:
        self._digests.update(chunk)
        self.size += len(chunk)


def _read_origin(record: Path) -> Origin | None:
    """Return where the bytes beside this record come from; None where that is not known."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        origin = Origin(**found)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    is_sound = isinstance(origin.url, str) and isinstance(origin.validator, str) and type(origin.num_bytes) is int
    return origin if is_sound and origin.validator.isprintable() else None
