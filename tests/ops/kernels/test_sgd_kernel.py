import pytest
import torch
from kernel_device import DEVICE
from torch import nn

from maskperf.config import OptimizerConfig
from maskperf.engine.optimizer import build_optimizer, set_learning_rates, skip_updates_from_now_on
from maskperf.ops.kernels.sgd import NUMBERS_AT_A_TIME, TritonSgd

# Products and sums are rounded together on one side and apart on the other.
CLOSE = {"rtol": 1e-6, "atol": 1e-7}
CONFIG = OptimizerConfig(weight_decay=0.02, bias_weight_decay=0.005, momentum=0.8)


def network() -> nn.Module:
    """Returns parameters of less than one block, of a block exactly, and of several; one of them channels-last."""
    torch.manual_seed(3)
    parts = (nn.Linear(5, 7), nn.Linear(32, NUMBERS_AT_A_TIME // 32), nn.Conv2d(24, 17, 3))
    return nn.Sequential(*parts).to(DEVICE, memory_format=torch.channels_last)


def kernel_optimizer(model: nn.Module) -> TritonSgd:
    """Returns the optimizer with the groups that the engine makes."""
    groups = build_optimizer(model, CONFIG, kernels=False).param_groups
    chosen = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
    return TritonSgd(chosen, lr=CONFIG.learning_rate, momentum=CONFIG.momentum)


def both() -> list[tuple[nn.Module, torch.optim.SGD]]:
    models = [network(), network()]
    return [(models[0], build_optimizer(models[0], CONFIG, kernels=False)), (models[1], kernel_optimizer(models[1]))]


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))


def assert_same_state(sides: list[tuple[nn.Module, torch.optim.SGD]]) -> None:
    (model, optimizer), (other, other_optimizer) = sides
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two, one, **CLOSE)
        momenta = [side.state[place]["momentum_buffer"] for side, place in ((optimizer, one), (other_optimizer, two))]
        torch.testing.assert_close(momenta[1], momenta[0], **CLOSE)


def test_equals_the_optimizer_of_the_engine_and_its_skipped_updates():
    sides = both()
    start = [parameter.detach().clone() for parameter in sides[1][0].parameters()]
    for step, fault in enumerate((0.0, 0.0, 1.0, 0.0)):
        before = [parameter.detach().clone() for parameter in sides[1][0].parameters()]
        for model, optimizer in sides:
            give_gradients(model, seed=step)
            set_learning_rates(optimizer, (0.1 / (step + 1), 0.2 / (step + 1)))
            skip_updates_from_now_on(optimizer, torch.tensor(fault, device=DEVICE))
            optimizer.step()
        assert_same_state(sides)
        same = [torch.equal(one, two) for one, two in zip(before, sides[1][0].parameters(), strict=True)]
        assert same == [step >= 2] * 6
    assert not any(torch.equal(one, two) for one, two in zip(start, sides[1][0].parameters(), strict=True))


def test_a_fault_leaves_everything_as_it_was_even_without_numbers():
    model = network()
    optimizer = kernel_optimizer(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf = torch.tensor(2.0, device=DEVICE)
    optimizer.step()
    for parameter, values in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, values)
        assert not bool(optimizer.state[parameter]["momentum_buffer"].any())


def test_biases_have_their_own_rate_and_decay():
    weight, bias = (nn.Parameter(torch.ones(3, device=DEVICE)) for _ in range(2))
    groups = [{"params": [weight], "weight_decay": 0.5}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = TritonSgd(groups, lr=1.0, momentum=0.9)
    set_learning_rates(optimizer, (1.0, 2.0))
    weight.grad, bias.grad = (torch.full((3,), 0.25, device=DEVICE) for _ in range(2))
    optimizer.step()
    assert weight.tolist() == [0.25] * 3
    assert bias.tolist() == [0.5] * 3
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [0.75] * 3


def test_learning_rates_may_be_on_the_device():
    sides = both()
    for model, optimizer in sides:
        give_gradients(model, seed=1)
        for group, rate in zip(optimizer.param_groups, (0.3, 0.6), strict=True):
            group["lr"] = torch.tensor(rate, device=DEVICE) if isinstance(optimizer, TritonSgd) else rate
        optimizer.step()
    assert_same_state(sides)


def test_gradients_may_be_missing_move_and_have_another_layout():
    sides = both()
    for group in sides[0][1].param_groups:
        group["fused"] = False  # PyTorch's fused update takes the numbers of such a gradient in the wrong order
    for step in range(3):
        for model, optimizer in sides:
            give_gradients(model, seed=step)
            model[0].weight.grad = None if step == 1 else model[0].weight.grad
            model[2].weight.grad = model[2].weight.grad.contiguous()  # the parameter is channels-last
            optimizer.step()
        assert_same_state(sides)
    assert sides[1][0][2].weight.grad.stride() != sides[1][0][2].weight.stride()


def test_numbers_that_do_not_start_at_a_multiple_of_16_bytes():
    room = torch.arange(12.0, device=DEVICE)
    parameter = nn.Parameter(room[1:8])
    optimizer = TritonSgd([{"params": [parameter], "weight_decay": 0.0}], lr=1.0, momentum=0.0)
    parameter.grad = torch.full((7,), 0.5, device=DEVICE)
    optimizer.step()
    assert room.tolist() == [0.0, *[number - 0.5 for number in range(1, 8)], 8.0, 9.0, 10.0, 11.0]


def test_parameters_the_kernel_cannot_work_on_are_refused():
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16, device=DEVICE))
    with pytest.raises(ValueError, match="bfloat16"):
        TritonSgd([{"params": [half], "weight_decay": 0.0}], lr=1.0, momentum=0.9)
    with_gaps = nn.Parameter(torch.ones(4, 6, device=DEVICE)[:, ::2])
    with pytest.raises(ValueError, match="strides"):
        TritonSgd([{"params": [with_gaps], "weight_decay": 0.0}], lr=1.0, momentum=0.9)


def test_a_momentum_of_another_layout_is_refused():
    model = network()
    optimizer = kernel_optimizer(model)
    give_gradients(model, seed=1)
    weight = model[2].weight
    optimizer.state[weight]["momentum_buffer"] = torch.zeros(weight.shape, device=DEVICE)
    with pytest.raises(ValueError, match="momentum_buffer"):
        optimizer.step()
