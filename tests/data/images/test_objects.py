"""What becomes of masks and boxes, against the same done to decoded bitmasks with pycocotools, Pillow and numpy."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from maskperf.data.images.objects import (
    AnnotatedImage,
    Objects,
    OneObject,
    cropped,
    packed,
    pasted,
    resized,
    run_ends_of,
    unpacked,
)

NO_RUNS = np.zeros(0, np.int64)


def decoded(entry: OneObject, size_hw) -> np.ndarray:
    """Return the mask by pycocotools alone."""
    if entry.polygons:
        codes = coco_masks.frPyObjects([polygon.ravel().tolist() for polygon in entry.polygons], *size_hw)
        return coco_masks.decode(coco_masks.merge(codes)).astype(bool)
    ends = [*entry.run_ends.tolist(), size_hw[0] * size_hw[1]]
    code = {"size": list(size_hw), "counts": np.diff(ends, prepend=0).tolist()}
    return coco_masks.decode(coco_masks.frPyObjects(code, *size_hw)).astype(bool)


def extent(mask: np.ndarray) -> list[int] | None:
    """Return the inclusive corners of the mask, None where it is less than two pixels wide or tall."""
    ys, xs = np.nonzero(mask)
    if not len(ys) or xs.min() == xs.max() or ys.min() == ys.max():
        return None
    return [xs.min(), ys.min(), xs.max(), ys.max()]


def blob(random: np.random.Generator, size_hw) -> np.ndarray:
    """Return a star of twelve corners, of which some may lie outside of the image."""
    angles = np.arange(12) * np.pi / 6
    radii = random.uniform(0.3, 1.0, 12) * random.uniform(3, min(size_hw) / 2)
    center = random.uniform(0, 1, 2) * size_hw[::-1]
    return (center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def random_image(seed: int, size_hw=(61, 83), objects: int = 6) -> tuple[AnnotatedImage, AnnotatedImage]:
    """Return a random image whose objects have polygons, and the same with their run lengths."""
    random = np.random.default_rng(seed)
    bgr = random.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    entries, twins = [], []
    for label in range(1, objects + 1):
        polygons = tuple(blob(random, size_hw) for _ in range(1 + label % 2))
        entry = OneObject(np.zeros(4, np.float32), label, polygons, NO_RUNS)
        mask = decoded(entry, size_hw)
        if extent(mask) is not None:
            box = np.array(extent(mask), np.float32)
            entries.append(replace(entry, box=box))
            twins.append(OneObject(box, label, (), run_ends_of(mask)))
    return AnnotatedImage(bgr, tuple(entries)), AnnotatedImage(bgr, tuple(twins))


def edge_pixels(mask: np.ndarray) -> int:
    """Return the number of pixels beside the mask's outline: what another rounding of a polygon may change."""
    padded = np.pad(mask, 1, mode="edge")
    around = [padded[1 + y : 1 + y + mask.shape[0], 1 + x : 1 + x + mask.shape[1]] for y, x in ((0, 1), (1, 0))]
    return sum(int((shifted != mask).sum()) for shifted in around)


@pytest.mark.parametrize("seed", range(8))
def test_masks_are_those_of_pycocotools_and_survive_packing(seed):
    for image in random_image(seed):
        for entry in image.objects:
            np.testing.assert_array_equal(entry.mask(image.size_hw), decoded(entry, image.size_hw))
    polygons, runs = random_image(seed)
    mixed = polygons.objects[::2] + runs.objects[1::2]
    again = unpacked(packed(mixed, with_runs=True))
    assert packed(polygons.objects, with_runs=False).run_ends is None
    for entry, other in zip(mixed, again, strict=True):
        assert entry.label == other.label and len(entry.polygons) == len(other.polygons)
        np.testing.assert_array_equal(entry.box, other.box)
        np.testing.assert_array_equal(decoded(entry, (61, 83)), decoded(other, (61, 83)))
    none = packed((), with_runs=True)
    assert isinstance(none, Objects) and none.boxes.shape == (0, 4) and unpacked(none) == ()


@pytest.mark.parametrize("seed", range(12))
def test_a_crop_is_that_of_the_decoded_masks(seed):
    random = np.random.default_rng(seed)
    height, width = int(random.integers(8, 50)), int(random.integers(8, 70))
    top, left = int(random.integers(0, 61 - height + 1)), int(random.integers(0, 83 - width + 1))
    window = (slice(top, top + height), slice(left, left + width))
    for image in random_image(seed):
        found = cropped(image, top=top, left=left, size_hw=(height, width))
        np.testing.assert_array_equal(found.bgr, image.bgr[window])
        by_label = {entry.label: entry for entry in found.objects}
        for entry in image.objects:
            part = decoded(entry, image.size_hw)[window]
            assert (entry.label in by_label) == (extent(part) is not None)
            if entry.label in by_label:
                left_over = by_label[entry.label]
                difference = int((decoded(left_over, (height, width)) != part).sum())
                assert difference <= (0.1 * edge_pixels(part) if entry.polygons else 0)
                np.testing.assert_array_equal(left_over.box, extent(part))


def test_an_object_that_is_not_cut_keeps_its_annotated_box():
    image = random_image(1)[0]
    loose = replace(image.objects[0], polygons=(np.array([[20, 20], [40, 20], [30, 40]], np.float32),))
    loose = replace(loose, box=np.array([15.5, 10.25, 45.0, 44.0], np.float32))
    found = cropped(AnnotatedImage(image.bgr, (loose,)), top=12, left=11, size_hw=(40, 40)).objects[0]
    np.testing.assert_array_equal(found.box, [4.5, 0, 34, 32])  # moved, and clipped to the image


