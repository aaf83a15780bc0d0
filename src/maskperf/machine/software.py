"""The operating system and the versions of Python and its packages. Nothing heavy is imported to find them."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from maskperf.machine.sources import read_text

PACKAGES = (
    *("maskperf", "torch", "numpy", "pycocotools", "hotcoco", "mlperf-logging", "simplejpeg", "pillow", "msgspec"),
    *("rich", "safetensors", "jaxtyping", "triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-nccl-cu12"),
    "nvidia-nccl-cu13",
)
CONTAINER_OF_MARK = {"kubepods": "kubernetes", "docker": "docker", "containerd": "containerd", "lxc": "lxc"}


def operating_system() -> str:
    """Return the name of the distribution with its version, or of the system where there is no /etc/os-release."""
    return parse_os_release(read_text(Path("/etc/os-release")) or "") or platform.platform()


def parse_os_release(text: str) -> str | None:
    """Return the field PRETTY_NAME. Source: the manual page os-release(5)."""
    match = re.search(r"""^PRETTY_NAME=(["']?)(.*)\1$""", text, re.MULTILINE)
    return match[2] if match and match[2] else None


def container(root: Path = Path("/")) -> str | None:
    """Return what kind of container this process is in, as far as it leaves marks."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if (root / "run" / ".containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    return container_of_cgroup(read_text(root / "proc" / "1" / "cgroup") or "")


def container_of_cgroup(text: str) -> str | None:
    """Return the kind of container that the groups of process 1 name."""
    return next((kind for mark, kind in CONTAINER_OF_MARK.items() if mark in text), None)


def software_versions() -> dict[str, str | None]:
    """Return the version of Python and of each package of `PACKAGES`, None where one is not installed."""
    return {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}}


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def torch_build() -> str | None:
    """Return "cpu" or the CUDA version that the installed torch was built for; None where nobody can tell."""
    try:
        place = distribution("torch").locate_file("torch/version.py")
    except PackageNotFoundError:
        return None
    return parse_torch_build(read_text(Path(str(place))) or "")


def parse_torch_build(text: str) -> str | None:
    """Return what the line `cuda: Optional[str] = '13.0'` of torch/version.py says, "rocm 6.4" for AMD's build."""
    found = dict(re.findall(r"^(cuda|hip)\b[^=\n]*= *(?:'([^']*)'|None)", text, re.MULTILINE))
    if found.get("hip"):
        return f"rocm {found['hip']}"
    return found["cuda"] or "cpu" if "cuda" in found else None
