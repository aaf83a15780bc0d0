import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refused_waits import refused_waits

from maskperf.data.images.raw_images import UploadBuffers, pack_images
from maskperf.data.images.transforms import normalize_into, resize_and_mirror
from maskperf.ops.kernels import selection
from maskperf.ops.preprocess import to_images
from maskperf.structures import RawImages, to_device
from maskperf.techniques import plain, using

MEANS_BGR = (102.9801, 115.9465, 122.7717)
sides = st.integers(1, 40)
images = st.tuples(sides, sides, sides, sides, st.booleans())


def packed(cases: list[tuple], padded_hw: tuple[int, int], seed: int = 0) -> tuple[RawImages, np.ndarray]:
    """Return noisy images of (height, width, new height, new width, mirrored), and what the CPU makes of them."""
    random = np.random.default_rng(seed)
    bytes_of = [random.integers(0, 256, (case[0], case[1], 3), np.uint8) for case in cases]
    raw = pack_images(
        bytes_of,
        [case[2:4] for case in cases],
        [case[4] for case in cases],
        padded_hw=padded_hw,
        means_bgr=MEANS_BGR,
        buffers=UploadBuffers(max_waiting=1, pin_memory=False),
    )
    expected = np.full((len(cases), *padded_hw, 3), np.nan, np.float32)
    for pixels, image, case in zip(expected, bytes_of, cases, strict=True):
        normalize_into(pixels, resize_and_mirror(image, case[2:4], is_mirrored=case[4]), MEANS_BGR)
    return raw, expected.transpose(0, 3, 1, 2)


@settings(max_examples=60)
@given(st.lists(images, min_size=1, max_size=4), st.integers(0, 99))
def test_the_same_bits_as_the_cpu_path(cases, seed):
    padded_hw = (max(case[2] for case in cases) + seed % 3, max(case[3] for case in cases) + seed % 5)
    raw, expected = packed(cases, padded_hw, seed)
    images = to_images(raw)
    assert images.pixels.dtype == torch.float32
    assert images.pixels.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(images.pixels.numpy(), expected)
    assert images.sizes_hw.tolist() == [list(case[2:4]) for case in cases]


def test_the_same_bits_at_the_benchmarks_sizes():
    raw, expected = packed([(480, 640, 800, 1066, True), (427, 640, 800, 1199, False)], (800, 1216))
    np.testing.assert_array_equal(to_images(raw).pixels.numpy(), expected)


def test_bfloat16_is_rounded_from_float32():
    raw, expected = packed([(8, 9, 13, 14, True)], (16, 16))
    found = to_images(raw, dtype=torch.bfloat16).pixels
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.from_numpy(expected).to(torch.bfloat16))


def test_kernels_are_used_only_where_they_can_be(monkeypatch):
    raw, _ = packed([(8, 9, 13, 14, True)], (16, 16))
    asked = []
    monkeypatch.setattr(selection, "missing_part", lambda device: asked.append(device) or "no GPU")
    to_images(raw)
    with using(plain()):
        to_images(raw)
    assert asked == [torch.device("cpu")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_operations_and_kernel_give_the_bits_of_the_cpu():
    cases = [(480, 640, 800, 1066, True), (640, 427, 1199, 800, False), (900, 1200, 800, 1066, True)]
    raw, expected = packed(cases, (1216, 1088))
    moved = to_device(raw, torch.device("cuda"))
    with refused_waits():
        all_found = [to_images(moved), using(plain())(to_images)(moved)]
    for found in all_found:
        np.testing.assert_array_equal(found.pixels.cpu().numpy(), expected)
