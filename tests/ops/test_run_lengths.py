"""The oracle is pycocotools: its decoding of a mask, read at the pixels of the crop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks

from maskperf.data.coco.columns import EMPTY
from maskperf.ops.run_lengths import crop_run_lengths
from maskperf.structures import RUN_LENGTH_STRIDE, RunLengths


def random_mask(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return blobs, stripes, noise, a single pixel, everything, or nothing."""
    kind = int(random.integers(6))
    pixels = np.zeros((height, width), np.uint8)
    if kind == 0:
        pixels[:] = random.random((height, width)) < random.random()
    elif kind == 1:
        pixels[int(random.integers(height)), int(random.integers(width))] = 1
    elif kind == 2:
        pixels[:] = 1
    elif kind in (3, 4):
        rows, columns = np.mgrid[:height, :width]
        for _ in range(int(random.integers(1, 4))):
            y, x, radius = random.uniform((0, 0, 1), (height, width, max(height, width, 2) / 2))
            pixels[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 1
    return np.asfortranarray(pixels)


def encoded(pixels: np.ndarray) -> tuple[dict, np.ndarray]:
    """Return pycocotools' code of a mask, and where its runs end."""
    code = coco_masks.encode(pixels)
    flat = pixels.reshape(-1, order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    return code, np.concatenate([[0] if flat[0] else EMPTY, changes, [len(flat)]]).astype(np.int64)


def run_lengths_of(ends: list[list[np.ndarray]], originals, resized, are_mirrored) -> RunLengths:
    """Return the masks of a batch; `ends` are those of each slot of each image, as many slots in each."""
    flat = [of_object for image in ends for of_object in image]
    keyed = [runs + number * RUN_LENGTH_STRIDE for number, runs in enumerate(flat)]
    return RunLengths(
        ends=torch.from_numpy(np.concatenate([EMPTY, *keyed])),
        run_offsets=torch.from_numpy(np.cumsum([0, *(len(runs) for runs in flat)])),
        original_sizes_hw=torch.tensor(originals),
        sizes_hw=torch.tensor(resized),
        is_mirrored=torch.tensor(are_mirrored),
    )


def expected_crop(code: dict, box: np.ndarray, resized_hw, is_mirrored: bool, size: int) -> np.ndarray:
    """Return the decoded mask at the pixel under the center of each cell, one cell at a time."""
    pixels = coco_masks.decode(code)
    height, width = pixels.shape
    x1, y1, x2, y2 = (float(value) for value in box)
    crop = np.zeros((size, size), bool)
    for row, column in np.ndindex(size, size):
        x, y = x1 + (column + 0.5) / size * max(x2 - x1, 1.0), y1 + (row + 0.5) / size * max(y2 - y1, 1.0)
        x = resized_hw[1] - x if is_mirrored else x
        at_x, at_y = np.floor(x * (width / resized_hw[1])), np.floor(y * (height / resized_hw[0]))
        if 0 <= at_x < width and 0 <= at_y < height:
            crop[row, column] = pixels[int(at_y), int(at_x)]
    return crop


@pytest.mark.parametrize("seed", range(20))
def test_crops_of_random_masks_equal_those_of_pycocotools_pixel_for_pixel(seed):
    """100 masks each, so 2,000 in all, at any scale, mirrored or not, with boxes in, around and outside the image."""
    random = np.random.default_rng(seed)
    images, slots = 10, 10
    originals = [[int(side) for side in random.integers(1, 60, 2)] for _ in range(images)]
    resized = [[max(1, int(side * random.uniform(0.5, 2.5))) for side in sides] for sides in originals]
    are_mirrored = [bool(random.integers(2)) for _ in range(images)]
    masks = [[encoded(random_mask(random, *sides)) for _ in range(slots)] for sides in originals]
    batch = run_lengths_of([[ends for _, ends in image] for image in masks], originals, resized, are_mirrored)
    objects = torch.from_numpy(random.permutation(images * slots))
    size = int(random.integers(3, 12))
    boxes = np.zeros((images * slots, 4), np.float32)
    for place, number in enumerate(objects.tolist()):
        height, width = resized[number // slots]
        low = random.uniform(-0.3, 0.9, 2) * [width, height]
        boxes[place] = [*low, *(low + random.uniform(0, 1.2, 2) * [width, height])]
        if random.random() < 0.3:
            boxes[place] = np.round(boxes[place])
    found = crop_run_lengths(batch, objects, torch.from_numpy(boxes), size)
    for place, number in enumerate(objects.tolist()):
        image, slot = divmod(number, slots)
        code, _ = masks[image][slot]
        expected = expected_crop(code, boxes[place], resized[image], are_mirrored[image], size)
        np.testing.assert_array_equal(found[place].numpy(), expected)


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_crop_at_the_scale_of_the_image_is_a_slice_of_the_mask(is_mirrored):
    random = np.random.default_rng(0)
    pixels = np.asfortranarray(random.random((40, 50)) < 0.5, np.uint8)
    batch = run_lengths_of([[encoded(pixels)[1]]], [[40, 50]], [[40, 50]], [is_mirrored])
    found = crop_run_lengths(batch, torch.tensor([0]), torch.tensor([[7.0, 3.0, 35.0, 31.0]]), 28)[0]
    seen = pixels[:, ::-1] if is_mirrored else pixels
    np.testing.assert_array_equal(found.numpy(), seen[3:31, 7:35].astype(bool))


def test_an_object_without_runs_has_an_empty_crop():
    full = np.array([0, 12], np.int64)
    batch = run_lengths_of([[EMPTY, full], [EMPTY, EMPTY]], [[3, 4], [3, 4]], [[3, 4], [3, 4]], [False, False])
    boxes = torch.tensor([[0.0, 0.0, 4.0, 3.0]]).repeat(4, 1)
    found = crop_run_lengths(batch, torch.arange(4), boxes, 3)
    assert found.flatten(1).any(dim=1).tolist() == [False, True, False, False]


def test_runs_that_were_added_for_room_belong_to_nobody():
    mask = encoded(np.asfortranarray(np.eye(6, dtype=np.uint8)))[1]
    batch = run_lengths_of([[mask]], [[6, 6]], [[6, 6]], [False])
    roomy = replace(batch, ends=torch.cat([batch.ends, torch.full((9,), torch.iinfo(torch.int64).max)]))
    box = torch.tensor([[0.0, 0.0, 6.0, 6.0]])
    expected = crop_run_lengths(batch, torch.tensor([0]), box, 6)
    assert torch.equal(expected[0], torch.eye(6, dtype=torch.bool))
    assert torch.equal(crop_run_lengths(roomy, torch.tensor([0]), box, 6), expected)


def test_a_mask_of_the_largest_image_is_read_at_its_last_pixel():
    height, width = 13_000, 13_500
    ends = np.array([height * width - 1, height * width], np.int64)
    batch = run_lengths_of([[EMPTY, ends]], [[height, width]], [[height, width]], [False])
    last = torch.tensor([[width - 2.0, height - 2.0, width, height]])
    found = crop_run_lengths(batch, torch.tensor([1]), last, 2)
    assert found[0].tolist() == [[False, False], [False, True]]
