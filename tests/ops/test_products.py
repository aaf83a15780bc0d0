import pytest
import torch
import torch.nn.functional as F

from maskperf.ops.products import float32_linear, linear_relu, own_class_logits

BFLOAT16 = torch.bfloat16


def leaves_of(generator, *shapes):
    """Return tensors of bfloat16 numbers, and the same numbers in float64."""
    made = [torch.randn(shape, generator=generator).to(BFLOAT16) for shape in shapes]
    return [value.clone().requires_grad_() for value in made], [value.double().requires_grad_() for value in made]


def assert_near(found, wanted, bits=7):
    """Each result is rounded to bfloat16 a few times, so it is as far as that from the largest."""
    for one, other in zip(found, wanted, strict=True):
        assert (one.double() - other).abs().max() <= other.abs().max() * 2.0**-bits


def assert_near_gradients(found, wanted, low, high, bias, slope):
    gradients = torch.autograd.grad(wanted, [*high, bias], slope.double())
    assert_near(torch.autograd.grad(found, [*low, bias], slope), gradients)


def test_a_linear_layer_with_its_rectifier():
    generator = torch.Generator().manual_seed(0)
    low, high = leaves_of(generator, (50, 12), (9, 12), (9,))
    found, wanted = linear_relu(*low), torch.relu(F.linear(*high))
    assert found.dtype == BFLOAT16 and (found > 0).float().mean() == pytest.approx(0.5, abs=0.2)
    slope = torch.randn(50, 9, generator=generator).to(BFLOAT16)
    assert_near([found], [wanted])
    gradients = torch.autograd.grad(found, low, slope, retain_graph=True)
    assert_near(gradients, torch.autograd.grad(wanted, high, slope.double()))
    assert {gradient.dtype for gradient in gradients} == {BFLOAT16}
    again = linear_relu(*low, has_rectified_gradient=True)
    rectified = torch.autograd.grad(again, low, slope * (again > 0))
    assert all(torch.equal(one, other) for one, other in zip(rectified, gradients, strict=True))
    raw = torch.autograd.grad(linear_relu(*low, has_rectified_gradient=True), low, slope)
    assert not torch.equal(raw[0], gradients[0])


def test_a_product_with_a_float32_result_is_not_rounded():
    generator = torch.Generator().manual_seed(1)
    low, high = leaves_of(generator, (40, 30), (7, 30))
    bias = torch.randn(7, generator=generator).requires_grad_()
    found, wanted = float32_linear(*low, bias), F.linear(*high, bias.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found.bfloat16().float(), found)
    slope = torch.randn(40, 7, generator=generator)
    assert_near_gradients(found, wanted, low, high, bias, slope)


def test_the_logits_of_each_rois_own_class():
    generator = torch.Generator().manual_seed(2)
    labels = torch.tensor([3, 0, 3, 1, 2])
    low, high = leaves_of(generator, (5, 20, 8), (4, 8))
    bias = torch.randn(4, generator=generator).requires_grad_()
    with torch.no_grad():
        low[0].relu_()
        high[0].relu_()
    found = own_class_logits(*low, bias, labels)
    wanted = torch.einsum("rpc,rc->rp", torch.relu(high[0]), high[1][labels]) + bias.double()[labels, None]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    slope = torch.randn(5, 20, generator=generator)
    assert_near_gradients(found, wanted, low, high, bias, slope)
