"""COCO 2017 and the pretrained backbone, from the network to the folders that a run expects."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from maskperf.data.coco.file_names import resolve_file_names
from maskperf.data.coco.index import read_coco
from maskperf.download.checksums import Digests, digests_of_file, read_sums, replace_text, sums_text
from maskperf.download.download import Listener, Patience, RemoteFile, fetch
from maskperf.download.partial_file import PARTIAL_SUFFIX
from maskperf.download.prepared_folder import (
    FolderRecord,
    adopt_folder,
    find_changes,
    find_wrong_digests,
    is_empty_or_absent,
    read_stamp,
    record_folder,
    write_stamp,
)
from maskperf.download.release import Archive, Release
from maskperf.download.unpack import remove_unfinished, unpack
from maskperf.errors import DataError, Problem, StorageError

ARCHIVES_FOLDER = "archives"
SUMS_NAME = "SHA256SUMS"
LOCK_NAME = ".prepare.lock"
TAKE_ANOTHER = "Get the file anew, or take it out of that folder: then it is downloaded."
MARGIN_BYTES = 1_000_000_000  # for the blocks of many small files, and for the system to live on


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the user wants, and where."""

    root: Path
    weights: Path
    archives_folder: Path | None = None  # files that are at hand already; nothing in it is changed
    keeps_archives: bool = False
    wants_images: bool = True
    verifies: bool = False  # read everything again, though it was complete before


