"""The kernels of ops/kernels against plain PyTorch on a GPU: times in turn, and how far the results differ.

Not yet run on a GPU.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskperf.bench.device_clock import milliseconds_of
from maskperf.bench.maskperf_network import batch_of
from maskperf.bench.measure import measure_in_turn, ratio_spread, spread_of
from maskperf.bench.plan import GpuPlan, KernelSizes
from maskperf.bench.synthetic import POOLED_LEVELS, STRIDES, batch_arrays, cells_of, synthetic_boxes
from maskperf.config import ModelConfig
from maskperf.data.images.raw_images import UploadBuffers, pack_images
from maskperf.errors import ConfigError
from maskperf.model.conventions import REFERENCE
from maskperf.model.heads import MASK_SIZE
from maskperf.model.patches import cell_patches
from maskperf.ops.anchors import pyramid_anchors
from maskperf.ops.kernels.selection import load, missing_part
from maskperf.ops.matching import match_boxes
from maskperf.ops.nms import nms_sorted
from maskperf.ops.preprocess import to_images
from maskperf.ops.products import PlainCasts, own_class_logits
from maskperf.ops.ranking import best_anchors
from maskperf.ops.rasterize import rasterize_crops
from maskperf.ops.roi_align import pyramid_roi_align
from maskperf.ops.sampling import draw_balanced
from maskperf.structures import to_device
from maskperf.techniques import plain, using

IOU_THRESHOLD = 0.7
SEED = 1
DTYPES = (torch.float32, torch.bfloat16)
DIRECTIONS = ("forward", "backward")
MODEL = ModelConfig()


@dataclass(frozen=True)
class KernelCase:
    """One piece of work, done by a kernel and by plain PyTorch; each returns a tensor, several, or a dataclass."""

    name: str
    shape: str
    kernel: Callable[[], object]
    plain: Callable[[], object]


class Inputs:
    """Random inputs of one case, on the device."""

    def __init__(self, device: torch.device, sizes: KernelSizes):
        self.device, self.sizes = device, sizes
        self.random = np.random.default_rng(SEED)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.from_numpy(self.random.standard_normal(shape, np.float32)).to(self.device, dtype)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.from_numpy(self.random.integers(0, high, shape)).to(self.device)

    def boxes(self, groups: int, count: int) -> Tensor:
        boxes = synthetic_boxes(self.random, groups * count, self.sizes.size_hw)
        return torch.from_numpy(boxes).view(groups, count, 4).to(self.device)

    def truth(self) -> tuple[Tensor, Tensor]:
        """Return ground truth boxes and their validity: all but the last object of an image are real."""
        boxes = self.boxes(self.sizes.images, self.sizes.objects)
        valid = torch.arange(self.sizes.objects) < max(1, self.sizes.objects - 1)
        return boxes, valid.expand(self.sizes.images, -1).to(self.device)

    def pyramid(self, strides: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        shapes = [(self.sizes.images, self.sizes.channels, *cells_of(self.sizes.size_hw, stride)) for stride in strides]
        levels = [self.normal(*shape, dtype=dtype).to(memory_format=torch.channels_last) for shape in shapes]
        return [level.requires_grad_() for level in levels]

    def anchor_counts(self) -> tuple[int, ...]:
        """Return how many anchors each level of an image has."""
        cells = [cells_of(self.sizes.size_hw, stride) for stride in STRIDES]
        return tuple(rows * columns * len(MODEL.anchor_ratios) for rows, columns in cells)


def gpu_kernel_rows(family: str, device: torch.device, plan: GpuPlan) -> Iterator[dict]:
    """Yield one row for each case of a family of `FAMILIES`, as it is measured.

    Errors: ConfigError where the kernels cannot be used on the device.
    """
    if missing := missing_part(device):
        raise ConfigError(f"device {device}: no kernels to measure. {missing}")
    for make_case in FAMILIES[family]:
        yield measure_case(make_case(Inputs(device, plan.kernels)), device, plan)


def measure_case(case: KernelCase, device: torch.device, plan: GpuPlan) -> dict[str, Any]:
    """Return the row of one case, in milliseconds of one call: both sides in turn, after calls that do not count."""
    for _ in range(plan.warm_up_calls):
        found, expected = case.kernel(), case.plain()
    pairs = [(a.double(), b.double()) for a, b in zip(_tensors(found), _tensors(expected), strict=True)]
    sides = {"kernel": case.kernel, "plain": case.plain}
    clocks = {name: partial(milliseconds_of, side, device) for name, side in sides.items()}
    times = measure_in_turn(clocks, plan.repeats)
    return {
        "name": case.name,
        "shape": case.shape,
        "kernel_milliseconds": spread_of(times["kernel"]),
        "plain_milliseconds": spread_of(times["plain"]),
        "plain_over_kernel": ratio_spread(times["kernel"], times["plain"]),  # of pairs measured in turn
        "largest_difference": max(float((a - b).abs().max()) for a, b in pairs),  # of the results
        "largest_value": max(float(b.abs().max()) for _, b in pairs),
    }


def by_pytorch(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return the operator without its kernel."""
    return using(plain())(operator)


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return list(result) if isinstance(result, list | tuple) else list(vars(result).values())


