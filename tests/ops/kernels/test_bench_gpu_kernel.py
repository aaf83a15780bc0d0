import pytest
import torch
from kernel_device import DEVICE

from maskperf.bench.gpu_kernels import FAMILIES, Inputs, measure_case
from maskperf.bench.plan import GpuPlan, KernelSizes

ONE = {"images": 1, "box_rois": 1, "mask_rois": 1}
SIZES = KernelSizes(**ONE, size_hw=(40, 64), channels=3, candidates=10, objects=2, sampled_anchors=5)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], dict]:
    """Return the rows of all kernels; RoIs of 14 x 14 go the same way as those of 7 x 7, but are slow here."""
    device = torch.device(DEVICE)
    plan = GpuPlan(device=DEVICE, kernels=SIZES, repeats=1, warm_up_calls=1)
    cases = [make_case(Inputs(device, SIZES)) for makers in FAMILIES.values() for make_case in makers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskperf.bench.device_clock.CALLS", 1)
        measured = [measure_case(case, device, plan) for case in cases if "14 x 14" not in case.shape]
    return {(row["name"], row["shape"]): row for row in measured}


def test_every_kernel_is_measured_against_its_twin(rows):
    names = {name for name, _ in rows}
    assert names == {
        *("RoIAlign forward", "RoIAlign backward", "NMS", "mask targets", "pictures to input"),
        *("matching of anchors", "matching of RoIs", "patches forward", "patches backward", "samples", "ranking"),
        *("weight casts forward", "weight casts backward", "mask logits forward", "mask logits backward"),
        "sum of gradients",
    }
    assert sum("bfloat16" in shape for _, shape in rows) == 10


def test_times_are_measured_and_results_are_equal(rows):
    for (name, shape), row in rows.items():
        assert row["kernel_milliseconds"].minimum > 0 and row["plain_milliseconds"].minimum > 0
        expected = row["plain_milliseconds"].median / row["kernel_milliseconds"].median
        assert row["plain_over_kernel"].median == pytest.approx(expected)
        assert row["largest_value"] > 0
        bits = 5 if "torch.bfloat16" in shape else 20  # the plain backward pass sums in bfloat16
        assert row["largest_difference"] <= row["largest_value"] * 2.0**-bits, name
