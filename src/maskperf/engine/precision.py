"""The number format of features and hidden layers; weights, gradients, boxes, scores and losses are always float32.

The bfloat16 path was tested on processors. Not yet run on a GPU.
"""

from collections.abc import Callable

import torch

from maskperf.errors import ConfigError
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.ops import convolution
from maskperf.techniques import active

PRECISIONS = ("auto", "float32", "bfloat16")


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the format the network computes in: with "auto" bfloat16 on a GPU and float32 elsewhere.

    Errors: ConfigError for text that is not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"speed.precision={precision} is not a known number format. Fix: use one of {', '.join(PRECISIONS)}."
        )
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 numbers by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def describe_precision(dtype: torch.dtype, device: torch.device) -> str:
    """Return one line about the format for the start of a run, with a warning where the device will be slow."""
    if dtype == torch.float32:
        return "precision: float32 throughout"
    line = "precision: bfloat16 in features and hidden layers; weights, gradients, scores and losses in float32"
    if has_fast_bfloat16(device):
        return line
    return f"{line}; this {device.type} has no instructions for bfloat16, so it will be slow (speed.precision=float32)"


def set_precision(model: MaskRcnn, precision: str, device: torch.device, say: Callable[[str], None]) -> None:
    """Make the model compute in the format that `precision` means on this device, and say which it is."""
    model.compute_dtype = resolve_precision(precision, device)
    say(describe_precision(model.compute_dtype, device))
    if device.type == "cuda" and model.compute_dtype == torch.bfloat16 and active().fast_convolutions:
        say(convolution.describe(device))
