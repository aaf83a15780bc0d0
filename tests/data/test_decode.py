import io
from dataclasses import replace

import numpy as np
import pytest
from coco_folder import good_document, write_images, write_json
from PIL import Image

from maskperf.data.coco import read_coco
from maskperf.data.decode import check_images, decode_image
from maskperf.errors import DataError

SIZE_HW = (30, 44)


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
    return decode_image(path, image_id=42, expected_size_hw=size_hw)


def fault_of(folder, data: bytes, size_hw=SIZE_HW):
    with pytest.raises(DataError) as caught:
        decode(folder, data, size_hw)
    (fault,) = caught.value.faults
    assert fault.file == str(folder / "image.jpg")
    assert fault.where == "image id 42"
    assert all((fault.field, fault.value, fault.problem, fault.mend))
    return fault


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
    bgr = decode_image(path, image_id=42, expected_size_hw=SIZE_HW, channels="BGR")
    np.testing.assert_array_equal(bgr, rgb[:, :, ::-1])
    assert bgr.flags.c_contiguous


def test_the_result_is_writable_bytes(tmp_path):
    for kind in ("JPEG", "PNG"):
        rgb = decode(tmp_path, encoded(Image.fromarray(picture()), kind))
        assert rgb.dtype == np.uint8
        assert rgb.flags.writeable


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        decode_image(tmp_path / "none.jpg", image_id=42, expected_size_hw=SIZE_HW)
    (fault,) = caught.value.faults
    assert (fault.file, fault.where) == (str(tmp_path / "none.jpg"), "image id 42")
    assert fault.problem == "The image does not exist."


def test_a_folder_in_place_of_an_image_is_named(tmp_path):
    with pytest.raises(DataError, match="The image cannot be read"):
        decode_image(tmp_path, image_id=42, expected_size_hw=SIZE_HW)


def test_an_empty_image_is_named(tmp_path):
    assert fault_of(tmp_path, b"").problem == "The image is empty."


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_image_is_refused_wherever_it_is_cut(tmp_path, kind):
    data = encoded(Image.fromarray(picture()), kind)
    # a PNG misses nothing but its end mark when its last 12 bytes are cut, and Pillow takes it
    for length in range(1, len(data) - 20, 41):
        fault = fault_of(tmp_path, data[:length])
        assert "cut short or broken" in fault.problem or "not an image of a known format" in fault.problem


@pytest.mark.parametrize("data", [b"<html>404</html>", b"\xff\xd8\xff\xe0 no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused(tmp_path, data):
    fault = fault_of(tmp_path, data)
    assert "not an image" in fault.problem
    assert data[:4].hex(" ") in fault.value


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_refused(tmp_path, kind):
    gray = Image.fromarray(picture()[:, :, 0].astype(np.uint16) * 257)
    fault = fault_of(tmp_path, encoded(gray, kind))
    assert "more than 8 bits" in fault.problem
    assert fault.value == f"{kind} I;16"


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wider_numbers_are_refused(tmp_path, dtype):
    fault = fault_of(tmp_path, encoded(Image.fromarray(picture()[:, :, 0].astype(dtype)), "TIFF"))
    assert "more than 8 bits" in fault.problem


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_another_size_than_in_the_json_is_refused(tmp_path, kind):
    fault = fault_of(tmp_path, encoded(Image.fromarray(picture()), kind), (30, 45))
    assert (fault.field, fault.value) == ("height, width", "30 x 44")
    assert "30 x 45" in fault.problem
    assert "EXIF" not in fault.problem


def test_swapped_sides_hint_at_exif_rotation(tmp_path):
    fault = fault_of(tmp_path, encoded(Image.fromarray(picture()), "JPEG"), (44, 30))
    assert "EXIF rotation" in fault.problem


def test_exif_rotation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(Image.fromarray(picture()), "JPEG")
    marked = encoded(Image.fromarray(picture()), "JPEG", exif=exif)
    assert marked != plain
    np.testing.assert_array_equal(decode(tmp_path, marked), decode(tmp_path, plain))


def broken_folder(folder):
    document = good_document()
    write_images(folder, document)
    index = read_coco(write_json(folder, document), folder, training=True)
    assert check_images(index, 60) == []
    (folder / "a.jpg").write_bytes(b"")
    (folder / "b.jpg").unlink()
    return index


def test_check_images_finds_all_faults_in_order(tmp_path):
    faults = check_images(broken_folder(tmp_path), 60)
    assert [fault.where for fault in faults] == ["image id 10", "image id 20"]
    assert [fault.problem for fault in faults] == ["The image is empty.", "The image does not exist."]


def test_check_images_says_when_time_ran_out(tmp_path):
    index = broken_folder(tmp_path)
    (fault,) = check_images(replace(index), 0)
    assert fault.file == str(tmp_path)
    assert fault.value == "2 of 2"
    assert "stopped after 0 s" in fault.problem
