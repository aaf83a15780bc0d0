import pytest
import torch
from kernel_device import DEVICE, seeded, stored_as

from maskperf.ops import products as plain_products
from maskperf.ops.kernels import products
from maskperf.ops.kernels.products import BLOCK_SIZE, SUMS_AT_A_TIME, WeightCasts, add_rectified
from maskperf.ops.products import PlainCasts
from maskperf.techniques import plain, using

BFLOAT16 = torch.bfloat16


def both_casts() -> tuple[PlainCasts, WeightCasts]:
    """Return casts of parameters of less than one block, of a block exactly, of several, and one channels-last."""
    factors = [None, torch.linspace(0.5, 2.0, 32, device=DEVICE), None, torch.linspace(-1.0, 3.0, 17, device=DEVICE)]
    sides = []
    for make_casts in (PlainCasts, WeightCasts):
        generator = seeded(0)
        shapes = [(5,), (32, BLOCK_SIZE // 32), (7, 24, 17), (17, 24, 3, 3)]
        made = [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]
        made[-1] = made[-1].to(memory_format=torch.channels_last)
        sides.append(make_casts([torch.nn.Parameter(value) for value in made], factors, BFLOAT16))
    return tuple(sides)


def test_casts_are_those_of_the_plain_way_and_follow_the_parameters():
    _, casts = both_casts()
    for _ in range(2):
        for found, parameter, factors in zip(casts(), casts.parameters, casts._factors, strict=True):
            scale = 1.0 if factors is None else factors.view(-1, *[1] * (parameter.ndim - 1))
            assert torch.equal(found, stored_as(BFLOAT16, parameter.detach() * scale))
            assert found.dtype == BFLOAT16 and found.stride() == parameter.stride() and found.data_ptr() % 16 == 0
            with torch.no_grad():
                parameter.mul_(1.5)


@pytest.mark.parametrize("times", [1, 2])
def test_gradients_are_added_in_float32_with_their_factors(times):
    plain_casts, casts = both_casts()
    for _ in range(times):
        for side in (plain_casts, casts):
            generator = seeded(times)
            loss = 0.0
            for cast in side():
                slope = torch.randn(cast.shape, generator=generator).to(DEVICE, BFLOAT16)
                loss = loss + (cast * slope).float().sum()
            loss.backward()
    for found, wanted in zip(casts.parameters, plain_casts.parameters, strict=True):
        assert found.grad.dtype == torch.float32
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-6, atol=1e-6)


def test_a_missing_gradient_adds_zeros_and_the_callback_comes_afterwards():
    _, casts = both_casts()
    first, second, *_ = casts.parameters
    first.grad = torch.full_like(first, 2.0)
    reported = []
    casts.after_gradients = lambda: reported.append([parameter.grad.clone() for parameter in casts.parameters])
    (casts()[1].float().sum() * 3).backward()
    ((of_first, of_second, of_third, _),) = reported
    assert torch.equal(of_first, torch.full_like(first, 2.0))
    torch.testing.assert_close(of_second, (3 * casts._factors[1])[:, None].expand_as(second))
    assert not of_third.any()


def test_a_gradient_in_another_order_is_put_into_the_parameters():
    _, casts = both_casts()
    *_, cast = casts()
    slope = torch.randn(cast.shape, generator=seeded(1)).to(DEVICE, BFLOAT16)
    torch.autograd.backward(cast, slope.contiguous())
    factors = casts._factors[3].view(-1, 1, 1, 1)
    torch.testing.assert_close(casts.parameters[3].grad, slope.float() * factors, rtol=1e-6, atol=1e-6)


def test_gradients_of_other_strides_are_refused():
    _, casts = both_casts()
    casts.parameters[3].grad = torch.zeros(casts.parameters[3].shape, device=DEVICE)
    with pytest.raises(ValueError, match="a gradient with strides"):
        casts()


@pytest.mark.parametrize(("rois", "pixels", "channels"), [(3, 100, 20), (1, 64, 16), (2, 1, 3), (0, 64, 16)])
def test_own_class_logits_and_gradients_are_those_of_the_plain_way(rois, pixels, channels):
    generator = seeded(0)
    maps = torch.randn(rois, pixels, channels, generator=generator).relu().to(DEVICE, BFLOAT16)
    weight = torch.randn(5, channels, generator=generator).to(DEVICE, BFLOAT16)
    bias = torch.randn(5, generator=generator).to(DEVICE)
    labels = torch.randint(0, 5, (rois,), generator=generator).to(DEVICE)
    gradient = torch.randn(rois, pixels, generator=generator).to(DEVICE)
    leaves = [tensor.clone().requires_grad_() for tensor in (maps, weight, bias)]
    with using(plain()):
        wanted = plain_products.own_class_logits(*leaves, labels)
    found = products.own_class_logits(maps, weight[labels], bias[labels])
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32
    of_maps, of_weight, _ = torch.autograd.grad(wanted, leaves, gradient)
    found_maps, found_weights = products.own_class_gradients(maps, weight[labels], gradient)
    torch.testing.assert_close(found_maps, of_maps, rtol=2**-7, atol=1e-6)  # bfloat16, cut off by the interpreter
    assert torch.equal(found_maps == 0, of_maps == 0)
    total = torch.zeros(5, channels, device=DEVICE).index_add(0, labels, found_weights)
    torch.testing.assert_close(total, of_weight.float(), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 16, SUMS_AT_A_TIME.value // 256, 9), (0, 4, 2, 2)])
def test_a_sum_of_gradients_is_zero_where_the_map_is_not_above_zero(shape, dtype):
    generator = seeded(0)
    first, second, x = (
        torch.randn(shape, generator=generator).to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    wanted = torch.where(x <= 0, 0.0, stored_as(dtype, first.float() + second.float()))
    found = add_rectified(first, second, x)
    assert torch.equal(found, wanted) and found.data_ptr() == first.data_ptr()


def test_gradients_pass_where_the_map_is_nan_as_in_pytorch():
    maps = torch.tensor([float("nan"), -0.0, 1.0], device=DEVICE).view(1, 3, 1, 1)
    ones = torch.ones_like(maps)
    wanted = torch.ops.aten.threshold_backward(ones * 2, maps, 0)
    assert torch.equal(add_rectified(ones.clone(), ones, maps), wanted)
