import io
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from coco_folder import annotation, write_json
from PIL import Image

from maskperf.data.coco.index import read_coco
from maskperf.data.coco.table import table_paths
from maskperf.data.images import headers
from maskperf.data.images.headers import check_headers, look_at

SIZE_HW = (64, 96)
LIMIT = 64 * 96
KINDS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


def picture(size_hw=SIZE_HW) -> Image.Image:
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    return Image.fromarray(np.stack([rows * 3, columns * 2, rows * columns % 251], axis=2).astype(np.uint8))


def encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(orientation: int, kind: str = "JPEG", **options) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    return encoded(kind, exif=exif, **options)


def index_of(folder, files: dict[str, bytes], size_hw=SIZE_HW):
    """Return the index of a folder with these files, each of which is an image of one object."""
    images = [
        {"id": number, "file_name": name, "height": size_hw[0], "width": size_hw[1]}
        for number, name in enumerate(files, start=1)
    ]
    annotations = [annotation(row["id"], row["id"]) for row in images]
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for name, data in files.items():
        (pictures / name).write_bytes(data)
    document = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "dog"}]}
    return read_coco(write_json(folder, document), pictures, training=True)


def look(folder, data: bytes, size_hw=SIZE_HW, limit=LIMIT):
    path = folder / "one"
    path.write_bytes(data)
    return look_at(str(path), expected_size_hw=size_hw, max_pixels=limit)


def problems_of(folder, data: bytes, size_hw=SIZE_HW, limit=LIMIT):
    problems, _ = check_headers(index_of(folder, {"one": data}, size_hw), max_pixels=limit)
    return [problem for _, problem in problems]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_look_settles_what_is_good(tmp_path, kind, mode):
    assert look(tmp_path, encoded(kind, picture().convert(mode))).is_sure


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 0}, {"quality": 100}, {"icc_profile": b"x" * 90_000}]
)
def test_a_look_settles_jpegs_of_any_kind(tmp_path, options):
    assert look(tmp_path, encoded("JPEG", **options)).is_sure


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_a_look_settles_pngs_of_any_mode(tmp_path, mode):
    assert look(tmp_path, encoded("PNG", picture().convert(mode))).is_sure


