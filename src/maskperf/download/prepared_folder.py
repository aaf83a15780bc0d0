"""Folders of an unpacked data set, and the list of digests that tells whether they are still what they were."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from maskperf.download.checksums import read_sums, replace_text, sums_text
from maskperf.download.unpack import Contents
from maskperf.errors import DataError, Problem
from maskperf.files import sha256_of_file

SUMS_FOLDER = "checksums"
STAMP_NAME = "prepared.json"


@dataclass(frozen=True, kw_only=True)
class FolderRecord:
    """What a folder held when it was complete. The digest is that of the list of its files' digests."""

    files: int
    num_bytes: int
    sums_sha256: str


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What is complete in a root; kept there as JSON."""

    folders: dict[str, FolderRecord] = field(default_factory=dict)
    counted: tuple[str, ...] = ()  # digests of the folders as they were when their objects were counted
    backbone_sha256: str = ""  # of the last backbone that could be read


def read_stamp(root: Path) -> Stamp:
    """Return what is known to be complete; nothing where there is no stamp.

    Errors: DataError for a stamp that is damaged.
    """
    path = root / STAMP_NAME
    if not path.exists():
        return Stamp()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Stamp)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        fix = "Remove it, then start again: the folders are taken as they are, and all is counted again."
        problem = Problem(
            file=str(path), where="the file", field="content", value="unreadable", message=f"{error}.", fix=fix
        )
        raise DataError([problem]) from error


def write_stamp(root: Path, stamp: Stamp) -> None:
    """Return nothing; from now on `read_stamp` finds this one."""
    replace_text(root / STAMP_NAME, msgspec.json.format(msgspec.json.encode(stamp), indent=2).decode() + "\n")


def is_empty_or_absent(folder: Path) -> bool:
    """Return whether nothing would be lost if `folder` were made anew."""
    if not folder.is_dir():
        return not folder.exists()
    with os.scandir(folder) as entries:
        return next(entries, None) is None


def record_folder(root: Path, contents: Contents, sha256_of_name: dict[str, str], num_bytes: int) -> FolderRecord:
    """Return the record of a folder, after the digests of its files were written for `sha256sum -c` in `root`."""
    text = sums_text({f"{contents.folder}/{name}": digest for name, digest in sha256_of_name.items()})
    path = _sums_path(root, contents)
    path.parent.mkdir(exist_ok=True)
    replace_text(path, text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return FolderRecord(files=len(sha256_of_name), num_bytes=num_bytes, sums_sha256=digest)


def adopt_folder(root: Path, contents: Contents, advance: Callable[[int, int], None]) -> FolderRecord:
    """Return the record of a folder that was there before; all of it is read.

    Errors: DataError when it does not hold as many files as it should, or not those that it must.
    """
    folder = root / contents.folder
    sizes = {name: size for name, size in _sizes(folder).items() if _is_one(name, contents)}
    absent = [name for name in contents.required_names if name not in sizes]
    if absent or not contents.min_files <= len(sizes) <= contents.max_files:
        expected = f"{contents.min_files:,} {contents.suffix} files" + (f", {absent[0]} among them" if absent else "")
        raise DataError(
            [
                Problem(
                    file=str(folder),
                    where="the folder",
                    field="files",
                    value=f"{len(sizes):,}",
                    message=f"It is there already, but does not hold what it should ({expected}).",
                    fix="Move it away, then start again.",
                )
            ]
        )
    return record_folder(root, contents, _digests(folder, sizes, advance), sum(sizes.values()))


def find_changes(root: Path, contents: Contents, record: FolderRecord) -> list[Problem]:
    """Return a problem for each file that is gone, or one for sizes that changed. Lists the folder, opens nothing."""
    path = _sums_path(root, contents)
    if not path.is_file() or sha256_of_file(path) != record.sums_sha256:
        fix = f"Remove {root / STAMP_NAME}, then start again: the folder is taken as it is, and the list made anew."
        return [_problem(path, "digests", "changed or gone", "The list of the files was changed.", fix)]
    sizes = _sizes(root / contents.folder)
    names = _names(read_sums(path))
    problems = [_changed(root, contents, name, "file", "none", "It is gone.") for name in names if name not in sizes]
    num_bytes = sum(sizes[name] for name in names if name in sizes)
    if not problems and num_bytes != record.num_bytes:
        value = f"{num_bytes:,} bytes instead of {record.num_bytes:,}"
        problems.append(_changed(root, contents, "", "size", value, "Files were changed; --verify tells which ones."))
    return problems


def find_wrong_digests(root: Path, contents: Contents, advance: Callable[[int, int], None]) -> list[Problem]:
    """Return a problem for each file whose content is not what it was; all of it is read."""
    expected = _names(read_sums(_sums_path(root, contents)))
    sizes = {name: size for name, size in _sizes(root / contents.folder).items() if name in expected}
    found = _digests(root / contents.folder, sizes, advance)
    message = "Its content was changed."
    return [
        _changed(root, contents, name, "SHA-256", f"{found[name]} instead of {expected[name]}", message)
        for name in found
        if found[name] != expected[name]
    ]


def _sums_path(root: Path, contents: Contents) -> Path:
    return root / SUMS_FOLDER / f"{contents.folder}.sha256"


def _names(sums: dict[str, str]) -> dict[str, str]:
    """Return the digests by name within the folder."""
    return {name.partition("/")[2]: digest for name, digest in sums.items()}


def _is_one(name: str, contents: Contents) -> bool:
    return name.endswith(contents.suffix) and name.isprintable()


def _sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _digests(folder: Path, sizes: dict[str, int], advance: Callable[[int, int], None]) -> dict[str, str]:
    found, done, total = {}, 0, sum(sizes.values())
    for name in sorted(sizes):
        found[name] = sha256_of_file(folder / name)
        done += sizes[name]
        advance(done, total)
    return found


def _changed(root: Path, contents: Contents, name: str, field: str, value: str, message: str) -> Problem:
    folder = root / contents.folder
    fix = f"Move {folder} away, then start again: it is unpacked anew."
    return _problem(folder / name if name else folder, field, value, message, fix)


def _problem(path: Path, field: str, value: str, message: str, fix: str) -> Problem:
    where = "compared with when it was complete"
    return Problem(file=str(path), where=where, field=field, value=value, message=message, fix=fix)
