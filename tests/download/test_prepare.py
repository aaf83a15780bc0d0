import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_server import Answer, HostileServer
from small_release import small_files, small_release, zipped

from maskperf.config import DataConfig
from maskperf.data.coco.file_names import resolve_file_names
from maskperf.data.coco.index import read_coco
from maskperf.data.coco.paths import locate
from maskperf.download.download import Listener, Patience
from maskperf.download.prepare import Order, prepare
from maskperf.download.release import COCO_2017
from maskperf.errors import EXIT_DATA, EXIT_STORAGE, DataError, StorageError

FILES = small_files()
FOLDERS = ["annotations", "train2017", "val2017"]
ALL_PATHS = ["/R-50.pkl", "/annotations_trainval2017.zip", "/val2017.zip", "/train2017.zip"]
Usage = namedtuple("Usage", "total used free")
QUICK = Patience(tries=3, timeout_seconds=5.0, first_wait_seconds=0.001)


@pytest.fixture(autouse=True)
def quick_and_without_proxies(monkeypatch):
    monkeypatch.setattr(os, "sync", lambda: None)  # slow where other programs write
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with HostileServer({f"/{name}": content for name, content in FILES.items()}) as running:
        yield running


@pytest.fixture
def order(tmp_path):
    return Order(root=tmp_path / "data" / "coco", weights=tmp_path / "data" / "R-50.pkl")


class Run:
    """One call of `prepare`: its messages, and which backbones it had checked."""

    def __init__(self, server, order, release=None):
        self.messages, self.checked = [], []
        before = len(server.requests)
        listener = Listener(say=self.messages.append, advance=lambda *amounts: None)
        release = release or small_release(FILES, server.url)
        try:
            prepare(release, order, listener=listener, check_backbone=self.checked.append, patience=QUICK)
        finally:
            self.paths = [request.path for request in server.requests[before:]]

    def shows(self, part):
        return any(part in line for line in self.messages)


def fail(server, order, kind=DataError, release=None):
    """Return the error of a call of `prepare`."""
    with pytest.raises(kind) as caught:
        Run(server, order, release)
    assert caught.value.exit_code == (EXIT_DATA if kind is DataError else EXIT_STORAGE)
    return caught.value


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def is_complete(order):
    """Return whether a run finds and can read all that the order is about."""
    paths = locate(DataConfig(root=str(order.root)))
    train = read_coco(paths.train_json, paths.train_images, training=True)
    val = read_coco(paths.val_json, paths.val_images, training=False)
    assert resolve_file_names(train)[1:] == resolve_file_names(val)[1:] == ((), [])
    return len(train.image_ids) == len(val.image_ids) == 2 and order.weights.read_bytes() == FILES["R-50.pkl"]


def contents_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_is_fetched_unpacked_counted_and_readable(server, order):
    run = Run(server, order)
    assert run.paths == ALL_PATHS and run.checked == [order.weights] and is_complete(order)
    assert names_in(order.root) == sorted([".prepare.lock", "SHA256SUMS", "checksums", "prepared.json", *FOLDERS])
    assert run.shows("counts: right (2 images to train on, 2 to evaluate on)")
    assert run.shows("train2017: ready (2 files")


