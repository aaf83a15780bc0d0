import hashlib
import os
import stat
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from permissions import UMASKS, umask

from maskperf.download.download import Listener
from maskperf.download.folder import unpack
from maskperf.download.release import COCO_2017
from maskperf.errors import EXIT_DATA, DataError

RANDOM = np.random.default_rng(0)
FILES = {f"{number:012d}.jpg": RANDOM.bytes(1000 + 37 * number) for number in range(20)}
GOOD = {"val2017/": b"", "val2017/a.jpg": b"first" * 50, "val2017/b.jpg": b"second" * 50}
ARCHIVE = replace(COCO_2017.archives[1], num_files=2)
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


@pytest.mark.parametrize("mask", UMASKS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_all_files_are_there_with_their_digests_and_the_modes_of_the_umask(tmp_path, root, method, mask):
    path = write_zip(tmp_path / "x.zip", {f"val2017/{name}": content for name, content in FILES.items()}, method)
    progress = []
    listener = Listener(say=lambda text: None, advance=lambda *amounts: progress.append(amounts))
    with umask(mask):
        record = unpack(path, ARCHIVE, root, listener)
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


def test_no_name_leads_out_of_the_folder(tmp_path, root):
    names = ("../evil.jpg", "val2017/../../../evil.jpg", "/evil.jpg", "//server/evil.jpg", "__MACOSX/val2017/evil.jpg")
    unpack(write_zip(tmp_path / "x.zip", {**GOOD, **dict.fromkeys(names, b"evil")}), ARCHIVE, root, SILENT)
    assert {path.parent for path in root.parent.rglob("*.jpg")} == {root / "val2017"}
    assert not os.path.exists("/evil.jpg")


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"<html>not found</html>", lambda data: data.replace(b"secondsecond", b"secondsecomd", 1)],
    ids=["another file", "a changed byte"],
)
def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path, root, spoil):
    path = write_zip(tmp_path / "x.zip", GOOD)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        unpack(path, ARCHIVE, root, SILENT)
    (problem,) = caught.value.problems
    assert (caught.value.exit_code, problem.file, problem.value) == (EXIT_DATA, str(path), "damaged")
    assert list(root.iterdir()) == []


def test_what_an_interrupted_call_left_is_replaced(tmp_path, root, monkeypatch):
    left = root / ".unpacking-val2017"
    left.mkdir()
    (left / "old.jpg").write_bytes(b"old")
    path = write_zip(tmp_path / "x.zip", GOOD)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(zipfile.ZipFile, "extract", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        unpack(path, ARCHIVE, root, SILENT)
    assert list(root.iterdir()) == []
    unpack(path, ARCHIVE, root, SILENT)
    assert sorted(path.name for path in root.rglob("*.jpg")) == ["a.jpg", "b.jpg"]
