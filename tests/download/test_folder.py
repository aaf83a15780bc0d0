import hashlib
import os
import stat
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from permissions import UMASKS, umask

from maskperf.download import folder as folder_module
from maskperf.download.download import Listener
from maskperf.download.folder import unpack
from maskperf.download.release import Archive, RemoteFile
from maskperf.errors import EXIT_DATA, DataError

RANDOM = np.random.default_rng(0)
FILES = {f"{number:012d}.jpg": RANDOM.bytes(1000 + 37 * number) for number in range(20)}
GOOD = {"val2017/": b"", "val2017/a.jpg": b"first" * 50, "val2017/b.jpg": b"second" * 50}
ARCHIVE = Archive(
    file=RemoteFile(name="x.zip", url="", md5="", about_bytes=1),
    folder="val2017",
    suffix=".jpg",
    about_unpacked_bytes=10_000,
    num_files=2,
)
SILENT = Listener(say=lambda text: None, advance=lambda *progress: None)


@pytest.fixture(autouse=True)
def without_sync(monkeypatch):
    monkeypatch.setattr(os, "sync", lambda: None)  # slow where other programs write


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "outer" / "root"
    folder.mkdir(parents=True)
    return folder


def write_zip(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o4777 | stat.S_IFREG) << 16
            archive.writestr(info, content, method)
    return path


def refuse(path, root, archive=ARCHIVE):
    """Return the only problem of an archive, after nothing of it was left."""
    with pytest.raises(DataError) as caught:
        unpack(path, archive, root, SILENT)
    assert caught.value.exit_code == EXIT_DATA
    assert list(root.parent.rglob("*")) == [root]
    (problem,) = caught.value.problems
    assert problem.file == str(path) and problem.line().isprintable()
    return problem


@pytest.mark.parametrize("mask", UMASKS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_all_files_are_there_with_their_digests_and_the_modes_of_the_umask(tmp_path, root, method, mask):
    path = write_zip(tmp_path / "x.zip", {f"val2017/{name}": content for name, content in FILES.items()}, method)
    progress = []
    listener = Listener(say=lambda text: None, advance=lambda *amounts: progress.append(amounts))
    with umask(mask):
        record = unpack(path, replace(ARCHIVE, num_files=len(FILES)), root, listener)
    folder, sums = root / "val2017", root / "checksums" / "val2017.sha256"
    total = sum(map(len, FILES.values()))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert (record.files, record.num_bytes) == (len(FILES), total)
    assert record.sums_sha256 == hashlib.sha256(sums.read_bytes()).hexdigest()
    expected = [f"{hashlib.sha256(content).hexdigest()}  val2017/{name}" for name, content in FILES.items()]
    assert sums.read_text().splitlines() == expected
    assert progress[-1] == ("val2017: unpacking", total, total)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o666 & ~mask}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask
    assert sorted(path.name for path in root.iterdir()) == ["checksums", "val2017"]


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.jpg", "val2017/../../evil.jpg", "val2017/..", "/etc/evil.jpg", "//server/evil.jpg", "C:/evil.jpg"),
        *("val2017\\..\\..\\evil.jpg", "val2017/evil\x07.jpg", "val2017/sub/evil.jpg", "val2017//evil.jpg"),
        *("val2017/./evil.jpg", "val2017/.jpg", "val2017/-rf.jpg", "val2017/evil.sh", "val2017/\u202egpj.evil.jpg"),
        *("train2017/evil.jpg", "val2017", "evil.jpg", "__MACOSX/val2017/._a.jpg"),
    ],
)
def test_a_member_with_a_name_that_does_not_belong_there_is_refused(tmp_path, root, name):
    path = write_zip(tmp_path / "x.zip", {**GOOD, name: b"evil"})
    assert "does not belong there" in refuse(path, root).message


def test_a_duplicate_name_is_refused(tmp_path, root):
    path = write_zip(tmp_path / "x.zip", {**GOOD, "val2017/X.jpg": b"x"})
    path.write_bytes(path.read_bytes().replace(b"val2017/X.jpg", b"val2017/a.jpg"))
    assert "a.jpg" in refuse(path, root).message


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({"num_files": 3}, "3 .jpg files"), ({"num_files": 1}, "1 .jpg"), ({"required_names": ("c.jpg",)}, "c.jpg")],
)
def test_other_files_than_expected_are_refused(tmp_path, root, changes, missing):
    problem = refuse(write_zip(tmp_path / "x.zip", GOOD), root, replace(ARCHIVE, **changes))
    assert (problem.field, problem.value) == ("files", "2")
    assert missing in problem.message


def test_a_changed_byte_is_found(tmp_path, root):
    path = write_zip(tmp_path / "x.zip", GOOD)
    path.write_bytes(path.read_bytes().replace(b"secondsecond", b"secondsecomd", 1))
    assert "CRC" in refuse(path, root).message


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06", b"<html>not found</html>", bytes(100_000)], ids=range(4))
def test_what_is_no_archive_is_refused(tmp_path, root, data):
    (tmp_path / "x.zip").write_bytes(data)
    refuse(tmp_path / "x.zip", root)


def test_random_changes_of_an_archive_are_refused_or_harmless(tmp_path, root):
    """Whatever the bytes are, nothing but the expected folder appears, and no other error is raised."""
    good = write_zip(tmp_path / "x.zip", GOOD, zipfile.ZIP_DEFLATED).read_bytes()
    generator = np.random.default_rng(5)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for position in generator.integers(0, len(data), 1 + generator.integers(3)):
            data[position] = generator.integers(256)
        (tmp_path / "x.zip").write_bytes(data)
        try:
            unpack(tmp_path / "x.zip", ARCHIVE, root, SILENT)
        except DataError:
            refused += 1
        else:
            (root / "checksums" / "val2017.sha256").unlink()
            (root / "checksums").rmdir()
            for path in (root / "val2017").iterdir():
                path.unlink()
            (root / "val2017").rmdir()
        assert [path.name for path in root.parent.iterdir()] == ["root"]
        assert list(root.iterdir()) == []
    assert refused > 100


def test_what_an_interrupted_call_left_is_replaced(tmp_path, root):
    left = root / ".unpacking-val2017"
    left.mkdir()
    (left / "old.jpg").write_bytes(b"old")
    unpack(write_zip(tmp_path / "x.zip", GOOD), ARCHIVE, root, SILENT)
    assert sorted(path.name for path in (root / "val2017").iterdir()) == ["a.jpg", "b.jpg"]
    assert not left.exists()


def test_ctrl_c_leaves_nothing(tmp_path, root, monkeypatch):
    def interrupt(opened, member, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "_extract", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack(write_zip(tmp_path / "x.zip", GOOD), ARCHIVE, root, SILENT)
    assert list(root.iterdir()) == []
