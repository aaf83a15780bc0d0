import hashlib
import os
import stat
import struct
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from permissions import UMASKS, umask

from maskperf.download import unpack as unpack_module
from maskperf.download.unpack import Contents, list_members, unpack
from maskperf.errors import EXIT_DATA, DataError

RANDOM = np.random.default_rng(0)
FILES = {f"{number:012d}.jpg": RANDOM.bytes(1000 + 37 * number) for number in range(200)}
CONTENTS = Contents(
    folder="val2017", suffix=".jpg", min_files=2, max_files=3, about_bytes=10_000, max_bytes=100_000, required_names=()
)
GOOD = {"val2017/": b"", "val2017/a.jpg": b"first" * 50, "val2017/b.jpg": b"second" * 50}


def write_zip(path, members, method=zipfile.ZIP_STORED):
    """Write members in this order: (name or ZipInfo, bytes) pairs or a dictionary."""
    pairs = members.items() if isinstance(members, dict) else members
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in pairs:
            archive.writestr(name, content)
    return path


def good_and(*pairs):
    return [*GOOD.items(), *pairs]


def info(name, mode=0o644 | stat.S_IFREG, system=3):
    made = zipfile.ZipInfo(name)
    made.create_system = system
    made.external_attr = mode << 16
    return made


def unpack_quietly(archive, root, contents=CONTENTS):
    return unpack(archive, root, contents, advance=lambda done, total: None)


def refuse(archive, root, contents=CONTENTS):
    """Return the problems of an archive, after nothing of it was left."""
    before = set(root.rglob("*"))
    with pytest.raises(DataError) as caught:
        unpack_quietly(archive, root, contents)
    assert caught.value.exit_code == EXIT_DATA
    assert set(root.rglob("*")) == before
    return caught.value.problems


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "outer" / "root"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("mask", UMASKS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_all_files_are_there_with_their_digests_and_the_modes_of_the_umask(tmp_path, root, method, mask):
    pairs = [(info(f"val2017/{name}", mode=0o4777 | stat.S_IFREG), content) for name, content in FILES.items()]
    archive = write_zip(tmp_path / "x.zip", pairs, method)
    told = []
    contents = replace(CONTENTS, max_files=200, max_bytes=10_000_000)
    with umask(mask):
        done = unpack(archive, root, contents, advance=lambda *words: told.append(words))
    assert {path.name: path.read_bytes() for path in (root / "val2017").iterdir()} == FILES
    assert done.sha256_of_name == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    total = sum(map(len, FILES.values()))
    assert done.num_bytes == total
    assert told[-1] == (total, total)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root / "val2017").iterdir()} == {0o666 & ~mask}
    assert stat.S_IMODE((root / "val2017").stat().st_mode) == 0o777 & ~mask
    assert [path.name for path in root.iterdir()] == ["val2017"]


def test_members_come_in_the_order_of_their_names_without_the_folder(tmp_path):
    archive = write_zip(tmp_path / "x.zip", dict(reversed(GOOD.items())))
    assert [member.filename for member in list_members(archive, CONTENTS)] == ["val2017/a.jpg", "val2017/b.jpg"]


BAD_NAMES = [
    ("../evil.jpg", "leads out"),
    ("val2017/../../evil.jpg", "leads out"),
    ("val2017/..", "leads out"),
    ("/etc/evil.jpg", "absolute"),
    ("//server/evil.jpg", "absolute"),
    ("C:/evil.jpg", "absolute"),
    ("C:evil.jpg", "absolute"),
    ("val2017\\..\\..\\evil.jpg", "character"),
    ("val2017/evil\x07.jpg", "character"),
    ("val2017/evil\n.jpg", "character"),
    ("val2017/sub/evil.jpg", "Only files"),
    ("val2017/sub/", "Only files"),
    ("val2017//evil.jpg", "Only files"),
    ("val2017/./evil.jpg", "Only files"),
    ("val2017/.jpg", "Only files"),
    ("val2017/-rf.jpg", "Only files"),
    ("val2017/evil.sh", "Only files"),
    ("val2017/\u202egpj.evil.jpg", "character"),
    ("train2017/evil.jpg", "not in the folder"),
    ("val2017", "not in the folder"),
    ("evil.jpg", "not in the folder"),
    ("__MACOSX/val2017/._a.jpg", "not in the folder"),
]


