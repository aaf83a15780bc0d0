"""Zip archives from the network, unpacked without trust: every member is judged before the first byte is written."""

import hashlib
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from maskperf.errors import DataError, Problem

CHUNK_BYTES = 1 << 20
MAX_RATIO = 100  # unpacked to packed, of one member; text of annotations has about 4
FREE_RATIO_BYTES = 1 << 20  # smaller members may have any ratio
MAX_RECORD_BYTES = 512  # of one member in the table of contents
LOCAL_HEADER_BYTES = 30  # the least that stands before a member's content
UNFINISHED_PREFIX = ".unpacking-"
GET_A_NEW_ONE = "Remove the archive and get it anew from its source."
BROKEN_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What an archive may hold: files with one ending, in one folder, and how many and how large they may be."""

    folder: str
    suffix: str
    min_files: int
    max_files: int
    about_bytes: int  # unpacked; for the space on the disk
    max_bytes: int  # unpacked
    required_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """The files that were written, by name within the folder."""

    sha256_of_name: dict[str, str]
    num_bytes: int


def list_members(archive: Path, contents: Contents) -> list[zipfile.ZipInfo]:
    """Return the files of an archive in the order of their names, none of which can do harm.

    Errors: DataError with every member that leaves the folder, is no plain file, is encrypted, stands twice, shares
    its bytes with another one or unpacks to far too much; and with numbers and names that are not the expected ones.
    """
    try:
        _refuse_huge_table(archive, contents)
        with zipfile.ZipFile(archive) as opened:
            members, table_start = opened.infolist(), opened.start_dir
    except BROKEN_ARCHIVE_ERRORS as error:
        problem = f"It is not a whole zip archive: {error}."
        raise DataError([_problem(archive, "archive", "content", "unreadable", problem)]) from error
    problems = [
        _problem(archive, f"member {member.orig_filename[:80]!r}", field, value, problem)
        for member in members
        for field, value, problem in _complaints(member, contents.folder, contents.suffix)
    ]
    problems += [_problem(archive, *words) for words in _complaints_together(members, table_start)]
    files = sorted((member for member in members if not _is_folder(member)), key=lambda member: member.filename)
    problems += [_problem(archive, "archive", *words) for words in _complaints_of_sums(files, contents)]
    if problems:
        raise DataError(problems)
    return files


def unpack(archive: Path, root: Path, contents: Contents, *, advance: Callable[[int, int], None]) -> Unpacked:
    """Return what was written to the new folder `root`/`contents.folder`, which is there as a whole or not at all.

    Permissions are those that the umask leaves, whatever the archive says. `advance` is told bytes done and bytes in
    all. What an interrupted call left is removed first.
    Errors: DataError as `list_members`, and for a member that is damaged or not as large as the archive says.
    """
    members = list_members(archive, contents)
    unfinished = remove_unfinished(root, contents)
    unfinished.mkdir()
    sha256_of_name, done, total = {}, 0, sum(member.file_size for member in members)
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in members:
                name = member.filename.rpartition("/")[2]
                sha256_of_name[name] = _write_member(opened, member, unfinished / name)
                done += member.file_size
                advance(done, total)
        os.sync()  # the folder must never get its name before its files are on the disk
        os.rename(unfinished, root / contents.folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Unpacked(sha256_of_name=sha256_of_name, num_bytes=total)


def remove_unfinished(root: Path, contents: Contents) -> Path:
    """Return the folder in which `unpack` works; nothing is there any more."""
    unfinished = root / f"{UNFINISHED_PREFIX}{contents.folder}"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    return unfinished


def _refuse_huge_table(archive: Path, contents: Contents) -> None:
    """Read the last bytes of the archive, where it says how large its table of contents is."""
    with open(archive, "rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 22 - 65535 - 20))
        tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + 22:
        raise zipfile.BadZipFile("the end of the archive is missing")
    (table_bytes,) = struct.unpack_from("<L", tail, place + 12)
    if tail[place - 20 : place].startswith(b"PK\x06\x07"):  # a large archive: the number stands elsewhere
        (end64,) = struct.unpack_from("<Q", tail, place - 12)
        with open(archive, "rb") as file:
            file.seek(min(end64, length))
            record = file.read(56)
        if len(record) < 56 or not record.startswith(b"PK\x06\x06"):
            raise zipfile.BadZipFile("the end of the archive is damaged")
        (table_bytes,) = struct.unpack_from("<Q", record, 40)
    if table_bytes > MAX_RECORD_BYTES * (contents.max_files + 1):
        raise zipfile.BadZipFile(f"its table of contents has {table_bytes:,} bytes, too many for its files")


def _complaints(member: zipfile.ZipInfo, folder: str, suffix: str) -> Iterator[tuple[str, str, str]]:
    """Yield field, value and problem of everything that is wrong with one member alone."""
    problem = _name_problem(member, folder, suffix)
    if problem:
        yield "name", repr(member.orig_filename[:80]), problem
    mode = member.external_attr >> 16
    allowed = stat.S_IFDIR if _is_folder(member) else stat.S_IFREG
    if stat.S_IFMT(mode) not in (0, allowed):
        yield "mode", oct(mode), "It is a link, a device or another special file."
    if member.flag_bits & 0x2041:
        yield "flags", hex(member.flag_bits), "It is encrypted."
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield "method", str(member.compress_type), "It is packed with a method that is not expected here."
    if member.file_size > max(FREE_RATIO_BYTES, MAX_RATIO * member.compress_size):
        sizes = f"{member.compress_size:,} bytes, {member.file_size:,} unpacked"
        yield "size", sizes, f"It unpacks to more than {MAX_RATIO} times its size."


def _is_folder(member: zipfile.ZipInfo) -> bool:
    return member.filename.endswith("/")  # ZipInfo.is_dir fails for an empty name


def _name_problem(member: zipfile.ZipInfo, folder: str, suffix: str) -> str:
    """Return what is wrong with the name of a member; empty for "<folder>/" and "<folder>/<plain name><suffix>"."""
    name = member.orig_filename
    first, slash, rest = name.partition("/")
    if name != member.filename or not name.isprintable() or "\\" in name:
        return "The name has a character that does not belong into a name."
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "The name is an absolute path."
    if ".." in name.split("/"):
        return "The name leads out of the folder."
    if first != folder or not slash:
        return f"It is not in the folder {folder}."
    if rest and ("/" in rest or not PLAIN_NAME.fullmatch(rest) or not rest.endswith(suffix)):
        return f"Only files with the ending {suffix} are expected in {folder}."
    return ""


def _complaints_together(members: Sequence[zipfile.ZipInfo], table_start: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield where, field, value and problem of members that get in the way of each other."""
    seen = set()
    for member in members:
        folded = member.filename.casefold()
        if folded in seen:
            yield f"member {member.filename[:80]!r}", "name", repr(member.filename[:80]), "The name stands there twice."
        seen.add(folded)
    ordered = sorted(members, key=lambda member: member.header_offset)
    starts = [*(member.header_offset for member in ordered), table_start]
    for member, (start, following) in zip(ordered, pairwise(starts), strict=True):
        end = start + LOCAL_HEADER_BYTES + member.compress_size
        if start < 0 or end > following:
            where, value = f"member {member.orig_filename[:80]!r}", f"bytes {start:,} to {end:,}"
            yield (
                where,
                "place",
                value,
                f"It runs into what begins at byte {following:,}, or begins before the archive.",
            )


