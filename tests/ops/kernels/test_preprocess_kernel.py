import numpy as np
import pytest
import torch
from kernel_device import DEVICE, stored_as

from maskperf.data.images.raw_images import UploadBuffers, pack_images
from maskperf.ops.kernels import preprocess
from maskperf.ops.kernels.preprocess import resize_images
from maskperf.ops.preprocess import to_images
from maskperf.structures import RawImages, to_device

MEANS_BGR = (102.9801, 115.9465, 122.7717)


def raw_images(sizes: list, new_sizes: list, mirrored: list[bool], padded_hw: tuple[int, int]) -> RawImages:
    random = np.random.default_rng(0)
    return pack_images(
        [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes],
        new_sizes,
        mirrored,
        padded_hw=padded_hw,
        means_bgr=MEANS_BGR,
        buffers=UploadBuffers(max_waiting=1, pin_memory=False),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference_bit_for_bit(dtype):
    sizes = [(6, 9), (17, 11), (1, 1), (7, 4), (8, 12), (30, 5)]
    new_sizes = [(9, 14), (5, 3), (4, 3), (7, 9), (8, 12), (3, 16)]
    raw = raw_images(sizes, new_sizes, [True, False, True, False, True, False], (12, 16))
    found = resize_images(to_device(raw, torch.device(DEVICE)), dtype)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    exact = to_images(raw).pixels
    assert torch.equal(found.cpu(), stored_as(dtype, exact))


def test_rows_longer_than_a_program_takes():
    width = preprocess.BYTES_AT_A_TIME // 3 + 50
    raw = raw_images([(2, 200), (1, width)], [(3, width), (2, width - 9)], [True, False], (3, width + 2))
    found = resize_images(to_device(raw, torch.device(DEVICE)), torch.float32)
    assert torch.equal(found.cpu(), to_images(raw).pixels)
