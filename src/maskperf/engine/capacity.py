"""Room for the ground truth of any batch: with it, the shapes of a step depend on the canvas and nothing else."""

from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from maskperf.structures import RUN_LENGTH_STRIDE, Batch, BatchCapacity, Polygons, RunLengths, Targets

# What one image has room for. The most in train2017 is 93 objects of an image and 190 rings of one object; of the
# others no more than a mean is known (178 points and 8 rings an image), so there is much room: what is empty costs next
# to nothing, as Triton's kernel draws the rings and points that there are.
SLOTS, RINGS, POINTS = 96, 1024, 16384
OBJECT_RINGS, OBJECT_POINTS = 256, 8192
USUAL_OBJECT_RINGS, USUAL_OBJECT_POINTS = 16, 512  # of nearly all objects


def fixed_capacity(images: int) -> BatchCapacity:
    """Return room for so many images of COCO, crowded ones too, which is known before a data set is opened."""
    return BatchCapacity(
        images=images,
        slots=SLOTS,
        rings=images * RINGS,
        points=images * POINTS,
        object_rings=OBJECT_RINGS,
        object_points=OBJECT_POINTS,
    )


def usual_outlines(capacity: BatchCapacity) -> BatchCapacity:
    """Return less room for one object, as most batches need.

    For where Triton's kernel does not draw the masks: there each costs as much as the largest there is room for.
    """
    return replace(capacity, object_rings=USUAL_OBJECT_RINGS, object_points=USUAL_OBJECT_POINTS)


def capacity_of(batch: Batch) -> BatchCapacity:
    """Return room for exactly this batch. Reads shapes alone."""
    polygons, run_lengths = batch.targets.polygons, batch.targets.run_lengths
    return BatchCapacity(
        images=len(batch.image_ids),
        slots=batch.targets.valid.shape[1],
        rings=len(polygons.point_offsets) - 1,
        points=len(polygons.points),
        object_rings=polygons.max_rings,
        object_points=polygons.max_points,
        runs=0 if run_lengths is None else max(1, len(run_lengths.ends)),
    )


def fits(needed: BatchCapacity, room: BatchCapacity) -> bool:
    """Return whether there is no more of anything than there is room for."""
    return all(getattr(needed, entry.name) <= getattr(room, entry.name) for entry in fields(BatchCapacity))


def pad_batch(batch: Batch, capacity: BatchCapacity) -> Batch:
    """Return the batch with empty places up to the capacity, on the same device: same losses, same gradients.

    The number of images stays. A batch that does not fit is a ValueError: nothing is ever cut off.
    """
    if not fits(capacity_of(batch), capacity):
        raise ValueError(f"the batch does not fit {capacity}")
    targets = batch.targets
    images, slots = targets.valid.shape
    empty = capacity.slots - slots
    return replace(
        batch,
        targets=Targets(
            boxes=F.pad(targets.boxes, (0, 0, 0, empty)),
            labels=F.pad(targets.labels, (0, empty)),
            valid=F.pad(targets.valid, (0, empty)),
            polygons=_pad_polygons(targets.polygons, images, slots, capacity),
            run_lengths=_pad_run_lengths(targets.run_lengths, images, slots, capacity),
        ),
    )


def _pad_run_lengths(masks: RunLengths | None, images: int, slots: int, capacity: BatchCapacity) -> RunLengths | None:
    """Return the same masks under the objects' new numbers; new objects have no runs, new runs belong to no object."""
    if masks is None:
        return None
    empty = capacity.slots - slots
    images_of_runs = masks.ends // RUN_LENGTH_STRIDE // slots
    ends = masks.ends + images_of_runs * (empty * RUN_LENGTH_STRIDE)
    counts = F.pad(masks.run_offsets.diff().view(images, slots), (0, empty)).flatten()
    return replace(
        masks,
        ends=torch.cat([ends, ends.new_full((capacity.runs - len(ends),), torch.iinfo(ends.dtype).max)]),
        run_offsets=F.pad(counts.cumsum(0), (1, 0)),
    )


def _pad_polygons(polygons: Polygons, images: int, slots: int, capacity: BatchCapacity) -> Polygons:
    """Return the same rings; new objects have none, new rings no points, and new points belong to no ring."""
    rings_of_object = polygons.ring_offsets.diff().view(images, slots)
    counts = F.pad(rings_of_object, (0, capacity.slots - slots)).flatten()
    new_rings = capacity.rings + 1 - len(polygons.point_offsets)
    return Polygons(
        points=F.pad(polygons.points, (0, 0, 0, capacity.points - len(polygons.points))),
        point_offsets=_repeat_last(polygons.point_offsets, new_rings),
        ring_offsets=F.pad(counts.cumsum(0), (1, 0)),
        max_points=capacity.object_points,
        max_rings=capacity.object_rings,
    )


def _repeat_last(offsets: Int[Tensor, " before"], times: int) -> Int[Tensor, " after"]:
    return F.pad(offsets.diff(), (1, times)).cumsum(0) + offsets[:1]
