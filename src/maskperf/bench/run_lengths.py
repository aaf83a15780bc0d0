"""Batches whose masks are run-length encoded, made of batches of polygons by pycocotools; tests use them as well."""

from dataclasses import replace

import numpy as np
import torch
from pycocotools import mask as coco_masks

from maskperf.structures import RUN_LENGTH_STRIDE, Batch, Polygons, RunLengths


def as_run_lengths(batch: Batch) -> Batch:
    """Return the batch with the pixels of its polygons, as pycocotools fills them, in place of the polygons."""
    polygons, sizes_hw = batch.targets.polygons, batch.images.sizes_hw
    slots = batch.targets.valid.shape[1]
    ends, counts = [np.zeros(0, np.int64)], []
    for number in range(len(polygons.ring_offsets) - 1):
        height, width = sizes_hw[number // slots].tolist()
        rings = [
            polygons.points[polygons.point_offsets[ring] : polygons.point_offsets[ring + 1]].flatten().double().tolist()
            for ring in range(polygons.ring_offsets[number], polygons.ring_offsets[number + 1])
        ]
        runs = np.zeros(0, np.int64)
        if rings:
            pixels = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(rings, height, width)))
            flat = pixels.reshape(-1, order="F")
            runs = np.concatenate([np.flatnonzero(np.diff(flat, prepend=0)), [flat.size]]).astype(np.int64)
        ends.append(runs + number * RUN_LENGTH_STRIDE)
        counts.append(len(runs))
    run_lengths = RunLengths(
        ends=torch.from_numpy(np.concatenate(ends)),
        run_offsets=torch.tensor(np.cumsum([0, *counts])),
        original_sizes_hw=sizes_hw.clone(),
        sizes_hw=sizes_hw.clone(),
        is_mirrored=torch.zeros(len(sizes_hw), dtype=torch.bool),
    )
    empty = Polygons(
        points=torch.zeros(0, 2),
        point_offsets=torch.zeros(1, dtype=torch.int64),
        ring_offsets=torch.zeros(len(counts) + 1, dtype=torch.int64),
        max_points=0,
        max_rings=0,
    )
    return replace(batch, targets=replace(batch.targets, polygons=empty, run_lengths=run_lengths))