def _pair(
    name: str, shape: str, module: str, operator: Callable[..., Any], *arguments: Any, **options: Any
) -> KernelCase:
    """Return a case of an operator's kernel, which is in that module, and of its plain form."""
    functions = (getattr(load(module), operator.__name__), by_pytorch(operator))
    return KernelCase(name, shape, *(partial(function, *arguments, **options) for function in functions))


def _in_direction(direction: str, case: KernelCase, leaves: list[Tensor], inputs: Inputs) -> KernelCase:
    """Return the forward or the backward pass of a case of functions of these leaves."""
    name, sides = f"{case.name} {direction}", (case.kernel, case.plain)
    if direction == "forward":
        return KernelCase(name, case.shape, *map(torch.no_grad(), sides))
    results: list[Any] = [side() for side in sides]
    gradient = inputs.normal(*results[0].shape, dtype=results[0].dtype)
    work = [partial(torch.autograd.grad, result, leaves, gradient, retain_graph=True) for result in results]
    return KernelCase(name, case.shape, *work)


def _roi_align(pool: str, dtype: torch.dtype, direction: str, inputs: Inputs) -> KernelCase:
    sizes, strides = inputs.sizes, STRIDES[:POOLED_LEVELS]
    size, rois = {"box": (7, sizes.box_rois), "mask": (14, sizes.mask_rois)}[pool]
    boxes, features = inputs.boxes(sizes.images, rois), inputs.pyramid(strides, dtype)
    shape = f"{sizes.images} x {rois} RoIs, {size} x {size}, {sizes.channels} channels, {dtype}"
    case = _pair("RoIAlign", shape, "roi_align", pyramid_roi_align, features, boxes, size=size, strides=strides)
    return _in_direction(direction, case, features, inputs)


def _patches(dtype: torch.dtype, direction: str, inputs: Inputs) -> KernelCase:
    sizes, features = inputs.sizes, inputs.pyramid(STRIDES, dtype)
    num_cells = sum(level.shape[2] * level.shape[3] for level in features)
    cells = inputs.integers(num_cells, sizes.images, sizes.sampled_anchors)
    shape = f"{sizes.images} x {sizes.sampled_anchors} positions, {sizes.channels} channels, {dtype}"
    case = _pair("patches", shape, "patches", cell_patches, features, cells)
    return _in_direction(direction, case, features, inputs)


def _samples(inputs: Inputs) -> KernelCase:
    sizes, num_anchors = inputs.sizes, sum(inputs.anchor_counts())
    values = torch.from_numpy(inputs.random.random((sizes.images, num_anchors), np.float32)).to(inputs.device)
    arguments = (values < 0.001, values > 0.2, torch.arange(sizes.images, device=inputs.device))
    quota = {"num_samples": sizes.sampled_anchors}
    quota["max_positive"] = int(sizes.sampled_anchors * MODEL.rpn_positive_fraction)
    shape = f"{sizes.images} x {sizes.sampled_anchors} of {num_anchors} anchors"
    return _pair("samples", shape, "sampling", draw_balanced, *arguments, **quota)


