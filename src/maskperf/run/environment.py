"""The machine and the software that a run used."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import maskperf.config
from maskperf.machine.processor import describe_cpu, usable_physical_cores
from maskperf.schema import Environment, Gpu

PACKAGES = ("maskperf", "torch", "numpy", "pycocotools", "hotcoco", "mlperf-logging")


def describe_environment(processes: int = 1) -> Environment:
    """Return what can be found out about this process and its machine."""
    commit, is_modified = _git_state()
    return Environment(
        python=platform.python_version(),
        packages={name: _installed_version(name) for name in PACKAGES},
        operating_system=platform.platform(),
        cpu_model=describe_cpu().model,
        cpu_logical_cores=os.cpu_count(),
        cpu_physical_cores=usable_physical_cores(),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 2),
        gpus=_gpus(),
        cuda=torch.version.cuda,
        torch_threads=torch.get_num_threads(),
        git_commit=commit,
        git_modified=is_modified,
        command_line=shlex.join([sys.executable, *sys.argv]),
        processes=processes,
    )


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(Gpu(name=gpu.name, memory_gib=round(gpu.total_memory / 2**30, 2)) for gpu in found)


def _git_state() -> tuple[str | None, bool | None]:
    """Return the commit of the checkout this package runs from, and whether tracked files differ from it."""
    package = Path(maskperf.config.__file__).resolve().parent
    checkout = package.parents[1]
    # An installed copy may lie inside somebody else's checkout; only src/maskperf of its own counts.
    if package.parent.name != "src" or not (checkout / ".git").exists():
        return None, None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else changes != ""


def _git(checkout: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None
