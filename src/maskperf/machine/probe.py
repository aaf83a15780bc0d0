"""Gathers the facts of this machine and process that need no measurement and no torch."""

import os
import platform
import re
import resource
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from maskperf.config import RunConfig
from maskperf.machine.facts import DataFolder, DockerFacts, Environment, MachineFacts, ProcessLimits
from maskperf.machine.gpus import describe_gpus
from maskperf.machine.hardware import (
    describe_infiniband,
    describe_memory,
    describe_network,
    describe_storage,
    existing_folder,
)
from maskperf.machine.processor import describe_cpu, describe_limits
from maskperf.machine.sources import checkout_folder, installed_version, read_text, run_program

PACKAGES = (
    *("maskperf", "torch", "numpy", "pycocotools", "hotcoco", "mlperf-logging", "simplejpeg", "pillow", "msgspec"),
    *("rich", "safetensors", "jaxtyping", "triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-nccl-cu12"),
    "nvidia-nccl-cu13",
)
CONTAINER_OF_MARK = {"kubepods": "kubernetes", "docker": "docker", "containerd": "containerd", "lxc": "lxc"}
WATCHED_PREFIXES = ("OMP_", "MKL_", "GOMP_", "KMP_", "NCCL_", "TORCH_", "CUDA_", "GLOO_", "MASTER_")
WATCHED_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
DOCKER_SECONDS = 2.0
CLOCK_SECONDS = 1.0
DEFAULT_RUNS = "runs"
IMAGE_SUFFIX = ".jpg"


def describe_machine(storage_path: str | Path = ".") -> MachineFacts:
    """Return what can be found out about this machine within seconds; `storage_path` selects the storage.

    Nothing is changed and nothing is measured. Names of the host and of its users are left out.
    """
    return MachineFacts(
        operating_system=operating_system(),
        kernel=f"{platform.system()} {platform.release()}",
        container=container(),
        cpu=describe_cpu(),
        memory=describe_memory(),
        storage=describe_storage(storage_path),
        network=describe_network(),
        infiniband=describe_infiniband(),
        gpu=describe_gpus(),
        limits=describe_limits(),
        software={"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}},
    )


def gather(config: RunConfig, *, data: str | None, run_dir: str | None) -> Environment:
    """Return what can be found out without measuring; `data` and `run_dir` are folders that the user named."""
    root = data or config.data.root
    runs = Path(run_dir or DEFAULT_RUNS)
    return Environment(
        machine=describe_machine(root),
        config=config,
        data=find_data(Path(root), config.model.backbone_weights, was_asked_for=data is not None),
        run_storage=describe_storage(runs),
        run_folder_writable=is_writable_folder(existing_folder(runs)),
        variables=watched(dict(os.environ)),
        process_limits=process_limits(),
        torch_build=torch_build(),
        pinned={name: (pin, installed_version(name)) for name, pin in read_pins(checkout_folder()).items()},
        load_average=os.getloadavg()[0],
        clock_synchronized=clock_synchronized(),
        docker=docker_facts(),
    )


def operating_system() -> str:
    """Return the name of the distribution, or what Python knows of a system without one."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.platform()


def container(root: Path = Path("/")) -> str | None:
    """Return the kind of container that this process is in, as far as it leaves marks."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if (root / "run" / ".containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    groups = read_text(root / "proc" / "1" / "cgroup") or ""
    return next((kind for mark, kind in CONTAINER_OF_MARK.items() if mark in groups), None)


def torch_build() -> str | None:
    """Return "cpu" or the CUDA version that the installed torch was built for; None where it is unknown."""
    try:
        path = distribution("torch").locate_file("torch/version.py")
    except PackageNotFoundError:
        return None
    return parse_torch_build(read_text(Path(str(path))) or "")


def parse_torch_build(text: str) -> str | None:
    """Parse the line `cuda: Optional[str] = '13.0'` of torch/version.py; "rocm 6.4" for AMD's build."""
    found = dict(re.findall(r"^(cuda|hip)\b[^=\n]*= *(?:'([^']*)'|None)", text, re.MULTILINE))
    if found.get("hip"):
        return f"rocm {found['hip']}"
    return found["cuda"] or "cpu" if "cuda" in found else None


def is_writable_folder(path: Path) -> bool:
    """Return whether this user may create files in `path`."""
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def watched(variables: dict[str, str]) -> dict[str, str]:
    """Return the variables that the checks look at, and no others: the rest may hold secrets."""
    return {
        name: value for name, value in variables.items() if name in WATCHED_NAMES or name.startswith(WATCHED_PREFIXES)
    }


def find_data(root: Path, weights: str, *, was_asked_for: bool) -> DataFolder:
    """Look for COCO 2017 in `root`; and for the weights at `weights`, in `root` and in the folder above."""
    name = Path(weights).name
    candidates = [Path(weights), root / name, root.parent / name] if weights else []
    return DataFolder(
        root=str(root),
        was_asked_for=was_asked_for,
        train_json=(root / "annotations" / "instances_train2017.json").is_file(),
        val_json=(root / "annotations" / "instances_val2017.json").is_file(),
        train_images=_count_images(root / "train2017"),
        val_images=_count_images(root / "val2017"),
        weights=next((str(path) for path in candidates if path.is_file()), None),
    )


def _count_images(folder: Path) -> int | None:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.name.endswith(IMAGE_SUFFIX) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_pins(checkout: Path | None) -> dict[str, str]:
    """Return the versions of constraints.txt by package; empty outside a checkout."""
    text = read_text(checkout / "constraints.txt") if checkout else None
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", text or "", re.MULTILINE))


def process_limits() -> ProcessLimits:
    """Return the soft limits of this process."""
    kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_CORE)
    soft = (resource.getrlimit(kind)[0] for kind in kinds)
    files, *sizes = (None if limit == resource.RLIM_INFINITY else limit for limit in soft)
    locked_gib, core_gib = (None if size is None else size / 2**30 for size in sizes)
    return ProcessLimits(open_files=files, locked_memory_gib=locked_gib, core_file_gib=core_gib)


def clock_synchronized() -> bool | None:
    """Return whether the clock follows a time server; None where systemd does not say."""
    answer = run_program(["timedatectl", "show", "--property=NTPSynchronized", "--value"], CLOCK_SECONDS)
    return {"yes": True, "no": False}.get((answer.output or "").strip())


def docker_facts() -> DockerFacts | None:
    """Return version and runtimes of Docker; None where it is not installed."""
    found = re.search(r"version ([0-9][^\s,]*)", run_program(["docker", "--version"], DOCKER_SECONDS).output or "")
    if found is None:
        return None
    names = "{{range $name, $about := .Runtimes}}{{println $name}}{{end}}"  # nothing where the daemon does not answer
    answer = run_program(["docker", "info", "--format", names], DOCKER_SECONDS)
    return DockerFacts(version=found[1], runtimes=tuple(sorted((answer.output or "").split())))
