from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_batches import losses_and_gradients, small_model, varied_batch

from maskperf.bench.run_lengths import as_run_lengths
from maskperf.config import DataConfig
from maskperf.data.coco.index import CocoIndex
from maskperf.data.images.capacity import batch_capacity
from maskperf.engine.capacity import capacity_of, fits, fixed_capacities, fixed_capacity, pad_batch
from maskperf.structures import BatchCapacity

ROOMY = BatchCapacity(images=2, slots=9, polygons=60, points=500, object_polygons=5, object_points=40)


def index_of(polygons_of_images: list[list[list[int]]]) -> CocoIndex:
    """Return a data set of images, each a list of objects, each a list of numbers of points of its polygons."""
    objects = [entry for image in polygons_of_images for entry in image]
    polygons = [count for entry in objects for count in entry]

    def offsets(counts):
        return np.cumsum([0, *counts]).astype(np.int64)

    return CocoIndex(
        json_path=Path("synthetic.json"),
        image_folder=Path("synthetic"),
        image_ids=np.arange(len(polygons_of_images)),
        file_names=tuple(f"{number}.jpg" for number in range(len(polygons_of_images))),
        sizes_hw=np.full((len(polygons_of_images), 2), 64, np.int32),
        object_offsets=offsets([len(image) for image in polygons_of_images]),
        boxes=np.zeros((len(objects), 4), np.float32),
        labels=np.ones(len(objects), np.int64),
        polygon_offsets=offsets([len(entry) for entry in objects]),
        point_offsets=offsets(polygons),
        points=np.zeros((sum(polygons), 2), np.float32),
        category_ids=np.array([1]),
        category_names=("thing",),
        notices=(),
    )


def test_capacity_holds_the_most_of_everything_in_the_data_set():
    index = index_of([[[4], [3, 3, 3]], [[50]], [], [[4], [4], [4]]])
    assert batch_capacity(index, 2, DataConfig()) == BatchCapacity(
        images=2, slots=3, polygons=2 * 4, points=2 * 50, object_polygons=3, object_points=50
    )


def test_capacity_holds_the_runs_of_the_images_with_the_most():
    index = index_of([[[3], [4]], [[5]]])
    runs = replace(index, run_offsets=np.array([0, 10, 14, 20]), run_ends=np.zeros(20, np.int64))
    assert batch_capacity(runs, 2, DataConfig()).runs == 2 * 14
    assert batch_capacity(index, 2, DataConfig()).runs == 0


def test_the_fixed_capacity_holds_the_crowded_images_of_coco():
    crowded = index_of([[[60]] * 92 + [[20] * 190], [[4]]])  # 93 objects, 190 polygons of one object
    for images in (1, 16):
        assert fits(batch_capacity(crowded, images, DataConfig()), fixed_capacity(images))
    assert not fits(batch_capacity(index_of([[[4]] * 97]), 2, DataConfig()), fixed_capacity(2))
    usual, fixed = fixed_capacities(2, usual_first=True)
    assert [fixed] == fixed_capacities(2, usual_first=False) == [fixed_capacity(2)]
    assert fits(usual, fixed_capacity(2)) and fits(batch_capacity(index_of([[[30] * 16]]), 2, DataConfig()), usual)
    assert not fits(batch_capacity(crowded, 2, DataConfig()), usual)


def test_a_batch_of_run_lengths_never_fits_where_there_is_no_room_for_runs():
    batch = as_run_lengths(varied_batch(1, (0, 0)))  # none at all
    assert len(batch.targets.run_lengths.ends) == 0
    assert capacity_of(batch).runs == 1
    assert not fits(capacity_of(batch), fixed_capacity(2))


def test_capacity_of_a_data_set_without_objects_has_room_for_one_of_each_kind():
    for index in (index_of([[], []]), index_of([])):
        assert batch_capacity(index, 3, DataConfig()) == BatchCapacity(
            images=3, slots=1, polygons=3, points=3, object_polygons=1, object_points=1
        )


PADDED = [((3, 1), False), ((0, 2), False), ((0, 0), False), ((9,), False), ((3, 1), True), ((0, 2), True)]


@pytest.mark.parametrize(("objects", "is_run_lengths"), PADDED)
def test_a_padded_batch_has_the_same_losses_and_gradients(objects, is_run_lengths):
    model, batch = small_model(seed=0), varied_batch(1, objects)
    roomy = replace(ROOMY, images=len(objects))
    if is_run_lengths:
        batch, roomy = as_run_lengths(batch), replace(roomy, runs=5000)
        with pytest.raises(ValueError, match="does not fit"):
            pad_batch(batch, replace(roomy, runs=len(batch.targets.run_lengths.ends) - 1))
    padded = pad_batch(batch, roomy)
    assert capacity_of(padded) == roomy
    losses, gradients = losses_and_gradients(model, batch)
    found_losses, found = losses_and_gradients(model, padded)
    assert (losses.mask > 0) == (sum(objects) > 0)
    torch.testing.assert_close(found_losses.stacked(), losses.stacked(), rtol=1e-6, atol=0)
    assert torch.equal(found_losses.dropped_masks, losses.dropped_masks)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6 * gradient.abs().max().item())
    if objects == (3, 1):
        assert (losses.stacked() > 0).all() and sum(bool(one.any()) for one in gradients.values()) > 40


def test_a_batch_of_exactly_the_capacity_is_unchanged():
    batch = varied_batch(3, (2, 2))
    exact = capacity_of(batch)
    padded = pad_batch(batch, exact)
    assert torch.equal(padded.targets.polygons.polygon_offsets, batch.targets.polygons.polygon_offsets)
    assert torch.equal(padded.targets.boxes, batch.targets.boxes)
    for name in ("images", "slots", "polygons", "points", "object_polygons", "object_points"):
        tighter = replace(exact, **{name: getattr(exact, name) - 1})
        assert not fits(exact, tighter), name
        with pytest.raises(ValueError, match="does not fit"):
            pad_batch(batch, tighter)