@pytest.mark.parametrize(("name", "message"), BAD_NAMES)
def test_a_member_with_a_name_that_does_not_belong_there_is_refused(tmp_path, root, name, message):
    archive = write_zip(tmp_path / "x.zip", good_and((name, b"evil")))
    problems = refuse(archive, root)
    assert [problem.field for problem in problems if message in problem.message] == ["name"]
    assert all(problem.line().isprintable() for problem in problems)


@pytest.mark.parametrize("name", [b"val2017/c.jpg\0sh", b"\0al2017/c.jpgXsh"])
def test_a_name_that_goes_on_after_a_zero_is_refused(tmp_path, root, name):
    archive = write_zip(tmp_path / "x.zip", good_and(("val2017/c.jpgXsh", b"evil")))
    archive.write_bytes(archive.read_bytes().replace(b"val2017/c.jpgXsh", name))
    assert any("character" in problem.message for problem in refuse(archive, root))


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR], ids=hex
)
@pytest.mark.parametrize("system", [0, 3])
def test_links_and_devices_are_refused(tmp_path, root, kind, system):
    archive = write_zip(tmp_path / "x.zip", good_and((info("val2017/c.jpg", kind | 0o777, system), b"/etc/passwd")))
    (problem,) = refuse(archive, root)
    assert (problem.field, problem.message) == ("mode", "It is a link, a device or another special file.")


def test_a_link_followed_by_a_file_of_the_same_name_is_refused_twice(tmp_path, root):
    link = (info("val2017/c.jpg", stat.S_IFLNK | 0o777), b"../../target")
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = write_zip(tmp_path / "x.zip", [*GOOD.items(), link, ("val2017/c.jpg", b"evil")])
    problems = refuse(archive, root, replace(CONTENTS, max_files=9))
    assert {problem.field for problem in problems} == {"mode", "name"}


@pytest.mark.parametrize("name", ["val2017/a.jpg", "val2017/A.jpg"])
def test_a_name_that_stands_there_twice_is_refused(tmp_path, root, name):
    archive = write_zip(tmp_path / "x.zip", good_and(("val2017/X.jpg", b"x")))
    archive.write_bytes(archive.read_bytes().replace(b"val2017/X.jpg", name.encode()))
    assert [problem.message for problem in refuse(archive, root)] == ["The name stands there twice."]


