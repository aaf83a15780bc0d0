import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskperf.ops import convolution, winograd
from maskperf.ops.convolution import (
    FUSED,
    POINTWISE,
    WINOGRAD,
    Convolution,
    FastConvolution,
    Filters,
    describe,
    fused_convolution,
    pointwise_pays,
    residual_block,
    winograd_pays,
)
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


def outputs_and_gradients(layer, x):
    x = x.detach().requires_grad_()
    y = layer(x)
    grad = random_tensor(*y.shape, seed=7, dtype=y.dtype)  # not channels-last
    grads = torch.autograd.grad(y, (x, *layer.parameters()), grad)
    return [y.detach(), *grads]


def fast_convolution(x, weight, bias=None, add=None, relu=False):
    way = POINTWISE if weight.shape[2] == 1 else WINOGRAD
    return FastConvolution.apply(way, x, weight, bias, add, 1, relu, False)


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
@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_fast_ways_pass_the_gradient_check(kernel, with_bias, with_add, relu):
    x = random_tensor(2, 2, 3, 5).requires_grad_()
    weight = random_tensor(3, 2, kernel, kernel, seed=1).requires_grad_()
    bias = random_tensor(3, seed=2).requires_grad_() if with_bias else None
    add = random_tensor(2, 3, 3, 5, seed=3).requires_grad_() if with_add else None
    assert torch.autograd.gradcheck(lambda *given: fast_convolution(*given, relu), (x, weight, bias, add))


@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (0, 3, 2, 5, 4), (3, 2, 1, 1, 7), (2, 1, 5, 6, 5)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_odd_sizes_are_those_of_the_plain_convolution(kernel, size):
    images, inputs, outputs, height, width = size
    x, weight = random_tensor(images, inputs, height, width), random_tensor(outputs, inputs, kernel, kernel, seed=1)
    bias = random_tensor(outputs, seed=2)
    expected = F.conv2d(x, weight, bias, padding=kernel // 2)
    torch.testing.assert_close(fast_convolution(x, weight, bias), expected, rtol=1e-11, atol=1e-11)


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


def test_rules_choose_the_way(monkeypatch):
    taken = []

    def result_of(way, name):
        def watched(*arguments):
            taken.append(name)
            return way.result(*arguments)

        return way._replace(result=watched)

    monkeypatch.setattr(convolution, "WINOGRAD", result_of(WINOGRAD, "Winograd"))
    monkeypatch.setattr(convolution, "POINTWISE", result_of(POINTWISE, "pointwise"))
    for kernel in (1, 3):
        layer, x = large_layer(kernel)
        layer(x)
        layer(x[:, :, :4, :4])  # too small
        with using(plain()):
            layer(x)
    assert taken == ["pointwise", "Winograd"]


def filters(inputs, outputs, kernel, seed=0) -> Filters:
    weight = random_tensor(outputs, inputs, kernel, kernel, seed=seed).contiguous(memory_format=torch.channels_last)
    return Filters(weight.requires_grad_(), random_tensor(outputs, seed=seed + 1))


def block_of(inputs=8, seed=0):
    shapes = ((inputs, 4, 1), (4, 4, 3), (4, 8, 1))
    return tuple(filters(*shape, seed=seed + 2 * number) for number, shape in enumerate(shapes))


def plain_block(x, convolutions, shortcut, stride):
    first, second, third = convolutions
    y = torch.relu(F.conv2d(x, *first, stride))
    y = torch.relu(F.conv2d(y, *second, 1, 1))
    passed = x if shortcut is None else F.conv2d(x, *shortcut, stride)
    return torch.relu(F.conv2d(y, *third) + passed)


def assert_same_gradients(found, expected, leaves):
    slope = random_tensor(*expected.shape, seed=99)
    both = (torch.autograd.grad(result, leaves, slope) for result in (found, expected))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)


def test_a_run_is_told_whether_convolutions_are_fused_and_why_not(monkeypatch):
    assert describe(torch.device("cpu")).endswith(
        "in passes of their own; cuDNN cannot join them here: the device is cpu"
    )
    monkeypatch.setattr(convolution, "missing_fusion", lambda device: "")
    assert describe(torch.device("cpu")) == "convolutions: with bias, sum and ReLU in one cuDNN call"


@pytest.mark.parametrize(("inputs", "outputs", "is_fused"), [(8, 16, True), (8, 12, False), (3, 16, False)])
def test_only_channels_in_eights_are_fused(monkeypatch, inputs, outputs, is_fused):
    asked = []

    def fused(x, weight, bias, *settings):
        asked.append(settings)
        return x

    monkeypatch.setattr(convolution, "missing_fusion", lambda device: "")
    monkeypatch.setattr(torch, "cudnn_convolution_relu", fused)
    fused_convolution(torch.ones(1, inputs, 5, 5), torch.ones(outputs, inputs, 3, 3), torch.zeros(outputs), stride=2)
    assert asked == ([([2, 2], [1, 1], (1, 1), 1)] if is_fused else [])


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_rectified_convolution_and_its_gradients(kernel):
    x, own = random_tensor(2, 5, 7, 6).requires_grad_(), filters(5, 4, kernel, seed=1)
    leaves = [x, own.weight, own.bias.requires_grad_()]
    wanted = torch.relu(F.conv2d(*leaves, padding=kernel // 2))
    found = FastConvolution.apply(FUSED, *leaves, None, 1, True, False)
    torch.testing.assert_close(found, wanted)
    assert_same_gradients(found, wanted, leaves)


@pytest.mark.parametrize("has_shortcut", [True, False])
@pytest.mark.parametrize("is_trained", [True, False])
def test_a_residual_block_and_its_gradients(has_shortcut, is_trained):
    """`is_trained`: what is before the block; its own weights are always."""
    stride, inputs = (2, 6) if has_shortcut else (1, 8)
    x = random_tensor(2, inputs, 8, 6).requires_grad_(is_trained)
    convolutions, shortcut = block_of(inputs, seed=1), filters(inputs, 8, 1, seed=20) if has_shortcut else None
    leaves = [part.weight for part in (*convolutions, *([shortcut] if shortcut else []))] + ([x] if is_trained else [])
    found = residual_block(x, convolutions, shortcut, stride=stride)
    wanted = plain_block(x, convolutions, shortcut, stride)
    torch.testing.assert_close(found, wanted)
    assert_same_gradients(found, wanted, leaves)


def test_blocks_in_a_row_hand_on_rectified_gradients():
    x, blocks = random_tensor(1, 8, 6, 6).requires_grad_(), [block_of(seed=10 * number) for number in (1, 2, 3)]
    found = wanted = x
    for number, block in enumerate(blocks):
        flags = {"rectifies_input_gradient": number > 0, "has_rectified_gradient": number < 2}
        found = residual_block(found, block, None, **flags)
        wanted = plain_block(wanted, block, None, 1)
    leaves = [x, *(part.weight for block in blocks for part in block)]
    assert_same_gradients(found, wanted, leaves)


def test_a_block_told_wrongly_that_gradients_are_rectified_is_noticed():
    """What the flag promises matters: without it the gradients differ."""
    x, block, slope = random_tensor(1, 8, 6, 6).requires_grad_(), block_of(seed=1), random_tensor(1, 8, 6, 6, seed=20)
    right, wrong = (
        torch.autograd.grad(residual_block(x, block, None, has_rectified_gradient=flag), x, slope)[0]
        for flag in (False, True)
    )
    assert not torch.allclose(right, wrong)
