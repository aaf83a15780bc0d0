import pytest
import torch
from torch import nn

from maskperf.model.fpn import FeaturePyramid
from maskperf.techniques import Techniques, plain, using


def transparent_pyramid():
    """A pyramid of one channel whose convolutions change nothing: only the way the levels are joined is left."""
    pyramid = FeaturePyramid((1, 1, 1, 1), 1)
    for conv in pyramid.children():
        nn.init.zeros_(conv.weight)
        middle = conv.weight.shape[-1] // 2
        conv.weight.data[0, 0, middle, middle] = 1.0
    return pyramid


def one_channel(rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]


def test_top_down_path_doubles_the_nearest_pixel_and_adds():
    c5 = one_channel([[1, -2]])
    c4 = one_channel([[10, 20, 30, 40], [-50, 60, 70, 80]])
    c3, c2 = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 8, 16)
    c2[0, 0, 0, 0] = 1000
    p2, p3, p4, p5, _ = transparent_pyramid()([c2, c3, c4, c5])
    assert torch.equal(p5, c5)
    assert p4[0, 0].tolist() == [[11, 21, 28, 38], [-49, 61, 68, 78]]  # no activation: values below 0 stay
    row_0, row_1 = [11, 11, 21, 21, 28, 28, 38, 38], [-49, -49, 61, 61, 68, 68, 78, 78]
    assert p3[0, 0].tolist() == [row_0, row_0, row_1, row_1]
    assert p2[0, 0, 0, :6].tolist() == [1011, 11, 11, 11, 21, 21]
    assert torch.equal(p2[0, 0, 4:, :], p3[0, 0, 2:, :].repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize(
    ("size_hw", "expected"), [((4, 6), (2, 3)), ((5, 7), (3, 4)), ((1, 1), (1, 1)), ((1, 2), (1, 1))]
)
def test_p6_is_every_second_pixel_of_p5_and_odd_sizes_round_up(size_hw, expected):
    height, width = size_hw
    stages = [torch.randn(1, 1, height * 2**k, width * 2**k) for k in (3, 2, 1, 0)]
    outputs = transparent_pyramid()(stages)
    assert tuple(outputs[4].shape[2:]) == expected
    assert torch.equal(outputs[4], outputs[3][:, :, ::2, ::2])


def test_fast_convolutions_give_the_numbers_and_gradients_of_the_plain_ones():
    torch.manual_seed(0)
    pyramid = FeaturePyramid((4, 6, 8, 10), 128).double()
    stages = [torch.randn(1, 4 + 2 * k, 8 * 2 ** (3 - k), 8 * 2 ** (3 - k), dtype=torch.float64) for k in range(4)]
    stages = [stage.requires_grad_() for stage in stages]
    results = []
    for techniques in (Techniques(), plain()):
        with using(techniques):
            outputs = pyramid(stages)
        wanted = [*stages, *pyramid.parameters()]
        results.append([*outputs, *torch.autograd.grad(sum(level.square().mean() for level in outputs), wanted)])
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
