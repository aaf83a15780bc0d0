"""Single images, ready for the network, put together into batches of one size."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from maskperf.data.transforms import normalize, normalize_into
from maskperf.structures import Batch, EvaluationBatch, Images, Polygons, Targets


@dataclass(frozen=True, eq=False)
class Sample:
    """One image, resized, perhaps flipped, with its targets at the same scale; still in bytes, a quarter of floats."""

    bgr: UInt8[np.ndarray, "height width 3"]
    means_bgr: tuple[float, float, float]
    boxes: Float32[np.ndarray, "objects 4"]
    labels: Int64[np.ndarray, " objects"]
    ring_offsets: Int64[np.ndarray, " objects_plus_1"]  # object o has rings ring_offsets[o]:ring_offsets[o + 1]
    point_offsets: Int64[np.ndarray, " rings_plus_1"]
    points: Float32[np.ndarray, "points 2"]
    image_id: int
    sample_seed: int  # key of all random draws for this image in this epoch
    original_size_hw: tuple[int, int]

    @property
    def pixels(self) -> Float32[np.ndarray, "3 height width"]:
        """The picture as the network takes it: normalized."""
        return normalize(self.bgr[:, :, ::-1], self.means_bgr)


def make_batch(samples: list[Sample], size_divisor: int, *, pin_memory: bool = False) -> Batch:
    """Returns the training batch: pictures top-left in a canvas of zeros, objects padded to the largest count.

    Pinned memory lets the pictures go to a CUDA device while it computes.
    """
    return Batch(
        images=_make_images(samples, size_divisor, pin_memory),
        targets=_make_targets(samples),
        image_ids=_int_tensor([sample.image_id for sample in samples]),
        sample_seeds=_int_tensor([sample.sample_seed for sample in samples]),
    )


def make_evaluation_batch(samples: list[Sample], size_divisor: int, *, pin_memory: bool = False) -> EvaluationBatch:
    """Returns the batch to predict on; its targets stay behind."""
    return EvaluationBatch(
        images=_make_images(samples, size_divisor, pin_memory),
        image_ids=_int_tensor([sample.image_id for sample in samples]),
        original_sizes_hw=_int_tensor([sample.original_size_hw for sample in samples]),
    )


def _make_images(samples: list[Sample], size_divisor: int, pin_memory: bool) -> Images:
    """Returns the pictures in channels-last memory, where each pixel was written once."""
    sizes_hw = np.array([sample.bgr.shape[:2] for sample in samples], np.int64)
    height, width = (-(-sizes_hw.max(axis=0) // size_divisor) * size_divisor).tolist()
    pixels = torch.empty((len(samples), height, width, 3), pin_memory=pin_memory)
    # numpy, not torch: loader threads must not each start torch's own threads for a copy
    for canvas, sample in zip(pixels.numpy(), samples, strict=True):
        normalize_into(canvas, sample.bgr, sample.means_bgr)
    return Images(pixels.permute(0, 3, 1, 2), torch.from_numpy(sizes_hw))


def _make_targets(samples: list[Sample]) -> Targets:
    num_slots = max(1, *(len(sample.labels) for sample in samples))
    boxes = np.zeros((len(samples), num_slots, 4), np.float32)
    labels = np.zeros((len(samples), num_slots), np.int64)
    valid = np.zeros((len(samples), num_slots), bool)
    for place, sample in enumerate(samples):
        num_objects = len(sample.labels)
        boxes[place, :num_objects] = sample.boxes
        labels[place, :num_objects] = sample.labels
        valid[place, :num_objects] = True
    polygons = _make_polygons(samples, num_slots)
    return Targets(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(valid), polygons)


def _make_polygons(samples: list[Sample], num_slots: int) -> Polygons:
    rings_of_slot = np.zeros((len(samples), num_slots), np.int64)  # padded slots have no rings
    max_points = 0
    for place, sample in enumerate(samples):
        rings_of_slot[place, : len(sample.labels)] = np.diff(sample.ring_offsets)
        points_of_object = np.diff(sample.point_offsets[sample.ring_offsets])
        max_points = max(max_points, int(points_of_object.max(initial=0)))
    points_of_ring = np.concatenate([np.diff(sample.point_offsets) for sample in samples])
    return Polygons(
        points=torch.from_numpy(np.concatenate([sample.points for sample in samples])),
        point_offsets=torch.from_numpy(_offsets(points_of_ring)),
        ring_offsets=torch.from_numpy(_offsets(rings_of_slot.reshape(-1))),
        max_points=max_points,
        max_rings=int(rings_of_slot.max()),
    )


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _int_tensor(values: list) -> Tensor:
    return torch.from_numpy(np.array(values, np.int64))
