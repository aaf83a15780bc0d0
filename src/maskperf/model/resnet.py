"""The ResNet backbone: bottlenecks with the stride where the conventions have it, batch norm frozen or trainable.

Frozen batch norm is a fixed factor and shift for each channel. Folded, the factor goes into the convolution's weight
and the shift becomes its bias: the same numbers up to rounding, without passes of their own over the maps.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maskperf.config import ModelConfig
from maskperf.model.conventions import conventions_of
from maskperf.ops.convolution import Convolution, Filters, residual_block
from maskperf.techniques import active


class FrozenBatchNorm(nn.Module):
    """An affine map per channel, y = x * weight / sqrt(var) + (bias - mean * weight / sqrt(var)).

    The reference adds no epsilon to the variance, other families do. All four vectors are buffers: nothing of it is
    trained. Source: spec of the benchmark, `layers/batch_norm.py`.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, epsilon: float = 0.0):
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.folded_shift: Tensor | None = None  # set while the convolution's weight already has the factors

    def scale_and_shift(self) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
        """Return the map's factors and what it adds. A few vectors: computed anew, so that no copy can be outdated."""
        variance = self.running_var + self.epsilon if self.epsilon else self.running_var
        scale = self.weight * variance.rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n channels h w"]:
        scale, shift = self.scale_and_shift()
        return (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the weight and bias that stand for the convolution and the frozen batch norm after it."""
    assert isinstance(norm, FrozenBatchNorm)
    if norm.folded_shift is not None:
        return conv.weight, norm.folded_shift
    scale, shift = norm.scale_and_shift()
    return conv.weight * scale[:, None, None, None], shift


def can_fold(norm: nn.Module, x: Tensor) -> bool:
    """Return whether the norm is folded. Not on the meta device: there all layers are called, to be listed."""
    return active().folded_batch_norm and isinstance(norm, FrozenBatchNorm) and not x.is_meta


def conv_and_norm(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, config: ModelConfig
) -> tuple[Convolution, nn.Module]:
    """Return a convolution without bias that keeps the size, up to its stride, and the batch norm after it."""
    conv = Convolution(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)  # overwritten by the pretrained weights where there are any
    if config.batch_norm == "frozen":
        return conv, FrozenBatchNorm(outputs, conventions_of(config).batch_norm_epsilon)
    return conv, nn.BatchNorm2d(outputs)


class Stem(nn.Module):
    """7x7 convolution and 3x3 max-pool: stride 4 in all."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.conv1, self.bn1 = conv_and_norm(3, config.stem_channels, kernel=7, stride=2, config=config)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n channels h_4 w_4"]:
        if can_fold(self.bn1, pixels):
            weight, shift = folded(self.conv1, self.bn1)
            if pixels.dtype == torch.bfloat16:  # the largest number stays the largest: shift the fewer pooled pixels
                pooled = self.pool(self.conv1.convolve(pixels, weight, None))
                return torch.relu_(pooled.add_(shift[:, None, None]))
            return self.pool(self.conv1.convolve(pixels, weight, shift, relu=True))
        return self.pool(torch.relu_(self.bn1(self.conv1(pixels))))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; a stride sits in the shortcut and in the first 1x1 (MSRA variant) or the 3x3."""

    def __init__(self, inputs: int, outputs: int, stride: int, config: ModelConfig):
        super().__init__()
        inner = outputs // 4
        strides = (stride, 1) if conventions_of(config).strided_kernel == 1 else (1, stride)
        self.conv1, self.bn1 = conv_and_norm(inputs, inner, kernel=1, stride=strides[0], config=config)
        self.conv2, self.bn2 = conv_and_norm(inner, inner, kernel=3, stride=strides[1], config=config)
        self.conv3, self.bn3 = conv_and_norm(inner, outputs, kernel=1, config=config)
        self.follows_block = self.precedes_block = False  # of the same stage: nobody else takes what is between them
        self.downsample: nn.Sequential | None = None
        if inputs != outputs or stride != 1:
            shortcut = conv_and_norm(inputs, outputs, kernel=1, stride=stride, config=config)
            self.downsample = nn.Sequential(*shortcut)

    def convolutions_with_norms(self) -> list[tuple[Convolution, nn.Module]]:
        """Return each convolution with the batch norm after it, that of the shortcut last, if there is one."""
        pairs = [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]
        if self.downsample is not None:
            conv, norm = self.downsample
            assert isinstance(conv, Convolution)
            pairs.append((conv, norm))
        return pairs

    def forward(self, x: Float[Tensor, "n inputs h w"]) -> Float[Tensor, "n outputs h_out w_out"]:
        if can_fold(self.bn1, x):
            return self._forward_folded(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = torch.relu_(self.bn2(self.conv2(y)))
        return torch.relu_(self.bn3(self.conv3(y)) + shortcut)

    def _forward_folded(self, x: Float[Tensor, "n inputs h w"]) -> Float[Tensor, "n outputs h_out w_out"]:
        pairs = self.convolutions_with_norms()
        first, second, third, *others = [Filters(*folded(conv, norm)) for conv, norm in pairs]
        is_fusible = self.conv2.stride == (1, 1)
        if x.dtype == torch.bfloat16 and active().fast_convolutions and is_fusible:
            return residual_block(
                x,
                (first, second, third),
                others[0] if others else None,
                stride=self.conv1.stride[0],
                rectifies_input_gradient=self.follows_block,
                has_rectified_gradient=self.precedes_block,
            )
        shortcut = pairs[3][0].convolve(x, *others[0]) if others else x
        y = self.conv1.convolve(x, *first, relu=True)
        y = self.conv2.convolve(y, *second, relu=True)
        return self.conv3.convolve(y, *third, add=shortcut, relu=True)


class ResNet(nn.Module):
    """Four residual stages; returns C2, C3, C4, C5 at strides 4, 8, 16, 32."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.stem = Stem(config)
        inputs = config.stem_channels
        sizes = zip(config.stage_blocks, config.stage_channels, strict=True)
        for number, (blocks, outputs) in enumerate(sizes, start=1):
            layers = []
            for block in range(blocks):
                stride = 2 if block == 0 and number > 1 else 1
                layers.append(Bottleneck(inputs, outputs, stride, config))
                layers[-1].follows_block, layers[-1].precedes_block = block > 0, block < blocks - 1
                inputs = outputs
            self.add_module(f"layer{number}", nn.Sequential(*layers))
        for part in list(self.children())[: config.frozen_stages]:
            part.requires_grad_(False)

    def convolutions_with_norms(self) -> Iterator[tuple[nn.Conv2d, nn.Module]]:
        """Return each convolution with the batch norm after it."""
        yield self.stem.conv1, self.stem.bn1
        for block in (module for module in self.modules() if isinstance(module, Bottleneck)):
            yield from block.convolutions_with_norms()

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        stem, *layers = self.children()
        stages = [layers[0](stem(pixels))]
        for layer in layers[1:]:
            stages.append(layer(stages[-1]))
        return stages
