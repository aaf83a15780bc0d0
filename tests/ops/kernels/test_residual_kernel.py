import pytest
import torch
from kernel_device import DEVICE, stored_as

from maskperf.ops.kernels.residual import NUMBERS_AT_A_TIME, add_rectified


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 16, NUMBERS_AT_A_TIME // 256, 9), (0, 4, 2, 2)])
def test_the_sum_is_zero_where_the_map_is_not_above_zero(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    first, second, x = (
        torch.randn(shape, generator=generator).to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    wanted = torch.where(x <= 0, 0.0, stored_as(dtype, first.float() + second.float()))
    found = add_rectified(first, second, x)
    assert torch.equal(found, wanted) and found.data_ptr() == first.data_ptr()


def test_gradients_pass_where_the_map_is_not_a_number_as_in_pytorch():
    maps = torch.tensor([float("nan"), -0.0, 1.0], device=DEVICE).view(1, 3, 1, 1)
    ones = torch.ones_like(maps)
    wanted = torch.ops.aten.threshold_backward(ones * 2, maps, 0)
    assert torch.equal(add_rectified(ones.clone(), ones, maps), wanted)
