"""The machine and the software that a run used."""

import os
import platform
import shlex
import sys

import torch

from maskperf.machine.processor import describe_cpu, usable_physical_cores
from maskperf.machine.sources import checkout_folder, installed_version, run_program, system_memory_gib
from maskperf.schema import Environment, Gpu

PACKAGES = ("maskperf", "torch", "numpy", "pycocotools", "hotcoco", "mlperf-logging")
GIT_SECONDS = 20.0


def describe_environment(processes: int = 1) -> Environment:
    """Return what can be found out about this process and its machine."""
    commit, is_modified = _git_state()
    return Environment(
        python=platform.python_version(),
        packages={name: installed_version(name) for name in PACKAGES},
        operating_system=platform.platform(),
        cpu_model=describe_cpu().model,
        cpu_logical_cores=os.cpu_count(),
        cpu_physical_cores=usable_physical_cores(),
        memory_gib=round(system_memory_gib(), 2),
        gpus=_gpus(),
        cuda=torch.version.cuda,
        torch_threads=torch.get_num_threads(),
        git_commit=commit,
        git_modified=is_modified,
        command_line=shlex.join([sys.executable, *sys.argv]),
        processes=processes,
    )


def _gpus() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(Gpu(name=gpu.name, memory_gib=round(gpu.total_memory / 2**30, 2)) for gpu in found)


def _git_state() -> tuple[str | None, bool | None]:
    """Return the commit of the checkout this package runs from, and whether tracked files differ from it."""
    checkout = checkout_folder()  # an installed copy may lie inside somebody else's
    if checkout is None or not (checkout / ".git").exists():
        return None, None
    git = ["git", "--no-optional-locks", "-C", str(checkout)]
    commit = run_program([*git, "rev-parse", "HEAD"], GIT_SECONDS).output
    changes = run_program([*git, "status", "--porcelain", "--untracked-files=no"], GIT_SECONDS).output
    return commit.strip() if commit else None, None if changes is None else changes.strip() != ""
