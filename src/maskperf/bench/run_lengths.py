"""Batches whose masks are run-length encoded, made of batches of polygons by pycocotools; tests use them as well."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from pycocotools import mask as coco_masks

from maskperf.structures import RUN_LENGTH_STRIDE, Batch, RunLengths


def as_run_lengths(batch: Batch) -> Batch:
    """Return the batch with the pixels of its polygons, as pycocotools fills them, in place of the polygons."""
    polygons, sizes_hw = batch.targets.polygons, batch.images.sizes_hw
    slots = batch.targets.valid.shape[1]
    outlines = np.split(polygons.points.double().numpy(), polygons.point_offsets[1:-1].numpy())
    ends = [np.zeros(0, np.int64) for _ in polygons.polygon_offsets[1:]]
    for number, (first, last) in enumerate(pairwise(polygons.polygon_offsets.tolist())):
        if first < last:
            parts = [points.ravel().tolist() for points in outlines[first:last]]
            size_hw = sizes_hw[number // slots].tolist()
            pixels = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(parts, *size_hw))).ravel(order="F")
            runs = [*np.flatnonzero(np.diff(pixels, prepend=0)), pixels.size]
            ends[number] = np.array(runs, np.int64) + number * RUN_LENGTH_STRIDE
    run_lengths = RunLengths(
        ends=torch.from_numpy(np.concatenate(ends)),
        run_offsets=torch.tensor(np.cumsum([0, *map(len, ends)])),
        original_sizes_hw=sizes_hw.clone(),
        sizes_hw=sizes_hw.clone(),
        is_mirrored=torch.zeros(len(sizes_hw), dtype=torch.bool),
    )
    empty = replace(polygons, points=polygons.points[:0], point_offsets=polygons.point_offsets[:1])
    empty = replace(empty, polygon_offsets=torch.zeros_like(polygons.polygon_offsets), max_points=0, max_polygons=0)
    return replace(batch, targets=replace(batch.targets, polygons=empty, run_lengths=run_lengths))