def test_the_lists_of_digests_are_those_that_sha256sum_reads(server, order):
    Run(server, order)
    sums = dict(line.split("  ")[::-1] for line in (order.root / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    for folder in FOLDERS:
        command = ["sha256sum", "--check", "--strict", f"checksums/{folder}.sha256"]
        finished = subprocess.run(command, cwd=order.root, capture_output=True, text=True, timeout=300, check=False)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.count(": OK") == (3 if folder == "annotations" else 2)


def test_a_second_call_does_nothing(server, order, monkeypatch):
    Run(server, order)
    before = contents_of(order.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))  # what is complete needs no space
    run = Run(server, order)
    assert run.paths == run.checked == []
    assert ["already" in line for line in run.messages] == [True] * 5
    assert contents_of(order.root) == before


def test_archives_are_kept_on_request_and_used_later(server, order):
    order = replace(order, keeps_archives=True)
    Run(server, order)
    assert names_in(order.root / "archives") == ["annotations_trainval2017.zip", "train2017.zip", "val2017.zip"]
    shutil.rmtree(order.root / "train2017")
    run = Run(server, order)
    assert run.paths == [] and run.shows("train2017.zip: already there")
    shutil.rmtree(order.root / "train2017")
    (order.root / "archives" / "train2017.zip").write_bytes(b"damaged")
    run = Run(server, order)
    assert run.paths == ["/train2017.zip"] and run.shows("downloaded again")


def test_files_at_hand_are_used_and_left_as_they_are(server, order, tmp_path):
    folder = tmp_path / "hand"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    run = Run(server, replace(order, archives_folder=folder))
    assert run.paths == [] and is_complete(order)
    assert contents_of(folder) == {Path(name): content for name, content in FILES.items()}
    (folder / "val2017.zip").unlink()
    shutil.rmtree(order.root / "val2017")
    run = Run(server, replace(order, archives_folder=folder))
    assert run.paths == ["/val2017.zip"] and run.shows(f"val2017.zip: is not in {folder}")  # only what is missing


@pytest.mark.parametrize("name", FILES)
def test_another_file_at_hand_is_refused_and_left(server, order, tmp_path, name):
    (tmp_path / name).write_bytes(b"another file")
    (problem,) = fail(server, replace(order, archives_folder=tmp_path)).problems
    assert (problem.file, problem.field) == (str(tmp_path / name), "MD5")
    assert (tmp_path / name).read_bytes() == b"another file"


def test_another_backbone_that_is_there_is_refused_and_left(server, order):
    order.weights.parent.mkdir(parents=True)
    order.weights.write_bytes(b"mine")
    (problem,) = fail(server, order).problems
    assert "Move it away" in problem.fix and "--weights" in problem.fix
    assert order.weights.read_bytes() == b"mine" and server.requests == []


def test_a_forged_file_with_the_right_md5_is_refused(server, order):
    Run(server, order)
    path = order.root / "SHA256SUMS"
    path.write_text(path.read_text().replace(hashlib.sha256(FILES["R-50.pkl"]).hexdigest(), "0" * 64))
    (problem,) = fail(server, order).problems
    assert problem.field == "SHA-256" and "forged" in problem.message


def test_too_little_space_is_reported_before_anything_is_fetched(server, order, monkeypatch):
    release = small_release(FILES, server.url)
    sizes = ((1e9, 3e9), (2e9, 2e9), (10e9, 11e9))  # of annotations, val2017 and train2017
    archives = tuple(
        replace(archive, file=replace(archive.file, about_bytes=int(packed)), about_unpacked_bytes=int(unpacked))
        for archive, (packed, unpacked) in zip(release.archives, sizes, strict=True)
    )
    release = replace(release, archives=archives, weights=replace(release.weights, about_bytes=500_000_000))
    # All unpacked, the largest archive, the backbone and the margin are there at the same time; all archives if kept.
    for keeps, needed in ((False, 3 + 2 + 11 + 10 + 0.5 + 1), (True, 3 + 2 + 11 + 10 + 2 + 1 + 0.5 + 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, needed=needed: Usage(0, 0, int(needed * 1e9) - 1))
        error = fail(server, replace(order, keeps_archives=keeps), StorageError, release)
        assert f"{needed:.2f} GB of free space are needed" in str(error)
        assert server.requests == []
        monkeypatch.setattr(shutil, "disk_usage", lambda path, needed=needed: Usage(0, 0, int(needed * 1e9)))
        fail(server, replace(order, keeps_archives=keeps), DataError, release)  # the sizes are another file's
        server.requests.clear()


def test_without_images_only_annotations_and_backbone_are_fetched_and_the_rest_later(server, order):
    run = Run(server, replace(order, wants_images=False))
    assert run.paths == ALL_PATHS[:2] and not (order.root / "train2017").exists()
    run = Run(server, order)
    assert run.paths == ALL_PATHS[2:] and run.shows("counts: right") and is_complete(order)


def copy_unpacked(order, server, tmp_path):
    """Put a data set where the order wants one, as if somebody else had done it."""
    other = Order(root=tmp_path / "other" / "coco", weights=tmp_path / "other" / "R-50.pkl")
    Run(server, other)
    for folder in FOLDERS:
        shutil.copytree(other.root / folder, order.root / folder)
    server.requests.clear()


def test_a_data_set_that_is_there_is_taken_as_it_is(server, order, tmp_path):
    copy_unpacked(order, server, tmp_path)
    (order.root / "train2017" / "notes.txt").write_text("mine")
    run = Run(server, order)
    assert run.paths == ["/R-50.pkl"] and run.shows("train2017: taken as it is (2 files") and is_complete(order)
    assert (order.root / "train2017" / "notes.txt").exists()
    assert Run(server, order).shows("train2017: already there")


@pytest.mark.parametrize("name", ["000000000004.jpg", "instances_val2017.json"])
def test_an_incomplete_folder_of_somebody_else_is_refused_and_left(server, order, tmp_path, name):
    copy_unpacked(order, server, tmp_path)
    folder = order.root / ("train2017" if name.endswith("jpg") else "annotations")
    (folder / name).unlink()
    before = contents_of(folder)
    (problem,) = fail(server, order).problems
    assert problem.file == str(folder) and "Move it away" in problem.fix and contents_of(folder) == before


IMAGE = "val2017/000000000009.jpg"


@pytest.mark.parametrize(
    ("change", "verifies", "file", "field"),
    [
        (Path.unlink, False, IMAGE, "file"),
        (lambda image: image.write_bytes(b"short"), False, "val2017", "size"),
        (lambda image: image.write_bytes(b"short"), True, IMAGE, "SHA-256"),
        (lambda image: image.write_bytes(image.read_bytes()[::-1]), False, None, ""),
        (lambda image: image.write_bytes(image.read_bytes()[::-1]), True, IMAGE, "SHA-256"),
    ],
    ids=["gone", "size", "size, --verify", "content", "content, --verify"],
)
def test_a_changed_folder_is_reported(server, order, change, verifies, file, field):
    Run(server, order)
    change(order.root / IMAGE)
    if file is None:
        Run(server, order)  # only --verify reads all files
        return
    (problem,) = fail(server, replace(order, verifies=verifies)).problems
    assert (problem.file, problem.field) == (str(order.root / file), field)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[("prepared.json", text) for text in (b"", b"{", b"[]", b'{"folders": {"val2017": {}}}', b'{"counted": 5}')],
        ("SHA256SUMS", b"\xff not a digest\n"),
    ],
)
def test_a_damaged_record_is_reported_and_can_be_removed(server, order, name, content):
    Run(server, order)
    (order.root / name).write_bytes(content)
    (problem,) = fail(server, order).problems
    assert problem.file == str(order.root / name)
    (order.root / name).unlink()
    Run(server, order)


