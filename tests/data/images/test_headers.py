import io
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from image_folder import write_document
from PIL import Image

from maskperf.data.coco.index import read_coco
from maskperf.data.coco.table import table_paths
from maskperf.data.images import headers
from maskperf.data.images.headers import check_headers, look_at

SIZE_HW = (64, 96)
LIMIT = 64 * 96
KINDS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


def image_of(size_hw=SIZE_HW) -> Image.Image:
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    return Image.fromarray(np.stack([rows * 3, columns * 2, rows * columns % 251], axis=2).astype(np.uint8))


def encoded(kind: str, image: Image.Image | None = None, *, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    (image or image_of().convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(orientation: int, kind: str = "JPEG", **options) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    return encoded(kind, exif=exif, **options)


def index_of(folder, files: dict[str, bytes], size_hw=SIZE_HW):
    """Return the index of a folder with these files, each of which is an image of one object."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for name, data in files.items():
        (images / name).write_bytes(data)
    return read_coco(write_document(folder, [(name, size_hw) for name in files], first_id=1), images, training=True)


def look(folder, data: bytes, size_hw=SIZE_HW, limit=LIMIT):
    path = folder / "one"
    path.write_bytes(data)
    return look_at(str(path), expected_size_hw=size_hw, max_pixels=limit)


def is_sure(folder, data: bytes, **options) -> bool:
    return look(folder, data, **options)[0]


def problems_of(folder, data: bytes, size_hw=SIZE_HW, limit=LIMIT):
    problems, _ = check_headers(index_of(folder, {"one": data}, size_hw), max_pixels=limit)
    return [problem for _, problem in problems]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {"mode": mode}) for kind in KINDS for mode in ("RGB", "L")),
        *(("PNG", {"mode": mode}) for mode in ("RGBA", "LA", "P", "1")),
        *(("TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "tiff_deflate")),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"subsampling": 0}),
        ("JPEG", {"quality": 100}),
        ("JPEG", {"icc_profile": b"x" * 90_000}),
    ],
)
def test_a_look_settles_what_is_good(tmp_path, kind, options):
    assert is_sure(tmp_path, encoded(kind, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_never_settled_by_a_look_and_is_a_problem(tmp_path, kind):
    data = encoded(kind)
    for length in {1, 2, 20, len(data) // 3, len(data) // 2, len(data) - 200, len(data) - 70}:
        assert not is_sure(tmp_path, data[:length])
        (problem,) = problems_of(tmp_path, data[:length])
        assert "cut short or broken" in problem.message or "not an image of a known format" in problem.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [b"\0" * 40, b"\0" * 5000, b"\x12\x34" * 700, b"ftypmp42" + bytes(range(256)) * 9])
def test_something_behind_the_end_is_no_problem(tmp_path, kind, behind):
    assert problems_of(tmp_path, encoded(kind) + behind) == []


def test_a_file_of_two_images_is_no_problem_nor_is_one_whose_second_is_cut(tmp_path):
    two = encoded("JPEG") + encoded("JPEG", image_of((30, 50)))
    assert problems_of(tmp_path, two) == []
    assert problems_of(tmp_path, two[:-100]) == []
    assert problems_of(tmp_path, encoded("MPO", save_all=True, append_images=[image_of()])) == []


def test_the_end_marker_of_a_thumbnail_is_not_taken_for_that_of_the_image(tmp_path):
    small, data = encoded("JPEG", image_of((8, 12))), encoded("JPEG")
    with_thumbnail = data[:2] + b"\xff\xe1" + (len(small) + 8).to_bytes(2) + b"Exif\0\0" + small + data[2:]
    assert is_sure(tmp_path, with_thumbnail)
    cut = with_thumbnail[: 2 + 10 + len(small)]
    assert cut.endswith(b"\xff\xd9")
    assert not is_sure(tmp_path, cut)
    assert len(problems_of(tmp_path, cut)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_another_size_and_a_size_above_the_limit_are_problems(tmp_path, kind):
    (problem,) = problems_of(tmp_path, encoded(kind), (64, 95))
    assert problem.value == "64 x 96 in the file, 64 x 95 in the JSON"
    (problem,) = problems_of(tmp_path, encoded(kind), limit=LIMIT - 1)
    assert problem.value == "64 x 96, 6,144 pixels"


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_deep_samples_are_a_problem(tmp_path, kind, dtype):
    (problem,) = problems_of(tmp_path, encoded(kind, Image.fromarray(np.zeros(SIZE_HW, dtype))))
    assert "more than 8 bits" in problem.message


@pytest.mark.parametrize("data", [b"<html>404</html>", b"\xff\xd8\xff" * 99, b"RIFF", b"\xff" * 9000])
def test_what_is_no_image_is_a_problem(tmp_path, data):
    (problem,) = problems_of(tmp_path, data)
    assert "not an image of a known format" in problem.message


def test_missing_empty_and_odd_files_are_problems(tmp_path):
    index = index_of(tmp_path, dict.fromkeys(["gone", "empty", "folder", "queue", "fine"], encoded("JPEG")))
    for name in ("gone", "folder"):
        (index.image_folder / name).unlink()
    (index.image_folder / "empty").write_bytes(b"")
    (index.image_folder / "folder").mkdir()
    problems, notices = check_headers(index, max_pixels=LIMIT)
    assert [(position, problem.where) for position, problem in problems] == [
        (position, f"image id {position + 1}") for position in range(3)
    ]
    messages = [problem.message for _, problem in problems]
    assert messages == ["The image does not exist.", "The image is empty.", "The image cannot be read."]
    assert notices == ()
    assert check_headers(index, max_pixels=LIMIT, skip={0, 1, 2}) == ([], ())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientations_are_counted_and_ignored(tmp_path, kind):
    files = {f"{turn}": with_orientation(turn, kind) for turn in (1, 3, 6, 8)} | {"none": encoded(kind)}
    problems, (notice,) = check_headers(index_of(tmp_path, files), max_pixels=LIMIT)
    assert problems == []
    assert notice.startswith("3 images have an EXIF orientation") and "first ids: 2, 3, 4" in notice


def test_a_broken_exif_segment_is_none(tmp_path):
    marked = with_orientation(6)
    assert look(tmp_path, marked) == (True, 6)
    place = marked.index(b"Exif\0\0")
    for length in range(6):
        broken = marked[: place + 6] + bytes(length) + marked[place + 6 + length :]
        assert look(tmp_path, broken) == (True, 6 if length == 0 else 1)


def test_few_bytes_are_read_of_a_large_file(tmp_path, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8))
    data, opened = encoded("JPEG", noise, quality=95), []

    def counting(path, *arguments, **options):
        opened.append(io.BufferedReader(Counted(path), headers.HEAD_BYTES))
        return opened[-1]

    class Counted(io.FileIO):
        num_bytes = 0

        def readinto(self, buffer):
            length = super().readinto(buffer)
            self.num_bytes += length
            return length

    (tmp_path / "one").write_bytes(data)
    monkeypatch.setattr(headers, "open", counting, raising=False)
    raws = []
    monkeypatch.setattr(
        headers, "_jpeg_head", lambda file, honest=headers._jpeg_head: (raws.append(file.raw), honest(file))[1]
    )
    assert look_at(str(tmp_path / "one"), expected_size_hw=(600, 800), max_pixels=600 * 800)[0]
    assert 0 < raws[0].num_bytes < 9_000 < len(data)


def test_with_decode_an_image_broken_inside_is_found(tmp_path):
    good = encoded("PNG", image_of((200, 300)))
    place = good.index(b"IDAT") + 60
    broken = good[:place] + bytes(40) + good[place + 40 :]
    index, progress = index_of(tmp_path, {"one": broken, "two": good}, (200, 300)), []
    assert check_headers(index, max_pixels=60_000) == ([], ())
    ((position, problem),), _ = check_headers(
        index, max_pixels=60_000, decode=True, progress=lambda done, total: progress.append((done, total))
    )
    assert (position, problem.field) == (0, "pixels")
    assert progress == [(1, 2), (2, 2)]


# ---- what is remembered


@pytest.fixture
def looks(monkeypatch):
    """The names of the files that were read, not only asked for in the file system."""
    seen = []
    honest = headers.look_at

    def counting(path, **options):
        seen.append(os.path.basename(path))
        return honest(path, **options)

    monkeypatch.setattr(headers, "look_at", counting)
    return seen


def rest(index, name: str, seconds: float = 60.0) -> None:
    """Make a file look as if it had not been changed for a while."""
    then = time.time() - seconds
    os.utime(index.image_folder / name, (then, then))


def old_index(folder, files):
    index = index_of(folder, files)
    for name in files:
        rest(index, name)
    return index


def check(index, **options):
    return check_headers(index, **{"max_pixels": LIMIT, **options})


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "MIN_REMEMBERED_SET", 3)
    return old_index(
        tmp_path, {"a": encoded("JPEG"), "b": with_orientation(6), "c": encoded("PNG"), "d": encoded("GIF")}
    )


def test_good_files_are_read_once(index, looks):
    first = check(index)
    assert sorted(looks) == ["a", "b", "c", "d"]
    assert "1 images have an EXIF orientation" in first[1][0]
    looks.clear()
    index.json_path.write_text(index.json_path.read_text() + "\n")  # whatever becomes of the JSON
    assert check(index) == first  # the notice of the orientation too
    check(index, skip={0})
    assert looks == []
    paths = [path for path in table_paths(index.json_path, "images") if path.exists()]
    assert [path.name for path in paths] == [".instances.json.images.table"]


def test_a_small_set_is_not_remembered(tmp_path, looks):
    index = old_index(tmp_path, {"a": encoded("JPEG")})
    check(index)
    check(index)
    assert looks == ["a", "a"]
    assert not any(path.exists() for path in table_paths(index.json_path, "images"))


def test_a_changed_file_is_read_again(index, looks):
    check(index)
    looks.clear()
    (index.image_folder / "a").write_bytes(encoded("JPEG")[:-500])
    ((position, _),), _ = check(index)
    assert (looks, position) == (["a"], 0)
    looks.clear()
    size = (index.image_folder / "c").stat().st_size
    (index.image_folder / "c").write_bytes(b"x" * size)  # the same size at another time
    assert [position for position, _ in check(index)[0]] == [0, 2]
    assert looks == ["a", "c"]


def test_files_changed_a_moment_ago_and_bad_files_are_not_remembered(index, looks):
    rest(index, "b", seconds=1.0)
    (index.image_folder / "c").write_bytes(b"no image")
    rest(index, "c")
    first = check(index)
    assert [position for position, _ in first[0]] == [2]
    looks.clear()
    assert check(index) == first
    assert looks == ["b", "c"]


def test_another_size_in_the_json_or_a_lower_limit_is_seen(index, looks):
    check(index)
    looks.clear()
    sizes_hw = index.sizes_hw.copy()
    sizes_hw[3] = (96, 64)
    ((position, problem),), _ = check(replace(index, sizes_hw=sizes_hw))
    assert (position, problem.field, looks) == (3, "height, width", ["d"])
    assert len(check(index, max_pixels=LIMIT - 1)[0]) == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"something else",
        lambda data: data[:-1],
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda data: data[:-10] + bytes(10)[:9] + b"\1",
        lambda data: data.replace(b"maskperf table", b"maskperf tabel", 1),
    ],
)
def test_a_damaged_record_is_reported_and_made_anew(index, looks, spoil):
    first = check(index)
    path = table_paths(index.json_path, "images")[0]
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    looks.clear()
    problems, notices = check(index)
    assert problems == []
    assert notices[0].startswith(f"{path}: damaged, or of another version")
    assert notices[1:] == first[1]
    assert sorted(looks) == ["a", "b", "c", "d"]
    assert path.read_bytes() == whole


def test_a_record_of_other_contents_is_reported(index, looks):
    other = headers.Table({"file_bytes": np.zeros(4, np.int64)}, {"file_names": ("a", "b", "c", "d")})
    headers.save_table(index.json_path, "images", other)
    _, notices = check(index)
    assert "damaged, or of another version" in notices[0]
    assert sorted(looks) == ["a", "b", "c", "d"]


def test_where_nothing_can_be_saved_it_is_reported(index, monkeypatch):
    monkeypatch.setattr(headers, "save_table", lambda *a, **k: "/data: Read-only file system")
    _, notices = check(index)
    assert "the next start reads them again (/data: Read-only file system)" in notices[-1]


def test_what_was_decoded_once_is_not_decoded_again_unless_afresh(index, monkeypatch):
    decoded = []
    honest = headers.check_images

    def counting(an_index, positions, **options):
        decoded.append(len(positions))
        return honest(an_index, positions, **options)

    monkeypatch.setattr(headers, "check_images", counting)
    for options in ({}, {"decode": True}, {"decode": True}, {"decode": True, "afresh": True}, {"decode": True}, {}):
        check(index, **options)
    assert decoded == [0, 4, 0, 4, 0, 0]