def _ranking(inputs: Inputs) -> KernelCase:
    """The scores of an image are all different, so that there is one right answer."""
    sizes, counts = inputs.sizes, inputs.anchor_counts()
    logits = np.stack([inputs.random.permutation(sum(counts)) for _ in range(sizes.images)]) / sum(counts) * 8 - 4
    arguments = (torch.from_numpy(logits.astype(np.float32)).to(inputs.device), counts, sizes.candidates)
    shape = f"{sizes.images} x {sum(counts)} anchors of {len(counts)} levels, {sizes.candidates} of each"
    return _pair("ranking", shape, "ranking", best_anchors, *arguments)


def _nms(inputs: Inputs) -> KernelCase:
    groups, candidates = inputs.sizes.images * len(STRIDES), inputs.sizes.candidates
    boxes = inputs.boxes(groups, candidates)
    valid = torch.from_numpy(inputs.random.uniform(size=(groups, candidates)) < 0.95).to(inputs.device)
    return _pair("NMS", f"{groups} x {candidates} boxes", "nms", nms_sorted, boxes, valid, IOU_THRESHOLD)


def _matching(kind: str, inputs: Inputs) -> KernelCase:
    sizes, (truth, valid) = inputs.sizes, inputs.truth()
    if kind == "anchors":
        levels = tuple(cells_of(sizes.size_hw, stride) for stride in STRIDES)
        anchors = pyramid_anchors(levels, STRIDES, MODEL.anchor_sizes, MODEL.anchor_ratios, inputs.device)
        boxes, thresholds = anchors[None], MODEL.rpn_iou_thresholds
    else:
        boxes, thresholds = inputs.boxes(sizes.images, sizes.candidates), (MODEL.roi_positive_iou,) * 2
    rule: dict[str, Any] = dict(zip(("negative_iou", "positive_iou"), thresholds, strict=True))
    rule["keep_best_of_truth"] = kind == "anchors"
    shape = f"{sizes.images} x {boxes.shape[1]} boxes, {sizes.objects} objects"
    return _pair(f"matching of {kind}", shape, "matching", match_boxes, boxes, truth, valid, **rule)


def _masks(inputs: Inputs) -> KernelCase:
    sizes = inputs.sizes
    counts = {"images": sizes.images, "objects": sizes.objects, "classes": MODEL.num_classes}
    arrays = batch_arrays(inputs.random, size_hw=sizes.size_hw, **counts)
    batch = batch_of({name: torch.from_numpy(values) for name, values in arrays.items()})
    targets = to_device(batch.targets, inputs.device)
    objects = inputs.integers(targets.valid.numel(), sizes.images * sizes.mask_rois)
    arguments = (targets.polygons, objects, targets.boxes.flatten(0, 1)[objects], MASK_SIZE)
    shape = f"{len(objects)} RoIs, {MASK_SIZE} x {MASK_SIZE}"
    return _pair("mask targets", shape, "rasterize", rasterize_crops, *arguments)


