"""Every section of `maskperf bench gpu` runs to its end on the null CUDA; its times and differences mean nothing."""

import msgspec
import pytest

from maskperf.bench.gpu import SECTIONS
from maskperf.bench.plan import GpuPlan
from maskperf.bench.switches import waterfall

ROWS = {
    "device": 1,
    "kernel roi_align": 8,
    "kernel pictures": 2,
    "switches": len(waterfall("cuda")) - 1,  # without the last, all on
    "steps": 17,
    "peer": 8,
}
SLOW = ("kernel roi_align", "switches", "steps", "convolutions", "peer")


def section_rows(null_cuda, section: str, plan: GpuPlan) -> list[dict]:
    """Return the rows of a section, measured in a process of their own."""
    code = (
        "import json, sys, msgspec; from maskperf.bench.gpu import section_rows; "
        "from maskperf.bench.plan import GpuPlan; plan = msgspec.json.decode(sys.stdin.read(), type=GpuPlan); "
        f"print(json.dumps(list(section_rows({section!r}, plan))), flush=True); "
        "import os; os._exit(0)  # Trap: a thread of autograd that gives tensors back when Python ends aborts it"
    )
    return null_cuda.told("-c", code, text=msgspec.json.encode(plan).decode())


@pytest.mark.parametrize(
    "section", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SECTIONS]
)
def test_a_section_has_all_its_rows(null_cuda, section):
    peer = null_cuda.python if section == "peer" else ""
    if peer and null_cuda.run("-c", "import torchvision").returncode != 0:
        pytest.skip("no torchvision beside PyTorch")
    plan = GpuPlan(repeats=2, steps_at_a_time=1, peer_python=peer)
    rows = section_rows(null_cuda, section, plan)
    assert len(rows) == ROWS.get(section, len(rows)) and rows
    errors = [row["error"] for row in rows if "error" in row]
    # What torchvision allocates depends on numbers that it reads from the device: that it fails means nothing here.
    assert [error for error in errors if not error.startswith("torchvision failed")] == []
    if section == "switches":
        assert [row["captured"] for row in rows] == [False] * (len(rows) - 1) + [True]
    if section == "steps":
        assert all(row["captured"] == row["name"].endswith("captured") for row in rows)


def test_a_step_that_does_not_fit_is_a_row_that_says_so(null_cuda):
    code = """
        import json, torch
        from maskperf.bench.plan import GpuPlan
        from maskperf.bench.gpu_steps import step_rows
        plan = GpuPlan(repeats=1, steps_at_a_time=1, batch_sizes=(16,), usual_batch=2, canvases_hw=((800, 1344),))
        rows = list(step_rows(torch.device("cuda", 0), plan))
        print(json.dumps([row.get("error", "") for row in rows]))
    """
    errors = null_cuda.told("-c", "\n".join(line[8:] for line in code.splitlines()), memory_gib=4)
    assert len(errors) == 8
    assert all("out of memory" in error for error in errors[4:]) and not any(errors[:4])
