import pytest
import torch
from torch import nn

from maskperf.ops import fused_convolution
from maskperf.ops.fused_convolution import (
    Filters,
    RectifiedConvolution,
    describe,
    missing_fusion,
    rectified_convolution,
    residual_block,
)


def filters(generator, inputs, outputs, kernel) -> Filters:
    weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((outputs, inputs, kernel, kernel), outputs)
    )
    return Filters(weight.contiguous(memory_format=torch.channels_last).requires_grad_(), bias)


def plain_block(x, convolutions, shortcut, stride):
    first, second, third = convolutions
    y = torch.relu(nn.functional.conv2d(x, *first, stride))
    y = torch.relu(nn.functional.conv2d(y, *second, 1, 1))
    passed = x if shortcut is None else nn.functional.conv2d(x, *shortcut, stride)
    return torch.relu(nn.functional.conv2d(y, *third) + passed)


def test_a_processor_has_no_fusion_and_says_so():
    assert missing_fusion(torch.device("cpu")) == "the device is cpu"


def test_what_is_joined_is_said_and_why_not(monkeypatch):
    assert "in passes of their own" in describe(torch.device("cpu")) and "the device is cpu" in describe(
        torch.device("cpu")
    )
    monkeypatch.setattr(fused_convolution, "missing_fusion", lambda device: "")
    assert describe(torch.device("cpu")) == "convolutions: with bias, sum and ReLU in one cuDNN call"


@pytest.mark.parametrize(("inputs", "outputs", "is_joined"), [(8, 16, True), (8, 12, False), (3, 16, False)])
def test_only_channels_in_eights_are_joined(monkeypatch, inputs, outputs, is_joined):
    asked = []

    def joined(x, weight, bias, *settings):
        asked.append(settings)
        return x

    monkeypatch.setattr(fused_convolution, "missing_fusion", lambda device: "")
    monkeypatch.setattr(torch, "cudnn_convolution_relu", joined)
    filters_of_ones = Filters(torch.ones(outputs, inputs, 3, 3), torch.zeros(outputs))
    rectified_convolution(torch.ones(1, inputs, 5, 5), filters_of_ones, stride=2)
    assert asked == ([([2, 2], [1, 1], (1, 1), 1)] if is_joined else [])


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_rectified_convolution_and_its_gradients(kernel):
    generator = torch.Generator().manual_seed(kernel)
    x = torch.randn(2, 5, 7, 6, generator=generator, dtype=torch.float64).requires_grad_()
    own = filters(generator, 5, 4, kernel)
    leaves = [x, own.weight, own.bias.requires_grad_()]
    wanted = torch.relu(nn.functional.conv2d(*leaves, padding=kernel // 2))
    found = RectifiedConvolution.apply(*leaves)
    torch.testing.assert_close(found, wanted)
    slope = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, leaves, slope), torch.autograd.grad(wanted, leaves, slope), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("has_shortcut", [True, False])
@pytest.mark.parametrize("is_trained", [True, False])
def test_a_residual_block_and_its_gradients(has_shortcut, is_trained):
    """`is_trained`: what is before the block; its own weights are always."""
    generator = torch.Generator().manual_seed(0)
    stride, inputs = (2, 6) if has_shortcut else (1, 8)
    x = torch.randn(2, inputs, 8, 6, generator=generator, dtype=torch.float64).requires_grad_(is_trained)
    shapes = ((inputs, 4, 1), (4, 4, 3), (4, 8, 1))
    convolutions = tuple(filters(generator, *shape) for shape in shapes)
    shortcut = filters(generator, inputs, 8, 1) if has_shortcut else None
    leaves = [part.weight for part in (*convolutions, *([shortcut] if shortcut else []))] + ([x] if is_trained else [])
    found = residual_block(x, convolutions, shortcut, stride=stride)
    wanted = plain_block(x, convolutions, shortcut, stride)
    torch.testing.assert_close(found, wanted)
    slope = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, leaves, slope), torch.autograd.grad(wanted, leaves, slope), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_blocks_in_a_row_hand_on_rectified_gradients():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 6, 6, generator=generator, dtype=torch.float64).requires_grad_()
    blocks = [tuple(filters(generator, *shape) for shape in ((8, 4, 1), (4, 4, 3), (4, 8, 1))) for _ in range(3)]
    found = wanted = x
    for number, block in enumerate(blocks):
        flags = {"rectifies_input_gradient": number > 0, "has_rectified_gradient": number < 2}
        found = residual_block(found, block, None, **flags)
        wanted = plain_block(wanted, block, None, 1)
    slope = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    leaves = [x, *(part.weight for block in blocks for part in block)]
    for one, other in zip(
        torch.autograd.grad(found, leaves, slope), torch.autograd.grad(wanted, leaves, slope), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_block_told_wrongly_that_gradients_are_rectified_is_noticed():
    """What the two flags promise matters: without it the gradients differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 6, 6, generator=generator, dtype=torch.float64).requires_grad_()
    block = tuple(filters(generator, *shape) for shape in ((8, 4, 1), (4, 4, 3), (4, 8, 1)))
    slope = torch.randn(1, 8, 6, 6, generator=generator, dtype=torch.float64)
    right, wrong = (
        torch.autograd.grad(residual_block(x, block, None, has_rectified_gradient=flag), x, slope)[0]
        for flag in (False, True)
    )
    assert not torch.allclose(right, wrong)
