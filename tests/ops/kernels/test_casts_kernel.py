import pytest
import torch
from kernel_device import DEVICE, stored_as

from maskperf.ops.kernels.casts import NUMBERS_AT_A_TIME, WeightCasts
from maskperf.ops.products import PlainCasts

BFLOAT16 = torch.bfloat16


def parameters(seed: int) -> list[torch.nn.Parameter]:
    """Return parameters of less than one block, of a block exactly, of several, and one channels-last."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5,), (32, NUMBERS_AT_A_TIME // 32), (7, 24, 17), (17, 24, 3, 3)]
    made = [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]
    made[-1] = made[-1].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(value) for value in made]


def both(seed: int = 0) -> tuple[PlainCasts, WeightCasts]:
    factors = [None, torch.linspace(0.5, 2.0, 32, device=DEVICE), None, torch.linspace(-1.0, 3.0, 17, device=DEVICE)]
    return PlainCasts(parameters(seed), factors, BFLOAT16), WeightCasts(parameters(seed), factors, BFLOAT16)


def exact(casts: PlainCasts) -> list[torch.Tensor]:
    """Return the casts as the device of this test stores them."""
    factors = [
        1.0 if scale is None else scale.view(-1, *[1] * (value.ndim - 1))
        for value, scale in zip(casts.parameters, casts._factors, strict=True)
    ]
    return [
        stored_as(BFLOAT16, value.detach() * factor) for value, factor in zip(casts.parameters, factors, strict=True)
    ]


def test_casts_are_those_of_the_plain_way_and_follow_the_parameters():
    plain, casts = both()
    for _ in range(2):
        found = casts()
        for one, wanted, parameter in zip(found, exact(plain), casts.parameters, strict=True):
            assert one.dtype == BFLOAT16 and one.stride() == parameter.stride()
            assert torch.equal(one, wanted)
            assert one.data_ptr() % 16 == 0
        with torch.no_grad():
            for side in (plain, casts):
                for parameter in side.parameters:
                    parameter.mul_(1.5)


@pytest.mark.parametrize("times", [1, 2])
def test_gradients_are_added_in_float32_with_their_factors(times):
    plain, casts = both()
    for _ in range(times):
        for side in (plain, casts):
            generator = torch.Generator().manual_seed(times)
            loss = 0.0
            for cast in side():
                slope = torch.randn(cast.shape, generator=generator).to(DEVICE, BFLOAT16)
                loss = loss + (cast * slope).float().sum()
            loss.backward()
    for one, wanted in zip(casts.parameters, plain.parameters, strict=True):
        assert one.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad, wanted.grad, rtol=1e-6, atol=1e-6)


def test_what_has_no_gradient_adds_zeros_and_whoever_waits_is_told_afterwards():
    _, casts = both()
    casts.parameters[0].grad = torch.full_like(casts.parameters[0], 2.0)
    told = []
    casts.after_gradients = lambda: told.append([parameter.grad.clone() for parameter in casts.parameters])
    first, second, *_ = casts()
    (second.float().sum() * 3).backward()
    assert len(told) == 1
    assert torch.equal(told[0][0], torch.full_like(first, 2.0, dtype=torch.float32))
    torch.testing.assert_close(told[0][1][3], torch.full_like(told[0][1][3], 3 * casts._factors[1][3].item()))
    assert torch.equal(told[0][2], torch.zeros_like(told[0][2]))


def test_a_gradient_in_another_order_is_put_into_the_parameters():
    _, casts = both()
    *_, cast = casts()
    slope = torch.randn(cast.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, BFLOAT16)
    torch.autograd.backward(cast, slope.contiguous())
    factors = casts._factors[3].view(-1, 1, 1, 1)
    torch.testing.assert_close(casts.parameters[3].grad, slope.float() * factors, rtol=1e-6, atol=1e-6)


def test_gradients_of_other_strides_are_refused():
    _, casts = both()
    casts.parameters[3].grad = torch.zeros(casts.parameters[3].shape, device=DEVICE)
    with pytest.raises(ValueError, match="a gradient with strides"):
        casts()
