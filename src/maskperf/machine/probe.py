"""Finds what the checks of the doctor look at, apart from what torch has to tell."""

import json
import os
import re
import resource
import sys
from pathlib import Path

from maskperf.config import RunConfig
from maskperf.machine.describe import describe_machine
from maskperf.machine.situation import DataPlace, DockerFacts, ProcessLimits, Situation
from maskperf.machine.software import installed_version, torch_build
from maskperf.machine.sources import read_text, run_program
from maskperf.machine.storage import describe_storage, existing_place

WATCHED_PREFIXES = ("OMP_", "MKL_", "GOMP_", "KMP_", "NCCL_", "TORCH_", "CUDA_", "GLOO_", "MASTER_")
WATCHED_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
DOCKER_SECONDS = 2.0
CLOCK_SECONDS = 1.0
DEFAULT_RUNS = "runs"
IMAGE_ENDING = ".jpg"


def gather(config: RunConfig, *, data: str | None, run_dir: str | None) -> Situation:
    """Return what can be found out without measuring; `data` and `run_dir` are folders that the user named."""
    root = data or config.data.root
    runs = Path(run_dir or DEFAULT_RUNS)
    pinned = read_pins(checkout_folder())
    return Situation(
        machine=describe_machine(root),
        config=config,
        data=look_for_data(Path(root), config.model.backbone_weights, was_asked_for=data is not None),
        data_storage=describe_storage(root),
        run_storage=describe_storage(runs),
        run_folder_writable=is_writable_folder(existing_place(runs)),
        environment=watched(dict(os.environ)),
        process_limits=process_limits(),
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        torch_build=torch_build(),
        pinned=pinned,
        pinned_installed={name: installed_version(name) for name in pinned},
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        clock_synchronized=clock_state(),
        docker=docker_state(),
    )


def is_writable_folder(place: Path) -> bool:
    """Return whether this user may make files in `place`."""
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def watched(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that the checks look at, and no others: the rest may hold secrets."""
    return {
        name: value for name, value in environment.items() if name in WATCHED_NAMES or name.startswith(WATCHED_PREFIXES)
    }


def look_for_data(root: Path, weights: str, *, was_asked_for: bool) -> DataPlace:
    """Return what lies in a folder of COCO 2017; the weights are looked for at `weights`, in the folder and beside."""
    name = Path(weights).name
    candidates = [Path(weights), root / name, root.parent / name] if weights else []
    found = next((str(path) for path in candidates if path.is_file()), None)
    return DataPlace(
        root=str(root),
        was_asked_for=was_asked_for,
        train_json=(root / "annotations" / "instances_train2017.json").is_file(),
        val_json=(root / "annotations" / "instances_val2017.json").is_file(),
        train_images=count_images(root / "train2017"),
        val_images=count_images(root / "val2017"),
        weights=found,
    )


def count_images(folder: Path) -> int | None:
    """Return the number of JPEG files directly in a folder; None where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.name.endswith(IMAGE_ENDING) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return None


def checkout_folder() -> Path | None:
    """Return the checkout that this package runs from; None for an installed copy."""
    package = Path(__file__).resolve().parents[1]
    return package.parents[1] if package.parent.name == "src" else None


def read_pins(checkout: Path | None) -> dict[str, str]:
    """Return the versions of constraints.txt by package; empty outside a checkout."""
    text = read_text(checkout / "constraints.txt") if checkout else None
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", text or "", re.MULTILINE))


def process_limits() -> ProcessLimits:
    """Return the soft limits of this process."""
    locked, core = _limit(resource.RLIMIT_MEMLOCK), _limit(resource.RLIMIT_CORE)
    return ProcessLimits(
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_memory_gib=None if locked is None else locked / 2**30,
        core_file_gib=None if core is None else core / 2**30,
    )


def clock_state() -> bool | None:
    """Return whether the clock follows a time server; None where systemd does not tell."""
    return parse_timedatectl(run_program(["timedatectl", "show"], CLOCK_SECONDS).output or "")


def parse_timedatectl(text: str) -> bool | None:
    """Return the field NTPSynchronized of `timedatectl show`."""
    match = re.search(r"^NTPSynchronized=(yes|no)$", text, re.MULTILINE)
    return None if match is None else match[1] == "yes"


def docker_state() -> DockerFacts | None:
    """Return version and runtimes of Docker; None where it is not installed."""
    version = parse_docker_version(run_program(["docker", "--version"], DOCKER_SECONDS).output or "")
    if version is None:
        return None
    runtimes = run_program(["docker", "info", "--format", "{{json .Runtimes}}"], DOCKER_SECONDS).output
    names = parse_docker_runtimes(runtimes or "")
    return DockerFacts(version=version, daemon_answers=bool(names), runtimes=names)


def parse_docker_version(text: str) -> str | None:
    """Return the number in "Docker version 28.2.2, build e6534b4"."""
    match = re.search(r"version ([0-9][^\s,]*)", text)
    return None if match is None else match[1]


def parse_docker_runtimes(text: str) -> tuple[str, ...]:
    """Return the names of the runtimes; none where the daemon did not answer, which docker tells as null."""
    try:
        found = json.loads(text)
    except ValueError:
        return ()
    return tuple(sorted(found)) if isinstance(found, dict) else ()


def _limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft
