"""Room for the ground truth of any batch of a data set."""

import numpy as np
from jaxtyping import Int

from maskperf.data.coco.index import CocoIndex
from maskperf.structures import BatchCapacity


def batch_capacity(index: CocoIndex, images: int) -> BatchCapacity:
    """Return room for any batch of so many images of the data set."""
    objects, polygons = index.object_offsets, index.polygon_offsets
    points = index.point_offsets[polygons]

    def most(offsets: Int[np.ndarray, " owners_plus_1"]) -> int:
        return max(1, int(np.diff(offsets).max(initial=0)))

    return BatchCapacity(
        images=images,
        slots=most(objects),
        polygons=images * most(polygons[objects]),
        points=images * most(points[objects]),
        object_polygons=most(polygons),
        object_points=most(points),
        runs=0 if index.run_offsets is None else images * most(index.run_offsets[objects]),
    )
