"""The number format of features and hidden layers; weights, gradients, boxes, scores and losses are always float32.

The bfloat16 path was tested on processors. Not yet run on a GPU.
"""

from collections.abc import Callable

import torch

from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.ops import convolution
from maskperf.techniques import active


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the format the network computes in: with "auto" bfloat16 on a GPU and float32 elsewhere."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 numbers by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def set_precision(model: MaskRcnn, precision: str, device: torch.device, say: Callable[[str], None]) -> None:
    """Make the model compute in the format that `precision` means on this device, and say which it is."""
    model.compute_dtype = resolve_precision(precision, device)
    if model.compute_dtype == torch.float32:
        say("precision: float32 throughout")
        return
    line = "precision: bfloat16 in features and hidden layers; weights, gradients, scores and losses in float32"
    slow = f"; this {device.type} has no instructions for bfloat16, so it will be slow (speed.precision=float32)"
    say(line if has_fast_bfloat16(device) else line + slow)
    if device.type == "cuda" and active().fast_convolutions:
        say(convolution.describe(device))
