"""SGD with the benchmark's bias rules, and the learning rate of every update."""

import torch
from torch import nn

from maskperf.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.SGD:
    """Returns SGD over two groups: weights, and biases (name contains "bias") with their own rate and decay.

    Source: `solver/build.py` of the reference. Momentum without dampening or Nesterov; frozen parameters left out.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = [parameter for name, parameter in trainable if "bias" not in name]
    biases = [parameter for name, parameter in trainable if "bias" in name]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": biases, "weight_decay": config.bias_weight_decay},
    ]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def learning_rates_at(update: int, config: OptimizerConfig) -> tuple[float, float]:
    """Returns the learning rates of weights and biases for update number `update`, counted from 1.

    "linear" and "constant" multiply during warm-up; "mlperf_linear" subtracts (warmup_steps - update) * factor, the
    same absolute amount from both groups. The update whose number is a decay step is the first at the lower rate.
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
    decay = config.decay_factor ** sum(step <= update for step in config.decay_steps)
    bias_rate = config.learning_rate * config.bias_learning_rate_factor
    return (config.learning_rate - delta) * warm * decay, (bias_rate - delta) * warm * decay


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: tuple[float, float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
