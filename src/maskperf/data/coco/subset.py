"""Part of the images of an index, and how an image is named in messages."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import compress

import numpy as np

from maskperf.data.coco.document import shown
from maskperf.data.coco.index import CocoIndex

IDS_SHOWN = 5


def shown_id(index: CocoIndex, position: int) -> str:
    """Return the id of the image at this position as the file has it."""
    return shown(index.image_key(position))


def first_ids(index: CocoIndex, positions: Iterable[int]) -> str:
    """Return the ids of the first of these images, for the end of a notice."""
    return "first ids: " + ", ".join(shown_id(index, int(position)) for position in list(positions)[:IDS_SHOWN])


def without_images(index: CocoIndex, positions: Iterable[int]) -> CocoIndex:
    """Return the index without the images at these positions and all that belongs to them."""
    is_kept = np.ones(len(index.image_ids), bool)
    is_kept[list(positions)] = False
    object_offsets, is_kept_object = _kept(index.object_offsets, is_kept)
    ring_offsets, is_kept_ring = _kept(index.ring_offsets, is_kept_object)
    point_offsets, is_kept_point = _kept(index.point_offsets, is_kept_ring)
    run_offsets = run_ends = None
    if index.run_ends is not None:
        run_offsets, is_kept_run = _kept(index.run_offsets, is_kept_object)
        run_ends = index.run_ends[is_kept_run]
    return replace(
        index,
        image_ids=index.image_ids[is_kept],
        file_names=tuple(compress(index.file_names, is_kept)),
        sizes_hw=index.sizes_hw[is_kept],
        object_offsets=object_offsets,
        boxes=index.boxes[is_kept_object],
        labels=index.labels[is_kept_object],
        ring_offsets=ring_offsets,
        point_offsets=point_offsets,
        points=index.points[is_kept_point],
        run_offsets=run_offsets,
        run_ends=run_ends,
        image_keys=tuple(compress(index.image_keys, is_kept)),
        is_plain=False,
    )


def _kept(offsets: np.ndarray, is_kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of the kept owners, and for each thing they own, all of them, whether its owner is kept."""
    counts = np.diff(offsets)
    return np.concatenate([[0], np.cumsum(counts[is_kept])]).astype(np.int64), np.repeat(is_kept, counts)
