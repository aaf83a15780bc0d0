"""The tensors that cross package borders, with their shapes.

Legend of axes: images (of one device's batch), slots (for ground truth, padded), polygons, points,
anchors, proposals, rois, masks (slots for positive RoIs), detections, channels, height, width.
A boolean `valid` tells which padded entries are real; the others hold zeros.
Boxes are (x1, y1, x2, y2) in pixels of the resized image, corners inclusive (docs/conventions.md).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """Images, top-left in a common padded size, BGR, mean subtracted, zero where padded."""

    pixels: Float[Tensor, "images 3 height width"]
    sizes_hw: Int[Tensor, "images 2"]  # true size of each image without padding


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """Where one decoded image and the tables of its resize lie, and what is to become of it; known on the host.

    A table says for each new row (column) which is the first old one it takes from, then the weight of that one, of
    the next and so on: 1 + taps lines of one number for each new row (column). See maskperf.ops.resize.
    """

    first_byte: int
    height: int
    width: int
    new_height: int
    new_width: int
    is_mirrored: bool
    row_table: int  # in numbers of 4 bytes from the beginning
    row_taps: int
    column_table: int
    column_taps: int


@dataclass(frozen=True, kw_only=True)
class RawImages:
    """Images as they were decoded, to be resized on the device; `Images` after `prepare_images`."""

    content: UInt8[Tensor, " bytes"]  # tables of int32, and images: rows of B, G, R
    entries: tuple[RawImage, ...]
    sizes_hw: Int[Tensor, "images 2"]  # true size of each image without padding, after the resize
    padded_hw: tuple[int, int]
    means_bgr: Float[Tensor, "3"]
    # To be called once, when `content` was read or its copying has begun: its memory may then be used again, as soon
    # as the function handed over (None: at once) says that the copy is done.
    release: Callable[[Callable[[], bool] | None], None]


@dataclass(frozen=True)
class Polygons:
    """Every polygon of every object of a batch, flat. Object o = image * slots + slot."""

    points: Float[Tensor, "points 2"]  # x, y
    point_offsets: Int[Tensor, " polygons_plus_1"]  # polygon p has points[point_offsets[p]:point_offsets[p + 1]]
    polygon_offsets: Int[Tensor, " objects_plus_1"]  # object o has polygons polygon_offsets[o]:polygon_offsets[o + 1]
    max_points: int  # the most points that one object has; known on the host, so shapes are fixed
    max_polygons: int  # the most polygons that one object has


@dataclass(frozen=True)
class RunLengths:
    """Every mask of a batch that is run-length encoded, flat. Object o = image * slots + slot; others have no runs.

    Pixels are numbered down the columns of the original image (column * height + row), as in COCO's encoding; runs
    of background and object alternate, background first.
    """

    ends: Int[Tensor, " runs"]  # rising: object * RUN_LENGTH_STRIDE + number of the first pixel after the run
    run_offsets: Int[Tensor, " objects_plus_1"]  # object o has ends[run_offsets[o]:run_offsets[o + 1]]
    original_sizes_hw: Int[Tensor, "images 2"]
    sizes_hw: Int[Tensor, "images 2"]  # after the resize
    is_mirrored: Bool[Tensor, " images"]


RUN_LENGTH_STRIDE = 1 << 40  # above the number of pixels of any image


@dataclass(frozen=True)
class Targets:
    """Ground truth; labels 1 and up, 0 where padded."""

    boxes: Float[Tensor, "images slots 4"]
    labels: Int[Tensor, "images slots"]
    valid: Bool[Tensor, "images slots"]
    polygons: Polygons
    run_lengths: RunLengths | None = None  # None: every mask of the data set is made of polygons


@dataclass(frozen=True)
class Batch:
    """What one device trains on in one forward pass."""

    images: Images | RawImages
    targets: Targets
    image_ids: Int[Tensor, " images"]  # the data set's own ids
    sample_seeds: Int[Tensor, " images"]  # keys of all random draws for these images in this epoch


@dataclass(frozen=True, kw_only=True)
class BatchCapacity:
    """How much ground truth a batch of `images` images has room for."""

    images: int
    slots: int  # objects of one image
    polygons: int  # of all images together
    points: int
    object_polygons: int  # of one object
    object_points: int
    runs: int = 0  # of all images together; 0: the data set's masks are all polygons


@dataclass(frozen=True)
class EvaluationBatch:
    """What one device predicts in one forward pass."""

    images: Images | RawImages
    image_ids: Int[Tensor, " images"]
    original_sizes_hw: Int[Tensor, "images 2"]  # as in the file, before the resize


@dataclass(frozen=True)
class RpnOutput:
    """Scores and offsets of every anchor, levels concatenated (P2 first), anchor fastest."""

    logits: Float[Tensor, "images anchors"]
    deltas: Float[Tensor, "images anchors 4"]


@dataclass(frozen=True)
class Proposals:
    """Boxes worth a second look, padded."""

    boxes: Float[Tensor, "images proposals 4"]
    scores: Float[Tensor, "images proposals"]
    valid: Bool[Tensor, "images proposals"]


@dataclass(frozen=True)
class SampledRois:
    """The RoIs a training step uses, with what each should become."""

    boxes: Float[Tensor, "images rois 4"]
    labels: Int[Tensor, "images rois"]  # 0 background
    matched_slots: Int[Tensor, "images rois"]  # index of the ground truth of best overlap
    valid: Bool[Tensor, "images rois"]


@dataclass(frozen=True)
class Losses:
    """The five terms, float32 scalars on the device."""

    objectness: Float[Tensor, ""]
    rpn_box: Float[Tensor, ""]
    classification: Float[Tensor, ""]
    box: Float[Tensor, ""]
    mask: Float[Tensor, ""]
    dropped_masks: Int[Tensor, ""]  # positive RoIs beyond the mask slots; a run stops unless this is 0

    def total(self) -> Tensor:
        return self.objectness + self.rpn_box + self.classification + self.box + self.mask

    def stacked(self) -> Tensor:
        """The terms as one vector, in the order of `LOSS_NAMES`."""
        return torch.stack([getattr(self, name) for name in LOSS_NAMES])


LOSS_NAMES = ("objectness", "rpn_box", "classification", "box", "mask")


@dataclass(frozen=True)
class Detections:
    """Found objects, padded, sorted by falling score; mask_probs is None before the mask head ran."""

    boxes: Float[Tensor, "images detections 4"]
    scores: Float[Tensor, "images detections"]
    labels: Int[Tensor, "images detections"]
    valid: Bool[Tensor, "images detections"]
    mask_probs: Float[Tensor, "images detections mask mask"] | None = None


def tensors_of(value: object) -> Iterator[Tensor]:
    """Yield the tensors inside nested dataclasses, in the order of their fields."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for entry in fields(value):
            yield from tensors_of(getattr(value, entry.name))


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return `value` with `function` applied to every tensor inside it (nested dataclasses included)."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        mapped = {entry.name: map_tensors(function, getattr(value, entry.name)) for entry in fields(value)}
        return replace(value, **mapped)
    return value


def to_device(value: T, device: torch.device) -> T:
    """Return `value` with its tensors moved to `device`.

    A copy to the host is always waited for: before its end the memory holds anything.
    """
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=device.type != "cpu"), value)


def pinned(value: T) -> T:
    """Return `value` with its tensors in pinned memory: no copy from there to a GPU is waited for."""
    return map_tensors(lambda tensor: tensor if tensor.is_pinned() else tensor.pin_memory(), value)


def begin_copy_to_host(value: T) -> "tuple[T, torch.cuda.Event | None]":
    """Return `value` with its tensors in the host's memory, and what to wait for before they are read.

    Pinned memory: the host would wait for any other at once. What is there already is not copied (None).
    """
    if not any(tensor.is_cuda for tensor in tensors_of(value)):
        return value, None
    on_host = map_tensors(_begin_copy_to_pinned, value)
    copied = torch.cuda.Event()
    copied.record()
    return on_host, copied


def _begin_copy_to_pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
