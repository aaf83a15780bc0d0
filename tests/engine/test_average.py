import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from maskperf.engine.average import FIRST_UPDATES, WeightAverage


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    made[2].requires_grad_(False)
    return made


def change(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    model(torch.randn(8, 3, 1, 1, generator=generator))  # moves the running statistics


def test_the_average_is_that_of_pytorch_once_its_beginning_is_over():
    model = net()
    average = WeightAverage(model, decay=0.9)
    average.state["average_updates"] = 1000
    oracle = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    oracle.update_parameters(model)  # its first call copies
    for seed in range(5):
        change(model, seed)
        average.add()
        oracle.update_parameters(model)
    expected = oracle.module.state_dict()
    own = {name for name in expected if not name.startswith("2.") and "batches" not in name}
    assert set(average.tensors) == {f"average.{name}" for name in own}
    for name, value in average.tensors.items():
        torch.testing.assert_close(value, expected[name.removeprefix("average.")])


def test_random_weights_are_forgotten_at_first():
    model = net()
    average = WeightAverage(model, decay=0.9999)
    first = average.tensors["average.0.weight"].clone()
    change(model, 1)
    average.add()
    expected = first + (1 - 2 / (FIRST_UPDATES + 1)) * (model[0].weight.detach() - first)
    torch.testing.assert_close(average.tensors["average.0.weight"], expected)


def test_the_model_has_the_averages_inside_the_block_alone():
    model = net()
    average = WeightAverage(model, decay=0.5)
    change(model, 1)
    average.add()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), average.in_place():
        for name, value in average.tensors.items():
            assert torch.equal(model.state_dict()[name.removeprefix("average.")], value)
        assert not torch.equal(model[0].weight, own["0.weight"])
        raise RuntimeError("inside")
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
