import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskperf.ops.resize import WEIGHT_BITS, resize_bytes, resize_table

sides = st.one_of(st.integers(1, 9), st.integers(1, 70))


def resized(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    tables = [torch.tensor(resize_table(old, new)) for old, new in zip(image.shape[:2], size_hw, strict=True)]
    return resize_bytes(torch.from_numpy(image), *tables).numpy()


def resized_by_pillow(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Return Pillow's image; one axis after the other, because the order is another one since version 13."""
    image = Image.fromarray(image).resize((size_hw[1], image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(image.resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR))


def image_of(height: int, width: int, seed: int) -> np.ndarray:
    """Return noise, of all values or of black and white alone, where rounding shows most."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return noise if seed % 3 else (noise > 127).astype(np.uint8) * 255


@settings(max_examples=300)
@given(sides, sides, sides, sides, st.integers(0, 2**32))
def test_bytes_equal_pillow_for_all_sizes(height, width, new_height, new_width, seed):
    image = image_of(height, width, seed)
    np.testing.assert_array_equal(
        resized(image, (new_height, new_width)), resized_by_pillow(image, (new_height, new_width))
    )


@pytest.mark.parametrize(
    ("size_hw", "new_hw"),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (7, 5)),
        ((1, 640), (1, 1333)),
        ((9, 1), (31, 1)),
        ((40, 50), (40, 83)),  # rows unchanged
        ((40, 50), (67, 50)),  # columns unchanged
        ((300, 400), (2, 3)),  # 150 taps
        ((480, 640), (800, 1066)),
        ((640, 427), (1199, 800)),
        ((800, 1000), (417, 333)),
        ((900, 600), (300, 599)),  # Pillow 13 would begin with the rows
        ((3, 5000), (3, 1333)),
    ],
)
def test_bytes_equal_pillow_in_odd_and_in_real_cases(size_hw, new_hw):
    for seed in (0, 1):
        image = image_of(*size_hw, seed)
        np.testing.assert_array_equal(resized(image, new_hw), resized_by_pillow(image, new_hw))


def test_growing_alike_gives_what_pillow_gives_in_one_go():
    image = image_of(48, 64, 1)
    expected = np.asarray(Image.fromarray(image).resize((107, 80), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized(image, (80, 107)), expected)


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_table_takes_from_inside_and_its_weights_sum_up_to_one(length, new_length):
    table = resize_table(length, new_length)
    first, weights = table[0], table[1:].astype(np.int64)
    assert table.shape[1] == new_length
    assert first.min() >= 0
    assert np.all(np.diff(first) >= 0)
    assert weights.min() >= 0
    used = first + (weights > 0).cumsum(axis=0).argmax(axis=0)
    assert used.max() < length
    assert np.abs(weights.sum(axis=0) - (1 << WEIGHT_BITS)).max() <= len(weights)


def test_a_table_is_shared_and_cannot_be_changed():
    assert resize_table(17, 31) is resize_table(17, 31)
    with pytest.raises(ValueError, match="read-only"):
        resize_table(17, 31)[0, 0] = 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_bytes_are_the_same_on_a_gpu():
    image = image_of(480, 640, 1)
    tables = [torch.tensor(resize_table(old, new)).cuda() for old, new in ((480, 800), (640, 1066))]
    found = resize_bytes(torch.from_numpy(image).cuda(), *tables)
    np.testing.assert_array_equal(found.cpu().numpy(), resized_by_pillow(image, (800, 1066)))
