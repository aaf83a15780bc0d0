"""The folders of an unpacked data set: extraction, lists of digests, and the record of what is complete."""

import hashlib
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from maskperf.download.download import Listener
from maskperf.download.release import Archive
from maskperf.errors import DataError, Problem
from maskperf.files import pretty_json, sha256_of_file, write_text

SUMS_FOLDER = "checksums"
STAMP_NAME = "prepared.json"
SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\x00-\x1f]+)")


@dataclass(frozen=True, kw_only=True)
class FolderRecord:
    """What a folder held when it was complete; the digest is that of the list of its files' digests."""

    files: int
    num_bytes: int
    sums_sha256: str


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What is complete in a root; saved there as JSON."""

    folders: dict[str, FolderRecord] = field(default_factory=dict)
    counted: tuple[str, ...] = ()  # digests of the folders as they were when their objects were counted
    backbone_sha256: str = ""  # of the last backbone that could be read


def read_stamp(root: Path) -> Stamp:
    """Read the stamp, an empty one where there is none. Errors: DataError for one that is damaged."""
    path = root / STAMP_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Stamp)
    except FileNotFoundError:
        return Stamp()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        fix = "Remove it, then start again: the folders are taken as they are, and all objects are counted again."
        raise DataError([content_problem(path, "content", "unreadable", f"{error}.", fix)]) from error


def write_stamp(root: Path, stamp: Stamp) -> None:
    write_text(root / STAMP_NAME, pretty_json(stamp))


def read_sums(path: Path) -> dict[str, str]:
    """Read a list of SHA-256 as `sha256sum` writes it, by name; empty where there is no such file.

    Errors: DataError for the first line that is not a digest and a name.
    """
    if not path.exists():
        return {}
    sums = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        match = SUM_LINE.fullmatch(line)
        if match is None:
            fix = "Remove the file, then start again with --verify; it is written again."
            message = f"Line {number} is not a digest and a name as sha256sum writes them."
            raise DataError([content_problem(path, "SHA-256 and name", repr(line[:80]), message, fix)])
        sums[match[2]] = match[1]
    return sums


def write_sums(path: Path, sums: Mapping[str, str]) -> str:
    """Write a list for `sha256sum -c`, and return its text."""
    text = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    write_text(path, text)
    return text


def unpack(path: Path, archive: Archive, root: Path, listener: Listener) -> FolderRecord:
    """Extract the archive at `path` to the new folder `root`/`archive.folder`, which appears whole or not at all.

    The archive is the published one, as its MD5 was right; zipfile keeps any name below the folder it extracts to.
    Errors: DataError for an archive that was damaged since.
    """
    unfinished = remove_unfinished(root, archive)
    sums, done = {}, 0
    try:
        with zipfile.ZipFile(path) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            total = sum(member.file_size for member in members)
            for member in members:
                file = Path(opened.extract(member, unfinished))
                sums[file.name] = sha256_of_file(file)
                done += member.file_size
                listener.advance(f"{archive.folder}: unpacking", done, total)
        os.sync()  # the folder must never get its name before its files are on the disk
        os.rename(unfinished / archive.folder, root / archive.folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        message = f"It cannot be unpacked: {error}."
        fix = "Remove the archive and download it again."
        raise DataError([content_problem(path, "content", "damaged", message, fix)]) from error
    finally:
        remove_unfinished(root, archive)
    return _record(root, archive, sums, total)


def remove_unfinished(root: Path, archive: Archive) -> Path:
    """Remove what an interrupted call of `unpack` left, and return the folder it works in."""
    unfinished = root / f".unpacking-{archive.folder}"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    return unfinished


def _record(root: Path, archive: Archive, sums: Mapping[str, str], num_bytes: int) -> FolderRecord:
    """Write the list of the digests of a folder, and return its record."""
    path = _sums_path(root, archive)
    path.parent.mkdir(exist_ok=True)
    text = write_sums(path, {f"{archive.folder}/{name}": digest for name, digest in sums.items()})
    digest = hashlib.sha256(text.encode()).hexdigest()
    return FolderRecord(files=len(sums), num_bytes=num_bytes, sums_sha256=digest)


def adopt_folder(root: Path, archive: Archive, listener: Listener) -> FolderRecord:
    """Return the record of a folder that was there before; all of it is read.

    Errors: DataError when it does not hold as many files as it should, or not those that it must.
    """
    folder = root / archive.folder
    sizes = {name: size for name, size in _sizes(folder).items() if name.endswith(archive.suffix)}
    missing = [name for name in archive.required_names if name not in sizes]
    if missing or archive.num_files not in (None, len(sizes)):
        expected = ", ".join(missing) or f"{archive.num_files:,} {archive.suffix} files"
        message, fix = f"It does not hold what it should: {expected}.", "Move it away, then start again."
        raise DataError([content_problem(folder, "files", f"{len(sizes):,}", message, fix)])
    sums = _digests(folder, sizes, f"{archive.folder}: reading", listener)
    return _record(root, archive, sums, sum(sizes.values()))


def find_changes(
    root: Path, archive: Archive, record: FolderRecord, listener: Listener, *, verifies: bool
) -> list[Problem]:
    """Return a problem for each file that is gone, or one for sizes that changed; only the folder is listed.

    `verifies`: read all files, and return a problem for each whose content is not what it was.
    """
    path, folder = _sums_path(root, archive), root / archive.folder
    if not path.is_file() or sha256_of_file(path) != record.sums_sha256:
        fix = f"Remove {root / STAMP_NAME}, then start again: the folder is taken as it is, and the list written again."
        return [content_problem(path, "digests", "changed or gone", "The list of the files was changed.", fix)]
    fix = f"Move {folder} away, then start again: it is unpacked again."
    expected = {name.partition("/")[2]: digest for name, digest in read_sums(path).items()}
    sizes = {name: size for name, size in _sizes(folder).items() if name in expected}
    gone = [name for name in expected if name not in sizes]
    if gone:
        return [content_problem(folder / name, "file", "none", "It is gone.", fix) for name in gone]
    if verifies:
        digests = _digests(folder, sizes, f"{archive.folder}: verifying", listener)
        message, changed = "Its content was changed.", [name for name in expected if digests[name] != expected[name]]
        values = {name: f"{digests[name]} instead of {expected[name]}" for name in changed}
        return [content_problem(folder / name, "SHA-256", values[name], message, fix) for name in changed]
    num_bytes = sum(sizes.values())
    value = f"{num_bytes:,} bytes instead of {record.num_bytes:,}"
    problem = content_problem(folder, "size", value, "Files were changed; --verify finds which ones.", fix)
    return [] if num_bytes == record.num_bytes else [problem]


def content_problem(path: Path, field: str, value: str, message: str, fix: str) -> Problem:
    return Problem(file=str(path), where="content", field=field, value=value, message=message, fix=fix)


def _sums_path(root: Path, archive: Archive) -> Path:
    return root / SUMS_FOLDER / f"{archive.folder}.sha256"


def _sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _digests(folder: Path, sizes: Mapping[str, int], activity: str, listener: Listener) -> dict[str, str]:
    found, done, total = {}, 0, sum(sizes.values())
    for name in sorted(sizes):
        found[name] = sha256_of_file(folder / name)
        done += sizes[name]
        listener.advance(activity, done, total)
    return found
