"""Builds the null CUDA for the PyTorch of a Python, and starts programs on it.

The library stands in for libcuda, cudart, cuBLAS, cuDNN and NCCL by LD_PRELOAD. What PyTorch calls and nobody has
written fails with its name, so that nothing ever reaches the real libraries, nor a real GPU.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "sources"
LIBRARY = "libcuda.so.1"  # the name that Triton links to
CALLERS = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so", "libcaffe2_nvrtc.so", "libtorch_cuda_linalg.so")
ENTRY_POINT = re.compile(r"^(__cuda|cuda|cu[A-Z]|cublas|cudnn|nccl)\w+$")
HEADERS = ("cu13/include", "cudnn/include", "nccl/include")  # of NVIDIA's packages
OTHER_HEADERS = ("crt/host_defines.h", "nv/target")  # those packages that PyTorch asks for lack them
CHECK = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda, torch.__path__[0]]))"


def missing_part(python: str) -> str:
    """Return what is missing to build the null CUDA and to run on it, in a few words; empty for nothing."""
    if shutil.which("g++") is None or shutil.which("nm") is None:
        return "no g++"
    answer = subprocess.run(
        [python, "-c", "import torch; print(torch.version.cuda)"], capture_output=True, text=True, check=False
    )
    version = answer.stdout.strip()
    if answer.returncode != 0 or not version.startswith("13."):
        return "no CUDA 13 build of PyTorch: name a Python that has one in MASKPERF_CUDA_PYTHON"
    if not all((_packages_of(python) / "nvidia" / folder).is_dir() for folder in HEADERS):
        return "no headers of CUDA beside PyTorch"
    if not _toolkits(_packages_of(python)):
        return f"no CUDA toolkit with {' and '.join(OTHER_HEADERS)}: set CUDA_HOME"
    return ""


def build(python: str, folder: Path) -> Path:
    """Return the library for this Python's PyTorch, made in `folder` unless it is there already.

    Errors: RuntimeError or subprocess.CalledProcessError; the compiler has said why.
    """
    packages = _packages_of(python)
    torch_folder = packages / "torch" / "lib"
    sources = sorted(SOURCES.iterdir())
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    stamp.update((packages / "torch" / "version.py").read_bytes() + str(packages).encode())
    finished = folder / f"null-cuda-{stamp.hexdigest()[:16]}"
    if (finished / LIBRARY).exists():
        return finished / LIBRARY
    with tempfile.TemporaryDirectory(dir=folder, prefix="null-cuda-build-") as name:
        work = Path(name)
        includes = [f"-isystem{packages / 'nvidia' / header}" for header in HEADERS]
        includes += [f"-isystem{toolkit / 'include'}" for toolkit in _toolkits(packages)]
        flags = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra"]
        compilers = [
            subprocess.Popen(["g++", *flags, *includes, "-c", source, "-o", work / f"{source.stem}.o"])
            for source in sources
            if source.suffix == ".cpp"
        ]
        if sum(abs(compiler.wait()) for compiler in compilers):
            raise RuntimeError("the null CUDA does not compile; see the compiler's words above")
        wanted = set().union(*(_symbols(torch_folder / caller, "--undefined-only") for caller in CALLERS))
        objects = sorted(work.glob("*.o"))
        written = set().union(*(_symbols(made, "--defined-only", dynamic=False) for made in objects))
        _write_missing(work / "missing.cpp", sorted(wanted - written))
        made = work / "made"
        made.mkdir()
        command = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", *objects, work / "missing.cpp"]
        subprocess.run([*command, "-o", made / LIBRARY, "-ldl", "-lpthread", "-lrt"], check=True)
        if not finished.exists():
            made.rename(finished)
    return finished / LIBRARY


def environment_on(library: Path, *, devices: int = 1, memory_gib: float = 80) -> dict[str, str]:
    """Return the environment variables for a process on the null CUDA."""
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return kept | {
        "LD_PRELOAD": str(library),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "TRITON_CACHE_DIR": str(library.parent / "triton"),
        "NULL_CUDA_LIBRARY": str(library),
        "NULL_CUDA_DEVICES": str(devices),
        "NULL_CUDA_GIB": str(memory_gib),
    }


def _packages_of(python: str) -> Path:
    """Return the folder that this Python's packages lie in."""
    command = [python, "-c", "import importlib.util; print(importlib.util.find_spec('torch').origin)"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()).parents[1]


def _toolkits(packages: Path) -> list[Path]:
    """Return the places that have what the packages of NVIDIA usually lack."""
    places = [packages / "nvidia" / "cu13"]
    places += [Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else []
    places += sorted(Path("/usr/local").glob("cuda*"))
    return [place for place in places if all((place / "include" / name).exists() for name in OTHER_HEADERS)]


def _symbols(library: Path, which: str, *, dynamic: bool = True) -> set[str]:
    """Return the entry points of CUDA that a file calls or has."""
    if not library.exists():
        return set()
    command = ["nm", *(["-D"] if dynamic else []), which, "--format=posix", library]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {line.split()[0].split("@")[0] for line in lines if line.split()}
    return {name for name in names if ENTRY_POINT.match(name)}


def _write_missing(path: Path, names: list[str]) -> None:
    lines = ['extern "C" int null_cuda_missing(const char *);']
    lines += [f'extern "C" int {name}() {{ return null_cuda_missing("{name}"); }}' for name in names]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