@pytest.mark.parametrize("size_hw", [(61, 83), (122, 166), (40, 50), (90, 31), (7, 9)])
def test_a_resize_is_that_of_pillow(size_hw):
    for seed in range(3):
        polygons, runs = random_image(seed)
        for entry, after in zip(runs.objects, resized(runs, size_hw).objects, strict=True):
            mask = Image.fromarray(decoded(entry, (61, 83)))
            nearest = np.asarray(mask.resize(size_hw[::-1], Image.Resampling.NEAREST))
            np.testing.assert_array_equal(decoded(after, size_hw), nearest)
            np.testing.assert_allclose(after.box, entry.box * np.tile([size_hw[1] / 83, size_hw[0] / 61], 2), rtol=1e-6)
        for entry, after in zip(polygons.objects, resized(polygons, size_hw).objects, strict=True):
            moved = [polygon * np.float32([size_hw[1] / 83, size_hw[0] / 61]) for polygon in entry.polygons]
            expected = decoded(replace(entry, polygons=tuple(moved)), size_hw)
            np.testing.assert_array_equal(decoded(after, size_hw), expected)
        pillow = Image.fromarray(polygons.bgr).resize(size_hw[::-1], Image.Resampling.BILINEAR)
        difference = np.asarray(pillow).astype(int) - resized(polygons, size_hw).bgr
        assert abs(difference).max() <= 1  # the order of the two axes


def pasted_by_pixels(image, source, masks, *, is_mirrored, shift):
    """Return pixels and masks of a paste, one pixel after the other."""
    bgr, height, width = image.bgr.copy(), *image.size_hw
    below = [decoded(entry, image.size_hw) for entry in image.objects]
    above = [np.zeros(image.size_hw, bool) for _ in masks]
    for number, mask in enumerate(masks):
        for y, x in np.argwhere(mask):
            seen_x = source.size_hw[1] - 1 - x if is_mirrored else x
            new_y, new_x = y + shift[0], seen_x + shift[1]
            if 0 <= new_y < height and 0 <= new_x < width:
                bgr[new_y, new_x] = source.bgr[y, x]
                above[number][new_y, new_x] = True
                for one in below:
                    one[new_y, new_x] = False
    return bgr, below, above


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("size_hw", [(61, 83), (30, 20)], ids=["same size", "smaller"])
def test_a_paste_is_that_of_the_decoded_masks(seed, is_mirrored, size_hw):
    chosen = [0, 2]
    place = tuple(np.random.default_rng(seed).uniform(0, 1, 2))
    images, sources = random_image(seed, size_hw), random_image(seed + 100)
    for image, source in zip(images, sources, strict=True):
        masks = [decoded(source.objects[number], source.size_hw) for number in chosen]
        union = np.logical_or(*masks)[:, :: -1 if is_mirrored else 1]
        shift = []
        for axis in range(2):
            used = np.flatnonzero(union.any(axis=1 - axis))
            low, high = sorted((-used[0], size_hw[axis] - 1 - used[-1]))
            shift.append(int(low + np.floor(place[axis] * (high - low + 1))))
        bgr, below, above = pasted_by_pixels(image, source, masks, is_mirrored=is_mirrored, shift=shift)
        found = pasted(image, source, chosen, is_mirrored=is_mirrored, place=place)
        np.testing.assert_array_equal(found.bgr, bgr)
        entries = [*image.objects, *(source.objects[number] for number in chosen)]
        expected = [(entry, mask) for entry, mask in zip(entries, below + above, strict=True) if extent(mask)]
        for (entry, mask), after in zip(expected, found.objects, strict=True):
            assert after.label == entry.label
            np.testing.assert_array_equal(decoded(after, size_hw), mask)
            np.testing.assert_array_equal(after.box, extent(mask))
        if size_hw == source.size_hw:  # all that was chosen is inside
            assert sum(mask.sum() for mask in above) == sum(mask.sum() for mask in masks)


def test_a_paste_leaves_what_it_does_not_touch_and_drops_what_it_hides():
    def rectangle(label: int, left: int, top: int, right: int, bottom: int) -> OneObject:
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
        return OneObject(np.array([left, top, right - 1, bottom - 1], np.float32), label, (corners,), NO_RUNS)

    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    touching, hidden, far = rectangle(1, 2, 2, 12, 12), rectangle(2, 10, 10, 15, 15), rectangle(3, 30, 30, 38, 38)
    image = AnnotatedImage(black, (touching, hidden, far))
    found = pasted(
        image, AnnotatedImage(white, (rectangle(4, 0, 0, 30, 20),)), [0], is_mirrored=False, place=(0.4, 0.0)
    )
    assert [entry.label for entry in found.objects] == [1, 3, 4]
    cut, untouched, new = found.objects
    assert untouched is far
    np.testing.assert_array_equal(cut.box, [2, 2, 11, 7])
    np.testing.assert_array_equal(new.box, [0, 8, 29, 27])
    np.testing.assert_array_equal(found.bgr[:, :, 0] == 255, decoded(new, (40, 40)))
    assert not image.bgr.any()  # the image of before is as it was
    assert pasted(image, AnnotatedImage(white, ()), [], is_mirrored=False, place=(0.5, 0.5)) is image
