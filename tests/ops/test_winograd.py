import pytest
import torch
import torch.nn.functional as F

from maskperf.ops import winograd

# Both sides of every edge: maps smaller than a tile, cut tiles, whole tiles, many chunks of rows, many of images.
SIZES = [
    (1, 1, 1, 1, 1),
    (1, 2, 3, 1, 9),
    (2, 3, 5, 7, 9),
    (2, 4, 4, 8, 12),
    (3, 1, 2, 5, 130),
    (1, 2, 1, 6, 1100),
    (1, 3, 2, 71, 66),
    (40, 2, 3, 14, 14),
    (0, 3, 4, 5, 5),
]


def problem(images, inputs, outputs, height, width, dtype=torch.float64):
    """Return pixels, a weight and a gradient of the output, the maps with channels last."""
    generator = torch.Generator().manual_seed(images + 10 * inputs + 100 * height + width)
    x = torch.randn(images, height, width, inputs, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator, dtype=torch.float64) / (9 * inputs) ** 0.5
    grad = torch.randn(images, height, width, outputs, generator=generator, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype), grad.to(dtype)


def plain(x, weight, grad):
    """Return output and gradients by torch, maps with channels last."""
    x, weight = x.permute(0, 3, 1, 2).requires_grad_(), weight.clone().requires_grad_()
    y = F.conv2d(x, weight, padding=1)
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad.permute(0, 3, 1, 2))
    return y.detach().permute(0, 2, 3, 1), grad_x.permute(0, 2, 3, 1), grad_weight


def by_winograd(x, weight, grad):
    """Return the same by Winograd's way, into memory that holds NaN before."""
    y, grad_x, grad_weight = (torch.full_like(like, torch.nan) for like in (grad, x, weight))
    winograd.convolve(x, weight, y)
    winograd.convolve_backward(grad, x, weight, grad_x, grad_weight)
    return y, grad_x, grad_weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_are_within_their_measured_bounds(dtype):
    """Largest error over largest number: measured 1.4e-6 to 3.2e-6 in float32 (12 to 27 units) on two kinds of CPU."""
    arguments = problem(2, 256, 256, 25, 42)
    results = by_winograd(*(tensor.to(dtype) for tensor in arguments))
    unit = torch.finfo(dtype).eps
    for result, expected in zip(results, plain(*arguments), strict=True):
        error = (result.double() - expected).abs().max() / expected.abs().max()
        assert error < 32 * unit
        assert dtype == torch.float64 or error > unit / 10  # the comparison sees rounding at all


def test_bias_and_rectifier_are_applied_to_every_output():
    x, weight, _ = problem(2, 3, 5, 9, 10)
    bias = torch.linspace(-1, 1, 5, dtype=torch.float64)
    y = torch.empty(2, 9, 10, 5, dtype=torch.float64)
    winograd.convolve(x, weight, y, bias=bias, relu=True)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).relu().permute(0, 2, 3, 1)
    assert 0.2 < (expected == 0).double().mean() < 0.8
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("wanted", [1, 2])
def test_one_gradient_is_computed_without_the_other(wanted):
    x, weight, grad = problem(2, 3, 5, 9, 10)
    result = torch.empty_like((grad, x, weight)[wanted])
    winograd.convolve_backward(grad, x, weight, *((result, None) if wanted == 1 else (None, result)))
    torch.testing.assert_close(result, plain(x, weight, grad)[wanted])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weights_may_lie_in_memory_either_way(memory_format):
    x, weight, grad = problem(1, 6, 4, 8, 9)
    results = by_winograd(x, weight.contiguous(memory_format=memory_format), grad)
    assert results[2].is_contiguous(memory_format=memory_format)
    for result, wanted in zip(results, plain(x, weight, grad), strict=True):
        torch.testing.assert_close(result, wanted)


def test_kept_memory_carries_nothing_from_one_call_to_the_next():
    small, large = problem(2, 3, 5, 7, 9), problem(1, 16, 8, 40, 50)
    first = by_winograd(*small)
    spoiled = [torch.full_like(tensor, torch.nan) for tensor in large]
    by_winograd(*spoiled)
    assert all(torch.equal(one, other) for one, other in zip(first, by_winograd(*small), strict=True))


