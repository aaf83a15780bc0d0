"""Large images in overlapping tiles: where these are, and one result of all of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_masks

from maskperf.evaluation.results import run_length_codes
from maskperf.predict.result import Prediction

OVERLAP = 0.2  # of a tile, at least: objects of up to this side are whole in one tile
COVERED = 0.5  # an object whose mask is covered to more than this by one that comes before it is that one again
BORDER_PX = 2  # a box that ends so near to a tile's border inside the image is cut off there

Tile = tuple[int, int, int, int]  # left, top, right, bottom


def tile_boxes(size_hw: tuple[int, ...], tile: int) -> list[Tile]:
    """Return tiles of equal sides that cover the image at equal distances; none where one would do."""
    rows, columns = (_starts(length, tile) for length in size_hw[:2])
    if len(rows) * len(columns) == 1:
        return []
    height, width = (min(tile, length) for length in size_hw[:2])
    return [(left, top, left + width, top + height) for top in rows for left in columns]


def merged(whole: Prediction, of_tiles: Sequence[Prediction], tiles: Sequence[Tile]) -> Prediction:
    """Return the objects of the whole image and of its tiles at the scale of the image, each once.

    Suppression among objects of one category that come from different tiles, by masks: those that a border of their
    tile has cut off come last, the others by falling score, and one that is mostly covered by one before it goes.
    """
    parts = [whole, *(_moved(part, tile, whole.size_hw) for part, tile in zip(of_tiles, tiles, strict=True))]
    origins = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    cuts = [np.zeros(len(whole), bool)]
    cuts += [_is_cut(part.boxes, tile, whole.size_hw) for part, tile in zip(parts[1:], tiles, strict=True)]
    everything = replace(
        whole,
        boxes=np.concatenate([part.boxes for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        run_lengths=tuple(code for part in parts for code in part.run_lengths),
    )
    order = np.lexsort((-everything.scores, np.concatenate(cuts)))
    ordered = everything.rows(order)
    kept = ordered.rows(_survivors(ordered, origins[order]))
    return kept.rows(np.argsort(-kept.scores, kind="stable"))


def _starts(length: int, tile: int) -> list[int]:
    if length <= tile:
        return [0]
    count = int(np.ceil((length - tile) / (tile * (1 - OVERLAP)))) + 1
    return np.rint(np.linspace(0, length - tile, count)).astype(int).tolist()


def _is_cut(
    boxes: Float[np.ndarray, "objects 4"], tile: Tile, size_hw: tuple[int, int]
) -> Bool[np.ndarray, " objects"]:
    left, top, right, bottom = tile
    height, width = size_hw
    return (
        ((boxes[:, 0] <= left + BORDER_PX) & (left > 0))
        | ((boxes[:, 1] <= top + BORDER_PX) & (top > 0))
        | ((boxes[:, 2] >= right - BORDER_PX) & (right < width))
        | ((boxes[:, 3] >= bottom - BORDER_PX) & (bottom < height))
    )


def _moved(part: Prediction, tile: Tile, size_hw: tuple[int, int]) -> Prediction:
    """Return the result of a tile at its place in the image."""
    left, top = tile[:2]
    boxes = part.boxes + [left, top, left, top]
    if not len(part):
        return replace(part, boxes=boxes, size_hw=size_hw)
    masks = coco_masks.decode(list(part.run_lengths))
    height = len(masks)
    # One line of background below each column: no run goes on in the next one, so each is moved by itself.
    columns = np.pad(masks, ((0, 1), (0, 0), (0, 0))).transpose(2, 1, 0).reshape(len(part), -1)
    edges, owners = [], []
    for owner, pixels in enumerate(columns):
        pixel_numbers = np.flatnonzero(np.diff(pixels, prepend=0, append=0))
        moved = (pixel_numbers // (height + 1) + left) * size_hw[0] + pixel_numbers % (height + 1) + top
        unique, counts = np.unique(moved, return_counts=True)
        edges.append(unique[counts == 1])  # a run that ends where the next begins: one run
        owners.append(np.full(len(edges[-1]), owner))
    codes = run_length_codes(np.concatenate(edges), np.concatenate(owners), len(part), size_hw)
    run_lengths = tuple({"size": list(size_hw), "counts": code} for code in codes)
    return replace(part, boxes=boxes, run_lengths=run_lengths, size_hw=size_hw)


def _survivors(ordered: Prediction, origins: Int[np.ndarray, " objects"]) -> Int[np.ndarray, " kept"]:
    kept: list[int] = []
    for label in np.unique(ordered.labels).tolist():
        rows = np.flatnonzero(ordered.labels == label)
        codes = [ordered.run_lengths[row] for row in rows.tolist()]
        covered = np.asarray(coco_masks.iou(codes, codes, [1] * len(codes)))  # share of row's mask inside column's
        suppresses = (np.nan_to_num(covered) > COVERED) & (origins[rows][:, None] != origins[rows][None, :])
        alive = np.ones(len(rows), bool)
        for index in range(len(rows)):
            alive[index] = not (suppresses[index, :index] & alive[:index]).any()
        kept += rows[alive].tolist()
    return np.array(sorted(kept), np.int64)
