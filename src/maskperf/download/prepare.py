"""COCO 2017 and the pretrained backbone, from the network to the folders that a run expects."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from maskperf.data.coco.file_names import resolve_file_names
from maskperf.data.coco.index import read_coco
from maskperf.download.download import PARTIAL_SUFFIX, Digests, Listener, Patience, digests_of_file, fetch, size_of
from maskperf.download.folder import (
    FolderRecord,
    adopt_folder,
    content_problem,
    find_changes,
    read_stamp,
    read_sums,
    remove_unfinished,
    unpack,
    write_stamp,
    write_sums,
)
from maskperf.download.release import IMAGE_SUFFIX, Archive, Release, RemoteFile
from maskperf.errors import DataError, Problem, StorageError
from maskperf.files import replace_file

ARCHIVES_FOLDER = "archives"
SUMS_NAME = "SHA256SUMS"
LOCK_NAME = ".prepare.lock"
MARGIN_BYTES = 1_000_000_000  # for the blocks of many small files, and for the system


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the user wants, and where."""

    root: Path
    weights: Path
    archives_folder: Path | None = None  # files that the user has already; nothing in it is changed
    keeps_archives: bool = False
    wants_images: bool = True
    verifies: bool = False  # read everything again, though it was complete before


def prepare(
    release: Release,
    order: Order,
    *,
    listener: Listener,
    check_backbone: Callable[[Path], object],
    patience: Patience | None = None,
) -> None:
    """Download, unpack and check what was ordered; an interrupted call is continued by the next one.

    Errors: DataError for what cannot be downloaded, is not the published file, or was changed since; all that
    `check_backbone` raises; StorageError for too little space, and for folders that cannot be written.
    """
    work = _Preparation(release=release, order=order, listener=listener, patience=patience or Patience())
    try:
        with _lock(order.root, listener):
            work.check_space()
            work.ensure_weights(check_backbone)
            for archive in work.archives():
                work.ensure_folder(archive)
            work.check_counts()
    except OSError as error:
        path = error.filename or order.root
        fix = "Choose a folder with space that you own; what is complete already stays, so just start again."
        raise StorageError(f"{path}: cannot be read or written ({error.strerror or error}). Fix: {fix}") from error


