"""Room for the ground truth of any batch of a data set."""

import numpy as np
from jaxtyping import Int

from maskperf.data.coco.index import CocoIndex
from maskperf.structures import BatchCapacity


def batch_capacity(index: CocoIndex, images: int) -> BatchCapacity:
    """Return room for any batch of so many images of the data set."""
    image_of_object = np.repeat(np.arange(len(index.image_ids)), np.diff(index.object_offsets))
    points_of_object = np.diff(index.point_offsets[index.polygon_offsets])
    rings_of_object = np.diff(index.polygon_offsets)

    def most(values: Int[np.ndarray, " images"]) -> int:
        return max(1, int(values.max(initial=0)))

    def totals(values: Int[np.ndarray, " objects"]) -> Int[np.ndarray, " images"]:
        return np.bincount(image_of_object, weights=values, minlength=len(index.image_ids)).astype(np.int64)

    def largest(values: Int[np.ndarray, " objects"]) -> Int[np.ndarray, " images"]:
        result = np.zeros(len(index.image_ids), np.int64)
        np.maximum.at(result, image_of_object, values)
        return result

    return BatchCapacity(
        images=images,
        slots=most(np.diff(index.object_offsets)),
        rings=images * most(totals(rings_of_object)),
        points=images * most(totals(points_of_object)),
        object_rings=most(largest(rings_of_object)),
        object_points=most(largest(points_of_object)),
        runs=0 if index.run_offsets is None else images * most(totals(np.diff(index.run_offsets))),
    )
