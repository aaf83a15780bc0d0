"""`maskperf bench gpu`: everything that needs a GPU, measured in one go. Not yet run on a GPU."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from maskperf.bench.plan import SECTION_SECONDS, GpuPlan
from maskperf.errors import ConfigError
from maskperf.machine.probe import describe_machine
from maskperf.run.environment import describe_environment

SHOWN_ERROR_CHARACTERS = 3000
LEAST_SECONDS = 5.0  # with less left, a section is not begun


def measure(
    plan: GpuPlan, folder: Path, say: Callable[[str], None], sections: tuple[str, ...] = tuple(SECTION_SECONDS)
) -> dict[str, object]:
    """Return all measurements, ready for JSON; `folder` is for files of the time of measuring.

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
    for section in sections:
        seconds = min(SECTION_SECONDS[section], end - time.monotonic())
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
    command = [sys.executable, "-m", "maskperf.bench.gpu_section", section, str(rows_file)]
    start = time.monotonic()
    error = ""
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
