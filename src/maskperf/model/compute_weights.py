"""The weights in the number format that layers compute in, with frozen batch norm folded into them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maskperf.model.heads import FLOAT32_BIASES
from maskperf.model.resnet import FrozenBatchNorm, ResNet
from maskperf.ops.products import Casts, weight_casts
from maskperf.techniques import active

FROZEN = "frozen"  # the group without gradients
PRODUCTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class ComputeWeights:
    """Casts the weights of all convolutions and fully connected layers, and puts the casts in their places.

    The model's own parameters stay float32; gradients flow through the casts to them. Parameters are cast in groups,
    each a node of the backward graph that is done as soon as all its gradients are there.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        body = next(module for module in model.modules() if isinstance(module, ResNet))
        pairs = [(conv, norm) for conv, norm in body.convolutions_with_norms() if isinstance(norm, FrozenBatchNorm)]
        self._norms = [norm for _, norm in pairs] if active().folded_batch_norm else []
        self._scales = [torch.empty_like(norm.weight) for norm in self._norms]
        self._shifts = [torch.empty_like(norm.bias, dtype=dtype) for norm in self._norms]
        self._versions: list[int] = []
        factors: dict[nn.Module, Tensor] = {conv: scale for (conv, _), scale in zip(pairs, self._scales, strict=False)}
        self._groups = []
        self.trainable: list[Casts] = []
        for group, slots in _parameters_by_group(model).items():
            parameters = [getattr(module, name) for module, name in slots]
            scales = [factors.get(module) if name == "weight" else None for module, name in slots]
            casts = weight_casts(parameters, scales, dtype)
            self._groups.append((slots, casts))
            if group != FROZEN:
                self.trainable.append(casts)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the `with` block each layer has the casts in place of its parameters."""
        self._fold()
        saved = []
        try:
            for norm, shift in zip(self._norms, self._shifts, strict=True):
                norm.folded_shift = shift
            for slots, cast in self._groups:
                for (module, name), tensor in zip(slots, cast(), strict=True):
                    saved.append((module, name, module._parameters[name]))
                    module._parameters[name] = tensor  # type: ignore[assignment]  # stands in for a Parameter
            yield
        finally:
            for module, name, parameter in saved:
                module._parameters[name] = parameter
            for norm in self._norms:
                norm.folded_shift = None

    @torch.no_grad()
    def _fold(self) -> None:
        """Compute factors and shifts where a batch norm has changed; they stay in their memory for recorded graphs."""
        versions = [buffer._version for norm in self._norms for buffer in norm.buffers()]
        if versions == self._versions:
            return
        self._versions = versions
        for norm, scale, shift in zip(self._norms, self._scales, self._shifts, strict=True):
            for old, new in zip((scale, shift), norm.scale_and_shift(), strict=True):
                old.copy_(new)


def _parameters_by_group(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return (module, name) of what is cast: a group for the frozen ones, for each stage, the FPN and each head."""
    groups: dict[str, list[tuple[nn.Module, str]]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, PRODUCTS):
            continue
        layer = path.rpartition(".")[2]
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" and layer in FLOAT32_BIASES:
                continue
            depth = 3 if path.startswith("backbone.body.") else 2
            group = ".".join(path.split(".")[:depth]) if parameter.requires_grad else FROZEN
            groups.setdefault(group, []).append((module, name))
    return groups
