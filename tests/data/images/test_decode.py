import io

import numpy as np
import pytest
from image_folder import KINDS, encoded, gradient, image_index
from PIL import Image

from maskperf.data.images.decode import check_images, decode_image
from maskperf.errors import DataError

PIXELS = gradient(30, 44)
SIZE_HW = (30, 44)
LIMIT = 30 * 44  # pixels
MESSAGES = {
    "wrong size": "The image's height x width is not the JSON's.",
    "swapped": "Width and height are swapped in the JSON.",
    "rotated": "The sides are swapped: the file's EXIF rotation is ignored here, as in the benchmark.",
}


def rgb_of(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def decode(folder, data: bytes, size_hw=SIZE_HW, **options) -> np.ndarray:
    path = folder / "image.jpg"
    path.write_bytes(data)
    return decode_image(path, image_id=42, expected_size_hw=size_hw, max_pixels=LIMIT, **options)


def problem_of(folder, data: bytes, size_hw=SIZE_HW):
    with pytest.raises(DataError) as caught:
        decode(folder, data, size_hw)
    (problem,) = caught.value.problems
    assert (problem.file, problem.where) == (str(folder / "image.jpg"), "image id 42")
    assert all((problem.field, problem.value, problem.message, problem.fix))
    return problem


@pytest.mark.parametrize("quality", [50, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_equal_pillow(tmp_path, quality, subsampling, progressive):
    data = encoded(PIXELS, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decode(tmp_path, data), rgb_of(data))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "L"), ("JPEG", "CMYK"), *(("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1"))],
)
def test_every_mode_becomes_rgb_or_bgr_in_writable_bytes(tmp_path, kind, mode):
    data = encoded(PIXELS, kind, mode=mode)
    rgb, bgr = decode(tmp_path, data), decode(tmp_path, data, channels="BGR")
    np.testing.assert_array_equal(rgb, rgb_of(data))
    np.testing.assert_array_equal(bgr, rgb[:, :, ::-1])
    assert rgb.dtype == np.uint8 and rgb.flags.writeable and bgr.flags.c_contiguous


def test_a_jpeg_of_rare_subsampling_is_left_to_pillow(tmp_path):
    data = bytearray(encoded(PIXELS, "JPEG", subsampling=0))
    frame = data.index(b"\xff\xc0")
    assert data[frame + 11] == 0x11  # luma sampled 1 x 1
    data[frame + 11] = 0x14  # 1 x 4, which no common program writes
    np.testing.assert_array_equal(decode(tmp_path, bytes(data)), rgb_of(data))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_image_is_refused_wherever_it_is_cut(tmp_path, kind):
    data = encoded(PIXELS, kind)
    assert problem_of(tmp_path, b"").message == "The image is empty."
    # a PNG misses nothing but its end marker when its last 12 bytes are cut, and Pillow takes it
    for length in range(1, len(data) - 70, len(data) // 20):
        problem = problem_of(tmp_path, data[:length])
        assert "cut short or broken" in problem.message or "not an image of a known format" in problem.message


@pytest.mark.parametrize("data", [b"<html>404</html>", b"\xff\xd8\xff\xe0 no image", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused(tmp_path, data):
    problem = problem_of(tmp_path, data)
    assert "not an image" in problem.message
    assert data[:4].hex(" ") in problem.value


@pytest.mark.parametrize("kind_and_mode", ["PNG I;16", "TIFF I;16", "TIFF I", "TIFF F"])
def test_more_than_8_bits_are_refused(tmp_path, kind_and_mode):
    kind, mode = kind_and_mode.split()
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    problem = problem_of(tmp_path, encoded(PIXELS[:, :, 0].astype(dtype), kind))
    assert "more than 8 bits" in problem.message and problem.value == kind_and_mode


@pytest.mark.parametrize(("size_hw", "message"), [((30, 45), "wrong size"), ((44, 30), "swapped")])
@pytest.mark.parametrize("kind", KINDS)
def test_another_size_than_in_the_json_is_refused(tmp_path, kind, size_hw, message):
    problem = problem_of(tmp_path, encoded(PIXELS, kind), size_hw)
    expected = f"30 x 44 in the file, {size_hw[0]} x {size_hw[1]} in the JSON"
    assert (problem.field, problem.value, problem.message) == ("height, width", expected, MESSAGES[message])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_swapped_sides_are_put_down_to_exif_where_the_file_says_so(tmp_path, kind, orientation):
    problem = problem_of(tmp_path, encoded(PIXELS, kind, orientation=orientation), (44, 30))
    is_rotated = orientation >= 5
    assert problem.message == MESSAGES["rotated" if is_rotated else "swapped"]
    assert problem.value.endswith(f", EXIF orientation {orientation}") == is_rotated
    assert ("without the EXIF mark" in problem.fix) == is_rotated


def test_exif_rotation_is_ignored(tmp_path):
    plain, marked = encoded(PIXELS, "JPEG"), encoded(PIXELS, "JPEG", orientation=6)
    assert marked != plain
    np.testing.assert_array_equal(decode(tmp_path, marked), decode(tmp_path, plain))


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_of_pixels_holds_for_every_format_before_decoding(tmp_path, kind, monkeypatch):
    data = encoded(gradient(31, 44), kind)
    monkeypatch.setattr("maskperf.data.images.decode.simplejpeg.decode_jpeg", None)  # no pixel is decoded
    monkeypatch.setattr(Image.Image, "load", None)
    problem = problem_of(tmp_path, data, (31, 44))
    assert problem.value == "31 x 44, 1,364 pixels"
    assert problem.fix.startswith("Set data.max_image_pixels=1364 or more")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_another_size_is_reported_before_a_size_above_the_limit(tmp_path, kind):
    assert problem_of(tmp_path, encoded(gradient(60, 44), kind)).message == MESSAGES["wrong size"]


def test_an_image_above_the_limit_of_pillows_warning_is_decoded(tmp_path):
    size_hw = (9_500, 9_500)  # Pillow warns above 89,478,485 pixels, and warnings are errors here
    path = tmp_path / "large.png"
    Image.new("L", size_hw[::-1], 7).save(path)
    rgb = decode_image(path, image_id=1, expected_size_hw=size_hw, max_pixels=95_000_000)
    assert rgb.shape == (*size_hw, 3)
    assert rgb[-1, -1].tolist() == [7, 7, 7]


def test_check_images_finds_all_problems_in_order_as_far_as_the_time_allows(tmp_path):
    index, progress = image_index(tmp_path, [(40, 60)] * 3), []
    assert check_images(index, [0, 1, 2], max_pixels=2400) == ([], 0)
    (tmp_path / "100.jpg").write_bytes(b"")
    (tmp_path / "102.jpg").unlink()
    problems, num_unchecked = check_images(
        index, [0, 1, 2], max_pixels=2400, progress=lambda done, total: progress.append((done, total))
    )
    assert [(position, problem.where) for position, problem in problems] == [(0, "image id 100"), (2, "image id 102")]
    assert num_unchecked == 0
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert [position for position, _ in check_images(index, [1, 2], max_pixels=2400)[0]] == [2]
    assert check_images(index, [0, 1], max_pixels=2400, limit_seconds=0) == ([], 2)
