import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from coco_folder import good_document, write_json
from permissions import UMASKS, common_user, modes, open_folder, umask

from maskperf.data.coco import index as coco
from maskperf.data.coco import table
from maskperf.data.coco.index import read_coco
from maskperf.data.coco.table import load_table, settled_state, table_paths

SOURCES = Path(coco.__file__).parents[3]


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr(coco, "SMALLEST_CACHED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def json_path(tmp_path) -> Path:
    return write_json(tmp_path, good_document())


@pytest.fixture
def forbid_reading(monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("the JSON was read again")

    return lambda: [monkeypatch.setattr(coco, name, forbidden) for name in ("read_columns", "read_text")]


def read(json_path: Path, *, training: bool = True):
    return read_coco(json_path, json_path.parent, training=training)


def beside(json_path: Path, *, training: bool = True) -> Path:
    return table_paths(json_path, "training" if training else "evaluation")[0]


def assert_equal(first, second):
    for name, value in vars(first).items():
        np.testing.assert_array_equal(getattr(second, name), value, err_msg=name)
        assert getattr(getattr(second, name), "dtype", None) == getattr(value, "dtype", None)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("iscrowd", [0, None])  # None is not what the quick reader takes
def test_the_second_reading_needs_no_json(json_path, monkeypatch, forbid_reading, iscrowd, training):
    document = good_document()
    document["annotations"][0]["iscrowd"] = iscrowd
    write_json(json_path.parent, document)
    monkeypatch.setattr(coco, "SMALLEST_CACHED_BYTES", json_path.stat().st_size + 1)
    plain = read(json_path, training=training)
    assert not list(json_path.parent.glob(".*.table"))
    monkeypatch.setattr(coco, "SMALLEST_CACHED_BYTES", 0)
    read(json_path, training=not training)  # has a table of its own
    first = read(json_path, training=training)
    forbid_reading()
    second = read(json_path, training=training)
    for index in (first, second):
        assert_equal(index, plain)
        assert not index.points.flags.writeable and not index.points.flags.owndata  # mapped
    assert beside(json_path, training=training).exists() and len(list(json_path.parent.glob(".*.table"))) == 2


def test_a_json_changed_to_the_same_size_and_time_is_read_anew(json_path):
    read(json_path)
    before = json_path.stat()
    json_path.write_bytes(json_path.read_bytes().replace(b"a.jpg", b"z.jpg"))
    os.utime(json_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = json_path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    for _ in range(2):
        assert read(json_path).file_names == ("z.jpg", "b.jpg")


def test_a_change_within_one_tick_of_the_clock_is_noticed(json_path, monkeypatch):
    assert settled_state(json_path) is None  # it was written a moment ago
    later_ns = time.time_ns() + 6_000_000_000
    with monkeypatch.context() as later:
        later.setattr(table.time, "time_ns", lambda: later_ns)
        state = settled_state(json_path)
    assert state is not None
    read(json_path)
    json_path.write_bytes(json_path.read_bytes().replace(b"a.jpg", b"z.jpg"))
    monkeypatch.setattr(table, "settled_state", lambda path: state)  # as if no clock had moved
    assert load_table(json_path, "training") is None


def test_a_file_at_rest_is_known_by_its_state_alone(json_path, monkeypatch):
    monkeypatch.setattr(table, "REST_NS", -(10**15))
    read(json_path)
    digests = []
    whole = table.sha256_of_file
    monkeypatch.setattr(table, "sha256_of_file", lambda path: digests.append(path) or whole(path))
    assert load_table(json_path, "training") is not None
    assert digests == []
    os.utime(json_path, ns=(1, 1))
    assert load_table(json_path, "training") is not None  # other times, and the same digest
    assert digests == [json_path]


def changed_tables(whole: bytes) -> dict[str, list[bytes]]:
    positions = [*range(0, 80, 5), *range(80, len(whole), 97), len(whole) - 1]
    return {
        "cut": [whole[:length] for length in positions],
        "version": [whole.replace(b"maskperf table 5", b"maskperf table 4")],
        "damaged": [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in positions],
        "longer": [whole + b"0"],
    }


@pytest.mark.parametrize("change", ["cut", "damaged", "version", "longer"])
def test_a_table_that_is_cut_damaged_or_of_another_version_is_made_anew(json_path, change):
    plain = read(json_path)
    whole = beside(json_path).read_bytes()
    for data in changed_tables(whole)[change]:
        beside(json_path).write_bytes(data)
        assert load_table(json_path, "training") is None
    assert_equal(read(json_path), plain)
    assert beside(json_path).read_bytes() == whole


def test_a_table_of_another_json_is_not_believed(json_path, tmp_path):
    document = good_document()
    document["images"][1]["file_name"] = "z.jpg"
    (tmp_path / "other").mkdir()
    other = write_json(tmp_path / "other", document)
    read(json_path)
    beside(other).write_bytes(beside(json_path).read_bytes())
    assert read(other).file_names == ("z.jpg", "b.jpg")


def test_a_folder_that_cannot_be_written_is_replaced_by_the_cache(json_path, tmp_path, forbid_reading):
    beside(json_path).mkdir()  # nothing can take this name; root may write into any folder
    plain = read(json_path)
    (cached,) = (tmp_path / "cache" / "maskperf").iterdir()
    assert cached == table_paths(json_path, "training")[1]
    forbid_reading()
    assert_equal(read(json_path), plain)


@pytest.mark.parametrize("mask", UMASKS)
def test_a_table_has_the_permissions_of_the_umask(json_path, mask):
    with umask(mask):
        read(json_path)
    assert modes(json_path.parent)[beside(json_path).name] == f"{0o666 & ~mask:o}"


def test_a_table_that_others_may_not_read_is_made_anew(monkeypatch):
    with open_folder() as folder:
        json_path = write_json(folder, good_document())
        json_path.chmod(0o644)
        plain = read(json_path)
        beside(json_path).chmod(0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        (folder / "maskperf").mkdir()
        (folder / "maskperf").chmod(0o777)
        folder.chmod(0o555)  # neither root's folder nor one's own can be written
        with common_user():
            assert_equal(read(json_path), plain)
        folder.chmod(0o777)
        assert [path.suffix for path in (folder / "maskperf").iterdir()] == [".table"]


def test_a_table_that_cannot_be_saved_is_noted(json_path, tmp_path):
    beside(json_path).mkdir()
    (tmp_path / "cache").write_text("a file in place of the folder")
    _, notice = read(json_path).notices  # the other: a crowd region
    assert "the next start reads the file again" in notice and str(json_path.parent) in notice
    assert not list(json_path.parent.glob("*.tmp"))


def test_a_file_with_problems_leaves_no_table(tmp_path):
    document = good_document()
    document["annotations"][0]["bbox"] = [1, 2, -3, 4]
    path = write_json(tmp_path, document)
    with pytest.raises(coco.DataError):
        read(path)
    assert not beside(path).exists()


def test_several_processes_at_once_make_one_whole_table(json_path):
    code = (
        "import sys, hashlib; from pathlib import Path; from maskperf.data.coco import document, index as coco\n"
        "coco.SMALLEST_CACHED_BYTES = 0\n"
        "path = Path(sys.argv[1])\n"
        "for _ in range(20):\n"
        "    index = coco._read_anew(path, document.Reading(training=True))\n"
        "    print(hashlib.sha256(index.arrays['points'].tobytes()).hexdigest())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-c", code, str(json_path)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = [line for process in processes for line in process.communicate(timeout=300)[0].split()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert digests == [hashlib.sha256(read(json_path).points.tobytes()).hexdigest()] * 60
    assert [path.name for path in json_path.parent.glob(".*")] == [beside(json_path).name]
