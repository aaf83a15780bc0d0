"""Every convolution of a training step by itself: forward, gradient of the input, gradient of the weight.

Besides, what other ways of the same work reach: bias and ReLU inside cuDNN's call, and matrix products for 1x1. All in
bfloat16 and channels-last, as a step on a GPU has them. Not yet run on a GPU.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskperf.bench.gpu_clock import milliseconds_of
from maskperf.bench.gpu_plan import GpuPlan
from maskperf.bench.gpu_steps import SEED, synthetic_batch
from maskperf.bench.measure import Spread, spread_of
from maskperf.engine.build import build_model
from maskperf.engine.forward import training_losses
from maskperf.ops.fused_convolution import Filters, rectified_convolution
from maskperf.techniques import Techniques, using

CALLS = 10  # of one measurement
REPEATS = 3
WARM_UP_CALLS = 2
PASSES = ("forward", "input gradient", "weight gradient")
WITH_RELU = "forward with bias and ReLU"
AS_A_PRODUCT = ", as a matrix product"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a convolution works on."""

    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    transposed: bool


@dataclass(frozen=True, kw_only=True)
class ConvolutionRow:
    """What was measured of one layer and direction."""

    direction: str
    layer: Layer
    times_in_a_step: int  # forward
    milliseconds: Spread
    teraflop_per_second: float


class _Recorder(TorchDispatchMode):
    """Counts the convolutions that are done while it is on."""

    def __init__(self):
        super().__init__()
        self.layers: Counter[Layer] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.aten.convolution.default:
            pixels, weight, _, stride, padding, _, transposed, *_ = arguments
            self.layers[
                Layer(
                    input_shape=tuple(pixels.shape),
                    weight_shape=tuple(weight.shape),
                    stride=tuple(stride),
                    padding=tuple(padding),
                    transposed=transposed,
                )
            ] += 1
        return function(*arguments, **(options or {}))


def layers_of_a_step(device: torch.device, plan: GpuPlan) -> Counter[Layer]:
    """Return the convolutions of one forward pass on the first canvas, and how often each is done."""
    model, _ = build_model(plan.model, SEED)
    batch = synthetic_batch(plan, plan.canvases_hw[0], plan.usual_batch, device)
    with using(Techniques().without("fast_convolutions")), _Recorder() as recorder, torch.no_grad():
        training_losses(model.to(device), batch)
    return recorder.layers


def convolution_rows(device: torch.device, plan: GpuPlan) -> Iterator[ConvolutionRow]:
    """Return a row for each way of each layer, those with most work in a step first."""
    layers = layers_of_a_step(device, plan)
    for layer in sorted(layers, key=lambda layer: -_flop(layer) * layers[layer]):
        for direction in ways_of(layer):
            yield measure_layer(layer, direction, layers[layer], device)


def ways_of(layer: Layer) -> tuple[str, ...]:
    """Return the directions of a layer and the other ways there are for them."""
    side = layer.weight_shape[2]
    if layer.transposed or layer.padding != (side // 2, side // 2):
        return PASSES
    ways = (*PASSES, WITH_RELU)
    if side == 1 and layer.stride == (1, 1):
        ways += tuple(direction + AS_A_PRODUCT for direction in PASSES)
    return ways


def measure_layer(layer: Layer, direction: str, times_in_a_step: int, device: torch.device) -> ConvolutionRow:
    """Return the row of one layer and direction."""
    work = _work(layer, direction, device)
    for _ in range(WARM_UP_CALLS):
        work()
    milliseconds = spread_of([milliseconds_of(work, device, CALLS) for _ in range(REPEATS)])
    return ConvolutionRow(
        direction=direction,
        layer=layer,
        times_in_a_step=times_in_a_step,
        milliseconds=milliseconds,
        teraflop_per_second=_flop(layer) / milliseconds.median / 1e9,
    )


def _work(layer: Layer, direction: str, device: torch.device):
    """Return a function that does one direction once, on random numbers."""

    def random(shape: tuple[int, ...]) -> Tensor:
        numbers = torch.randn(shape, device=device, dtype=torch.bfloat16)
        return numbers.contiguous(memory_format=torch.channels_last)

    pixels, weight = random(layer.input_shape), random(layer.weight_shape)
    if direction == WITH_RELU:
        bias = torch.zeros(len(weight), device=device, dtype=torch.bfloat16)
        return partial(rectified_convolution, pixels, Filters(weight, bias), stride=layer.stride[0])
    if direction.endswith(AS_A_PRODUCT):
        return _product(pixels, weight, direction.removesuffix(AS_A_PRODUCT))
    geometry = (list(layer.stride), list(layer.padding), [1, 1], layer.transposed, [0, 0], 1)
    forward = partial(torch.ops.aten.convolution, pixels, weight, None, *geometry)
    if direction == PASSES[0]:
        return forward
    gradient = random(tuple(forward().shape))
    wanted = [direction == PASSES[1], direction == PASSES[2], False]
    return partial(torch.ops.aten.convolution_backward, gradient, pixels, weight, None, *geometry, wanted)


def _product(pixels: Tensor, weight: Tensor, direction: str):
    """Return one direction of a 1x1 convolution as the product of all pixels' rows."""
    rows, matrix = pixels.permute(0, 2, 3, 1).flatten(0, 2), weight.flatten(1)
    if direction == PASSES[0]:
        return partial(torch.mm, rows, matrix.t())
    gradient = rows @ matrix.t()
    if direction == PASSES[1]:
        return partial(torch.mm, gradient, matrix)
    return partial(torch.mm, gradient.t(), rows)


def _flop(layer: Layer) -> int:
    """Return the multiplications and additions of one direction: the same for all three."""
    images, _, *size_hw = layer.input_shape
    per_place = 2
    for number in layer.weight_shape:
        per_place *= number
    if not layer.transposed:
        size_hw = [
            (length + 2 * padding - kernel) // stride + 1
            for length, padding, kernel, stride in zip(
                size_hw, layer.padding, layer.weight_shape[2:], layer.stride, strict=True
            )
        ]
    return images * size_hw[0] * size_hw[1] * per_place