def patched(path, offset_in_table, form, value, member=b"val2017/b.jpg", also_local=None):
    """Return the archive after a number of a member was changed in the table of contents (and before its content)."""
    data = bytearray(path.read_bytes())
    place = data.rindex(member) - 46
    assert data[place : place + 4] == b"PK\x01\x02"
    struct.pack_into(form, data, place + offset_in_table, value)
    if also_local is not None:
        local = data.index(member) - 30
        assert data[local : local + 4] == b"PK\x03\x04"
        struct.pack_into(form, data, local + also_local, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("flags", [0x1, 0x41, 0x2000])
def test_an_encrypted_member_is_refused(tmp_path, root, flags):
    archive = patched(write_zip(tmp_path / "x.zip", GOOD), 8, "<H", flags, also_local=6)
    assert [problem.message for problem in refuse(archive, root)] == ["It is encrypted."]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unexpected_method_is_refused(tmp_path, root, method):
    assert {problem.field for problem in refuse(write_zip(tmp_path / "x.zip", GOOD, method), root)} == {"method"}


def test_a_method_that_nobody_knows_is_refused(tmp_path, root):
    archive = patched(write_zip(tmp_path / "x.zip", GOOD), 10, "<H", 77, also_local=8)
    assert [problem.field for problem in refuse(archive, root)] == ["method"]


def test_a_bomb_is_refused_by_its_ratio(tmp_path, root):
    bomb = ("val2017/c.jpg", bytes(5_000_000))
    archive = write_zip(tmp_path / "x.zip", good_and(bomb), zipfile.ZIP_DEFLATED)
    problems = refuse(archive, root, replace(CONTENTS, max_bytes=1 << 40))
    assert [problem.message for problem in problems] == ["It unpacks to more than 100 times its size."]


def test_more_bytes_in_all_than_expected_are_refused(tmp_path, root):
    archive = write_zip(tmp_path / "x.zip", GOOD)
    problems = refuse(archive, root, replace(CONTENTS, max_bytes=400))
    assert [(problem.field, problem.value) for problem in problems] == [("size", "550 bytes unpacked")]


@pytest.mark.parametrize("limits", [(3, 3), (1, 1), (3, 9)])
def test_more_or_fewer_files_than_expected_are_refused(tmp_path, root, limits):
    contents = replace(CONTENTS, min_files=limits[0], max_files=limits[1])
    (problem,) = refuse(write_zip(tmp_path / "x.zip", GOOD), root, contents)
    assert (problem.field, problem.value) == ("files", "2")


def test_a_file_that_must_be_there_is_missed(tmp_path, root):
    contents = replace(CONTENTS, required_names=("b.jpg", "instances.jpg"))
    (problem,) = refuse(write_zip(tmp_path / "x.zip", GOOD), root, contents)
    assert (problem.value, problem.message) == ("instances.jpg", "It is missing.")


@pytest.mark.parametrize(
    ("size", "message"), [(299, "Bad CRC"), (301, "does not have"), (0, "Bad CRC"), (90_000, "does not have")]
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_size_that_is_a_lie_is_found_while_writing(tmp_path, root, size, message, method):
    archive = patched(write_zip(tmp_path / "x.zip", GOOD, method), 24, "<L", size, also_local=22)
    (problem,) = refuse(archive, root)
    assert problem.where == "member 'val2017/b.jpg'"
    assert "It cannot be unpacked" in problem.message
    assert message in problem.message


def test_no_more_than_the_declared_bytes_are_written(tmp_path):
    given = iter([b"x" * 10, b"y" * 10, b"z" * 10])
    with pytest.raises(zipfile.BadZipFile, match="15 bytes"):
        unpack_module._write_file(given, tmp_path / "f", 15)
    assert (tmp_path / "f").read_bytes() == b"x" * 10
    assert next(given) == b"z" * 10


def test_a_changed_byte_is_found(tmp_path, root):
    archive = write_zip(tmp_path / "x.zip", GOOD)
    archive.write_bytes(archive.read_bytes().replace(b"secondsecond", b"secondsecomd", 1))
    (problem,) = refuse(archive, root)
    assert "CRC" in problem.message


def test_another_name_before_the_content_than_in_the_table_is_found(tmp_path, root):
    archive = write_zip(tmp_path / "x.zip", GOOD)
    archive.write_bytes(archive.read_bytes().replace(b"val2017/b.jpg", b"val2017/z.jpg", 1))
    (problem,) = refuse(archive, root)
    assert "It cannot be unpacked" in problem.message


def test_members_that_share_their_bytes_are_refused(tmp_path, root):
    archive = write_zip(tmp_path / "x.zip", GOOD)
    first = archive.read_bytes().index(b"PK\x03\x04", 4)  # of a.jpg
    problems = refuse(patched(archive, 42, "<L", first), root)
    assert "It runs into what begins at byte" in problems[0].message
    assert problems[0].field == "place"


def table_with(length):
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, length, 0, 0)
    return b"PK\x03\x04" + bytes(100) + end


def large_table_with(length, end64=104):
    end64_record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, length, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end64, 1)
    return (
        b"PK\x03\x04"
        + bytes(100)
        + end64_record
        + locator
        + struct.pack("<4s4H2LH", b"PK\x05\x06", *[0xFFFF] * 4, *[0xFFFFFFFF] * 2, 0)
    )


