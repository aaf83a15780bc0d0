"""SGD or AdamW with the benchmark's bias rules, clipping, and the learning rate of every update."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maskperf.config import OptimizerConfig

ADAM_BETA_2 = 0.999  # of the squared gradients: PyTorch's own default


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return SGD, or AdamW, over two groups: weights, and biases (name contains "bias") with their own rate and decay.

    Source: `solver/build.py` of the reference. Momentum without dampening or Nesterov; frozen parameters left out.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = [parameter for name, parameter in trainable if "bias" not in name]
    biases = [parameter for name, parameter in trainable if "bias" in name]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": biases, "weight_decay": config.biases[1]},
    ]
    if config.method == "adamw":
        adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, ADAM_BETA_2), fused=True)
        for parameter in weights + biases:  # as its first step makes them: a checkpoint fills them in place
            state = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            adamw.state[parameter] = {"step": torch.zeros((), device=parameter.device), **state}
        return adamw
    optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    for parameter in weights + biases:  # there from the start, so that a first update that is skipped leaves zeros
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what the optimizer remembers between updates, live: "momentum_buffer.<parameter>", "exp_avg.<..>"."""
    return {
        f"{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def skip_updates_from_now_on(optimizer: torch.optim.Optimizer, problem: Tensor) -> None:
    """Make every later update leave weights and momentum alone if `problem` is above 0. Decided on the device."""
    before = getattr(optimizer, "found_inf", None)  # where PyTorch's fused updates look
    problem = (problem > 0).float()
    problem = problem if before is None else torch.maximum(before, problem)
    optimizer.found_inf = problem  # type: ignore[attr-defined]  # set by PyTorch's own GradScaler too


@contextmanager
def skipped_update(optimizer: torch.optim.Optimizer, problem: Tensor) -> Iterator[None]:
    """Make an update inside the `with` block leave weights and momentum alone if `problem` is above 0."""
    before = getattr(optimizer, "found_inf", None)
    skip_updates_from_now_on(optimizer, problem)
    yield
    optimizer.found_inf = before  # type: ignore[attr-defined]


def clip_gradients(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> None:
    """Scale all gradients down together where their norm is above the limit, if there is one. Decided on the device."""
    if config.clip_norm:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)


def learning_rates_at(update: int, config: OptimizerConfig) -> tuple[float, float]:
    """Return the learning rates of weights and biases for update number `update`, counted from 1.

    "linear" and "constant" multiply during warm-up; "mlperf_linear" subtracts (warmup_steps - update) * factor, the
    same absolute amount from both groups. The update whose number is a decay step is the first at the lower rate.
    "cosine" multiplies by half a wave from 1 at the end of the warm-up to 0 behind the last step.
    Source: `solver/lr_scheduler.py` of the reference.
    """
    delta, warm = 0.0, 1.0
    if update < config.warmup_steps:
        if config.warmup_method == "mlperf_linear":
            delta = (config.warmup_steps - update) * config.warmup_factor
        elif config.warmup_method == "linear":
            progress = update / config.warmup_steps
            warm = config.warmup_factor * (1 - progress) + progress
        else:
            warm = config.warmup_factor
    if config.schedule == "cosine":
        span = max(1, config.max_steps + 1 - config.warmup_steps)
        decay = (1 + math.cos(math.pi * min(1.0, max(0, update - config.warmup_steps) / span))) / 2
    else:
        decay = config.decay_factor ** sum(step <= update for step in config.decay_steps)
    bias_rate = config.learning_rate * config.biases[0]
    return (config.learning_rate - delta) * warm * decay, (bias_rate - delta) * warm * decay


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: tuple[float, float]) -> None:
    """Set the learning rates of weights and biases."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