@dataclass(frozen=True, kw_only=True)
class _Work:
    release: Release
    order: Order
    listener: Listener
    patience: Patience

    def advance(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.listener.advance(what, done, total)

    def archives(self) -> list[Archive]:
        return [one for one in self.release.archives if self.order.wants_images or not one.has_images]


def prepare(
    release: Release,
    order: Order,
    *,
    listener: Listener,
    check_backbone: Callable[[Path], None],
    patience: Patience | None = None,
) -> None:
    """Return nothing when all that was ordered is complete. An interrupted call is continued by the next one.

    Errors: DataError for what cannot be fetched, is not the file the benchmark names, or was changed since; all that
    `check_backbone` raises; StorageError for too little space, and for folders that cannot be written.
    """
    work = _Work(release=release, order=order, listener=listener, patience=patience or Patience())
    try:
        with _lock(order.root, listener):
            for archive in work.archives():
                remove_unfinished(order.root, archive.contents)
            _demand_space(work, [one for one in work.archives() if is_empty_or_absent(_folder(work, one))])
            _ensure_weights(work, check_backbone)
            for archive in work.archives():
                _ensure_folder(work, archive)
            _check_counts(work)
    except OSError as error:
        place = error.filename or order.root
        fix = "Choose a folder with space that you own; what is complete already stays, so just start again."
        raise StorageError(f"{place}: cannot be read or written ({error.strerror or error}). Fix: {fix}") from error


@contextmanager
def _lock(root: Path, listener: Listener) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with open(root / LOCK_NAME, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(f"{root}: another maskperf prepare works there. Fix: wait for its end.") from error
        except OSError as error:
            listener.say(f"{root}: goes on without a lock, which this file system does not have ({error.strerror})")
        yield


def _folder(work: _Work, archive: Archive) -> Path:
    return work.order.root / archive.contents.folder


def _demand_space(work: _Work, missing: Sequence[Archive]) -> None:
    """Raise StorageError when the disk cannot hold what is still to come, at the moment when that is most."""
    now = peak = 0
    for archive in missing:
        own = work.order.root / ARCHIVES_FOLDER / archive.file.name
        own_bytes = _size(own) or _size(own.with_name(own.name + PARTIAL_SUFFIX))
        to_fetch = 0 if _at_hand(work, archive.file) else max(archive.file.about_bytes - own_bytes, 0)
        peak = max(peak, now + to_fetch + archive.contents.about_bytes)
        now += archive.contents.about_bytes + (to_fetch if work.order.keeps_archives else -own_bytes)
    weights, needs = work.order.weights, {}
    weights.parent.mkdir(parents=True, exist_ok=True)
    places = [(work.order.root, peak), (weights.parent, 0 if weights.exists() else work.release.weights.about_bytes)]
    for place, num_bytes in places:
        device = place.stat().st_dev
        known_place, known = needs.get(device, (place, 0))
        needs[device] = (known_place, known + num_bytes)
    for place, num_bytes in needs.values():
        free = shutil.disk_usage(place).free
        if num_bytes and num_bytes + MARGIN_BYTES > free:
            raise StorageError(
                f"{place}: {(num_bytes + MARGIN_BYTES) / 1e9:.2f} GB of free space are needed (downloads, unpacked "
                f"files, a margin), but only {free / 1e9:.2f} GB are free. Fix: free some, or choose another folder."
            )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _ensure_folder(work: _Work, archive: Archive) -> None:
    root, contents = work.order.root, archive.contents
    stamp = read_stamp(root)
    record = stamp.folders.get(contents.folder)
    how = "already there"
    if is_empty_or_absent(_folder(work, archive)):
        record = _unpack_archive(work, archive)
        how = "ready"
    elif record is None:
        work.listener.say(f"{contents.folder}: found, but not unpacked here; all of it is read once")
        record = adopt_folder(root, contents, work.advance(f"{contents.folder}: reading"))
        how = "taken as it is"
    else:
        problems = find_changes(root, contents, record)
        if work.order.verifies and not problems:
            problems = find_wrong_digests(root, contents, work.advance(f"{contents.folder}: verifying"))
            how = "already there, every file verified"
        if problems:
            raise DataError(problems)
    if record != stamp.folders.get(contents.folder):
        write_stamp(root, replace(stamp, folders={**stamp.folders, contents.folder: record}))
    work.listener.say(f"{contents.folder}: {how} ({record.files:,} files, {record.num_bytes / 1e9:.2f} GB)")


def _unpack_archive(work: _Work, archive: Archive) -> FolderRecord:
    root, contents, order = work.order.root, archive.contents, work.order
    path = _at_hand(work, archive.file)
    is_own = path is None
    if path is None:
        path = root / ARCHIVES_FOLDER / archive.file.name
        path.parent.mkdir(exist_ok=True)
        _ensure_own(work, archive.file, path)
    else:
        _demand_known(work, archive.file, path, TAKE_ANOTHER)
    unpacked = unpack(path, root, contents, advance=work.advance(f"{contents.folder}: unpacking"))
    record = record_folder(root, contents, unpacked.sha256_of_name, unpacked.num_bytes)
    if is_own and not order.keeps_archives:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    return record


def _at_hand(work: _Work, file: RemoteFile) -> Path | None:
    """Return the file in the user's folder of archives, if it is there."""
    folder = work.order.archives_folder
    return folder / file.name if folder is not None and (folder / file.name).is_file() else None


def _ensure_own(work: _Work, file: RemoteFile, target: Path) -> Digests:
    """Return the digests of `target`, which is the whole file now; a damaged one was fetched anew."""
    if target.is_file():
        digests = digests_of_file(target, work.advance(f"{file.name}: verifying"))
        if digests.md5 == file.md5:
            work.listener.say(f"{file.name}: already there")
            _note_sha256(work, file, target, digests)
            return digests
        work.listener.say(f"{file.name}: MD5 {digests.md5} instead of {file.md5}; removed, and fetched anew")
        target.unlink()
    if work.order.archives_folder is not None:
        work.listener.say(f"{file.name}: is not in {work.order.archives_folder}")
    work.listener.say(f"{file.name}: downloading {file.url} to {target}")
    digests = fetch(file, target, listener=work.listener, patience=work.patience)
    _note_sha256(work, file, target, digests)
    return digests


def _demand_known(work: _Work, file: RemoteFile, path: Path, fix: str) -> Digests:
    """Return the digests of a file of the user. Errors: DataError when it is another one."""
    digests = digests_of_file(path, work.advance(f"{file.name}: verifying"))
    if digests.md5 != file.md5:
        value = f"{digests.md5} instead of {file.md5}"
        message = "It is not the file the benchmark names: another one, or damaged. It was left as it is."
        raise DataError([Problem(file=str(path), where="content", field="MD5", value=value, message=message, fix=fix)])
    _note_sha256(work, file, path, digests)
    return digests


def _note_sha256(work: _Work, file: RemoteFile, path: Path, digests: Digests) -> None:
    """Return nothing, after the SHA-256 of a file with the right MD5 was kept, or found to be as the first time."""
    sums_path = work.order.root / SUMS_NAME
    sums = read_sums(sums_path)
    known = sums.setdefault(file.name, digests.sha256)
    if known != digests.sha256:
        value = f"{digests.sha256} instead of {known}"
        message = f"The MD5 is right, but the SHA-256 is not the one in {sums_path}: the file was forged."
        fix = "Remove it, and do not use that source again."
        raise DataError(
            [Problem(file=str(path), where="content", field="SHA-256", value=value, message=message, fix=fix)]
        )
    replace_text(sums_path, sums_text(sums))


def _check_counts(work: _Work) -> None:
    """Return nothing when the annotations are those of the benchmark and every image has its file."""
    root = work.order.root
    stamp = read_stamp(root)
    seen = tuple(stamp.folders[one.contents.folder].sums_sha256 for one in work.archives())
    if set(seen) <= set(stamp.counted) and not work.order.verifies:
        work.listener.say("counts: already checked")
        return
    work.listener.say("counts: reading all annotations")
    train, val = (
        read_coco(root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017", training=training)
        for split, training in (("train", True), ("val", False))
    )
    fix = f"Move {root / 'annotations'} away, then start again."
    problems = [
        Problem(file=str(root), where="the data set", field="counts", value="other", message=sentence, fix=fix)
        for sentence in work.release.check_counts(train, val)
    ]
    if work.order.wants_images:
        problems += [problem for index in (train, val) for _, problem in resolve_file_names(index)[2]]
    if problems:
        raise DataError(problems)
    write_stamp(root, replace(stamp, counted=seen))
    work.listener.say(
        f"counts: right ({len(train.image_ids):,} images to train on, {len(val.image_ids):,} to judge by)"
    )


def _ensure_weights(work: _Work, check_backbone: Callable[[Path], None]) -> None:
    file, target = work.release.weights, work.order.weights
    source = _at_hand(work, file)
    if target.exists():
        fix = "Move it away, then start again; or name another place with --weights."
        digests = _demand_known(work, file, target, fix)
        work.listener.say(f"{file.name}: already there ({target})")
    elif source is not None:
        digests = _demand_known(work, file, source, TAKE_ANOTHER)
        _copy(source, target)
        work.listener.say(f"{file.name}: copied to {target}")
    else:
        digests = _ensure_own(work, file, target)
    stamp = read_stamp(work.order.root)
    if stamp.backbone_sha256 != digests.sha256 or work.order.verifies:
        check_backbone(target)
        write_stamp(work.order.root, replace(stamp, backbone_sha256=digests.sha256))


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
