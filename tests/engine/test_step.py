import copy

import pytest
import torch
from small_batches import small_batch, small_model

from maskperf.config import OptimizerConfig
from maskperf.engine import step as step_module
from maskperf.engine.distributed import Topology
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.step import BAD_PARTS, any_not_finite, train_step

CONFIG = OptimizerConfig(batch_size=1, learning_rate=0.01, warmup_steps=0)


def _train(model, optimizer=None, update=1, batches=(0,), config=CONFIG):
    """Train on small batches of these seeds."""
    optimizer, batches = optimizer or build_optimizer(model, config), [small_batch(seed) for seed in batches]
    return train_step(model, optimizer, batches, update=update, config=config, topology=Topology())


def _weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def _problems(result):
    return [part for part, count in zip(BAD_PARTS, result.not_finite[0].tolist(), strict=True) if count > 0]


def test_a_good_step_has_no_problem_and_changes_the_trained_weights():
    model = small_model(seed=0)
    before = _weights(model)
    assert _problems(_train(model)) == []
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert changed <= trained
    assert len(changed) >= len(trained) - 4  # two levels of the pyramid have no RoI in so small an image


@pytest.mark.parametrize("problem", ["loss", "gradient"])
def test_after_a_problem_the_weights_and_momentum_stay_as_before_that_step(monkeypatch, problem):
    model = small_model(seed=0)
    optimizer = build_optimizer(model, CONFIG)
    _train(model, optimizer)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    honest = step_module.training_losses
    victim = next(value for value in model.parameters() if value.requires_grad)

    def poisoned(model, batch):
        losses = honest(model, batch)
        if problem == "loss":
            object.__setattr__(losses, "mask", losses.mask * float("nan"))
        else:  # a finite loss whose gradient is not
            extra = torch.sqrt(victim.sum() * 0)
            object.__setattr__(losses, "box", losses.box + extra)
        return losses

    monkeypatch.setattr(step_module, "training_losses", poisoned)
    result = _train(model, optimizer, 2)
    assert ("loss" in _problems(result)) == (problem == "loss")
    assert "gradient" in _problems(result) and "weight" not in _problems(result)
    monkeypatch.setattr(step_module, "training_losses", honest)
    assert _problems(_train(model, optimizer, 3)) == []  # the guard of a run stops before; the weights wait for it
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)


def test_gradients_and_losses_are_means_over_the_micro_batches():
    once, twice = small_model(seed=0), small_model(seed=0)
    single, double = _train(once), _train(twice, batches=(0, 0))
    assert torch.equal(double.losses, single.losses)
    assert (single.images, double.images) == (1, 2)
    for (name, value), other in zip(once.named_parameters(), twice.parameters(), strict=True):
        if value.requires_grad:  # halving rounds nothing
            assert torch.equal(other.grad, value.grad), name


def test_a_weight_that_is_not_finite_is_found():
    model = small_model(seed=0)
    with torch.no_grad():
        next(value for value in reversed(list(model.parameters())) if value.requires_grad).view(-1)[0] = float("inf")
    assert "weight" in _problems(_train(model))


def test_an_update_that_overflows_is_found_in_the_same_step():
    config = OptimizerConfig(batch_size=1, learning_rate=3e38, warmup_steps=0, weight_decay=1e4)
    assert "weight" in _problems(_train(small_model(seed=0), config=config))


def test_the_stopwatch_of_a_step_has_every_phase():
    seconds = _train(small_model(seed=0), batches=(0, 1)).stopwatch.seconds()
    assert list(seconds) == ["forward", "backward", "exchange", "optimizer"]
    assert all(value >= 0 for value in seconds.values()) and seconds["backward"] > 0


BOTH_WAYS = pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cuda")])  # of CPU tensors here


@BOTH_WAYS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("index", [0, 7, 99])
def test_one_bad_number_anywhere_is_found(device, bad, index):
    tensors = [torch.randn(5), torch.randn(100), torch.zeros(0), torch.tensor(2.0)]
    assert any_not_finite(tensors, device) == 0
    tensors[1][index] = bad
    assert any_not_finite(tensors, device) == 1


@BOTH_WAYS
def test_large_finite_numbers_are_no_problem_and_half_precision_is_checked_as_it_is(device):
    assert any_not_finite([torch.full((10,), 3.4e38), torch.full((10,), -3.4e38)], device) == 0
    assert any_not_finite([torch.tensor([65504.0], dtype=torch.float16)], device) == 0
    assert any_not_finite([torch.tensor([70000.0]).to(torch.float16)], device) == 1
    assert any_not_finite([], torch.device("cpu")) == 0