@contextmanager
def _lock(root: Path, listener: Listener) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with open(root / LOCK_NAME, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(f"{root}: another maskperf prepare works there. Fix: wait until it ends.") from error
        except OSError as error:
            listener.say(f"{root}: continues without a lock; this file system has none ({error.strerror})")
        yield


@dataclass(frozen=True, kw_only=True)
class _Preparation:
    """One call of `prepare`."""

    release: Release
    order: Order
    listener: Listener
    patience: Patience

    def archives(self) -> list[Archive]:
        return [
            archive for archive in self.release.archives if self.order.wants_images or archive.suffix != IMAGE_SUFFIX
        ]

    def check_space(self) -> None:
        """Raise StorageError when the disk cannot hold what is still to come, at the moment when that is most."""
        root, weights = self.order.root, self.order.weights
        fetched, unpacked = [0], 0
        for archive in self.archives():
            remove_unfinished(root, archive)
            if not _is_empty_or_absent(root / archive.folder):
                continue
            unpacked += archive.about_unpacked_bytes
            if self._file_of_user(archive.file) is None:
                path = root / ARCHIVES_FOLDER / archive.file.name
                own_bytes = size_of(path) or size_of(path.with_name(path.name + PARTIAL_SUFFIX))
                fetched.append(max(archive.file.about_bytes - own_bytes, 0))
        weights.parent.mkdir(parents=True, exist_ok=True)
        needs = {root: unpacked + (sum(fetched) if self.order.keeps_archives else max(fetched))}
        folder = root if weights.parent.stat().st_dev == root.stat().st_dev else weights.parent
        needs[folder] = needs.get(folder, 0) + (0 if weights.exists() else self.release.weights.about_bytes)
        for folder, num_bytes in needs.items():
            free = shutil.disk_usage(folder).free
            if num_bytes and num_bytes + MARGIN_BYTES > free:
                raise StorageError(
                    f"{folder}: {(num_bytes + MARGIN_BYTES) / 1e9:.2f} GB of free space are needed (downloads, "
                    f"unpacked files, a margin), but only {free / 1e9:.2f} GB are free. "
                    "Fix: free some, or choose another folder."
                )

    def ensure_weights(self, check_backbone: Callable[[Path], object]) -> None:
        file, target, root = self.release.weights, self.order.weights, self.order.root
        source = self._file_of_user(file)
        if target.exists():
            fix = "Move it away, then start again; or name another path with --weights."
            digests = self._check_file_of_user(file, target, fix)
            self.listener.say(f"{file.name}: already there ({target})")
        elif source is not None:
            digests = self._check_file_of_user(file, source)
            replace_file(target, lambda temporary: shutil.copyfile(source, temporary))
            self.listener.say(f"{file.name}: copied to {target}")
        else:
            digests = self._download(file, target)
        stamp = read_stamp(root)
        if stamp.backbone_sha256 != digests.sha256 or self.order.verifies:
            check_backbone(target)
            write_stamp(root, replace(stamp, backbone_sha256=digests.sha256))

    def ensure_folder(self, archive: Archive) -> None:
        root, folder = self.order.root, archive.folder
        stamp = read_stamp(root)
        record = stamp.folders.get(folder)
        how = "already there"
        if _is_empty_or_absent(root / folder):
            record = self._unpack(archive)
            how = "ready"
        elif record is None:
            self.listener.say(f"{folder}: found, but not unpacked here; all of it is read once")
            record = adopt_folder(root, archive, self.listener)
            how = "taken as it is"
        else:
            problems = find_changes(root, archive, record, self.listener, verifies=self.order.verifies)
            if problems:
                raise DataError(problems)
            how += ", every file verified" if self.order.verifies else ""
        write_stamp(root, replace(stamp, folders={**stamp.folders, folder: record}))
        self.listener.say(f"{folder}: {how} ({record.files:,} files, {record.num_bytes / 1e9:.2f} GB)")

    def check_counts(self) -> None:
        """Check that the annotations are those of the benchmark and that every image has its file."""
        root = self.order.root
        stamp = read_stamp(root)
        seen = tuple(stamp.folders[archive.folder].sums_sha256 for archive in self.archives())
        if set(seen) <= set(stamp.counted) and not self.order.verifies:
            self.listener.say("counts: already checked")
            return
        self.listener.say("counts: reading all annotations")
        train, val = (
            read_coco(root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017", training=training)
            for split, training in (("train", True), ("val", False))
        )
        fix = f"Move {root / 'annotations'} away, then start again."
        problems = [
            Problem(file=str(root), where="the data set", field="counts", value="other", message=message, fix=fix)
            for message in self.release.check_counts(train, val)
        ]
        if self.order.wants_images:
            problems += [problem for index in (train, val) for _, problem in resolve_file_names(index)[2]]
        if problems:
            raise DataError(problems)
        write_stamp(root, replace(stamp, counted=seen))
        numbers = f"{len(train.image_ids):,} images to train on, {len(val.image_ids):,} to evaluate on"
        self.listener.say(f"counts: right ({numbers})")

    def _unpack(self, archive: Archive) -> FolderRecord:
        path = self._file_of_user(archive.file)
        if path is not None:
            self._check_file_of_user(archive.file, path)
            return unpack(path, archive, self.order.root, self.listener)
        path = self.order.root / ARCHIVES_FOLDER / archive.file.name
        path.parent.mkdir(exist_ok=True)
        self._download(archive.file, path)
        record = unpack(path, archive, self.order.root, self.listener)
        if not self.order.keeps_archives:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
        return record

    def _file_of_user(self, file: RemoteFile) -> Path | None:
        """Return the file in the folder of --archives, if it is there."""
        folder = self.order.archives_folder
        return folder / file.name if folder is not None and (folder / file.name).is_file() else None

    def _check_file_of_user(
        self, file: RemoteFile, path: Path, fix: str = "Get the file again, or remove it from that folder."
    ) -> Digests:
        """Return the digests of a file. Errors: DataError when it is another one."""
        digests = digests_of_file(path, f"{file.name}: verifying", self.listener)
        if digests.md5 != file.md5:
            value = f"{digests.md5} instead of {file.md5}"
            message = "It is not the published file: another one, or damaged. It was left as it is."
            raise DataError([content_problem(path, "MD5", value, message, fix)])
        self._check_sha256(file, path, digests)
        return digests

    def _download(self, file: RemoteFile, target: Path) -> Digests:
        """Return the digests of `target`, which is the whole file afterwards; a damaged one is downloaded again."""
        digests = digests_of_file(target, f"{file.name}: verifying", self.listener) if target.is_file() else None
        if digests is not None and digests.md5 == file.md5:
            self.listener.say(f"{file.name}: already there")
        else:
            if digests is not None:
                self.listener.say(f"{file.name}: MD5 {digests.md5} instead of {file.md5}; removed, downloaded again")
                target.unlink()
            if self.order.archives_folder is not None:
                self.listener.say(f"{file.name}: is not in {self.order.archives_folder}")
            self.listener.say(f"{file.name}: downloading {file.url} to {target}")
            digests = fetch(file, target, listener=self.listener, patience=self.patience)
        self._check_sha256(file, target, digests)
        return digests

    def _check_sha256(self, file: RemoteFile, path: Path, digests: Digests) -> None:
        """Record the SHA-256 of a file with the right MD5, or compare it with the recorded one."""
        sums_path = self.order.root / SUMS_NAME
        sums = read_sums(sums_path)
        known = sums.setdefault(file.name, digests.sha256)
        if known != digests.sha256:
            value = f"{digests.sha256} instead of {known}"
            message = f"The MD5 is right, but the SHA-256 is not the one in {sums_path}: the file was forged."
            fix = "Remove it, and do not use that source again."
            raise DataError([content_problem(path, "SHA-256", value, message, fix)])
        write_sums(sums_path, sums)


def _is_empty_or_absent(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
