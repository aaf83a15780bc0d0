"""The feature pyramid: P2 to P5 from C2 to C5, P6 from P5."""

import torch.nn.functional as F
from torch import Tensor, nn

from maskperf.ops.convolution import Convolution


def pyramid_conv(inputs: int, outputs: int, kernel: int) -> Convolution:
    conv = Convolution(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)
    return conv


class FeaturePyramid(nn.Module):
    """Lateral 1x1 and output 3x3 convolutions, top-down by nearest doubling and addition (Lin et al. 2017)."""

    def __init__(self, stage_channels: tuple[int, ...], channels: int):
        super().__init__()
        for number, inputs in enumerate(stage_channels, start=1):
            self.add_module(f"fpn_inner{number}", pyramid_conv(inputs, channels, kernel=1))
            self.add_module(f"fpn_layer{number}", pyramid_conv(channels, channels, kernel=3))

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Returns P2, P3, P4, P5, P6 at strides 4 to 64 from C2 to C5."""
        top_down = self.fpn_inner4(stages[3])
        outputs = [self.fpn_layer4(top_down)]
        for number in (3, 2, 1):
            lateral = getattr(self, f"fpn_inner{number}")
            doubled = F.interpolate(top_down, scale_factor=2, mode="nearest")
            top_down = lateral(stages[number - 1], add=doubled)
            outputs.insert(0, getattr(self, f"fpn_layer{number}")(top_down))
        outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs
