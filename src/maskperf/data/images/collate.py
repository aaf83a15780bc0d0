"""Single images, ready for the network, put together into batches of one size."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from maskperf.data.images.buckets import Buckets, padded_size
from maskperf.data.images.objects import Objects
from maskperf.data.images.raw_images import UploadBuffers, pack_images
from maskperf.data.images.transforms import normalize_into, resize_and_mirror
from maskperf.structures import (
    RUN_LENGTH_STRIDE,
    Batch,
    EvaluationBatch,
    Images,
    Polygons,
    RawImages,
    RunLengths,
    Targets,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample(Objects):
    """One image as decoded, and its objects: boxes and points after its resize and perhaps its mirroring, runs before.

    The runs are in pixels of the original image.
    """

    bgr: UInt8[np.ndarray, "height width 3"]
    size_hw: tuple[int, int]  # after the resize
    is_mirrored: bool
    means_bgr: tuple[float, float, float]
    image_id: int
    sample_seed: int  # key of all random draws for this image in this epoch
    original_size_hw: tuple[int, int]
    resize: str = "reference"  # the rule of the resize


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the images of a batch are put together. The defaults are the reference's way."""

    buckets: Buckets = ()  # sizes a batch may have, the smallest first; none: what its largest image needs
    pin_memory: bool = False  # lets the images go to a CUDA device while it computes
    buffers: UploadBuffers | None = None  # hands the images over as decoded, in one of these buffers


AS_THE_REFERENCE = Packing()


def make_batch(samples: list[Sample], size_divisor: int, packing: Packing = AS_THE_REFERENCE) -> Batch:
    """Return the training batch: images top-left among zeros, objects padded to the largest count."""
    num_slots = max(1, *(len(sample.labels) for sample in samples))
    targets = Targets(
        boxes=_padded([sample.boxes for sample in samples], num_slots),
        labels=_padded([sample.labels for sample in samples], num_slots),
        valid=_padded([np.ones(len(sample.labels), bool) for sample in samples], num_slots),
        polygons=_make_polygons(samples, num_slots),
        run_lengths=None if samples[0].run_ends is None else _make_run_lengths(samples, num_slots),
    )
    return Batch(
        images=_make_images(samples, size_divisor, packing),
        targets=targets,
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        sample_seeds=torch.tensor([sample.sample_seed for sample in samples]),
    )


def make_evaluation_batch(
    samples: list[Sample], size_divisor: int, packing: Packing = AS_THE_REFERENCE
) -> EvaluationBatch:
    """Return the batch to predict on, without targets."""
    return EvaluationBatch(
        images=_make_images(samples, size_divisor, packing),
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        original_sizes_hw=torch.tensor([sample.original_size_hw for sample in samples]),
    )


def _make_images(samples: list[Sample], size_divisor: int, packing: Packing) -> Images | RawImages:
    """Return the images in channels-last memory, where each pixel was written once, or as they were decoded."""
    sizes_hw = [sample.size_hw for sample in samples]
    padded_hw = padded_size(tuple(map(max, zip(*sizes_hw, strict=True))), packing.buckets, size_divisor)
    if packing.buffers is not None:
        return pack_images(
            [sample.bgr for sample in samples],
            sizes_hw,
            [sample.is_mirrored for sample in samples],
            padded_hw=padded_hw,
            means_bgr=samples[0].means_bgr,
            buffers=packing.buffers,
        )
    pixels = torch.empty((len(samples), *padded_hw, 3), pin_memory=packing.pin_memory)
    # numpy, not torch: loader threads must not each start torch's own threads for a copy
    for output, sample in zip(pixels.numpy(), samples, strict=True):
        bgr = resize_and_mirror(sample.bgr, sample.size_hw, is_mirrored=sample.is_mirrored, rule=sample.resize)
        normalize_into(output, bgr, sample.means_bgr)
    return Images(pixels.permute(0, 3, 1, 2), torch.tensor(sizes_hw))


def _make_polygons(samples: list[Sample], num_slots: int) -> Polygons:
    polygons_of_slot = _padded([np.diff(sample.polygon_offsets) for sample in samples], num_slots).numpy()
    polygon_offsets = _offsets(polygons_of_slot)
    point_offsets = _offsets(np.concatenate([np.diff(sample.point_offsets) for sample in samples]))
    return Polygons(
        points=torch.from_numpy(np.concatenate([sample.points for sample in samples])),
        point_offsets=point_offsets,
        polygon_offsets=polygon_offsets,
        max_points=int(point_offsets[polygon_offsets].diff().max()),
        max_polygons=int(polygons_of_slot.max()),
    )


def _make_run_lengths(samples: list[Sample], num_slots: int) -> RunLengths:
    run_offsets = [sample.run_offsets for sample in samples if sample.run_offsets is not None]
    runs_of_slot = _padded([np.diff(offsets) for offsets in run_offsets], num_slots).numpy()
    objects = np.repeat(np.arange(runs_of_slot.size), runs_of_slot.reshape(-1))
    ends = np.concatenate([sample.run_ends for sample in samples])
    return RunLengths(
        ends=torch.from_numpy(ends + objects * RUN_LENGTH_STRIDE),
        run_offsets=_offsets(runs_of_slot),
        original_sizes_hw=torch.tensor([sample.original_size_hw for sample in samples]),
        sizes_hw=torch.tensor([sample.size_hw for sample in samples]),
        is_mirrored=torch.tensor([sample.is_mirrored for sample in samples]),
    )


def _padded(of_images: list[np.ndarray], num_slots: int) -> Tensor:
    """Return one tensor for all images, filled up with zeros to `num_slots` objects each."""
    first = of_images[0]
    padded = np.zeros((len(of_images), num_slots, *first.shape[1:]), first.dtype)
    for slots, values in zip(padded, of_images, strict=True):
        slots[: len(values)] = values
    return torch.from_numpy(padded)


def _offsets(counts: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
