"""`maskperf bench gpu`: everything that needs a GPU, each section in a process of its own. Not yet run on a GPU.

An illegal access in one kernel makes everything after it in the same process fail, which is why there are several.
Every row is handed over as soon as it is measured, so that it stays if the time runs out.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from maskperf.bench.child import Side, start_child
from maskperf.bench.device_clock import ceiling
from maskperf.bench.gpu_convolutions import convolution_rows
from maskperf.bench.gpu_kernels import FAMILIES, gpu_kernel_rows
from maskperf.bench.gpu_steps import step_rows, switch_rows
from maskperf.bench.peers.serve import serve
from maskperf.bench.plan import CASES, GpuPlan, Plan
from maskperf.bench.session import measure_case
from maskperf.engine.build import best_convolutions
from maskperf.engine.distributed import claim_gpu
from maskperf.errors import ConfigError
from maskperf.machine.probe import describe_machine
from maskperf.machine.sources import installed_version
from maskperf.ops.kernels.selection import describe
from maskperf.recipes import coco
from maskperf.run.environment import describe_environment

LEAST_SECONDS = 5.0  # with less left, a section is not begun
PACKAGES = ("maskperf", "torch", "triton", "numpy")
# What is compared with the peer; the most important come first, in case the time runs out.
COMPARED = (
    *(("step", "training step"), ("infer", "detections"), ("roi_align", "7x7 forward+backward")),
    *(("roi_align", "7x7 forward"), ("roi_align", "14x14 forward+backward"), ("nms", "levels"), ("nms", "classes")),
    ("mask_targets", "28x28"),
)


def measure(plan: GpuPlan, say: Callable[[str], None], sections: tuple[str, ...] = ()) -> dict[str, object]:
    """Return all measurements, ready for JSON. No `sections`: all.

    A section that fails or runs out of time keeps the rows it has, and its "error" says why there are no more; so does
    a message to `say`.
    Errors: ConfigError where there is no CUDA device.
    """
    if torch.device(plan.device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"maskperf bench gpu: device {plan.device}: PyTorch {torch.__version__} sees no CUDA GPU here. Fix: run it "
            "on a machine with an NVIDIA GPU and a CUDA build of PyTorch (maskperf doctor shows what is missing)."
        )
    environment = describe_environment()
    end = time.monotonic() + plan.seconds
    found: dict[str, dict[str, Any]] = {}
    for section in sections or SECTIONS:
        seconds = min(SECTIONS[section][0], end - time.monotonic())
        if seconds < LEAST_SECONDS:
            found[section] = {"rows": [], "error": f"left out: {plan.seconds:.0f} s were over", "seconds": 0.0}
        else:
            say(f"measuring {section} ({seconds:.0f} s at most)")
            found[section] = run_section(section, plan, seconds)
        if error := found[section]["error"]:
            say(f"{section}: {len(found[section]['rows'])} rows, then: {error.splitlines()[-1]}")
    everything = {
        "commit": environment.git_commit,
        "modified": environment.git_modified,
        "environment": environment,
        "machine": describe_machine(),
        "plan": plan,
        "sections": found,
    }
    return msgspec.json.decode(msgspec.json.encode(everything))


def run_section(section: str, plan: GpuPlan, seconds: float) -> dict[str, Any]:
    """Return the rows of a section measured in a process of its own, its error ("" for none) and its seconds."""
    rows: list[dict] = []
    error, start = "", time.monotonic()
    side = Side(name=section, command=(sys.executable, "-m", "maskperf.bench.gpu"), has_processes=True)
    with start_child(side, plan.threads) as child:
        try:
            child.ask("prepare", "section", (section, plan))
            while (row := child.ask("call", seconds=start + seconds - time.monotonic())) is not None:
                rows.append(row)
        except (ConfigError, RuntimeError) as failure:
            is_late = time.monotonic() - start >= seconds
            error = f"stopped after {seconds:.0f} s, its share of the time" if is_late else str(failure)
    return {"rows": rows, "error": error, "seconds": time.monotonic() - start}


def section_rows(section: str, plan: GpuPlan) -> Iterator[dict]:
    """Yield the rows of a section, ready for JSON, measured in this process."""
    device = torch.device(plan.device)
    if device.type == "cuda":
        device = claim_gpu(device)
    torch.set_num_threads(plan.threads)
    with best_convolutions():
        for row in SECTIONS[section][1](device, plan):
            yield msgspec.to_builtins(row)


def device_rows(device: torch.device, plan: GpuPlan) -> Iterator[dict]:
    """Yield one row: the GPU, the versions, and its rates of a matrix product and of a copy."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    rates = ceiling(device, torch.bfloat16)
    yield {
        "name": properties.name if properties else str(device),
        "memory_gib": properties.total_memory / 2**30 if properties else None,
        "capability": list(torch.cuda.get_device_capability(device)) if properties else None,
        "multiprocessors": properties.multi_processor_count if properties else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "kernels": describe(device),
        "bfloat16_teraflop_per_second": rates["flop_per_second"] / 1e12,
        "copy_gb_per_second": rates["copy_bytes_per_second"] / 1e9,
    }


def peer_rows(device: torch.device, plan: GpuPlan, compared: tuple[tuple[str, str], ...] = COMPARED) -> Iterator[dict]:
    """Yield one row for each case, with both sides measured in turn; one row that says so where no peer was given.

    A case that one side fails at, for want of memory perhaps, is a row with the error, and the others are measured.
    """
    if not plan.peer_python:
        yield {"left_out": "no peer was given (--peer --peer-python PYTHON: a Python with torchvision for this GPU)"}
        return
    cases = {(case.benchmark, case.name): case for case in CASES}
    with tempfile.TemporaryDirectory(prefix="maskperf-bench-gpu-") as name:
        folder = Path(name)
        session_plan = plan_of_session(plan, device, folder)
        for key in compared:
            messages: list[str] = []
            try:
                result = measure_case(cases[key], session_plan, folder, messages.append)
                yield asdict(result) | {"messages": messages}
            except (ConfigError, RuntimeError) as error:
                yield {"name": " ".join(key), "error": str(error)}


def plan_of_session(plan: GpuPlan, device: torch.device, folder: Path) -> Plan:
    """Return the plan of the benchmarks that are also compared elsewhere, for this GPU."""
    base = coco()
    system = replace(base.system, device="cuda" if device.type == "cuda" else "cpu", threads=plan.threads)
    return Plan(
        size_hw=plan.canvases_hw[0],
        objects=plan.objects,
        repeats=plan.repeats,
        threads=plan.threads,
        config=replace(base, model=plan.model, system=system),
        peer_python=plan.peer_python,
        cache=folder,
        device=device.type,
    )


# In their order, each with the most seconds it may take: the most important come first, in case the time runs out.
SECTIONS: dict[str, tuple[float, Callable[[torch.device, GpuPlan], Iterator[dict]]]] = {
    "device": (30.0, device_rows),
    **{
        f"kernel {family}": (40.0 if family == "roi_align" else 30.0, partial(gpu_kernel_rows, family))
        for family in FAMILIES
    },
    "switches": (110.0, switch_rows),
    "peer": (130.0, peer_rows),
    "steps": (150.0, step_rows),
    "convolutions": (90.0, convolution_rows),
}


if __name__ == "__main__":
    serve({"section": lambda inputs: (partial(next, section_rows(*inputs), None), {})})
