"""Every convolution of a training step by itself: forward, gradient of the input, gradient of the weight.

Besides, alternatives for the same work: bias and ReLU inside cuDNN's call, and matrix products for 1x1. All in
bfloat16 and channels-last, as in a step on a GPU. Not yet run on a GPU.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskperf.bench.device_clock import milliseconds_of
from maskperf.bench.gpu_steps import SEED, synthetic_batch
from maskperf.bench.measure import spread_of
from maskperf.bench.plan import GpuPlan
from maskperf.engine.build import build_model
from maskperf.engine.forward import training_losses
from maskperf.ops.convolution import fused_convolution
from maskperf.techniques import Techniques, using

REPEATS = 3
WARM_UP_CALLS = 2
PASSES = ("forward", "input gradient", "weight gradient")
WITH_RELU = "forward with bias and ReLU"
AS_A_PRODUCT = ", as a matrix product"


@dataclass(frozen=True)
class Layer:
    """The geometry of a convolution."""

    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    transposed: bool

    @property
    def flop(self) -> int:
        """Multiplications and additions of one pass: the same for all three."""
        images, _, *size_hw = self.input_shape
        if not self.transposed:
            geometry = zip(size_hw, self.padding, self.weight_shape[2:], self.stride, strict=True)
            size_hw = [(length + 2 * padding - kernel) // stride + 1 for length, padding, kernel, stride in geometry]
        return 2 * images * math.prod(size_hw) * math.prod(self.weight_shape)


class _Recorder(TorchDispatchMode):
    """Counts the convolutions that are done while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: Counter[Layer] = Counter()

    def __torch_dispatch__(
        self, function: Callable, types: Sequence[type], arguments: tuple = (), options: dict | None = None
    ) -> Any:
        if function is torch.ops.aten.convolution.default:
            pixels, weight, _, stride, padding, _, transposed, *_ = arguments
            layer = Layer(tuple(pixels.shape), tuple(weight.shape), tuple(stride), tuple(padding), transposed)
            self.layers[layer] += 1
        return function(*arguments, **(options or {}))


def layers_of_a_step(device: torch.device, plan: GpuPlan) -> Counter[Layer]:
    """Return the convolutions of one forward pass at the first padded size, and how often each is done."""
    model, _ = build_model(plan.model, SEED)
    batch = synthetic_batch(plan, plan.canvases_hw[0], plan.usual_batch, device)
    with using(Techniques().without("fast_convolutions")), _Recorder() as recorder, torch.no_grad():
        training_losses(model.to(device), batch)
    return recorder.layers


def convolution_rows(device: torch.device, plan: GpuPlan) -> Iterator[dict]:
    """Yield a row for each direction of each layer, those with most work in a step first."""
    layers = layers_of_a_step(device, plan)
    for layer in sorted(layers, key=lambda layer: -layer.flop * layers[layer]):
        for direction in directions_of(layer):
            yield measure_layer(layer, direction, device) | {"times_in_a_step": layers[layer]}  # in the forward pass


def directions_of(layer: Layer) -> tuple[str, ...]:
    """Return the passes of a layer and the alternatives there are for them."""
    side = layer.weight_shape[2]
    if layer.transposed or layer.padding != (side // 2, side // 2):
        return PASSES
    is_product = side == 1 and layer.stride == (1, 1)
    return (*PASSES, WITH_RELU, *(direction + AS_A_PRODUCT for direction in PASSES if is_product))


def measure_layer(layer: Layer, direction: str, device: torch.device) -> dict[str, Any]:
    """Return the measurements of one layer and direction."""
    work = work_of(layer, direction, device)
    for _ in range(WARM_UP_CALLS):
        work()
    milliseconds = spread_of([milliseconds_of(work, device) for _ in range(REPEATS)])
    rate = layer.flop / milliseconds.median / 1e9
    return {"direction": direction, "layer": layer, "milliseconds": milliseconds, "teraflop_per_second": rate}


def work_of(layer: Layer, direction: str, device: torch.device) -> Callable[[], object]:
    """Return a function that does one direction once, on random numbers."""

    def random(shape: tuple[int, ...]) -> Tensor:
        numbers = torch.randn(shape, device=device, dtype=torch.bfloat16)
        return numbers.contiguous(memory_format=torch.channels_last)

    pixels, weight = random(layer.input_shape), random(layer.weight_shape)
    if direction == WITH_RELU:
        bias = torch.zeros(len(weight), device=device, dtype=torch.bfloat16)
        return partial(fused_convolution, pixels, weight, bias, stride=layer.stride[0])
    if direction.endswith(AS_A_PRODUCT):
        return _product(pixels, weight, direction.removesuffix(AS_A_PRODUCT))
    geometry = (list(layer.stride), list(layer.padding), [1, 1], layer.transposed, [0, 0], 1)
    forward = partial(torch.ops.aten.convolution, pixels, weight, None, *geometry)
    if direction == PASSES[0]:
        return forward
    gradient = random(tuple(forward().shape))
    wanted = [direction == PASSES[1], direction == PASSES[2], False]
    return partial(torch.ops.aten.convolution_backward, gradient, pixels, weight, None, *geometry, wanted)


def _product(pixels: Tensor, weight: Tensor, direction: str) -> Callable[[], Tensor]:
    """Return one pass of a 1x1 convolution as the product of all pixels' rows."""
    rows, matrix = pixels.permute(0, 2, 3, 1).flatten(0, 2), weight.flatten(1)
    if direction == PASSES[0]:
        return partial(torch.mm, rows, matrix.t())
    gradient = rows @ matrix.t()
    return partial(torch.mm, gradient, matrix) if direction == PASSES[1] else partial(torch.mm, gradient.t(), rows)
