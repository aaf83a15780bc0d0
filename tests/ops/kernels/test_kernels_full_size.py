"""The kernels at the size of the benchmark, on a GPU; the smaller tests say where a problem is."""

import pytest
import torch
from refused_waits import refused_waits

from maskperf.bench.gpu_kernels import FAMILIES, Inputs, gpu_kernel_rows
from maskperf.bench.plan import GpuPlan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]


COUNTS = {"roi_align": 8, "matching": 2, "patches": 4, "casts": 2, "own_class": 2, "residual": 2}
COUNTS |= dict.fromkeys(("ranking", "nms", "rasterize", "sampling"), 1)
EXACT = ("ranking", "NMS", "mask targets", "matching of anchors", "matching of RoIs", "samples")


@pytest.mark.parametrize(("family", "count"), COUNTS.items())
def test_every_kernel_gives_what_its_twin_gives(family, count):
    pytest.importorskip("triton", reason="the Python package triton is not installed")
    rows = list(gpu_kernel_rows(family, torch.device("cuda"), GpuPlan(repeats=1, warm_up_calls=1)))
    assert len(rows) == count
    for row in rows:
        if row["name"] in EXACT:
            assert row["largest_difference"] == 0, row
        else:
            bits = 5 if "torch.bfloat16" in row["shape"] else 16  # the plain backward pass sums in bfloat16
            assert row["largest_difference"] <= row["largest_value"] * 2.0**-bits, row


def test_all_families_are_here_or_with_the_preprocessing():
    assert set(FAMILIES) == {*COUNTS, "pictures"}


def test_dispatch_and_kernels_never_wait_for_the_device():
    """One warm call compiles; the second may not synchronise."""
    pytest.importorskip("triton", reason="the Python package triton is not installed")
    device = torch.device("cuda")
    sizes = GpuPlan().kernels
    cases = [make_case(Inputs(device, sizes)) for name in COUNTS for make_case in FAMILIES[name]]
    for case in cases:
        case.kernel()
    torch.cuda.synchronize()
    with refused_waits():
        for case in cases:
            case.kernel()