def test_verify_reads_all_and_counts_again(server, order):
    Run(server, order)
    run = Run(server, replace(order, verifies=True))
    assert run.paths == [] and run.checked == [order.weights] and run.shows("counts: right")
    assert all(run.shows(f"{folder}: already there, every file verified") for folder in FOLDERS)


def test_a_lost_list_of_digests_is_fixed_as_the_message_says(server, order):
    Run(server, order)
    (order.root / "checksums" / "val2017.sha256").unlink()
    (problem,) = fail(server, order).problems
    assert problem.fix.startswith(f"Remove {order.root / 'prepared.json'}")
    (order.root / "prepared.json").unlink()
    assert Run(server, order).shows("val2017: taken as it is")


def test_wrong_counts_are_an_error_every_time(server, order):
    release = replace(small_release(FILES, server.url), check_counts=lambda train, val: ["One polygon too many."])
    for _ in range(2):
        (problem,) = fail(server, order, release=release).problems
        assert problem.message == "One polygon too many."
    Run(server, order)


def test_images_that_the_annotations_do_not_name_are_no_replacement(server, order):
    files = {**FILES, "val2017.zip": zipped({"val2017/x.jpg": b"x", "val2017/y.jpg": b"y"})}
    server.files["/val2017.zip"] = files["val2017.zip"]
    problems = fail(server, order, release=small_release(files, server.url)).problems
    assert [problem.value for problem in problems] == ["'000000000004.jpg'", "'000000000009.jpg'"]


def test_what_is_complete_stays_when_a_later_file_cannot_be_had(server, order):
    (order.root / "train2017").mkdir(parents=True)  # an empty folder is filled
    server.plans["/train2017.zip"] = [Answer(status=403)] * 2
    (problem,) = fail(server, order).problems
    assert problem.file == str(order.root / "archives" / "train2017.zip")
    assert Run(server, order).paths == ["/train2017.zip"] and is_complete(order)


def test_a_second_prepare_at_the_same_time_is_refused(server, order):
    order.root.mkdir(parents=True)
    with open(order.root / ".prepare.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another maskperf prepare works there" in str(fail(server, order, StorageError))
    Run(server, order)


def test_a_file_system_without_locks_is_reported_and_used(server, order, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert Run(server, order).shows("without a lock")


def test_a_full_disk_is_a_storage_error_and_nothing_half_unpacked_stays(server, order, monkeypatch):
    def full(opened, member, path):
        path.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    assert "No space left on device" in str(fail(server, order, StorageError))
    monkeypatch.undo()
    assert not any(path.name.startswith(".unpacking") for path in order.root.iterdir())
    assert Run(server, order).shows("annotations_trainval2017.zip: already there") and is_complete(order)


def test_coco_2017_is_what_the_benchmark_names():
    files = {archive.file.name: archive.file for archive in COCO_2017.archives}
    files["R-50.pkl"] = COCO_2017.weights
    assert {name: file.md5 for name, file in files.items()} == {
        "train2017.zip": "cced6f7f71b7629ddf16f17bbcfab6b2",
        "val2017.zip": "442b8da7639aecaf257c1dceb8ba8c80",
        "annotations_trainval2017.zip": "f4bbac642086de4f52a3fdda2de5fa2c",
        "R-50.pkl": "b19105fdd7baafb40480251377de18f2",
    }
    assert {file.url.rpartition("/")[2] for file in files.values()} == set(files)
    counts = {archive.folder: archive.num_files for archive in COCO_2017.archives}
    assert counts == {"annotations": None, "val2017": 5_000, "train2017": 118_287}
