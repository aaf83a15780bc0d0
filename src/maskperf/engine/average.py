"""A moving average of the weights, which is evaluated and saved in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

FIRST_UPDATES = 10  # the decay of update n is at most (1 + n) / (10 + n), so that random weights are soon forgotten


class WeightAverage:
    """Exponential moving averages of a model's trainable weights and running statistics, made anew after each update.

    `tensors` holds them under the names of the state dict, and `state` counts the updates: both belong to a checkpoint,
    which fills them in place.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.state = {"average_updates": 0}
        self.tensors = {f"average.{name}": value.detach().clone() for name, value in _changing(model)}
        self._decay = decay
        self._model = model

    @torch.no_grad()
    def add(self) -> None:
        """Take in the weights as they are now."""
        updates = self.state["average_updates"] = self.state["average_updates"] + 1
        decay = min(self._decay, (1 + updates) / (FIRST_UPDATES + updates))
        torch._foreach_lerp_([*self.tensors.values()], [value for _, value in _changing(self._model)], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the `with` block the model has the averages; afterwards it goes on from its own weights."""
        own = [value.detach().clone() for _, value in _changing(self._model)]
        self._fill([*self.tensors.values()])
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        for (_, target), value in zip(_changing(self._model), values, strict=True):
            target.copy_(value)


def average_of(model: nn.Module, decay: float) -> WeightAverage | None:
    """Return the average of a run, None where its decay is 0."""
    return WeightAverage(model, decay) if decay else None


def _changing(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return what training changes, without the counters of batch norms. Frozen statistics keep their versions."""
    found: list[tuple[str, Tensor]] = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            statistics = {"running_mean": module.running_mean, "running_var": module.running_var}
            found += [(f"{path}.{name}", value) for name, value in statistics.items() if value is not None]
    return found
