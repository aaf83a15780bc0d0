"""The process of one section: python -m maskperf.bench.gpu_section SECTION FILE, the plan as JSON on stdin.

A process of its own, because an illegal access in one kernel makes everything after it in the same process fail.
Every row is written as soon as it is measured, so that it stays if the time runs out. Not yet run on a GPU.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import msgspec
import torch

from maskperf.bench.device_clock import copy_rate, milliseconds_of, product_rate
from maskperf.bench.gpu_convolutions import convolution_rows
from maskperf.bench.gpu_kernels import gpu_kernel_rows
from maskperf.bench.gpu_steps import step_rows, switch_rows
from maskperf.bench.plan import CASES, KERNEL_FAMILIES, GpuPlan, Plan
from maskperf.bench.session import measure_case
from maskperf.engine.build import best_convolutions
from maskperf.engine.distributed import claim_gpu
from maskperf.errors import EXIT_DONE, ConfigError, UserError
from maskperf.machine.probe import installed_version
from maskperf.ops.kernels.selection import describe
from maskperf.recipes import coco

PRODUCT_SIDE = {"cuda": 8192, "cpu": 64}
COPIED_NUMBERS = {"cuda": 2**28, "cpu": 2**10}
PACKAGES = ("maskperf", "torch", "triton", "numpy")
# What is compared with the peer; the most important come first, in case the time runs out.
COMPARED = (
    ("step", "training step"),
    ("infer", "detections"),
    ("roi_align", "7x7 forward+backward"),
    ("roi_align", "7x7 forward"),
    ("roi_align", "14x14 forward+backward"),
    ("nms", "levels"),
    ("nms", "classes"),
    ("mask_targets", "28x28"),
)


def device_rows(device: torch.device, plan: GpuPlan) -> Iterator[dict]:
    """Yield one row: the GPU, the versions, and its rates of a matrix product and of a copy."""

    def best_seconds(work: Callable[[], object]) -> float:
        return min(milliseconds_of(work, device) for _ in range(3)) / 1000

    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    product = product_rate(best_seconds, PRODUCT_SIDE[device.type], device, torch.bfloat16)
    yield {
        "name": properties.name if properties else str(device),
        "memory_gib": properties.total_memory / 2**30 if properties else None,
        "capability": list(torch.cuda.get_device_capability(device)) if properties else None,
        "multiprocessors": properties.multi_processor_count if properties else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "kernels": describe(device),
        "bfloat16_teraflop_per_second": product / 1e12,
        "copy_gb_per_second": copy_rate(best_seconds, COPIED_NUMBERS[device.type], device) / 1e9,
    }


def peer_rows(device: torch.device, plan: GpuPlan, cases: tuple[tuple[str, str], ...] = COMPARED) -> Iterator[dict]:
    """Yield one row for each case, with both sides measured in turn; one row that says so where no peer was given.

    A case that one side fails at, for want of memory perhaps, is a row with the error, and the others are measured.
    """
    if not plan.peer_python:
        yield {"left_out": "no peer was given (--peer --peer-python PYTHON: a Python with torchvision for this GPU)"}
        return
    by_name = {(case.benchmark, case.name): case for case in CASES}
    with tempfile.TemporaryDirectory(prefix="maskperf-bench-gpu-") as name:
        folder = Path(name)
        for benchmark, case in cases:
            messages: list[str] = []
            try:
                row = asdict(
                    measure_case(
                        by_name[benchmark, case], plan_of_session(plan, device, folder), folder, messages.append
                    )
                )
            except (ConfigError, RuntimeError) as error:
                yield {"name": f"{benchmark} {case}", "error": str(error)}
            else:
                yield row | {"messages": messages}


def plan_of_session(plan: GpuPlan, device: torch.device, folder: Path) -> Plan:
    """Return the plan of the benchmarks that are also compared elsewhere, for this GPU."""
    base = coco()
    config = replace(
        base,
        model=plan.model,
        system=replace(base.system, device="cuda" if device.type == "cuda" else "cpu", threads=plan.threads),
    )
    return Plan(
        size_hw=plan.canvases_hw[0],
        objects=plan.objects,
        repeats=plan.repeats,
        threads=plan.threads,
        config=config,
        peer_python=plan.peer_python,
        cache=folder,
        device=device.type,
    )


SECTIONS: dict[str, Callable[[torch.device, GpuPlan], Iterator[object]]] = {
    "device": device_rows,
    **{f"kernel {family}": partial(gpu_kernel_rows, family) for family in KERNEL_FAMILIES},
    "switches": switch_rows,
    "peer": peer_rows,
    "steps": step_rows,
    "convolutions": convolution_rows,
}


def main() -> int:
    """Measure the section and return the exit code.

    A UserError ends the process with its message, any other error with a trace; the parent saves both.
    """
    section, file = sys.argv[1:]
    plan = msgspec.json.decode(sys.stdin.read(), type=GpuPlan)
    device = torch.device(plan.device)
    if device.type == "cuda":
        device = claim_gpu(device)
    torch.set_num_threads(plan.threads)
    try:
        with best_convolutions(), Path(file).open("wb", buffering=0) as stream:
            for row in SECTIONS[section](device, plan):
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
