"""Tiles of large images, and one result of all of them."""

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from maskperf.predict.result import Prediction
from maskperf.predict.tiles import OVERLAP, merged, tile_boxes

SIZE_HW = (300, 500)


def prediction(masks, scores, labels=None):
    """A prediction whose boxes are those of its masks."""
    masks = np.array(masks, np.uint8)
    codes = [coco_masks.encode(np.asfortranarray(mask)) for mask in masks]
    boxes = np.array([coco_masks.toBbox(code) for code in codes]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Prediction(
        boxes=boxes,
        scores=np.array(scores, np.float64),
        labels=np.array(labels or [1] * len(scores), np.int64),
        run_lengths=tuple({"size": list(code["size"]), "counts": code["counts"].decode()} for code in codes),
        size_hw=masks.shape[1:],
        categories={1: "a", 2: "b"},
        read_bgr=lambda: np.zeros((*masks.shape[1:], 3), np.uint8),
    )


def nothing(size_hw):
    empty = prediction(np.zeros((1, *size_hw)), [0.5])
    return empty.above(1)


def block(left, top, right, bottom, size_hw=SIZE_HW):
    mask = np.zeros(size_hw, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize(("size_hw", "tile"), [((300, 500), 200), ((1000, 999), 999), ((64, 2000), 128), ((7, 9), 4)])
def test_tiles_cover_the_image_and_overlap(size_hw, tile):
    boxes = tile_boxes(size_hw, tile)
    seen = np.zeros(size_hw, int)
    for left, top, right, bottom in boxes:
        assert right - left == min(tile, size_hw[1]) and bottom - top == min(tile, size_hw[0])
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    for axis in (0, 1):
        starts = sorted({box[axis] for box in boxes})
        assert all(
            later - earlier <= tile * (1 - OVERLAP) + 1 for earlier, later in zip(starts, starts[1:], strict=False)
        )


@pytest.mark.parametrize("size_hw", [(200, 200), (1, 1), (199, 3)])
def test_an_image_of_one_tile_is_not_cut(size_hw):
    assert tile_boxes(size_hw, 200) == []


def seen_through(tiles, masks):
    """What a perfect detector finds in each tile, less sure of parts."""
    parts = []
    for left, top, right, bottom in tiles:
        pieces = [mask[top:bottom, left:right] for mask in masks]
        shares = [piece.sum() / mask.sum() for piece, mask in zip(pieces, masks, strict=True)]
        found = [(piece, 0.5 + share / 3) for piece, share in zip(pieces, shares, strict=True) if piece.any()]
        parts.append(prediction(*zip(*found, strict=True)) if found else nothing((bottom - top, right - left)))
    return parts


def test_objects_across_borders_are_found_once_at_their_place():
    tiles = tile_boxes(SIZE_HW, 200)
    masks = [block(180, 190, 210, 220), block(10, 10, 50, 30), block(460, 280, 500, 300), block(155, 100, 200, 140)]
    found = merged(nothing(SIZE_HW), seen_through(tiles, masks), tiles)
    assert len(found) == len(masks)
    wanted = {mask.tobytes() for mask in masks}
    assert {mask.astype(np.uint8).tobytes() for mask in found.masks} == wanted
    for mask, box in zip(found.masks, found.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert (np.diff(found.scores) <= 0).all()


def test_an_object_larger_than_a_tile_comes_from_the_whole_image():
    tiles = tile_boxes(SIZE_HW, 200)
    large = block(20, 40, 480, 260)
    found = merged(prediction([large], [0.6]), seen_through(tiles, [large]), tiles)
    assert len(found) == 1 and (found.masks[0] == large).all() and found.scores.tolist() == [0.6]


def test_neighbours_of_one_tile_and_other_categories_are_all_kept():
    tiles = [(0, 0, 300, 300), (200, 0, 500, 300)]
    inside = block(20, 20, 80, 80, (300, 300)), block(30, 30, 70, 70, (300, 300))
    other = prediction([block(30, 30, 70, 70)], [0.8], [2])
    found = merged(other, [prediction(inside, [0.9, 0.7]), nothing((300, 300))], tiles)
    assert len(found) == 3 and sorted(found.labels.tolist()) == [1, 1, 2]


def test_a_mask_of_any_shape_is_moved_pixel_by_pixel():
    generator = np.random.default_rng(5)
    tile = (120, 70, 320, 270)
    mask = (generator.random((200, 200)) < 0.5).astype(np.uint8)
    mask[:, :3], mask[0], mask[-1] = 1, 1, 1  # runs that go on from column to column
    found = merged(nothing(SIZE_HW), [prediction([mask], [0.9])], [tile])
    expected = np.zeros(SIZE_HW, bool)
    expected[tile[1] : tile[3], tile[0] : tile[2]] = mask
    assert (found.masks[0] == expected).all()
    whole = coco_masks.encode(np.asfortranarray(expected.astype(np.uint8)))
    assert found.run_lengths[0]["counts"] == whole["counts"].decode()


def test_a_model_on_tiles_finds_what_it_finds_in_each(tmp_path):
    from small_weights import write_small_weights

    import maskperf

    path, _ = write_small_weights(tmp_path, images=1)
    model = maskperf.load(path, device="cpu")
    image = np.random.default_rng(1).integers(0, 255, (150, 200, 3), np.uint8)
    found = model.predict(image, channels="RGB", threshold=0.05, tile=96)
    assert found.size_hw == (150, 200) and (found.boxes[:, 2] <= 200).all() and (found.boxes[:, 3] <= 150).all()
    assert len(found) >= len(model.predict(image, channels="RGB", threshold=0.05)) > 0
    assert found.masks.shape[1:] == (150, 200)
