import pytest
import torch
from kernel_device import DEVICE

from maskperf.ops.kernels import own_class
from maskperf.ops.products import own_class_logits
from maskperf.techniques import plain, using


def case(rois: int, pixels: int, channels: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    rectified = torch.randn(rois, pixels, channels, generator=generator).relu().bfloat16()
    weight, bias = torch.randn(5, channels, generator=generator).bfloat16(), torch.randn(5, generator=generator)
    labels = torch.randint(0, 5, (rois,), generator=generator)
    gradient = torch.randn(rois, pixels, generator=generator)
    return tuple(tensor.to(DEVICE) for tensor in (rectified, weight, bias, labels, gradient))


@pytest.mark.parametrize(("rois", "pixels", "channels"), [(3, 100, 20), (1, 64, 16), (2, 1, 3), (0, 64, 16)])
def test_both_directions_are_those_of_the_plain_way(rois, pixels, channels):
    rectified, weight, bias, labels, gradient = case(rois, pixels, channels)
    leaves = [tensor.requires_grad_() for tensor in (rectified, weight, bias)]
    with using(plain()):
        wanted = own_class_logits(*leaves, labels)
    found = own_class.logits(rectified.detach(), weight[labels].detach(), bias[labels].detach())
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32
    of_maps, of_weight, _ = torch.autograd.grad(wanted, leaves, gradient)
    found_maps, found_weights = own_class.gradients(rectified.detach(), weight[labels].detach(), gradient)
    torch.testing.assert_close(found_maps, of_maps, rtol=2**-7, atol=1e-6)  # bfloat16, cut off by the interpreter
    assert torch.equal(found_maps == 0, of_maps == 0)
    total = torch.zeros(5, channels, device=DEVICE).index_add(0, labels, found_weights)
    torch.testing.assert_close(total, of_weight.float(), rtol=2**-7, atol=2**-7)
