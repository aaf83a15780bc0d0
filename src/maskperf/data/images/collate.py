"""Single images, ready for the network, put together into batches of one size."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from maskperf.data.images.canvas import Canvases, canvas_of
from maskperf.data.images.raw_images import BufferRing, pack_pictures
from maskperf.data.images.transforms import normalize, normalize_into, resize_and_mirror
from maskperf.structures import (
    RUN_LENGTH_STRIDE,
    Batch,
    EvaluationBatch,
    Images,
    Polygons,
    RawPictures,
    RunLengths,
    Targets,
)


@dataclass(frozen=True, eq=False)
class Sample:
    """One image as decoded, and its targets as they are after its resize and perhaps its mirroring."""

    bgr: UInt8[np.ndarray, "height width 3"]
    size_hw: tuple[int, int]  # after the resize
    is_mirrored: bool
    means_bgr: tuple[float, float, float]
    boxes: Float32[np.ndarray, "objects 4"]
    labels: Int64[np.ndarray, " objects"]
    ring_offsets: Int64[np.ndarray, " objects_plus_1"]  # object o has rings ring_offsets[o]:ring_offsets[o + 1]
    point_offsets: Int64[np.ndarray, " rings_plus_1"]
    points: Float32[np.ndarray, "points 2"]
    image_id: int
    sample_seed: int  # key of all random draws for this image in this epoch
    original_size_hw: tuple[int, int]
    run_offsets: Int64[np.ndarray, " objects_plus_1"] | None = None  # None: the data set's masks are all polygons
    run_ends: Int64[np.ndarray, " runs"] | None = None  # in pixels of the original image

    @property
    def pixels(self) -> Float32[np.ndarray, "3 new_height new_width"]:
        """The picture as the network takes it: resized, mirrored, normalized."""
        bgr = resize_and_mirror(self.bgr, self.size_hw, is_mirrored=self.is_mirrored)
        return normalize(bgr[:, :, ::-1], self.means_bgr)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the pictures of a batch are put together. The defaults are the reference's way."""

    canvases: Canvases = ()  # sizes a batch may have, the smallest first; none: what its largest picture needs
    pin_memory: bool = False  # lets the pictures go to a CUDA device while it computes
    ring: BufferRing | None = None  # hands the pictures over as decoded, in a buffer of this ring


AS_THE_REFERENCE = Packing()


def make_batch(samples: list[Sample], size_divisor: int, packing: Packing = AS_THE_REFERENCE) -> Batch:
    """Return the training batch: pictures top-left in a canvas of zeros, objects padded to the largest count."""
    return Batch(
        images=_make_images(samples, size_divisor, packing),
        targets=_make_targets(samples),
        image_ids=_int_tensor([sample.image_id for sample in samples]),
        sample_seeds=_int_tensor([sample.sample_seed for sample in samples]),
    )


def make_evaluation_batch(
    samples: list[Sample], size_divisor: int, packing: Packing = AS_THE_REFERENCE
) -> EvaluationBatch:
    """Return the batch to predict on; its targets stay behind."""
    return EvaluationBatch(
        images=_make_images(samples, size_divisor, packing),
        image_ids=_int_tensor([sample.image_id for sample in samples]),
        original_sizes_hw=_int_tensor([sample.original_size_hw for sample in samples]),
    )


def _make_images(samples: list[Sample], size_divisor: int, packing: Packing) -> Images | RawPictures:
    """Return the pictures in channels-last memory, where each pixel was written once, or as they were decoded."""
    sizes_hw = [sample.size_hw for sample in samples]
    largest_hw = (max(height for height, _ in sizes_hw), max(width for _, width in sizes_hw))
    canvas_hw = canvas_of(largest_hw, packing.canvases, size_divisor)
    if packing.ring is not None:
        return pack_pictures(
            [sample.bgr for sample in samples],
            sizes_hw,
            [sample.is_mirrored for sample in samples],
            canvas_hw=canvas_hw,
            means_bgr=samples[0].means_bgr,
            ring=packing.ring,
        )
    pixels = torch.empty((len(samples), *canvas_hw, 3), pin_memory=packing.pin_memory)
    # numpy, not torch: loader threads must not each start torch's own threads for a copy
    for canvas, sample in zip(pixels.numpy(), samples, strict=True):
        bgr = resize_and_mirror(sample.bgr, sample.size_hw, is_mirrored=sample.is_mirrored)
        normalize_into(canvas, bgr, sample.means_bgr)
    return Images(pixels.permute(0, 3, 1, 2), _int_tensor(sizes_hw))


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
    return Targets(
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        valid=torch.from_numpy(valid),
        polygons=_make_polygons(samples, num_slots),
        run_lengths=None if samples[0].run_ends is None else _make_run_lengths(samples, num_slots),
    )


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


def _make_run_lengths(samples: list[Sample], num_slots: int) -> RunLengths:
    runs_of_slot = np.zeros((len(samples), num_slots), np.int64)  # padded slots have no runs
    for place, sample in enumerate(samples):
        runs_of_slot[place, : len(sample.labels)] = np.diff(sample.run_offsets)
    objects = np.repeat(np.arange(runs_of_slot.size), runs_of_slot.reshape(-1))
    ends = np.concatenate([sample.run_ends for sample in samples])
    return RunLengths(
        ends=torch.from_numpy(ends + objects * RUN_LENGTH_STRIDE),
        run_offsets=torch.from_numpy(_offsets(runs_of_slot.reshape(-1))),
        original_sizes_hw=_int_tensor([sample.original_size_hw for sample in samples]),
        sizes_hw=_int_tensor([sample.size_hw for sample in samples]),
        is_mirrored=torch.from_numpy(np.array([sample.is_mirrored for sample in samples])),
    )


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _int_tensor(values: list) -> Tensor:
    return torch.from_numpy(np.array(values, np.int64))
