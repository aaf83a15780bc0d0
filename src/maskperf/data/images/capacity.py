"""Room for the ground truth of any batch of a data set."""

import numpy as np
from jaxtyping import Int

from maskperf.config import DataConfig
from maskperf.data.coco.index import CocoIndex
from maskperf.structures import BatchCapacity


def batch_capacity(index: CocoIndex, images: int, data: DataConfig) -> BatchCapacity:
    """Return room for any batch of so many images of the data set, as `data` has them changed.

    With `data.copy_paste` an image has the objects of two, and each may get run lengths: room for one run down every
    column of the longest image. A batch whose masks are more ragged than that is not replayed but launched anew.
    """
    objects, polygons = index.object_offsets, index.polygon_offsets
    points = index.point_offsets[polygons]

    def most(offsets: Int[np.ndarray, " owners_plus_1"]) -> int:
        return max(1, int(np.diff(offsets).max(initial=0)))

    slots = most(objects) * (2 if data.copy_paste else 1)
    runs = 0 if index.run_offsets is None else images * most(index.run_offsets[objects])
    if data.copy_paste:
        runs = max(runs, images * slots * 2 * (data.long_side + 1))
    return BatchCapacity(
        images=images,
        slots=slots,
        polygons=images * most(polygons[objects]),
        points=images * most(points[objects]),
        object_polygons=most(polygons),
        object_points=most(points),
        runs=runs,
    )
