import numpy as np
import torch

from maskperf.data.images.collate import Sample, make_batch, make_evaluation_batch


def sample(image_id: int, size_hw: tuple[int, int], polygons: list[list[int]]) -> Sample:
    """Return an image of one value; `polygons` gives the number of points of each polygon of each object."""
    point_counts = [count for object_polygons in polygons for count in object_polygons]
    return Sample(
        bgr=np.full((*size_hw, 3), image_id, np.uint8),
        size_hw=size_hw,
        is_mirrored=False,
        means_bgr=(0.0, 0.0, 0.0),
        boxes=np.arange(4 * len(polygons), dtype=np.float32).reshape(-1, 4) + image_id,
        labels=np.arange(1, len(polygons) + 1),
        polygon_offsets=np.cumsum([0, *map(len, polygons)]),
        point_offsets=np.cumsum([0, *point_counts]),
        points=np.arange(2 * sum(point_counts), dtype=np.float32).reshape(-1, 2) + 100 * image_id,
        image_id=image_id,
        sample_seed=2**61 + image_id,
        original_size_hw=(image_id, 2 * image_id),
    )


def test_images_sit_top_left_among_zeros_channels_last():
    images = make_batch([sample(1, (5, 9), [[3]]), sample(2, (8, 4), [[3]])], 4).images
    assert images.pixels.shape == (2, 3, 8, 12)  # 8 is a multiple of 4 already
    assert images.pixels.dtype == torch.float32
    assert images.pixels.is_contiguous(memory_format=torch.channels_last)
    assert images.sizes_hw.tolist() == [[5, 9], [8, 4]]
    for pixels, value, (height, width) in zip(images.pixels, (1, 2), images.sizes_hw.tolist(), strict=True):
        assert pixels[:, :height, :width].eq(value).all()
        assert pixels.sum() == value * 3 * height * width


def test_objects_are_padded_to_the_largest_count():
    targets = make_batch([sample(1, (4, 4), [[3]]), sample(2, (4, 4), [[3], [4], [5]])], 4).targets
    assert targets.valid.tolist() == [[True, False, False], [True, True, True]]
    assert targets.labels.tolist() == [[1, 0, 0], [1, 2, 3]]
    assert targets.boxes[0].tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert targets.boxes[1, 2].tolist() == [10, 11, 12, 13]


def test_every_object_finds_its_polygons():
    samples = [sample(1, (4, 4), [[3, 4]]), sample(2, (4, 4), [[5], [3, 3, 6]])]
    polygons = make_batch(samples, 4).targets.polygons
    assert polygons.polygon_offsets.tolist() == [0, 2, 2, 3, 6]  # slot 1 of image 0 is empty
    assert polygons.point_offsets.tolist() == [0, 3, 7, 12, 15, 18, 24]
    assert polygons.max_points == 12
    assert polygons.max_polygons == 3
    np.testing.assert_array_equal(polygons.points.numpy(), np.concatenate([one.points for one in samples]))


def test_memory_follows_the_objects():
    targets = make_batch([sample(1, (4, 4), [[10]] * 500), sample(2, (4, 4), [[3], [4] * 190])], 4).targets
    assert targets.valid.sum(dim=1).tolist() == [500, 2]
    assert targets.polygons.points.shape == (500 * 10 + 3 + 190 * 4, 2)
    assert (targets.polygons.max_points, targets.polygons.max_polygons) == (760, 190)
    tensors = (*vars(targets).values(), *vars(targets.polygons).values())
    num_bytes = sum(one.numel() * one.element_size() for one in tensors if isinstance(one, torch.Tensor))
    assert num_bytes < 100_000  # padded to the largest object, its points alone would take 3 MB


def test_without_objects_one_empty_slot_remains():
    targets = make_batch([sample(1, (4, 4), []), sample(2, (4, 4), [])], 4).targets
    assert targets.boxes.shape == (2, 1, 4)
    assert not targets.valid.any()
    assert targets.polygons.polygon_offsets.tolist() == [0, 0, 0]
    assert targets.polygons.point_offsets.tolist() == [0]
    assert targets.polygons.points.shape == (0, 2)
    assert (targets.polygons.max_points, targets.polygons.max_polygons) == (0, 0)


def test_ids_seeds_and_original_sizes_come_along():
    samples = [sample(3, (4, 5), []), sample(9, (6, 3), [[3]])]
    batch, to_predict = make_batch(samples, 4), make_evaluation_batch(samples, 4)
    assert batch.sample_seeds.tolist() == [2**61 + 3, 2**61 + 9]
    assert batch.image_ids.tolist() == to_predict.image_ids.tolist() == [3, 9]
    assert torch.equal(batch.images.pixels, to_predict.images.pixels)
    assert to_predict.images.sizes_hw.tolist() == [[4, 5], [6, 3]]
    assert to_predict.original_sizes_hw.tolist() == [[3, 6], [9, 18]]