def test_memory_for_what_lies_between_is_bounded_however_large_the_map(monkeypatch):
    taken = {}
    for height in (32, 320):
        scratch = winograd.Scratch()
        monkeypatch.setattr(winograd, "SCRATCH", scratch)
        by_winograd(*problem(1, 4, 4, height, 320, torch.float32))
        taken[height] = {name: buffer.numel() for (name, _), buffer in scratch.buffers.items()}
    assert taken[32] == taken[320]
    assert set(taken[320]) == {"block", "spread", "across", "patches", "tiles", "products", "filters", "sums"}


def sparse_problem(images, channels, height, width, places):
    """Return a problem whose gradient is zero but at the given places (image, row, column, channel)."""
    x, weight, grad = problem(images, channels, channels, height, width)
    kept = torch.zeros_like(grad)
    for place in places:
        kept[place] = grad[place]
    return x, weight, kept


# Wide maps that are cut into single rows, and narrow ones; corners, tile edges, the last cut tile, a far channel.
SPARSE_PROBLEMS = [
    (2, 20, 17, 70, [(0, 0, 0), (1, 16, 69), (0, 16, 0)]),
    (1, 3, 30, 81, [(0, 3, 4), (0, 4, 7), (0, 11, 80, 1), (0, 12, 40)]),
    (1, 20, 9, 80, [(0, 5, row, 19) for row in range(0, 80, 2)]),  # a channel that a glance does not see
    (3, 2, 14, 14, [(1, 7, 3), (2, 2, 13)]),  # narrow
    (2, 4, 20, 90, [(1,)]),  # one image alone
    (2, 3, 12, 70, []),
]


@pytest.mark.parametrize(
    ("make", "numbers"), [*((problem, size) for size in SIZES), *((sparse_problem, case) for case in SPARSE_PROBLEMS)]
)
def test_output_and_gradients_are_those_of_the_plain_convolution(make, numbers):
    arguments = make(*numbers)
    for result, expected in zip(by_winograd(*arguments), plain(*arguments), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)  # float64: about 1e-14 for each addend


def test_tiles_without_a_gradient_are_not_even_multiplied():
    x, weight, grad = sparse_problem(1, 4, 24, 96, [(0, slice(6, 10), slice(40, 50))])
    assert winograd.is_sparse(grad)
    expected = plain(x, weight, grad)[2]
    x[:, 16:] = x[:, :, 60:] = torch.nan  # rows and columns of dead tiles: any product with them would be seen
    grad_weight = torch.empty_like(weight)
    winograd.convolve_backward(grad, x, weight, None, grad_weight)
    torch.testing.assert_close(grad_weight, expected)


def test_a_gradient_that_is_not_a_number_is_never_left_out():
    x, weight, grad = sparse_problem(1, 2, 16, 80, [])
    grad[0, 9, 33, 1] = torch.nan
    _, grad_x, grad_weight = by_winograd(x, weight, grad)
    assert grad_x[0, 8:11, 32:35].isnan().all()
    assert grad_weight[1].isnan().all()


def test_live_columns_are_those_whose_patches_hold_something():
    block = torch.zeros(6, 1, 4 * 5 + 2, 20)
    assert winograd.live_columns(block).tolist() == []
    block[2, 0, 8, 19] = 1e-45  # column 8 of the padded block is in the patches 4 to 9 and 8 to 13
    assert winograd.live_columns(block).tolist() == [1, 2]
    block[5, 0, 3, 0] = -1
    assert winograd.live_columns(block).tolist() == [0, 1, 2]
    block[0, 0, :, 7] = 1
    assert winograd.live_columns(block) is None


def test_wide_maps_with_many_tiles_of_zeros_are_sparse():
    grad = torch.zeros(2, 40, 70, 3)
    assert winograd.is_sparse(grad)
    assert not winograd.is_sparse(grad[:, :, :60])  # narrow
    assert not winograd.is_sparse(grad[:0])
    grad[:, ::4, ::4, 1] = 1
    assert not winograd.is_sparse(grad)
    grad[0, :12] = 0
    assert winograd.is_sparse(grad)
