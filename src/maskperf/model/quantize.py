"""The pretrained backbone stored in fewer bits, as the benchmark's rules permit, and what that costs in precision."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from maskperf.model.weight_problems import DAMAGED_FIX, file_error, raise_any, tensor_problems
from maskperf.model.weights import read_tensor_file, write_tensor_file

BACKBONE_FORMAT = "maskperf-backbone"
STORAGE_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
INT8_LIMIT = 127  # symmetric: -128 is not used
SCALE_SUFFIX = ".int8_scale"
CONV_DIMS = 4  # only convolutions are stored in fewer bits; batch norm vectors stay float32


@dataclass(frozen=True)
class TensorLoss:
    """How far a restored tensor is from the original."""

    name: str
    max_absolute: float
    max_relative: float  # largest error over largest magnitude of the same tensor
    snr_db: float  # 10 * log10(sum of squares / sum of squared errors); infinite when equal

    def __str__(self) -> str:
        if self.max_absolute == 0:
            return f"{self.name}: equal to the original"
        size = f"{self.max_absolute:.3g} ({self.max_relative:.2%} of the largest magnitude)"
        return f"{self.name}: largest error {size}, signal-to-noise {self.snr_db:.1f} dB"


def store_backbone(
    weights: Mapping[str, Tensor], path: str | Path, storage: str, *, metadata: Mapping[str, str] | None = None
) -> list[TensorLoss]:
    """Return the `precision_loss` of the storage, after `weights` (model names, float32) were written as .safetensors.

    Convolutions are stored as `storage` ("float32", "float16", "bfloat16", "int8"), everything else as float32.

    Errors: ValueError for another storage, DataError for numbers that are not finite or too large for float16,
    StorageError when the file cannot be written.
    Source: benchmark rules of the pretrained weights, "they may be quantized".
    """
    if storage not in STORAGE_TYPES:
        raise ValueError(f"storage={storage!r} is not one of {', '.join(STORAGE_TYPES)}")
    reduced = {}
    for name, tensor in weights.items():
        is_conv = tensor.dim() == CONV_DIMS
        if is_conv and storage == "int8":
            reduced[name], reduced[name + SCALE_SUFFIX] = quantize_channels(tensor.float())
        else:
            reduced[name] = tensor.to(STORAGE_TYPES[storage] if is_conv else torch.float32)
    restored = _restore_all(reduced)
    too_large = "Store it as bfloat16 or float32; the numbers are too large for float16."
    for tensors, fix in ((weights, "Use intact weights; these hold no numbers."), (restored, too_large)):
        raise_any(tensor_problems(tensors, weights, file=str(path), fix=fix))
    losses = precision_loss(weights, restored)
    texts = {"format": BACKBONE_FORMAT, "storage": storage, "precision_loss": str(losses[0])}
    write_tensor_file(reduced, path, {**(metadata or {}), **texts})
    return losses


def load_stored_backbone(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the backbone of a file that `store_backbone` wrote, in float32, and the file's metadata.

    Errors: DataError when the file is damaged or of another kind.
    """
    stored, metadata = read_tensor_file(path)
    storage = metadata.get("storage", "none")
    if metadata.get("format") != BACKBONE_FORMAT or storage not in STORAGE_TYPES:
        problem = "the file was not written as a stored backbone by this program."
        fix = "Give R-50.pkl or a file made from it by this program."
        raise file_error(Path(path), "storage", storage, problem, fix)
    scales = {name: tensor for name, tensor in stored.items() if name.endswith(SCALE_SUFFIX)}
    quantized = {name: tensor for name, tensor in stored.items() if tensor.dtype == torch.int8}
    wanted = {name + SCALE_SUFFIX: tensor.new_empty(tensor.shape[:1]) for name, tensor in quantized.items()}
    raise_any(tensor_problems(scales, wanted, file=str(path), fix=DAMAGED_FIX))
    return _restore_all(stored), metadata


def quantize_channels(
    weight: Float[Tensor, "channels ..."],
) -> tuple[Int8[Tensor, "channels ..."], Float[Tensor, " channels"]]:
    """Return (values, scales): weight is about values * scales, symmetric, one scale per output channel.

    scale = largest magnitude of the channel / 127, in float32; a channel of zeros has scale 0. The quotient is taken
    in float64, so the error of values * scales is at most scale / 2.
    """
    scales = weight.flatten(1).abs().amax(dim=1).float() / INT8_LIMIT
    divisors = torch.where(scales > 0, scales, 1.0).double()
    values = (weight.double() / _per_channel(divisors, weight)).round().clamp(-INT8_LIMIT, INT8_LIMIT)
    return values.to(torch.int8), scales


def precision_loss(original: Mapping[str, Tensor], restored: Mapping[str, Tensor]) -> list[TensorLoss]:
    """Return the errors of `restored`, computed in float64: of all tensors together, then of each.

    All together have the largest errors, and the ratio of the summed squares. Both must have the same names.
    """
    assert original.keys() == restored.keys(), "precision_loss compares two sets of the same tensors"
    losses, signal_sum, noise_sum = [], 0.0, 0.0
    for name, tensor in original.items():
        exact = tensor.double()
        error = restored[name].double() - exact
        largest, worst = (float(values.abs().max()) if values.numel() else 0.0 for values in (exact, error))
        signal, noise = float(exact.square().sum()), float(error.square().sum())
        losses.append(TensorLoss(name, worst, worst / largest if largest else worst, _decibel(signal, noise)))
        signal_sum, noise_sum = signal_sum + signal, noise_sum + noise
    absolute = max((loss.max_absolute for loss in losses), default=0.0)
    relative = max((loss.max_relative for loss in losses), default=0.0)
    return [TensorLoss("all tensors", absolute, relative, _decibel(signal_sum, noise_sum)), *losses]


def describe_loss(losses: Sequence[TensorLoss], *, num_worst: int = 3) -> list[str]:
    """Return text lines: all tensors together, then those with the lowest signal-to-noise ratio, if any lost bits."""
    overall, *tensors = losses
    worst = sorted((one for one in tensors if one.max_absolute > 0), key=lambda one: one.snr_db)[:num_worst]
    return [str(one) for one in (overall, *worst)]


def _restore_all(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    restored = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8:
            restored[name] = tensor.float() * _per_channel(stored[name + SCALE_SUFFIX], tensor)
        elif not name.endswith(SCALE_SUFFIX):
            restored[name] = tensor.float()
    return restored


def _per_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (like.dim() - 1))


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