def _complaints_of_sums(files: Sequence[zipfile.ZipInfo], contents: Contents) -> Iterator[tuple[str, str, str]]:
    """Yield field, value and problem of what is wrong with all files together."""
    if not contents.min_files <= len(files) <= contents.max_files:
        expected = " to ".join(f"{count:,}" for count in sorted({contents.min_files, contents.max_files}))
        yield "files", f"{len(files):,}", f"{expected} are expected."
    total = sum(member.file_size for member in files)
    if total > contents.max_bytes:
        yield "size", f"{total:,} bytes unpacked", f"At most {contents.max_bytes:,} are expected."
    names = {member.filename for member in files}
    for name in contents.required_names:
        if f"{contents.folder}/{name}" not in names:
            yield "files", name, "It is missing."


def _write_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> str:
    """Return the SHA-256 of a member, which was written to `path`."""
    try:
        with opened.open(member) as source:
            return _write_file(iter(lambda: source.read(CHUNK_BYTES), b""), path, member.file_size)
    except BROKEN_ARCHIVE_ERRORS as error:
        where, value = f"member {member.filename!r}", f"{member.file_size:,} bytes"
        problem = f"It cannot be unpacked: {error}."
        raise DataError([_problem(Path(opened.filename), where, "content", value, problem)]) from error


def _write_file(chunks: Iterator[bytes], path: Path, num_bytes: int) -> str:
    """Return the SHA-256 of a new file. Errors: BadZipFile as soon as it is not as large as was said."""
    digest, written = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "wb") as out:
        for chunk in chunks:
            written += len(chunk)
            if written > num_bytes:
                break
            digest.update(chunk)
            out.write(chunk)
    if written != num_bytes:
        raise zipfile.BadZipFile(f"it does not have the {num_bytes:,} bytes that the archive says")
    return digest.hexdigest()


def _problem(archive: Path, where: str, field: str, value: str, problem: str) -> Problem:
    return Problem(file=str(archive), where=where, field=field, value=value, message=problem, fix=GET_A_NEW_ONE)
