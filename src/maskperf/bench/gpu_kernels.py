"""The kernels of ops/kernels against their plain twins on a GPU: times in turn, and how far the results differ.

Not yet run on a GPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from maskperf.bench.gpu_clock import measure_in_turn, milliseconds_of
from maskperf.bench.gpu_plan import GpuPlan, KernelSizes
from maskperf.bench.measure import Spread, ratio_spread, spread_of
from maskperf.bench.synthetic import STRIDES, synthetic_boxes, synthetic_ring
from maskperf.config import ModelConfig
from maskperf.data.images.raw_images import BufferRing, pack_pictures
from maskperf.errors import ConfigError
from maskperf.model.patches import patches_by_level
from maskperf.ops.anchors import pyramid_anchors
from maskperf.ops.boxes import pairwise_iou
from maskperf.ops.kernels.selection import load, missing_part
from maskperf.ops.matching import Matches, match_by_slots, match_to_truth
from maskperf.ops.nms import blockwise_nms
from maskperf.ops.pictures import to_images_reference
from maskperf.ops.ranking import best_anchors_by_level
from maskperf.ops.rasterize import rasterize_by_crossings
from maskperf.ops.roi_align import flat_roi_align
from maskperf.ops.sampling import Sample, draw_by_rank
from maskperf.structures import Polygons, to_device

POOLED_STRIDES = STRIDES[:4]
MASK_SIZE = 28
MEANS_BGR = (102.9801, 115.9465, 122.7717)
IOU_THRESHOLD = 0.7
CALLS = 5  # of one measurement
SEED = 1
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """One piece of work, done by a kernel and by its twin; both return what they made."""

    name: str
    shape: str
    kernel: Callable[[], list[Tensor]]
    plain: Callable[[], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """What was measured of one case; milliseconds of one call on the device."""

    name: str
    shape: str
    kernel_milliseconds: Spread
    plain_milliseconds: Spread
    plain_over_kernel: Spread  # of pairs measured in turn
    largest_difference: float  # of the results
    largest_value: float


def gpu_kernel_rows(family: str, device: torch.device, plan: GpuPlan) -> Iterator[KernelRow]:
    """Return one row for each piece of work of a family of `FAMILIES`, as it is measured.

    Errors: ConfigError where the kernels cannot be used on the device.
    """
    missing = missing_part(device)
    if missing:
        raise ConfigError(f"device {device}: no kernels to measure. {missing}")
    for make_case in FAMILIES[family](device, plan.kernels):
        yield measure_case(make_case(), device, plan)


def measure_case(case: KernelCase, device: torch.device, plan: GpuPlan) -> KernelRow:
    """Return the row of one case: both sides in turn, after calls that are not counted."""
    for _ in range(plan.warm_up_calls):
        found, expected = case.kernel(), case.plain()
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    largest = max(float((a - b).abs().max()) for a, b in pairs), max(float(b.abs().max()) for _, b in pairs)
    times = measure_in_turn(
        {
            "kernel": partial(milliseconds_of, case.kernel, device, CALLS),
            "plain": partial(milliseconds_of, case.plain, device, CALLS),
        },
        plan.repeats,
    )
    return KernelRow(
        name=case.name,
        shape=case.shape,
        kernel_milliseconds=spread_of(times["kernel"]),
        plain_milliseconds=spread_of(times["plain"]),
        plain_over_kernel=ratio_spread(times["kernel"], times["plain"]),
        largest_difference=largest[0],
        largest_value=largest[1],
    )


def _roi_align_cases(device: torch.device, sizes: KernelSizes) -> Iterator[Callable[[], KernelCase]]:
    for pool in ((7, sizes.box_rois), (14, sizes.mask_rois)):
        for dtype in DTYPES:
            for direction in ("forward", "backward"):
                yield partial(_roi_align, device, sizes, pool, dtype=dtype, direction=direction)


def _ranking_cases(device: torch.device, sizes: KernelSizes) -> Iterator[Callable[[], KernelCase]]:
    yield partial(_ranking, device, sizes)


def _nms_cases(device: torch.device, sizes: KernelSizes) -> Iterator[Callable[[], KernelCase]]:
    yield partial(_nms, device, sizes)


def _mask_cases(device: torch.device, sizes: KernelSizes) -> Iterator[Callable[[], KernelCase]]:
    yield partial(_masks, device, sizes)


def _matching_cases(device: torch.device, sizes: KernelSizes) -> Iterator[Callable[[], KernelCase]]:
    yield partial(_match_anchors, device, sizes)
    yield partial(_match_rois, device, sizes)


def _patch_cases(device: torch.device, sizes: KernelSizes) -> Iterator[Callable[[], KernelCase]]:
    for dtype in DTYPES:
        for direction in ("forward", "backward"):
            yield partial(_patches, device, sizes, dtype=dtype, direction=direction)


def _sampling_cases(device: torch.device, sizes: KernelSizes) -> Iterator[Callable[[], KernelCase]]:
    yield partial(_samples, device, sizes)


def _picture_cases(device: torch.device, sizes: KernelSizes) -> Iterator[Callable[[], KernelCase]]:
    for dtype in DTYPES:
        yield partial(_pictures, device, sizes, dtype)


FAMILIES = {
    "roi_align": _roi_align_cases,
    "ranking": _ranking_cases,
    "nms": _nms_cases,
    "rasterize": _mask_cases,
    "matching": _matching_cases,
    "patches": _patch_cases,
    "sampling": _sampling_cases,
    "pictures": _picture_cases,
}


def _roi_align(
    device: torch.device, sizes: KernelSizes, pool: tuple[int, int], *, dtype: torch.dtype, direction: str
) -> KernelCase:
    random = np.random.default_rng(SEED)
    size, rois = pool
    boxes = synthetic_boxes(random, sizes.images * rois, sizes.size_hw).reshape(sizes.images, rois, 4)
    boxes = torch.from_numpy(boxes).to(device)
    features = _pyramid(random, device, sizes, POOLED_STRIDES, dtype)
    sides = [
        partial(side, features, boxes, size=size, strides=POOLED_STRIDES)
        for side in (load("roi_align").pyramid_roi_align, flat_roi_align)
    ]
    return KernelCase(
        name=f"RoIAlign {direction}",
        shape=f"{sizes.images} x {rois} RoIs, {size} x {size}, {sizes.channels} channels, {dtype}",
        **_work(random, sides, features, direction),
    )


def _samples(device: torch.device, sizes: KernelSizes) -> KernelCase:
    random = np.random.default_rng(SEED)
    model = ModelConfig()
    num_anchors = sum(_level_counts(sizes))
    values = torch.from_numpy(random.random((sizes.images, num_anchors), np.float32)).to(device)
    positive, negative = values < 0.001, values > 0.2
    seeds = torch.arange(sizes.images, device=device)
    max_positive = int(sizes.sampled_anchors * model.rpn_positive_fraction)
    work = [
        partial(side, positive, negative, seeds, num_samples=sizes.sampled_anchors, max_positive=max_positive)
        for side in (load("sampling").draw_balanced, draw_by_rank)
    ]
    return KernelCase(
        name="samples",
        shape=f"{sizes.images} x {sizes.sampled_anchors} of {num_anchors} anchors",
        kernel=lambda: _parts(work[0]()),
        plain=lambda: _parts(work[1]()),
    )


def _pyramid(
    random: np.random.Generator, device: torch.device, sizes: KernelSizes, strides: tuple[int, ...], dtype: torch.dtype
) -> list[Tensor]:
    features = []
    for stride in strides:
        shape = (sizes.images, sizes.channels, -(-sizes.size_hw[0] // stride), -(-sizes.size_hw[1] // stride))
        level = torch.from_numpy(random.standard_normal(shape, np.float32))
        features.append(level.to(device, dtype, memory_format=torch.channels_last).requires_grad_())
    return features


def _work(
    random: np.random.Generator, sides: list[Callable[[], Tensor]], features: list[Tensor], direction: str
) -> dict[str, Callable[[], list[Tensor]]]:
    """Return the work of kernel and twin in one direction, for functions of these features."""

    def forward(function: Callable[[], Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [function()]

    def backward(result: Tensor, gradient: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(result, features, gradient, retain_graph=True))

    work = [partial(forward, side) for side in sides]
    if direction == "backward":
        results = [side() for side in sides]
        shape, kind = results[0].shape, {"device": features[0].device, "dtype": features[0].dtype}
        gradient = torch.from_numpy(random.standard_normal(shape, np.float32)).to(**kind)
        work = [partial(backward, result, gradient) for result in results]
    return {"kernel": work[0], "plain": work[1]}


def _patches(device: torch.device, sizes: KernelSizes, *, dtype: torch.dtype, direction: str) -> KernelCase:
    random = np.random.default_rng(SEED)
    features = _pyramid(random, device, sizes, STRIDES, dtype)
    num_cells = sum(level.shape[2] * level.shape[3] for level in features)
    cells = torch.from_numpy(random.integers(0, num_cells, (sizes.images, sizes.sampled_anchors))).to(device)
    sides = [partial(side, features, cells) for side in (load("patches").cell_patches, patches_by_level)]
    return KernelCase(
        name=f"patches {direction}",
        shape=f"{sizes.images} x {sizes.sampled_anchors} places, {sizes.channels} channels, {dtype}",
        **_work(random, sides, features, direction),
    )


def _level_counts(sizes: KernelSizes) -> tuple[int, ...]:
    """Return how many anchors each level of an image has."""
    cells = [-(-sizes.size_hw[0] // stride) * -(-sizes.size_hw[1] // stride) for stride in STRIDES]
    return tuple(count * len(ModelConfig().anchor_ratios) for count in cells)


def _ranking(device: torch.device, sizes: KernelSizes) -> KernelCase:
    """The scores of an image are all different, so that there is one right answer."""
    counts = _level_counts(sizes)
    random = np.random.default_rng(SEED)
    logits = np.stack([random.permutation(sum(counts)) for _ in range(sizes.images)]) / sum(counts) * 8 - 4
    logits = torch.from_numpy(logits.astype(np.float32)).to(device)
    kernel = load("ranking").best_anchors
    return KernelCase(
        name="ranking",
        shape=f"{sizes.images} x {sum(counts)} anchors of {len(counts)} levels, {sizes.candidates} of each",
        kernel=lambda: list(kernel(logits, counts, sizes.candidates)),
        plain=lambda: list(best_anchors_by_level(logits, counts, sizes.candidates)),
    )


def _nms(device: torch.device, sizes: KernelSizes) -> KernelCase:
    random = np.random.default_rng(SEED)
    groups = sizes.images * len(STRIDES)
    boxes = synthetic_boxes(random, groups * sizes.candidates, sizes.size_hw).reshape(groups, sizes.candidates, 4)
    boxes = torch.from_numpy(boxes).to(device)
    valid = torch.from_numpy(random.uniform(size=(groups, sizes.candidates)) < 0.95).to(device)
    kernel = load("nms").nms_sorted
    return KernelCase(
        name="NMS",
        shape=f"{groups} x {sizes.candidates} boxes",
        kernel=lambda: [kernel(boxes, valid, IOU_THRESHOLD)],
        plain=lambda: [blockwise_nms(boxes, valid, IOU_THRESHOLD)],
    )


def _parts(result: Matches | Sample) -> list[Tensor]:
    return list(vars(result).values())


def _truth(random: np.random.Generator, device: torch.device, sizes: KernelSizes) -> tuple[Tensor, Tensor]:
    """Return ground truth and which of it is real: all but the last object of an image."""
    boxes = synthetic_boxes(random, sizes.images * sizes.objects, sizes.size_hw).reshape(sizes.images, sizes.objects, 4)
    valid = torch.arange(sizes.objects) < max(1, sizes.objects - 1)
    return torch.from_numpy(boxes).to(device), valid.expand(sizes.images, -1).to(device)


def _match_anchors(device: torch.device, sizes: KernelSizes) -> KernelCase:
    truth, valid = _truth(np.random.default_rng(SEED), device, sizes)
    model = ModelConfig()
    levels = tuple((-(-sizes.size_hw[0] // stride), -(-sizes.size_hw[1] // stride)) for stride in STRIDES)
    anchors = pyramid_anchors(levels, STRIDES, model.anchor_sizes, model.anchor_ratios, device)
    rule = {"positive_iou": model.rpn_positive_iou, "negative_iou": model.rpn_negative_iou}
    kernel = partial(load("matching").match_boxes, keep_best_of_truth=True, **rule)
    return KernelCase(
        name="matching of anchors",
        shape=f"{sizes.images} x {len(anchors)} anchors, {sizes.objects} objects",
        kernel=lambda: _parts(kernel(anchors[None], truth, valid)),
        plain=lambda: _parts(match_by_slots(anchors, truth, valid, **rule)),
    )


def _match_rois(device: torch.device, sizes: KernelSizes) -> KernelCase:
    random = np.random.default_rng(SEED)
    truth, valid = _truth(random, device, sizes)
    boxes = synthetic_boxes(random, sizes.images * sizes.candidates, sizes.size_hw)
    boxes = torch.from_numpy(boxes.reshape(sizes.images, sizes.candidates, 4)).to(device)
    threshold = ModelConfig().roi_positive_iou
    rule = {"positive_iou": threshold, "negative_iou": threshold, "keep_best_of_truth": False}
    kernel = load("matching").match_boxes
    return KernelCase(
        name="matching of RoIs",
        shape=f"{sizes.images} x {sizes.candidates} boxes, {sizes.objects} objects",
        kernel=lambda: _parts(kernel(boxes, truth, valid, **rule)),
        plain=lambda: _parts(match_to_truth(pairwise_iou(boxes, truth), valid, **rule)),
    )


def _masks(device: torch.device, sizes: KernelSizes) -> KernelCase:
    random = np.random.default_rng(SEED)
    object_boxes = synthetic_boxes(random, sizes.images * sizes.objects, sizes.size_hw)
    polygons = to_device(synthetic_polygons(random, object_boxes), device)
    chosen = random.integers(0, len(object_boxes), sizes.images * sizes.mask_rois)
    objects, boxes = torch.from_numpy(chosen).to(device), torch.from_numpy(object_boxes[chosen]).to(device)
    kernel = load("rasterize").rasterize_crops
    return KernelCase(
        name="mask targets",
        shape=f"{len(chosen)} RoIs, {MASK_SIZE} x {MASK_SIZE}",
        kernel=lambda: [kernel(polygons, objects, boxes, MASK_SIZE)],
        plain=lambda: [rasterize_by_crossings(polygons, objects, boxes, MASK_SIZE)],
    )


def synthetic_polygons(random: np.random.Generator, object_boxes: np.ndarray) -> Polygons:
    """Return one ring for each box, just filling it."""
    rings = [synthetic_ring(random, box) for box in object_boxes]
    offsets = np.cumsum([0, *map(len, rings)])
    return Polygons(
        points=torch.from_numpy(np.concatenate(rings)),
        point_offsets=torch.from_numpy(offsets),
        ring_offsets=torch.arange(len(rings) + 1),
        max_points=int(np.diff(offsets).max()),
        max_rings=1,
    )


def _pictures(device: torch.device, sizes: KernelSizes, dtype: torch.dtype) -> KernelCase:
    """Pictures of three quarters of the size, as COCO's are, with their resize."""
    random = np.random.default_rng(SEED)
    height, width = sizes.size_hw
    old_hw = (height * 3 // 4, width * 3 // 4)
    raw = pack_pictures(
        [random.integers(0, 256, (*old_hw, 3), np.uint8) for _ in range(sizes.images)],
        [(height, width)] * sizes.images,
        [image % 2 == 0 for image in range(sizes.images)],
        canvas_hw=(height, width),
        means_bgr=MEANS_BGR,
        ring=BufferRing(max_waiting=1, pin_memory=False),
    )
    raw = to_device(raw, device)
    return KernelCase(
        name="pictures to input",
        shape=f"{sizes.images} x {old_hw[0]} x {old_hw[1]} to {height} x {width}, {dtype}",
        kernel=lambda: [load("pictures").resize_pictures(raw, dtype)],
        plain=lambda: [to_images_reference(raw, dtype).pixels],
    )
