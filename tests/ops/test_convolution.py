import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskperf.ops import convolution, winograd
from maskperf.ops.convolution import Convolution, Pointwise, Winograd, pointwise_pays, winograd_pays
from maskperf.techniques import Techniques, plain, using


def random_tensor(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def large_layer(kernel, dtype=torch.float64):
    """A layer and an input for which the fast path is taken."""
    torch.manual_seed(0)
    layer = Convolution(128, 128, kernel, padding=kernel // 2).to(dtype)
    x = random_tensor(2, 128, 33, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert winograd_pays(x, layer.weight) or pointwise_pays(x, layer.weight)
    return layer, x


def outputs_and_gradients(layer, x, **arguments):
    x = x.detach().requires_grad_()
    y = layer(x, **arguments)
    grads = torch.autograd.grad(y, (x, *layer.parameters()), random_tensor(*y.shape, seed=7, dtype=y.dtype))
    return [y.detach(), *grads]


def plain_outputs_and_gradients(layer, x):
    with using(plain()):
        return outputs_and_gradients(layer, x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
def test_layer_gives_the_numbers_and_gradients_of_the_plain_layer(kernel, memory_format):
    layer, x = large_layer(kernel)
    x = x.contiguous(memory_format=memory_format)
    results = outputs_and_gradients(layer, x)
    for result, expected in zip(results, plain_outputs_and_gradients(layer, x), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    assert results[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", [1, 3])
def test_switched_off_it_is_the_plain_layer_to_the_last_bit(kernel):
    layer, x = large_layer(kernel, torch.float32)
    conv = nn.Conv2d(128, 128, kernel, padding=kernel // 2)
    conv.load_state_dict(layer.state_dict())
    for result, expected in zip(plain_outputs_and_gradients(layer, x), outputs_and_gradients(conv, x), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("techniques", [Techniques(), plain()], ids=["fast", "plain"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_sum_and_rectifier_are_those_of_separate_steps(kernel, stride, techniques):
    layer, x = large_layer(kernel)
    layer.stride = (stride, stride)
    add = random_tensor(*layer(x).shape, seed=3).requires_grad_()
    before = add.detach().clone()
    with using(techniques):
        y = layer(x, add=add, relu=True)
    expected = torch.relu(F.conv2d(x, layer.weight, layer.bias, stride, kernel // 2) + add)
    grad = random_tensor(*y.shape, seed=4)
    wanted = (add, *layer.parameters())
    results = torch.autograd.grad(y, wanted, grad)
    torch.testing.assert_close(y, expected)
    for result, expected_grad in zip(results, torch.autograd.grad(expected, wanted, grad), strict=True):
        torch.testing.assert_close(result, expected_grad)
    assert torch.equal(add.detach(), before)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_winograd_passes_the_gradient_check(with_bias, relu):
    x, weight = random_tensor(2, 2, 5, 6).requires_grad_(), random_tensor(3, 2, 3, 3, seed=1).requires_grad_()
    bias = random_tensor(3, seed=2).requires_grad_() if with_bias else None
    assert torch.autograd.gradcheck(lambda *given: Winograd.apply(*given, relu), (x, weight, bias))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_pointwise_passes_the_gradient_check(with_bias, with_add, relu):
    x, weight = random_tensor(2, 2, 3, 4).requires_grad_(), random_tensor(3, 2, 1, 1, seed=1).requires_grad_()
    bias = random_tensor(3, seed=2).requires_grad_() if with_bias else None
    add = random_tensor(2, 3, 3, 4, seed=3).requires_grad_() if with_add else None
    assert torch.autograd.gradcheck(lambda *given: Pointwise.apply(*given, relu), (x, weight, bias, add))


@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (0, 3, 2, 5, 4), (3, 2, 1, 1, 7), (2, 1, 5, 6, 5)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_odd_sizes_are_those_of_the_plain_convolution(kernel, size):
    images, inputs, outputs, height, width = size
    x, weight = random_tensor(images, inputs, height, width), random_tensor(outputs, inputs, kernel, kernel, seed=1)
    bias = random_tensor(outputs, seed=2)
    y = Pointwise.apply(x, weight, bias, None, False) if kernel == 1 else Winograd.apply(x, weight, bias, False)
    torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=kernel // 2), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("frozen", "given"), [("weight", (True, False)), ("input", (False, True))])
def test_nothing_is_computed_for_what_has_no_gradient(monkeypatch, frozen, given):
    layer, x = large_layer(kernel=3)
    asked = []
    original = winograd.convolve_backward

    def watched(grad, pixels, weight, grad_x, grad_weight):
        asked.append((grad_x is not None, grad_weight is not None))
        original(grad, pixels, weight, grad_x, grad_weight)

    monkeypatch.setattr(winograd, "convolve_backward", watched)
    layer.weight.requires_grad_(frozen != "weight")
    x.requires_grad_(frozen != "input")
    layer(x).sum().backward()
    assert asked == [given]
    assert (x.grad is not None, layer.weight.grad is not None) == given
    torch.testing.assert_close(layer.bias.grad, torch.full((128,), 2 * 33 * 32.0, dtype=torch.float64))


@pytest.mark.parametrize("kernel", [1, 3])
def test_pointwise_and_winograd_keep_only_input_and_weight(kernel):
    layer, x = large_layer(kernel)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda packed: packed):
        layer(x.requires_grad_())
    assert sorted(kept) == sorted([x.data_ptr(), layer.weight.data_ptr()])
    with torch.no_grad():
        assert layer(x).grad_fn is None


def test_gradient_that_is_not_channels_last_is_understood():
    layer, x = large_layer(kernel=3)
    x.requires_grad_()
    grad = random_tensor(2, 128, 33, 32, seed=5)
    assert not grad.is_contiguous(memory_format=torch.channels_last)
    result = torch.autograd.grad(layer(x), x, grad)[0]
    with using(plain()):
        torch.testing.assert_close(result, torch.autograd.grad(layer(x), x, grad)[0])


def test_output_may_be_changed_in_place():
    layer, x = large_layer(kernel=3)
    twin, y = copy.deepcopy(layer), torch.relu_(layer(x))
    with using(plain()):
        expected = torch.relu(twin(x))
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)


def test_training_works_after_the_first_call_was_in_inference_mode(monkeypatch):
    layer, x = large_layer(kernel=3)
    monkeypatch.setattr(winograd, "SCRATCH", winograd.Scratch())
    winograd.transforms.cache_clear()
    with torch.inference_mode():
        expected = layer(x).clone()
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, expected)
    assert layer.weight.grad.abs().max() > 0


def test_state_dict_is_that_of_the_plain_layer():
    layer, plain = Convolution(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
    assert {name: value.shape for name, value in layer.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    assert isinstance(layer, nn.Conv2d)


@pytest.mark.parametrize(
    "changes",
    [{"stride": 2}, {"groups": 2}, {"dilation": 2, "padding": 2}, {"padding": 0}, {"padding_mode": "reflect"}],
)
def test_other_kinds_of_convolutions_are_left_to_torch(changes):
    torch.manual_seed(0)
    settings = {"padding": 1, **changes}
    layer, plain = Convolution(128, 128, 3, **settings), nn.Conv2d(128, 128, 3, **settings)
    plain.load_state_dict(layer.state_dict())
    x = random_tensor(1, 128, 33, 32, dtype=torch.float32)
    assert torch.equal(layer(x), plain(x))


def test_meta_device_gives_a_shape():
    layer = Convolution(128, 160, 3, padding=1, device="meta")
    assert layer(torch.empty(2, 128, 33, 32, device="meta")).shape == (2, 160, 33, 32)


@pytest.mark.parametrize(
    ("images", "channels", "height", "width", "expected"),
    [
        (2, 256, 200, 336, True),
        (2, 512, 25, 42, True),
        (64, 256, 14, 14, True),
        (2, 256, 13, 21, False),  # too few tiles for the transform of the filters
        (2, 64, 200, 336, False),  # too few channels for the transforms of the maps
        (64, 256, 5, 5, False),  # most of the tiles lies outside the map
        (0, 256, 14, 14, False),
    ],
)
def test_rule_for_winograd_on_shapes_that_were_measured(images, channels, height, width, expected):
    x, weight = torch.empty(images, channels, height, width), torch.empty(channels, channels, 3, 3)
    assert winograd_pays(x, weight) is expected
    assert not winograd_pays(x, torch.empty(channels, channels, 1, 1))


def test_rule_for_matrix_products_counts_pixels():
    assert pointwise_pays(torch.empty(2, 8, 32, 32), torch.empty(4, 8, 1, 1))
    assert not pointwise_pays(torch.empty(2, 8, 31, 32), torch.empty(4, 8, 1, 1))
    assert not pointwise_pays(torch.empty(2, 8, 32, 32), torch.empty(4, 8, 3, 3))


def test_rules_choose_the_path(monkeypatch):
    taken = []
    for name in ("Winograd", "Pointwise"):
        original = getattr(convolution, name).apply
        monkeypatch.setattr(
            getattr(convolution, name),
            "apply",
            lambda *given, _name=name, _call=original: taken.append(_name) or _call(*given),
        )
    for kernel in (1, 3):
        layer, x = large_layer(kernel)
        layer(x)
        layer(x[:, :, :4, :4])  # too small
        with using(plain()):
            layer(x)
    assert taken == ["Pointwise", "Winograd"]
