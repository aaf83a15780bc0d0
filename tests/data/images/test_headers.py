import os
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from image_folder import KINDS, encoded, gradient, write_document

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.coco.table import table_paths
from maskperf.data.images import headers
from maskperf.data.images.headers import check_headers, look_at

SIZE_HW = (64, 96)
LIMIT = 64 * 96
DATA = DataConfig(max_image_pixels=LIMIT)
PIXELS = gradient(*SIZE_HW)
JPEG = encoded(PIXELS, "JPEG")


def index_of(folder, files: dict[str, bytes], size_hw=SIZE_HW):
    """Return the index of a folder with these files, each of which is an image of one object."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for name, data in files.items():
        (images / name).write_bytes(data)
    return read_coco(write_document(folder, [(name, size_hw) for name in files], first_id=1), images, training=True)


def look(folder, data: bytes, size_hw=SIZE_HW):
    path = folder / "one"
    path.write_bytes(data)
    return look_at(str(path), expected_size_hw=size_hw)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {"mode": mode}) for kind in KINDS if kind not in ("BMP", "PPM") for mode in ("RGB", "L")),
        *(("PNG", {"mode": mode}) for mode in ("RGBA", "LA", "P", "1")),
        *(("TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "tiff_deflate")),
        *(("JPEG", options) for options in ({"progressive": True}, {"subsampling": 0}, {"quality": 100})),
        ("JPEG", {"icc_profile": b"x" * 90_000}),
    ],
)
def test_a_look_settles_what_is_good_and_no_other_size(tmp_path, kind, options):
    data = encoded(PIXELS, kind, **options)
    assert look(tmp_path, data) == (True, 1)
    assert not look(tmp_path, data, (64, 95))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_never_settled_by_a_look(tmp_path, kind):
    data = encoded(PIXELS, kind)
    for length in {0, 1, 2, 20, len(data) // 3, len(data) // 2, len(data) - 200, len(data) - 70}:
        assert not look(tmp_path, data[:length])[0]


BEHIND = (b"\0" * 40, b"\0" * 5000, b"\x12\x34" * 700, b"ftypmp42" + bytes(range(256)) * 9)
SECOND = encoded(gradient(30, 50), "JPEG")


def test_what_is_behind_the_end_is_no_problem_nor_is_a_second_image_that_is_cut(tmp_path):
    files = {f"{kind}{number}": encoded(PIXELS, kind) + more for kind in KINDS for number, more in enumerate(BEHIND)}
    files |= {"two": JPEG + SECOND, "cut": JPEG + SECOND[:-100], "mpo": encoded(PIXELS, "MPO", save_all=True)}
    assert check_headers(index_of(tmp_path, files), DATA) == ([], ())


def test_the_end_marker_of_a_thumbnail_is_not_taken_for_that_of_the_image(tmp_path):
    small = encoded(gradient(8, 12), "JPEG")
    with_thumbnail = JPEG[:2] + b"\xff\xe1" + (len(small) + 8).to_bytes(2) + b"Exif\0\0" + small + JPEG[2:]
    assert look(tmp_path, with_thumbnail)[0]
    cut = with_thumbnail[: 2 + 10 + len(small)]
    assert cut.endswith(b"\xff\xd9") and not look(tmp_path, cut)[0]


FRAME = JPEG.index(b"\xff\xc0")
UNUSUAL = {
    "lossless": JPEG[: FRAME + 1] + b"\xc3" + JPEG[FRAME + 2 :],
    "12 bits": JPEG[: FRAME + 4] + b"\x0c" + JPEG[FRAME + 5 :],
    "deep PNG": encoded(np.zeros(SIZE_HW, np.uint16), "PNG"),
    **{f"TIFF of {kind.__name__}": encoded(np.zeros(SIZE_HW, kind), "TIFF") for kind in (np.uint16, np.int32)},
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_file_is_never_settled_by_a_look(tmp_path, data):
    assert not look(tmp_path, data)[0]


def test_missing_empty_and_odd_files_are_problems(tmp_path):
    index = index_of(tmp_path, dict.fromkeys(["gone", "empty", "folder", "page", "fine"], JPEG))
    for name in ("gone", "folder"):
        (index.image_folder / name).unlink()
    (index.image_folder / "empty").write_bytes(b"")
    (index.image_folder / "folder").mkdir()
    (index.image_folder / "page").write_bytes(b"<html>404</html>")
    problems, notices = check_headers(index, DATA)
    parts = ("does not exist", "is empty", "cannot be read", "not an image of a known format")
    for position, (found, part) in enumerate(zip(problems, parts, strict=True)):
        assert (found[0], found[1].where) == (position, f"image id {position + 1}")
        assert found[1].file == str(index.image_path(position)) and part in found[1].message
    assert notices == ()
    assert check_headers(index, DATA, skip={0, 1, 2, 3}) == ([], ())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientations_are_counted_and_ignored(tmp_path, kind):
    files = {f"{turn}": encoded(PIXELS, kind, orientation=turn) for turn in (1, 3, 6, 8, 0)}
    problems, (notice,) = check_headers(index_of(tmp_path, files), DATA)
    assert problems == []
    assert notice.startswith("3 images have an EXIF orientation") and "first ids: 2, 3, 4" in notice


def test_a_broken_exif_segment_is_none(tmp_path):
    marked = encoded(PIXELS, "JPEG", orientation=6)
    start = marked.index(b"Exif\0\0") + 6
    for length in range(6):
        broken = marked[:start] + bytes(length) + marked[start + length :]
        assert look(tmp_path, broken) == (True, 6 if length == 0 else 1)


def test_few_bytes_are_read_of_a_large_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    data = encoded(noise, "JPEG", quality=95)
    look(tmp_path, data, (600, 800))
    tracemalloc.start()
    assert look_at(str(tmp_path / "one"), expected_size_hw=(600, 800))[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000 < len(data) / 10


def test_with_decode_an_image_broken_inside_is_found(tmp_path):
    good = encoded(gradient(200, 300), "PNG")
    start = good.index(b"IDAT") + 60
    broken = good[:start] + bytes(40) + good[start + 40 :]
    index, progress = index_of(tmp_path, {"one": broken, "two": good}, (200, 300)), []
    data = DataConfig(max_image_pixels=60_000)
    assert check_headers(index, data) == ([], ())
    ((position, problem),), _ = check_headers(
        index, data, decode=True, progress=lambda *counts: progress.append(counts)
    )
    assert (position, problem.field) == (0, "pixels")
    assert progress == [(1, 2), (2, 2)]


# ---- what is remembered


@pytest.fixture
def looks(monkeypatch):
    """The names of the files that were read, not only asked for in the file system."""
    seen = []

    def counting(path, **options):
        seen.append(os.path.basename(path))
        return look_at(path, **options)

    monkeypatch.setattr(headers, "look_at", counting)
    return seen


def rest(index, name: str, seconds: float = 60.0) -> None:
    """Make a file look as if it had not been changed for a while."""
    then = time.time() - seconds
    os.utime(index.image_folder / name, (then, then))


def table_of(index):
    return table_paths(index.json_path, "images")[0]


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "MIN_REMEMBERED_SET", 3)
    turned, png, gif = encoded(PIXELS, "JPEG", orientation=6), encoded(PIXELS, "PNG"), encoded(PIXELS, "GIF")
    index = index_of(tmp_path, {"a": JPEG, "b": turned, "c": png, "d": gif})
    for name in index.file_names:
        rest(index, name)
    return index


def test_good_files_are_read_once(index, looks):
    first = check_headers(index, DATA)
    assert sorted(looks) == ["a", "b", "c", "d"]
    assert "1 images have an EXIF orientation" in first[1][0]
    looks.clear()
    index.json_path.write_text(index.json_path.read_text() + "\n")  # whatever becomes of the JSON
    assert check_headers(index, DATA) == first  # the notice of the orientation too
    check_headers(index, DATA, skip={0})
    assert looks == []
    assert table_of(index).name == ".instances.json.images.table" and table_of(index).exists()


def test_a_small_set_is_not_remembered(index, looks, monkeypatch):
    monkeypatch.setattr(headers, "MIN_REMEMBERED_SET", 5)
    check_headers(index, DATA)
    check_headers(index, DATA)
    assert sorted(looks) == sorted("abcdabcd")
    assert not table_of(index).exists()


def test_a_changed_file_is_read_again(index, looks):
    check_headers(index, DATA)
    looks.clear()
    (index.image_folder / "a").write_bytes(JPEG[:-500])
    size = (index.image_folder / "c").stat().st_size
    (index.image_folder / "c").write_bytes(b"x" * size)  # the same size at another time
    assert [position for position, _ in check_headers(index, DATA)[0]] == [0, 2]
    assert looks == ["a", "c"]


def test_files_changed_a_moment_ago_and_bad_files_are_not_remembered(index, looks):
    rest(index, "b", seconds=1.0)
    (index.image_folder / "c").write_bytes(b"no image")
    rest(index, "c")
    first = check_headers(index, DATA)
    assert [position for position, _ in first[0]] == [2]
    looks.clear()
    assert check_headers(index, DATA) == first
    assert looks == ["b", "c"]


def test_another_size_in_the_json_or_a_lower_limit_is_seen(index, looks):
    check_headers(index, DATA)
    looks.clear()
    sizes_hw = index.sizes_hw.copy()
    sizes_hw[3] = (96, 64)
    ((position, problem),), _ = check_headers(replace(index, sizes_hw=sizes_hw), DATA)
    assert (position, problem.field, looks) == (3, "height, width", ["d"])
    assert len(check_headers(index, DataConfig(max_image_pixels=LIMIT - 1))[0]) == 4


OTHER = headers.Table({"file_bytes": np.zeros(4, np.int64)}, {"file_names": ("a", "b", "c", "d")})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda index: table_of(index).write_bytes(b""),
        lambda index: table_of(index).write_bytes(table_of(index).read_bytes()[:-1]),
        lambda index: headers.save_table(index.json_path, "images", OTHER),
    ],
    ids=["empty", "cut", "other contents"],
)
def test_a_damaged_record_is_reported_and_made_anew(index, looks, spoil):
    first = check_headers(index, DATA)
    whole = table_of(index).read_bytes()
    spoil(index)
    looks.clear()
    problems, notices = check_headers(index, DATA)
    assert problems == []
    assert notices[0].startswith(f"{table_of(index)}: damaged, or of another version")
    assert notices[1:] == first[1]
    assert sorted(looks) == ["a", "b", "c", "d"]
    assert table_of(index).read_bytes() == whole


def test_where_nothing_can_be_saved_it_is_reported(index, monkeypatch):
    monkeypatch.setattr(headers, "save_table", lambda *a, **k: "/data: Read-only file system")
    _, notices = check_headers(index, DATA)
    assert "the next start reads them again (/data: Read-only file system)" in notices[-1]


def test_what_was_decoded_once_is_not_decoded_again_unless_all_shall_be(index, monkeypatch):
    decoded, honest = [], headers.check_images
    monkeypatch.setattr(headers, "check_images", lambda i, at, **o: decoded.append(len(at)) or honest(i, at, **o))
    skipping = replace(DATA, skip_bad=True)
    for data, decode in ((DATA, False), (skipping, False), (skipping, False), (DATA, True), (skipping, False)):
        check_headers(index, data, decode=decode)
    assert decoded == [0, 4, 0, 4, 0]
