"""Digests of files, and lists of them in the form that `sha256sum -c` reads."""

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from maskperf.errors import DataError, Problem

CHUNK_BYTES = 1 << 20
SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\x00-\x1f]+)")


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Of one file, in hexadecimal: MD5 because publishers name it, SHA-256 because MD5 can be forged."""

    md5: str
    sha256: str


class RunningDigests:
    """The digests of what was given so far."""

    def __init__(self):
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()

    def update(self, chunk: bytes) -> None:
        self._md5.update(chunk)
        self._sha256.update(chunk)

    def result(self) -> Digests:
        return Digests(md5=self._md5.hexdigest(), sha256=self._sha256.hexdigest())


def digests_of_file(path: Path, advance: Callable[[int, int], None]) -> Digests:
    """Return the digests of a file; `advance` is told bytes done and bytes in all."""
    digests, done, total = RunningDigests(), 0, path.stat().st_size
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digests.update(chunk)
            done += len(chunk)
            advance(done, total)
    return digests.result()


def sums_text(sha256_of_name: Mapping[str, str]) -> str:
    """Return one line for each file, in the order of the names."""
    return "".join(f"{sha256_of_name[name]}  {name}\n" for name in sorted(sha256_of_name))


def read_sums(path: Path) -> dict[str, str]:
    """Return the SHA-256 by name; nothing where there is no such file.

    Errors: DataError for the first line that is not a digest and a name.
    """
    if not path.exists():
        return {}
    sums = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        match = SUM_LINE.fullmatch(line)
        if match is None:
            raise DataError(
                [
                    Problem(
                        file=str(path),
                        where=f"line {number}",
                        field="SHA-256 and name",
                        value=repr(line[:80]),
                        message="It is not a line as sha256sum writes it.",
                        fix="Remove the file, then start again with --verify; it is written anew.",
                    )
                ]
            )
        sums[match[2]] = match[1]
    return sums


def replace_text(path: Path, text: str) -> None:
    """Return nothing; whoever looks finds the old file or the new one, never a part of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
