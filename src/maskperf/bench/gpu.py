"""`maskperf bench gpu`: everything that waits for a GPU, measured in one go. Not yet run on a GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from maskperf.bench.gpu_plan import SECTION_SECONDS, GpuPlan, plan_to_json
from maskperf.errors import ConfigError
from maskperf.machine.probe import describe_machine
from maskperf.run.environment import describe_environment

SHOWN_ERROR_CHARACTERS = 3000
LEAST_SECONDS = 5.0  # with less left, a section is not begun

Say = Callable[[str], None]


def measure(
    plan: GpuPlan, folder: Path, say: Say, sections: tuple[str, ...] = tuple(SECTION_SECONDS)
) -> dict[str, object]:
    """Return everything that was measured, ready for JSON; `folder` holds files of the time of measuring.

    A section that fails or runs out of time keeps the rows it has, and its "error" says why there are no more; `say`
    tells that too.
    Errors: ConfigError where there is no CUDA device.
    """
    require_gpu(plan.device)
    environment = describe_environment()
    end = time.monotonic() + plan.seconds
    found = {}
    for section in sections:
        seconds = min(SECTION_SECONDS[section], end - time.monotonic())
        if seconds < LEAST_SECONDS:
            found[section] = {"rows": [], "error": f"left out: {plan.seconds:.0f} s were over", "seconds": 0.0}
        else:
            say(f"measuring {section} ({seconds:.0f} s at most)")
            found[section] = run_section(section, plan, folder, seconds)
        if found[section]["error"]:
            say(f"{section}: {len(found[section]['rows'])} rows, then: {found[section]['error'].splitlines()[-1]}")
    return {
        "commit": environment["git_commit"],
        "modified": environment["git_modified"],
        "environment": environment,
        "machine": json.loads(msgspec.json.encode(describe_machine())),
        "plan": json.loads(plan_to_json(plan)),
        "sections": found,
    }


def require_gpu(device: str) -> None:
    """Return nothing where the device can be used.

    Errors: ConfigError for a CUDA device that is not there. A CPU is taken at its word: that is for tests.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"maskperf bench gpu: device {device}: PyTorch {torch.__version__} sees no CUDA GPU here. "
            "Fix: run it on a machine with an NVIDIA GPU and a CUDA build of PyTorch (maskperf doctor tells what is "
            "missing)."
        )


def run_section(section: str, plan: GpuPlan, folder: Path, seconds: float) -> dict[str, object]:
    """Return the rows of a section measured in a process of its own, its error ("" for none) and its seconds."""
    rows_file, log_file = folder / f"{section}.jsonl", folder / f"{section}.log"
    command = [sys.executable, "-m", "maskperf.bench.gpu_section", section, str(rows_file)]
    start = time.monotonic()
    with log_file.open("wb") as log:
        # A session of its own, so that what the section has started ends with it.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.communicate(plan_to_json(plan).encode(), timeout=seconds)
            error = ""
        except subprocess.TimeoutExpired:
            error = f"stopped after {seconds:.0f} s, its share of the time"
        finally:
            if process.poll() is None:  # not waited for, so the number is still its own
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=60)
    if not error and process.returncode != 0:
        text = log_file.read_text(encoding="utf-8", errors="replace").strip()
        error = text[-SHOWN_ERROR_CHARACTERS:] or f"ended with code {process.returncode}"
    return {"rows": _read_rows(rows_file), "error": error, "seconds": time.monotonic() - start}


def _read_rows(path: Path) -> list[dict]:
    """Return the whole lines; the last one may have been cut off."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [msgspec.json.decode(line) for line in lines[:-1]]