def _images(dtype: torch.dtype, inputs: Inputs) -> KernelCase:
    """Images of three quarters of the size, as COCO's are, with their resize."""
    images, (height, width) = inputs.sizes.images, inputs.sizes.size_hw
    old_hw = (height * 3 // 4, width * 3 // 4)
    packed = pack_images(
        [inputs.random.integers(0, 256, (*old_hw, 3), np.uint8) for _ in range(images)],
        [(height, width)] * images,
        [image % 2 == 0 for image in range(images)],
        padded_hw=(height, width),
        means_bgr=REFERENCE.means_bgr,
        buffers=UploadBuffers(max_waiting=1, pin_memory=False),
    )
    raw = to_device(packed, inputs.device)
    shape = f"{images} x {old_hw[0]} x {old_hw[1]} to {height} x {width}, {dtype}"
    kernel = partial(load("preprocess").resize_images, raw, dtype)
    return KernelCase("pictures to input", shape, kernel, lambda: by_pytorch(to_images)(raw, dtype=dtype).pixels)


def _casts(direction: str, inputs: Inputs) -> KernelCase:
    """The mask head's weights in bfloat16, each output channel times a factor, and their gradients in float32."""
    channels, count = inputs.sizes.channels, MODEL.mask_head_convs
    weights = [inputs.normal(channels, channels, 3, 3) for _ in range(count)]
    factors = [inputs.normal(channels).abs() for _ in range(count)]
    gradients = [inputs.normal(channels, channels, 3, 3, dtype=torch.bfloat16) for _ in range(count)]

    def side(make_casts: Callable) -> Callable[[], object]:
        parameters = [weight.clone().requires_grad_() for weight in weights]
        casts = make_casts(parameters, factors, torch.bfloat16)

        def backward() -> list[Tensor | None]:
            for parameter in parameters:
                parameter.grad = None
            torch.autograd.backward(casts(), gradients)
            return [parameter.grad for parameter in parameters]

        return torch.no_grad()(casts) if direction == "forward" else backward

    shape = f"{count} weights of {channels} x {channels} x 3 x 3, torch.bfloat16"
    return KernelCase(f"weight casts {direction}", shape, side(load("products").WeightCasts), side(PlainCasts))


def _own_class(direction: str, inputs: Inputs) -> KernelCase:
    """The logits of RoIs that are each of a class of their own."""
    sizes, kernels = inputs.sizes, load("products")
    rois, pixels = sizes.images * sizes.mask_rois, MASK_SIZE**2
    maps = inputs.normal(rois, pixels, sizes.channels, dtype=torch.bfloat16).relu().requires_grad_()
    weights = inputs.normal(rois, sizes.channels, dtype=torch.bfloat16).requires_grad_()
    offsets, labels = inputs.normal(rois), torch.arange(rois, device=inputs.device)
    plain_side = by_pytorch(partial(own_class_logits, maps, weights, offsets, labels))
    shape = f"{rois} RoIs, {MASK_SIZE} x {MASK_SIZE}, {sizes.channels} channels, torch.bfloat16"
    if direction == "forward":
        forward = partial(kernels.own_class_logits, maps.detach(), weights.detach(), offsets)
        return KernelCase("mask logits forward", shape, forward, torch.no_grad()(plain_side))
    gradient = inputs.normal(rois, pixels)
    backward = partial(torch.autograd.grad, plain_side(), [maps, weights], gradient, retain_graph=True)
    kernel = partial(kernels.own_class_gradients, maps.detach(), weights.detach(), gradient)
    return KernelCase("mask logits backward", shape, kernel, backward)


def _residual(dtype: torch.dtype, inputs: Inputs) -> KernelCase:
    (first,), (second,), (x,) = (inputs.pyramid(STRIDES[:1], dtype) for _ in range(3))
    # The kernel adds in place: a copy of its first argument is part of the work of both sides.
    return KernelCase(
        "sum of gradients",
        f"{' x '.join(map(str, x.shape))}, {dtype}",
        torch.no_grad()(lambda: load("products").add_rectified(first.clone(), second, x)),
        torch.no_grad()(lambda: torch.where(x <= 0, 0.0, first.clone().add_(second))),
    )


def _each(make_case: Callable[..., KernelCase], *options: tuple) -> list[Callable[[Inputs], KernelCase]]:
    return [partial(make_case, *chosen) for chosen in itertools.product(*options)]


FAMILIES: dict[str, list[Callable[[Inputs], KernelCase]]] = {
    "roi_align": _each(_roi_align, ("box", "mask"), DTYPES, DIRECTIONS),
    "ranking": [_ranking],
    "nms": [_nms],
    "rasterize": [_masks],
    "matching": _each(_matching, ("anchors", "RoIs")),
    "patches": _each(_patches, DTYPES, DIRECTIONS),
    "sampling": [_samples],
    "pictures": _each(_images, DTYPES),
    "casts": _each(_casts, DIRECTIONS),
    "own_class": _each(_own_class, DIRECTIONS),
    "residual": _each(_residual, DTYPES),
}
