"""The process of one section: python -m maskperf.bench.gpu_section SECTION FILE, the plan as JSON on stdin.

A process of its own, because an illegal access in one kernel makes everything after it in the same process fail.
Every row is written when it is measured, so that what is done stays if the time runs out. Not yet run on a GPU.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec
import torch

from maskperf.bench.gpu_clock import milliseconds_of
from maskperf.bench.gpu_convolutions import convolution_rows
from maskperf.bench.gpu_kernels import FAMILIES, gpu_kernel_rows
from maskperf.bench.gpu_peer import peer_rows
from maskperf.bench.gpu_plan import GpuPlan, plan_from_json
from maskperf.bench.gpu_steps import step_rows, switch_rows
from maskperf.engine.build import best_convolutions
from maskperf.engine.distributed import claim_gpu
from maskperf.errors import EXIT_DONE, UserError
from maskperf.machine.probe import installed_version
from maskperf.ops.kernels.selection import describe

CEILING_SIDES = {"cuda": 8192, "cpu": 64}
CEILING_CALLS = 10
COPY_NUMBERS = {"cuda": 2**28, "cpu": 2**10}
PACKAGES = ("maskperf", "torch", "triton", "numpy")

Rows = Callable[[torch.device, GpuPlan], Iterator[object]]


def section_rows(section: str, device: torch.device, plan: GpuPlan) -> Iterator[dict]:
    """Return the rows of a section as they are measured, ready for JSON."""
    return map(_entry_of, SECTIONS[section](device, plan))


def _entry_of(row: object) -> dict:
    return row if isinstance(row, dict) else asdict(row)


def device_rows(device: torch.device, plan: GpuPlan) -> Iterator[dict]:
    """Return one row: the card, the versions, and the most it does in a matrix product and in a copy."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    yield {
        "name": properties.name if properties else str(device),
        "memory_gib": properties.total_memory / 2**30 if properties else None,
        "capability": list(torch.cuda.get_device_capability(device)) if properties else None,
        "multiprocessors": properties.multi_processor_count if properties else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "kernels": describe(device),
        "bfloat16_teraflop_per_second": _product_rate(device),
        "copy_gb_per_second": _copy_rate(device),
    }


def _product_rate(device: torch.device) -> float:
    side = CEILING_SIDES[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    milliseconds = [milliseconds_of(lambda: left @ right, device, CEILING_CALLS) for _ in range(3)]
    return 2 * side**3 / min(milliseconds) / 1e9


def _copy_rate(device: torch.device) -> float:
    """Return GB/s, what is read and what is written together."""
    source = torch.zeros(COPY_NUMBERS[device.type], device=device)
    target = torch.empty_like(source)
    milliseconds = [milliseconds_of(lambda: target.copy_(source), device, CEILING_CALLS) for _ in range(3)]
    return 2 * 4 * source.numel() / min(milliseconds) / 1e6


def _kernel_rows(family: str) -> Rows:
    return lambda device, plan: gpu_kernel_rows(family, device, plan)


SECTIONS: dict[str, Rows] = {
    "device": device_rows,
    **{f"kernel {family}": _kernel_rows(family) for family in FAMILIES},
    "switches": switch_rows,
    "peer": peer_rows,
    "steps": step_rows,
    "convolutions": convolution_rows,
}


def main() -> int:
    """Return the exit code when the section is measured.

    What a user can fix ends the process with its text, any other problem with a trace; the parent keeps both.
    """
    section, file = sys.argv[1:]
    plan = plan_from_json(sys.stdin.read())
    device = torch.device(plan.device)
    if device.type == "cuda":
        device = claim_gpu(device)
    torch.set_num_threads(plan.threads)
    try:
        with best_convolutions(), Path(file).open("wb", buffering=0) as stream:
            for row in section_rows(section, device, plan):
                stream.write(msgspec.json.encode(row) + b"\n")
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Trap: a thread of autograd that still gives tensors back when Python ends aborts the process. All is written.
    os._exit(code)
