import io

import numpy as np
import pytest
from coco_folder import good_document, write_images, write_json
from PIL import Image

from maskperf.data.coco.index import read_coco
from maskperf.data.images.decode import check_images, decode_image
from maskperf.errors import DataError

SIZE_HW = (30, 44)
LIMIT = 30 * 44  # pixels
LIMIT_OF_FOLDER = 40 * 60


def picture() -> np.ndarray:
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    return np.stack([rows * 8, columns * 5, rows * columns % 251], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(folder, data: bytes, size_hw=SIZE_HW) -> np.ndarray:
    path = folder / "image.jpg"
    path.write_bytes(data)
    return decode_image(path, image_id=42, expected_size_hw=size_hw, max_pixels=LIMIT)


def problem_of(folder, data: bytes, size_hw=SIZE_HW):
    with pytest.raises(DataError) as caught:
        decode(folder, data, size_hw)
    (problem,) = caught.value.problems
    assert problem.file == str(folder / "image.jpg")
    assert problem.where == "image id 42"
    assert all((problem.field, problem.value, problem.message, problem.fix))
    return problem


@pytest.mark.parametrize("quality", [50, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_equal_pillow(tmp_path, quality, subsampling, progressive):
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    data = encoded(Image.fromarray(picture()), "JPEG", **options)
    np.testing.assert_array_equal(decode(tmp_path, data), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_gray_is_replicated(tmp_path):
    data = encoded(Image.fromarray(picture()).convert("L"), "JPEG")
    rgb = decode(tmp_path, data)
    assert rgb.shape == (*SIZE_HW, 3)
    np.testing.assert_array_equal(rgb[:, :, 0], rgb[:, :, 2])
    np.testing.assert_array_equal(rgb, np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_cmyk_jpegs_equal_pillow(tmp_path):
    data = encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(decode(tmp_path, data), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_jpeg_of_rare_subsampling_is_left_to_pillow(tmp_path):
    data = bytearray(encoded(Image.fromarray(picture()), "JPEG", subsampling=0))
    frame = data.index(b"\xff\xc0")
    assert data[frame + 11] == 0x11  # luma sampled 1 x 1
    data[frame + 11] = 0x14  # 1 x 4, which no common program writes
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(tmp_path, bytes(data)), expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_png_of_any_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(picture()).convert(mode)
    np.testing.assert_array_equal(decode(tmp_path, encoded(image, "PNG")), np.array(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_channels_may_come_in_the_other_order(tmp_path, kind, mode):
    if (kind, mode) == ("PNG", "CMYK"):
        mode = "P"  # PNG knows no CMYK
    rgb = decode(tmp_path, encoded(Image.fromarray(picture()).convert(mode), kind))
    path = tmp_path / "image.jpg"
    bgr = decode_image(path, image_id=42, expected_size_hw=SIZE_HW, max_pixels=LIMIT, channels="BGR")
    np.testing.assert_array_equal(bgr, rgb[:, :, ::-1])
    assert bgr.flags.c_contiguous


def test_the_result_is_writable_bytes(tmp_path):
    for kind in ("JPEG", "PNG"):
        rgb = decode(tmp_path, encoded(Image.fromarray(picture()), kind))
        assert rgb.dtype == np.uint8
        assert rgb.flags.writeable


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        decode_image(tmp_path / "none.jpg", image_id=42, expected_size_hw=SIZE_HW, max_pixels=LIMIT)
    (problem,) = caught.value.problems
    assert (problem.file, problem.where) == (str(tmp_path / "none.jpg"), "image id 42")
    assert problem.message == "The image does not exist."


def test_a_folder_in_place_of_an_image_is_named(tmp_path):
    with pytest.raises(DataError, match="The image cannot be read"):
        decode_image(tmp_path, image_id=42, expected_size_hw=SIZE_HW, max_pixels=LIMIT)


def test_an_empty_image_is_named(tmp_path):
    assert problem_of(tmp_path, b"").message == "The image is empty."


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_image_is_refused_wherever_it_is_cut(tmp_path, kind):
    data = encoded(Image.fromarray(picture()), kind)
    # a PNG misses nothing but its end mark when its last 12 bytes are cut, and Pillow takes it
    for length in range(1, len(data) - 20, 41):
        problem = problem_of(tmp_path, data[:length])
        assert "cut short or broken" in problem.message or "not an image of a known format" in problem.message


@pytest.mark.parametrize("data", [b"<html>404</html>", b"\xff\xd8\xff\xe0 no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused(tmp_path, data):
    problem = problem_of(tmp_path, data)
    assert "not an image" in problem.message
    assert data[:4].hex(" ") in problem.value


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_refused(tmp_path, kind):
    gray = Image.fromarray(picture()[:, :, 0].astype(np.uint16) * 257)
    problem = problem_of(tmp_path, encoded(gray, kind))
    assert "more than 8 bits" in problem.message
    assert problem.value == f"{kind} I;16"


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wider_numbers_are_refused(tmp_path, dtype):
    problem = problem_of(tmp_path, encoded(Image.fromarray(picture()[:, :, 0].astype(dtype)), "TIFF"))
    assert "more than 8 bits" in problem.message


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_another_size_than_in_the_json_is_refused(tmp_path, kind):
    problem = problem_of(tmp_path, encoded(Image.fromarray(picture()), kind), (30, 45))
    assert (problem.field, problem.value) == ("height, width", "30 x 44 in the file, 30 x 45 in the JSON")
    assert problem.message == "The image's height x width is not the JSON's."


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_swapped_sides_are_named_and_exif_is_not_without_a_mark(tmp_path, kind):
    problem = problem_of(tmp_path, encoded(Image.fromarray(picture()), kind), (44, 30))
    assert (problem.field, problem.value) == ("height, width", "30 x 44 in the file, 44 x 30 in the JSON")
    assert problem.message == "Width and height are swapped in the JSON."
    assert problem.fix == "Exchange the two in the image's entry of `images`."


def with_orientation(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(picture()), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_swapped_sides_are_put_down_to_exif_where_the_file_says_so(tmp_path, kind, orientation):
    problem = problem_of(tmp_path, with_orientation(orientation, kind), (44, 30))
    if orientation >= 5:
        assert problem.value.endswith(f", EXIF orientation {orientation}")
        assert problem.message.startswith("The sides are swapped: the file's EXIF rotation is ignored")
        assert "without the EXIF mark" in problem.fix
    else:
        assert problem.message == "Width and height are swapped in the JSON."


def test_exif_rotation_is_ignored(tmp_path):
    plain, marked = encoded(Image.fromarray(picture()), "JPEG"), with_orientation(6)
    assert marked != plain
    np.testing.assert_array_equal(decode(tmp_path, marked), decode(tmp_path, plain))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_the_limit_of_pixels_holds_for_every_format_before_decoding(tmp_path, kind, monkeypatch):
    data = encoded(Image.fromarray(np.vstack([picture(), picture()[:1]])), kind)
    monkeypatch.setattr("maskperf.data.images.decode.simplejpeg.decode_jpeg", None)  # no pixel is decoded
    monkeypatch.setattr(Image.Image, "load", None)
    problem = problem_of(tmp_path, data, (31, 44))
    assert problem.value == "31 x 44, 1,364 pixels"
    assert problem.message == "The image is very large: the limit is 1,320 pixels."
    assert problem.fix.startswith("Set data.max_image_pixels=1364 or more")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_another_size_is_said_before_a_size_above_the_limit(tmp_path, kind):
    problem = problem_of(tmp_path, encoded(Image.fromarray(np.vstack([picture(), picture()])), kind), (30, 44))
    assert "is not the JSON's" in problem.message


def test_an_image_above_the_limit_of_pillows_warning_is_decoded(tmp_path):
    size_hw = (9_500, 9_500)  # Pillow warns above 89,478,485 pixels, and warnings are errors here
    path = tmp_path / "large.png"
    Image.new("L", size_hw[::-1], 7).save(path)
    rgb = decode_image(path, image_id=1, expected_size_hw=size_hw, max_pixels=95_000_000)
    assert rgb.shape == (*size_hw, 3)
    assert rgb[-1, -1].tolist() == [7, 7, 7]


def broken_folder(folder):
    document = good_document()
    write_images(folder, document)
    index = read_coco(write_json(folder, document), folder, training=True)
    assert check_images(index, [0, 1], max_pixels=LIMIT_OF_FOLDER) == ([], 0)
    (folder / "a.jpg").write_bytes(b"")
    (folder / "b.jpg").unlink()
    return index


def test_check_images_finds_all_problems_in_order(tmp_path):
    index, told = broken_folder(tmp_path), []
    problems, num_skipped = check_images(
        index, [0, 1], max_pixels=LIMIT_OF_FOLDER, progress=lambda done, total: told.append((done, total))
    )
    assert [(position, problem.where) for position, problem in problems] == [(0, "image id 10"), (1, "image id 20")]
    assert [problem.message for _, problem in problems] == ["The image is empty.", "The image does not exist."]
    assert num_skipped == 0
    assert told == [(1, 2), (2, 2)]


def test_check_images_looks_only_at_the_positions_it_is_given(tmp_path):
    problems, _ = check_images(broken_folder(tmp_path), [1], max_pixels=LIMIT_OF_FOLDER)
    assert [position for position, _ in problems] == [1]


def test_check_images_tells_how_many_the_time_did_not_reach(tmp_path):
    assert check_images(broken_folder(tmp_path), [0, 1], max_pixels=LIMIT_OF_FOLDER, limit_seconds=0) == ([], 2)
