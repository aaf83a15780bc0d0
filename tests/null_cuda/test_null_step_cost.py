"""The bytes of a training step stay below a limit, and the way of counting them is right where it can be seen."""

import subprocess
import sys
from pathlib import Path

import pytest

MOST_GIGABYTES = 88  # 16 images of 800 x 1344, bfloat16, 45 objects an image: counted, not measured
COUNTING = """
import json, torch
from null_device import recording
from null_step_cost import Ledger, Operators
ledger = Ledger()
a, b = torch.zeros(2, 256, device="cuda"), torch.zeros(1, 256, device="cuda").expand(2, 256)
x, weight = torch.zeros(1, 4, 8, 8, device="cuda"), torch.zeros(2, 4, 1, 1, device="cuda")
with recording(), Operators(ledger):
    for part, work in {
        "sum": lambda: a + a, "expanded": lambda: a + b, "view": lambda: a.view(-1), "copy": lambda: a.copy_(b),
        "fill": lambda: a.fill_(1),
        "many": lambda: torch._foreach_add_([a], 1), "zeroed": lambda: torch._foreach_zero_([a]),
        "zeros": lambda: torch.zeros_like(a),
        "convolution": lambda: torch.conv2d(x, weight), "bias": lambda: torch.conv2d(x, weight, b[0, :2]),
    }.items():
        with ledger.inside(part):
            work()
print(json.dumps({part: [cost.bytes, cost.flop] for part, cost in ledger.costs.items()}))
"""


def test_operators_are_counted_by_the_rules(null_cuda):
    small, pixels, weight = 2 * 256 * 4, 4 * 64 * 4, 8 * 4
    result, flop = 2 * 64 * 4, 2 * 2 * 4 * 64
    assert null_cuda.told("-c", COUNTING) == {
        "sum": [3 * small, 0],
        "expanded": [2 * small + small // 2, 0],
        "copy": [small + small // 2, 0],
        "fill": [small, 0],
        "many": [2 * small, 0],
        "zeroed": [small, 0],
        "zeros": [small, 0],
        "convolution": [pixels + weight + result, flop],
        "bias": [pixels + weight + 2 * 4 + 3 * result, flop],
    }


@pytest.fixture(scope="module")
def costs(null_cuda) -> dict:
    return null_cuda.answer("null_step_cost.py", 16, 45)


def test_a_step_moves_few_bytes(costs):
    assert sum(cost["bytes"] for cost in costs.values()) < MOST_GIGABYTES * 1e9


def test_every_part_of_a_step_is_seen(costs, null_cuda):
    assert [part for part, cost in costs.items() if not cost["bytes"] or not cost["launches"]] == []
    replayed = null_cuda.answer("null_steps.py", 16, 45, "captured")
    launches = replayed["launches"] + sum(replayed["graph_nodes"])
    assert sum(cost["launches"] for cost in costs.values()) == pytest.approx(launches, abs=15)


def test_the_script_prints_a_table(null_cuda, monkeypatch):
    monkeypatch.setenv("MASKPERF_CUDA_PYTHON", null_cuda.python)
    monkeypatch.setenv("MASKPERF_NULL_CUDA_FOLDER", str(null_cuda.library.parents[1]))
    script = Path(__file__).with_name("step_cost.py")
    done = subprocess.run([sys.executable, script, "2", "8"], capture_output=True, text=True, check=True)
    assert "backward" in done.stdout and done.stdout.splitlines()[-1].startswith("all ")