@pytest.mark.parametrize("data", [table_with(4_000_000_000), large_table_with(1 << 62)])
def test_a_table_of_contents_for_millions_of_files_is_not_read(tmp_path, root, data):
    (tmp_path / "x.zip").write_bytes(data)
    (problem,) = refuse(tmp_path / "x.zip", root)
    assert "too many for its files" in problem.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x05\x06",
        b"<html>not found</html>",
        bytes(100_000),
        table_with(1000),
        large_table_with(1000),
        large_table_with(10, end64=1 << 63),
    ],
    ids=range(7),
)
def test_what_is_no_archive_is_refused(tmp_path, root, data):
    (tmp_path / "x.zip").write_bytes(data)
    assert "not a whole zip archive" in refuse(tmp_path / "x.zip", root)[0].message


@pytest.mark.parametrize("kept", [10, 200, 0.5, 0.9, 0.999])
def test_an_archive_that_was_cut_is_refused(tmp_path, root, kept):
    archive = write_zip(tmp_path / "x.zip", GOOD)
    data = archive.read_bytes()
    archive.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    refuse(archive, root)


def test_a_large_archive_with_64_bit_numbers_is_unpacked(tmp_path, root, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    archive = write_zip(tmp_path / "x.zip", GOOD)
    assert b"PK\x06\x07" in archive.read_bytes()
    assert len(unpack_quietly(archive, root).sha256_of_name) == 2


def test_random_changes_of_an_archive_are_refused_or_harmless(tmp_path, root, monkeypatch):
    """Whatever the bytes say, nothing but the expected folder appears, and no other error is raised."""
    monkeypatch.setattr(os, "sync", lambda: None)  # slow where other programs write
    good = write_zip(tmp_path / "x.zip", GOOD, zipfile.ZIP_DEFLATED).read_bytes()
    generator = np.random.default_rng(5)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for place in generator.integers(0, len(data), 1 + generator.integers(3)):
            data[place] = generator.integers(256)
        (tmp_path / "x.zip").write_bytes(data)
        try:
            unpack_quietly(tmp_path / "x.zip", root)
        except DataError:
            refused += 1
        else:
            for path in (root / "val2017").iterdir():
                path.unlink()
            (root / "val2017").rmdir()
        assert [path.name for path in root.parent.iterdir()] == ["root"]
        assert list(root.iterdir()) == []
    assert refused > 100


def test_what_an_interrupted_call_left_is_replaced(tmp_path, root):
    left = root / ".unpacking-val2017"
    left.mkdir()
    (left / "a.jpg").write_bytes(b"half")
    (left / "old.jpg").write_bytes(b"old")
    unpack_quietly(write_zip(tmp_path / "x.zip", GOOD), root)
    assert sorted(path.name for path in (root / "val2017").iterdir()) == ["a.jpg", "b.jpg"]
    assert not left.exists()


def test_ctrl_c_leaves_nothing(tmp_path, root):
    members = {f"val2017/{name}": content for name, content in FILES.items()}
    archive = write_zip(tmp_path / "x.zip", members)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, root, replace(CONTENTS, max_files=200, max_bytes=1 << 30), advance=interrupt)
    assert list(root.iterdir()) == []


def test_a_planted_link_is_not_followed(tmp_path, root):
    """The folder is new, so nothing can be planted in it before; a link in its own place is not followed either."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / ".unpacking-val2017").symlink_to(outside)
    with pytest.raises(OSError):
        unpack_quietly(write_zip(tmp_path / "x.zip", GOOD), root)
    assert list(outside.iterdir()) == []


def test_a_folder_that_is_there_is_not_changed(tmp_path, root):
    (root / "val2017").mkdir()
    (root / "val2017" / "mine.txt").write_text("mine")
    with pytest.raises(OSError):
        unpack_quietly(write_zip(tmp_path / "x.zip", GOOD), root)
    assert [path.name for path in (root / "val2017").iterdir()] == ["mine.txt"]
    assert [path.name for path in root.iterdir()] == ["val2017"]


def test_the_checksums_of_zip_are_those_of_the_content(tmp_path):
    archive = write_zip(tmp_path / "x.zip", GOOD)
    assert [member.CRC for member in list_members(archive, CONTENTS)] == [
        zlib.crc32(GOOD["val2017/a.jpg"]),
        zlib.crc32(GOOD["val2017/b.jpg"]),
    ]