@pytest.mark.parametrize(
    "options", [{"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "tiff_deflate"}]
)
def test_a_look_settles_packed_tiffs(tmp_path, options):
    assert look(tmp_path, encoded("TIFF", **options)).is_sure


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_never_settled_by_a_look_and_is_a_problem(tmp_path, kind):
    data = encoded(kind)
    for length in {1, 2, 20, len(data) // 3, len(data) // 2, len(data) - 200, len(data) - 70}:
        assert not look(tmp_path, data[:length]).is_sure
        (problem,) = problems_of(tmp_path, data[:length])
        assert "cut short or broken" in problem.message or "not an image of a known format" in problem.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [b"\0" * 40, b"\0" * 5000, b"\x12\x34" * 700, b"ftypmp42" + bytes(range(256)) * 9])
def test_something_behind_the_end_is_no_problem(tmp_path, kind, behind):
    assert problems_of(tmp_path, encoded(kind) + behind) == []


def test_a_file_of_two_pictures_is_no_problem_nor_is_one_whose_second_is_cut(tmp_path):
    two = encoded("JPEG") + encoded("JPEG", picture((30, 50)))
    assert problems_of(tmp_path, two) == []
    assert problems_of(tmp_path, two[:-100]) == []
    both = encoded("MPO", save_all=True, append_images=[picture((64, 96))])
    assert problems_of(tmp_path, both) == []


def test_the_end_mark_of_a_thumbnail_is_not_taken_for_that_of_the_picture(tmp_path):
    small = encoded("JPEG", picture((8, 12)))
    data = encoded("JPEG")
    with_thumbnail = data[:2] + b"\xff\xe1" + (len(small) + 8).to_bytes(2) + b"Exif\0\0" + small + data[2:]
    assert look(tmp_path, with_thumbnail).is_sure
    cut = with_thumbnail[: 2 + 10 + len(small)]
    assert cut.endswith(b"\xff\xd9")
    assert not look(tmp_path, cut).is_sure
    assert len(problems_of(tmp_path, cut)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_another_size_and_swapped_sides_are_problems(tmp_path, kind):
    (problem,) = problems_of(tmp_path, encoded(kind), (64, 95))
    assert problem.value == "64 x 96 in the file, 64 x 95 in the JSON"
    (problem,) = problems_of(tmp_path, encoded(kind), (96, 64))
    assert problem.message == "Width and height are swapped in the JSON."


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_of_pixels_holds(tmp_path, kind):
    (problem,) = problems_of(tmp_path, encoded(kind), limit=LIMIT - 1)
    assert problem.value == "64 x 96, 6,144 pixels"
    assert "data.max_image_pixels=6144" in problem.fix


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_deep_samples_are_a_problem(tmp_path, kind, dtype):
    (problem,) = problems_of(tmp_path, encoded(kind, Image.fromarray(np.zeros(SIZE_HW, dtype))))
    assert "more than 8 bits" in problem.message


@pytest.mark.parametrize(
    "data", [b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff" * 99, b"RIFF", b"\xff" * 9000]
)
def test_what_is_no_image_is_a_problem(tmp_path, data):
    (problem,) = problems_of(tmp_path, data)
    assert "not an image of a known format" in problem.message


def test_missing_empty_and_odd_files_are_problems(tmp_path):
    index = index_of(tmp_path, dict.fromkeys(["gone", "empty", "folder", "queue", "fine"], encoded("JPEG")))
    for name in ("gone", "folder"):
        (index.image_folder / name).unlink()
    (index.image_folder / "empty").write_bytes(b"")
    (index.image_folder / "folder").mkdir()
    problems, notices = check_headers(
        replace(index, file_names=index.file_names[:3] + ("fine", "fine")), max_pixels=LIMIT
    )
    assert [(position, problem.where) for position, problem in problems] == [
        (0, "image id 1"),
        (1, "image id 2"),
        (2, "image id 3"),
    ]
    problems = [problem.message for _, problem in problems]
    assert problems == ["The image does not exist.", "The image is empty.", "The image cannot be read."]
    assert notices == ()
    assert check_headers(index, max_pixels=LIMIT, skip={0, 1, 2}) == ([], ())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientations_are_counted_and_ignored(tmp_path, kind):
    files = {f"{turn}": with_orientation(turn, kind) for turn in (1, 3, 6, 8)} | {"none": encoded(kind)}
    problems, (notice,) = check_headers(index_of(tmp_path, files), max_pixels=LIMIT)
    assert problems == []
    assert notice == "3 images have an EXIF orientation other than 1: ignored, as in the benchmark (first ids: 2, 3, 4)"


@pytest.mark.parametrize("order", ["big", "little"])
def test_exif_of_either_byte_order_is_read(tmp_path, order):
    tiff = (b"MM\0*" if order == "big" else b"II*\0") + (8).to_bytes(4, order) + (1).to_bytes(2, order)
    tiff += (
        (0x0112).to_bytes(2, order) + (3).to_bytes(2, order) + (1).to_bytes(4, order) + (6).to_bytes(2, order) + b"\0\0"
    )
    plain = encoded("JPEG")
    data = plain[:2] + b"\xff\xe1" + (len(tiff) + 8).to_bytes(2) + b"Exif\0\0" + tiff + plain[2:]
    assert look(tmp_path, data) == headers.Look(is_sure=True, orientation=6)
    for length in range(len(tiff)):  # a broken mark is none
        cut = plain[:2] + b"\xff\xe1" + (length + 8).to_bytes(2) + b"Exif\0\0" + tiff[:length] + plain[2:]
        assert look(tmp_path, cut).is_sure


def test_few_bytes_are_read_of_a_large_file(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8))
    data, read = encoded("JPEG", noise, quality=95), []
    honest = os.pread
    monkeypatch.setattr(os, "pread", lambda *a: read.append(honest(*a)) or read[-1])
    assert look(tmp_path, data, (600, 800), 600 * 800).is_sure
    assert sum(map(len, read)) < 9_000 < len(data)


def test_with_decode_a_picture_broken_inside_is_found(tmp_path):
    data = bytearray(encoded("PNG", picture((200, 300))))
    place = data.index(b"IDAT") + 60
    data[place : place + 40] = bytes(40)
    index = index_of(tmp_path, {"one": bytes(data), "two": encoded("PNG", picture((200, 300)))}, (200, 300))
    assert check_headers(index, max_pixels=60_000) == ([], ())
    told = []
    ((position, problem),), _ = check_headers(
        index, max_pixels=60_000, decode=True, progress=lambda done, total: told.append((done, total))
    )
    assert (position, problem.message) == (0, "The image is cut short or broken.")
    assert told == [(1, 2), (2, 2)]


# ---- what is remembered


@pytest.fixture
def small_sets_are_kept(monkeypatch):
    monkeypatch.setattr(headers, "SMALLEST_KEPT_SET", 3)


@pytest.fixture
def looks(monkeypatch):
    """The names of the files that were looked at, not only asked for in the file system."""
    seen = []
    honest = headers.look_at

    def counting(path, **options):
        seen.append(os.path.basename(path))
        return honest(path, **options)

    monkeypatch.setattr(headers, "look_at", counting)
    return seen


def old_index(folder, files):
    index = index_of(folder, files)
    for name in files:
        rest(index, name)
    return index


def rest(index, name: str, seconds: float = 60.0) -> None:
    """Make a file look as if it had not been changed for a while."""
    then = time.time() - seconds
    os.utime(index.image_folder / name, (then, then))


def check(index, **options):
    return check_headers(index, max_pixels=LIMIT, **options)


@pytest.fixture
def index(tmp_path, small_sets_are_kept):
    return old_index(
        tmp_path, {"a": encoded("JPEG"), "b": with_orientation(6), "c": encoded("PNG"), "d": encoded("GIF")}
    )


def test_good_files_are_looked_at_once(index, looks):
    first = check(index)
    assert sorted(looks) == ["a", "b", "c", "d"]
    looks.clear()
    assert check(index) == first  # the notice of the orientation too
    assert looks == []
    assert "1 images have an EXIF orientation" in first[1][0]
    assert [place.name for place in table_paths(index.json_path, "images") if place.exists()] == [
        ".instances.json.images.table"
    ]


def test_a_small_set_is_not_remembered(tmp_path, looks):
    index = old_index(tmp_path, {"a": encoded("JPEG")})
    check(index)
    check(index)
    assert looks == ["a", "a"]
    assert not any(place.exists() for place in table_paths(index.json_path, "images"))


def test_a_changed_file_is_looked_at_again(index, looks):
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


def test_a_file_changed_a_moment_ago_is_not_remembered(index, looks):
    rest(index, "b", seconds=1.0)
    check(index)
    looks.clear()
    check(index)
    assert looks == ["b"]


def test_bad_files_are_not_remembered_and_the_good_ones_beside_them_are(tmp_path, small_sets_are_kept, looks):
    index = old_index(tmp_path, {"a": encoded("JPEG"), "b": b"no picture", "c": encoded("PNG")})
    first = check(index)
    assert [position for position, _ in first[0]] == [1]
    looks.clear()
    assert check(index) == first
    assert looks == ["b"]


def test_another_size_in_the_json_or_a_lower_limit_is_seen(index, looks):
    check(index)
    looks.clear()
    sizes_hw = index.sizes_hw.copy()
    sizes_hw[3] = (96, 64)
    ((position, problem),), _ = check(replace(index, sizes_hw=sizes_hw))
    assert (position, problem.message, looks) == (3, "Width and height are swapped in the JSON.", ["d"])
    assert len(check_headers(index, max_pixels=LIMIT - 1)[0]) == 4


def test_a_changed_json_does_not_make_them_unknown(index, looks):
    check(index)
    looks.clear()
    index.json_path.write_text(index.json_path.read_text() + "\n")
    check(index)
    assert looks == []


def test_a_part_of_the_set_is_known_too(index, looks):
    check(index)
    looks.clear()
    check(index, skip={0})
    assert looks == []


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
def test_a_damaged_record_is_said_and_made_anew(index, looks, spoil):
    first = check(index)
    place = table_paths(index.json_path, "images")[0]
    whole = place.read_bytes()
    place.write_bytes(spoil(whole))
    looks.clear()
    problems, notices = check(index)
    assert problems == []
    assert notices[0] == f"{place}: damaged, or of another version; the headers of all images are read anew"
    assert notices[1:] == first[1]
    assert sorted(looks) == ["a", "b", "c", "d"]
    assert place.read_bytes() == whole


def test_a_record_of_other_contents_is_said(index, looks):
    other = headers.Table({"file_bytes": np.zeros(4, np.int64)}, {"file_names": ("a", "b", "c", "d")})
    headers.save_table(index.json_path, "images", other, source=headers.NO_SOURCE, sha256="")
    _, notices = check(index)
    assert "damaged, or of another version" in notices[0]
    assert sorted(looks) == ["a", "b", "c", "d"]


def test_where_nothing_can_be_kept_it_is_said(index, monkeypatch):
    monkeypatch.setattr(headers, "save_table", lambda *a, **k: "/data: Read-only file system")
    _, notices = check(index)
    assert notices[-1].endswith("the next start reads them again (/data: Read-only file system)")


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
