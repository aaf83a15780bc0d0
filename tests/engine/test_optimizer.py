import numpy as np
import pytest
import torch
from torch import nn

from maskperf.config import ModelConfig, OptimizerConfig
from maskperf.engine.optimizer import (
    build_optimizer,
    clip_gradients,
    learning_rates_at,
    set_learning_rates,
    skip_updates_from_now_on,
)
from maskperf.model.mask_rcnn import MaskRcnn


def config_of(method: str, rate: float = 0.1, steps: int = 10, factor: float = 0.01, decay_steps=()) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=rate, warmup_method=method, warmup_steps=steps, warmup_factor=factor, decay_steps=decay_steps
    )


BATCH_96 = config_of("mlperf_linear", 0.12, 625, 1.92e-4, (12000, 16000))
DEFAULT = OptimizerConfig()
CONSTANT = config_of("constant", 0.3, 10, 0.25, (480000, 640000))


def small_net():
    """A layer with weight and bias, a batch norm, and a frozen layer, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).double()
    net[2].requires_grad_(False)
    return net


def names_by_group(net, optimizer):
    name_of = {parameter: name for name, parameter in net.named_parameters()}
    return [{name_of[parameter] for parameter in group["params"]} for group in optimizer.param_groups]


# For some updates the rates of weights and, if they are not twice as high, biases.
RATES = [
    # Takes the same amount from weights and biases.
    *zip([BATCH_96] * 3, (1, 100, 624), ((0.000192, 0.120192), (0.0192, 0.1392), (0.119808, 0.239808)), strict=True),
    *zip([BATCH_96] * 5, (625, 11999, 12000, 15999, 16000), (0.12, 0.12, 0.012, 0.012, 0.0012), strict=True),
    # A factor on both.
    *zip([DEFAULT] * 4, (1, 250, 499, 500), (0.000836666667, 0.00166666667, 0.00249666667, 0.0025), strict=True),
    *zip([DEFAULT] * 4, (479999, 480000, 639999, 640000), (0.0025, 0.00025, 0.00025, 0.000025), strict=True),
    *zip([CONSTANT] * 4, (1, 9, 10, 11), (0.075, 0.075, 0.3, 0.3), strict=True),
    # Decay inside the warm-up scales what the warm-up leaves.
    *zip([config_of("mlperf_linear", decay_steps=(5,))] * 2, (4, 5), ((0.04, 0.14), (0.005, 0.015)), strict=True),
]


@pytest.mark.parametrize(("config", "update", "rates"), RATES)
def test_learning_rates_follow_warm_up_and_decay(config, update, rates):
    rates = rates if isinstance(rates, tuple) else (rates, 2 * rates)
    assert learning_rates_at(update, config) == pytest.approx(rates)


def test_biases_form_the_second_group_without_decay_and_frozen_parameters_are_left_out():
    net = small_net()
    optimizer = build_optimizer(net, DEFAULT)
    assert names_by_group(net, optimizer) == [{"0.weight", "1.weight"}, {"0.bias", "1.bias"}]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]
    for group in optimizer.param_groups:
        assert (group["momentum"], group["dampening"], group["nesterov"]) == (0.9, 0, False)


def test_benchmark_model_has_63_weights_and_21_biases_to_train():
    with torch.device("meta"):  # names and shapes only
        model = MaskRcnn(ModelConfig())
    weights, biases = names_by_group(model, build_optimizer(model, DEFAULT))
    assert (len(weights), len(biases)) == (63, 21)
    assert all(name.endswith(".bias") for name in biases)
    assert not any("bias" in name or name.startswith("backbone.body.layer1") for name in weights)


@pytest.mark.parametrize("config", [BATCH_96, CONSTANT])
def test_three_updates_follow_the_formula_of_momentum_and_decay(config):
    net = small_net()
    optimizer = build_optimizer(net, config)
    generator = np.random.default_rng(0)
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    values = {name: parameter.detach().numpy().copy() for name, parameter in trained.items()}
    velocities = {name: np.zeros_like(value) for name, value in values.items()}
    for update in (1, 2, 3):
        rates = learning_rates_at(update, config)
        set_learning_rates(optimizer, rates)
        for name, parameter in trained.items():
            gradient = generator.normal(size=values[name].shape)
            parameter.grad = torch.from_numpy(gradient)
            rate, decay = (rates[1], 0.0) if "bias" in name else (rates[0], 1e-4)
            velocities[name] = 0.9 * velocities[name] + (gradient + decay * values[name])
            values[name] = values[name] - rate * velocities[name]
        optimizer.step()
    for name, parameter in trained.items():
        np.testing.assert_allclose(parameter.detach().numpy(), values[name], rtol=1e-12, atol=1e-15)


def with_gradients(seed: int) -> nn.Module:
    net = small_net()
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 30
    return net


@pytest.mark.parametrize("limit", [0.0, 1.0, 1e6])
def test_clipping_is_that_of_pytorch_and_bounds_the_first_update(limit):
    config = OptimizerConfig(clip_norm=limit, learning_rate=0.1, weight_decay=0.0, biases=(1.0, 0.0))
    ours, oracle = with_gradients(3), with_gradients(3)
    before = [parameter.detach().clone() for parameter in ours.parameters()]
    optimizer = build_optimizer(ours, config)
    clip_gradients(optimizer, config)
    norm = nn.utils.clip_grad_norm_(oracle.parameters(), limit or float("inf"))
    assert float(norm) > 50
    for one, other in zip(ours.parameters(), oracle.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)
    optimizer.step()
    moved = torch.cat([(new - old).flatten() for new, old in zip(ours.parameters(), before, strict=True)]).norm()
    assert float(moved.detach()) == pytest.approx(0.1 * min(limit or float(norm), float(norm)), rel=1e-5)


def test_cosine_rises_through_the_warm_up_and_falls_to_nothing_as_that_of_pytorch():
    config = OptimizerConfig(
        schedule="cosine", learning_rate=0.2, warmup_steps=10, warmup_factor=0.1, max_steps=109, decay_steps=(20,)
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    assert learning_rates_at(1, config)[0] == pytest.approx(0.2 * 0.19)
    for update in range(10, 110):
        assert learning_rates_at(update, config) == pytest.approx(
            (oracle.get_last_lr()[0], 2 * oracle.get_last_lr()[0])
        )
        optimizer.step()
        oracle.step()
    assert 0 < learning_rates_at(109, config)[0] < 1e-4
    assert learning_rates_at(200, config)[0] == 0


def test_adamw_is_that_of_pytorch_and_skips_updates_that_are_not_finite():
    config = OptimizerConfig(method="adamw", learning_rate=0.01, weight_decay=0.1, biases=(1.0, 0.0))
    ours, oracle = with_gradients(5), with_gradients(5)
    optimizer = build_optimizer(ours, config)
    decayed = [
        parameter for name, parameter in oracle.named_parameters() if "weight" in name and parameter.requires_grad
    ]
    others = [parameter for name, parameter in oracle.named_parameters() if "bias" in name and parameter.requires_grad]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    expected = torch.optim.AdamW(groups, lr=0.01, foreach=False)
    for _ in range(3):
        optimizer.step()
        expected.step()
    for one, other in zip(ours.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    before = [parameter.detach().clone() for parameter in ours.parameters()]
    skip_updates_from_now_on(optimizer, torch.tensor(1.0))
    optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), before, strict=True))
