"""A moving average of the weights, which is evaluated and saved in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maskperf.engine.distributed import running_statistics

FIRST_UPDATES = 10  # the decay of update n is at most (1 + n) / (10 + n), so that random weights are soon forgotten


class WeightAverage:
    """Exponential moving averages of a model's trainable weights and running statistics, made anew after each update.

    `tensors` holds them under the names of the state dict, and `state` counts the updates: both belong to a checkpoint,
    which fills them in place. With a decay of 0 there are no averages, and nothing is done.
    """

    def __init__(self, model: nn.Module, decay: float):
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        changing = {**trained, **running_statistics(model)}
        self._own = {f"average.{name}": value for name, value in changing.items()} if decay else {}
        self.tensors = {name: value.detach().clone() for name, value in self._own.items()}
        self.state = {"average_updates": 0}
        self._decay = decay

    @torch.no_grad()
    def add(self) -> None:
        """Take in the weights as they are now."""
        if self.tensors:
            updates = self.state["average_updates"] = self.state["average_updates"] + 1
            decay = min(self._decay, (1 + updates) / (FIRST_UPDATES + updates))
            torch._foreach_lerp_([*self.tensors.values()], [*self._own.values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the `with` block the model has the averages; afterwards it goes on from its own weights."""
        before = {name: value.detach().clone() for name, value in self._own.items()}
        self._fill(self.tensors)
        try:
            yield
        finally:
            self._fill(before)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._own[name].copy_(value)
