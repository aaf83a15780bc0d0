"""The feature pyramid: P2 to P5 from C2 to C5, P6 from P5."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskperf.model.heads import initialized
from maskperf.ops.convolution import Convolution, bias_of


class FeaturePyramid(nn.Module):
    """Lateral 1x1 and output 3x3 convolutions, top-down by nearest doubling and addition (Lin et al. 2017)."""

    def __init__(self, stage_channels: tuple[int, ...], channels: int):
        super().__init__()
        for number, inputs in enumerate(stage_channels, start=1):
            for name, conv_inputs, kernel in ((f"fpn_inner{number}", inputs, 1), (f"fpn_layer{number}", channels, 3)):
                conv = Convolution(conv_inputs, channels, kernel, padding=kernel // 2)
                self.add_module(name, initialized(conv, nn.init.kaiming_uniform_, a=1))

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Return P2, P3, P4, P5, P6 at strides 4 to 64 from C2 to C5."""
        outputs: list[Tensor] = []
        top_down: Tensor | None = None
        for number in (4, 3, 2, 1):
            lateral, stage = getattr(self, f"fpn_inner{number}"), stages[number - 1]
            top_down = lateral(stage) if top_down is None else _merge(lateral, stage, top_down)
            outputs.insert(0, getattr(self, f"fpn_layer{number}")(top_down))
        outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs


def _merge(lateral: Convolution, stage: Tensor, top_down: Tensor) -> Tensor:
    """Return the lateral convolution plus the coarser map at twice its size."""
    if stage.dtype == torch.bfloat16:  # the bias is added to the coarser map, which is a quarter of the size
        doubled = _doubled(top_down + bias_of(lateral)[:, None, None])
        return lateral.convolve(stage, lateral.weight, None, add=doubled)
    return lateral(stage, add=_doubled(top_down))


def _doubled(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="nearest")
