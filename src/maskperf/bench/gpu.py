"""`maskperf bench gpu`: everything that needs a GPU, each section in a process of its own. Not yet run on a GPU.

`python -m maskperf.bench.gpu SECTION FILE` measures one section, with the plan as JSON on stdin. An illegal access in
one kernel makes everything after it in the same process fail, which is why there are several. Every row is written as
soon as it is measured, so that it stays if the time runs out.
"""

import os
import signal
import subprocess
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

from maskperf.bench.device_clock import copy_rate, milliseconds_of, product_rate
from maskperf.bench.gpu_convolutions import convolution_rows
from maskperf.bench.gpu_kernels import FAMILIES, gpu_kernel_rows
from maskperf.bench.gpu_steps import step_rows, switch_rows
from maskperf.bench.plan import CASES, GpuPlan, Plan
from maskperf.bench.session import measure_case
from maskperf.engine.build import best_convolutions
from maskperf.engine.distributed import claim_gpu
from maskperf.errors import EXIT_DONE, ConfigError, UserError
from maskperf.machine.probe import describe_machine
from maskperf.machine.sources import installed_version
from maskperf.ops.kernels.selection import describe
from maskperf.recipes import coco
from maskperf.run.environment import describe_environment

SHOWN_ERROR_CHARACTERS = 3000
LEAST_SECONDS = 5.0  # with less left, a section is not begun
PRODUCT_SIDE = {"cuda": 8192, "cpu": 64}
COPIED_NUMBERS = {"cuda": 2**28, "cpu": 2**10}
PACKAGES = ("maskperf", "torch", "triton", "numpy")
# What is compared with the peer; the most important come first, in case the time runs out.
COMPARED = (
    *(("step", "training step"), ("infer", "detections"), ("roi_align", "7x7 forward+backward")),
    *(("roi_align", "7x7 forward"), ("roi_align", "14x14 forward+backward"), ("nms", "levels"), ("nms", "classes")),
    ("mask_targets", "28x28"),
)


def measure(
    plan: GpuPlan, folder: Path, say: Callable[[str], None], sections: tuple[str, ...] = ()
) -> dict[str, object]:
    """Return all measurements, ready for JSON; `folder` is for files of the time of measuring. No `sections`: all.

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
            found[section] = run_section(section, plan, folder, seconds)
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


def run_section(section: str, plan: GpuPlan, folder: Path, seconds: float) -> dict[str, Any]:
    """Return the rows of a section measured in a process of its own, its error ("" for none) and its seconds."""
    rows_file, log_file = folder / f"{section}.jsonl", folder / f"{section}.log"
    command = [sys.executable, "-m", "maskperf.bench.gpu", section, str(rows_file)]
    start, error = time.monotonic(), ""
    with log_file.open("wb") as log:
        # A session of its own, so that the section's own processes end with it.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.communicate(msgspec.json.encode(plan), timeout=seconds)
        except subprocess.TimeoutExpired:
            error = f"stopped after {seconds:.0f} s, its share of the time"
        finally:
            if process.poll() is None:  # not waited for, so the process id is still its own
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=60)
    if not error and process.returncode != 0:
        text = log_file.read_text(encoding="utf-8", errors="replace").strip()
        error = text[-SHOWN_ERROR_CHARACTERS:] or f"ended with code {process.returncode}"
    *lines, _ = rows_file.read_bytes().split(b"\n") if rows_file.exists() else [b""]  # the last one may be cut off
    rows = [msgspec.json.decode(line) for line in lines]
    return {"rows": rows, "error": error, "seconds": time.monotonic() - start}


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
            for row in SECTIONS[section][1](device, plan):
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
