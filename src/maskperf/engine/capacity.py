"""Room for the ground truth of any batch, so that the shapes of a step depend on the padded size alone."""

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from maskperf.structures import RUN_LENGTH_STRIDE, Batch, BatchCapacity, Polygons, RunLengths, Targets

# Of one image. The most in train2017 is 93 objects of an image and 190 polygons of one object; of the others only the
# mean is known (178 points and 8 polygons an image), so there is much room. Unused room costs next to nothing, as
# Triton's kernel draws the polygons and points that there are.
SLOTS, POLYGONS, POINTS = 96, 1024, 16384
OBJECT_POLYGONS, OBJECT_POINTS = 256, 8192
USUAL_OBJECT_POLYGONS, USUAL_OBJECT_POINTS = 16, 512  # of nearly all objects


def fixed_capacity(images: int) -> BatchCapacity:
    """Return room for so many images of COCO, crowded ones too, which is known before a data set is opened."""
    return BatchCapacity(
        images=images,
        slots=SLOTS,
        polygons=images * POLYGONS,
        points=images * POINTS,
        object_polygons=OBJECT_POLYGONS,
        object_points=OBJECT_POINTS,
    )


def fixed_capacities(images: int, *, usual_first: bool) -> list[BatchCapacity]:
    """Return `fixed_capacity`, before it perhaps one with less room for one object, as most batches need.

    For masks that Triton's kernel does not draw: there each costs as much as the largest that fits.
    """
    fixed = fixed_capacity(images)
    usual = replace(fixed, object_polygons=USUAL_OBJECT_POLYGONS, object_points=USUAL_OBJECT_POINTS)
    return [usual, fixed] if usual_first else [fixed]


def capacity_of(batch: Batch) -> BatchCapacity:
    """Return room for exactly this batch. Reads shapes alone."""
    polygons, run_lengths = batch.targets.polygons, batch.targets.run_lengths
    return BatchCapacity(
        images=len(batch.image_ids),
        slots=batch.targets.valid.shape[1],
        polygons=len(polygons.point_offsets) - 1,
        points=len(polygons.points),
        object_polygons=polygons.max_polygons,
        object_points=polygons.max_points,
        runs=0 if run_lengths is None else max(1, len(run_lengths.ends)),
    )


def fits(needed: BatchCapacity, room: BatchCapacity) -> bool:
    """Return whether there is no more of anything than there is room for."""
    return all(getattr(needed, entry.name) <= getattr(room, entry.name) for entry in fields(BatchCapacity))


def pad_batch(batch: Batch, capacity: BatchCapacity) -> Batch:
    """Return the batch with empty slots up to the capacity, on the same device: same losses, same gradients.

    The number of images stays.
    Errors: ValueError where it does not fit, as nothing is ever cut off.
    """
    if not fits(capacity_of(batch), capacity):
        raise ValueError(f"the batch does not fit {capacity}")
    targets = batch.targets
    empty = capacity.slots - targets.valid.shape[1]
    runs = targets.run_lengths
    padded = Targets(
        boxes=F.pad(targets.boxes, (0, 0, 0, empty)),
        labels=F.pad(targets.labels, (0, empty)),
        valid=F.pad(targets.valid, (0, empty)),
        polygons=_pad_polygons(targets.polygons, targets.valid.shape, capacity),
        run_lengths=None if runs is None else _pad_run_lengths(runs, targets.valid.shape, capacity),
    )
    return replace(batch, targets=padded)


def _pad_run_lengths(masks: RunLengths, images_and_slots: Sequence[int], capacity: BatchCapacity) -> RunLengths:
    """Return the same masks under the objects' new numbers; new objects have no runs, new runs belong to no object."""
    slots = images_and_slots[1]
    images_of_runs = masks.ends // RUN_LENGTH_STRIDE // slots
    ends = masks.ends + images_of_runs * ((capacity.slots - slots) * RUN_LENGTH_STRIDE)
    return replace(
        masks,
        ends=torch.cat([ends, ends.new_full((capacity.runs - len(ends),), torch.iinfo(ends.dtype).max)]),
        run_offsets=_pad_objects(masks.run_offsets, images_and_slots, capacity.slots),
    )


def _pad_polygons(polygons: Polygons, images_and_slots: Sequence[int], capacity: BatchCapacity) -> Polygons:
    """Return the same polygons; new objects have none, new polygons no points, and new points belong to no polygon."""
    point_offsets = polygons.point_offsets
    added = capacity.polygons + 1 - len(point_offsets)
    return Polygons(
        points=F.pad(polygons.points, (0, 0, 0, capacity.points - len(polygons.points))),
        point_offsets=torch.cat([point_offsets, point_offsets[-1:].expand(added)]),
        polygon_offsets=_pad_objects(polygons.polygon_offsets, images_and_slots, capacity.slots),
        max_points=capacity.object_points,
        max_polygons=capacity.object_polygons,
    )


def _pad_objects(offsets: Int[Tensor, " before"], images_and_slots: Sequence[int], slots: int) -> Int[Tensor, " after"]:
    """Return the offsets where each image has so many slots; new ones own nothing."""
    counts = offsets.diff().view(*images_and_slots)
    return F.pad(F.pad(counts, (0, slots - images_and_slots[1])).flatten().cumsum(0), (1, 0))
