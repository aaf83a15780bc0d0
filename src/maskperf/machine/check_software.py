"""Checks of Python, torch, the GPU driver and the versions of packages."""

import re

from maskperf.machine.finding import Finding, note, ok, problem
from maskperf.machine.situation import Situation

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
# Source: CUDA Toolkit release notes, table "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version
# Compatibility" (Linux).
OLDEST_DRIVER_OF_CUDA = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
PACKAGES_SHOWN = 6


def numbers_of(version: str) -> tuple[int, ...]:
    """Return the numbers that a version starts with: (2, 13, 0) for "2.13.0+cpu"."""
    return tuple(int(number) for number in re.match(r"[0-9]*(?:\.[0-9]+)*", version)[0].split(".") if number)


def check_system(situation: Situation) -> Finding:
    machine = situation.machine
    value = f"{machine.operating_system}, {machine.kernel}"
    if not machine.kernel.startswith("Linux"):
        return note("system", value, "maskperf is tested on Linux; some facts below cannot be found elsewhere")
    if "microsoft" in machine.kernel.lower():
        return note("system", f"{value} (WSL)", "Windows may take memory and processors away during a run")
    if machine.container:
        return ok(
            "system", f"{value}, in a container ({machine.container})", "the container's own limits count as well"
        )
    return ok("system", value, "Linux, as tested")


def check_python(situation: Situation) -> Finding:
    value = ".".join(str(number) for number in situation.python)
    if situation.python[:2] < OLDEST_PYTHON:
        oldest = ".".join(str(number) for number in OLDEST_PYTHON)
        fix = f"Install Python {oldest} or newer, then ./install.sh."
        return problem("Python", value, f"maskperf needs Python {oldest} or newer", fix)
    return ok("Python", value, "new enough")


def check_torch(situation: Situation) -> Finding:
    version = situation.machine.software.get("torch")
    if version is None:
        return problem("torch", "not installed", "nothing can be trained or evaluated", "Run ./install.sh.")
    value = f"{version} (built for {situation.torch_build or 'nobody knows what'})"
    if numbers_of(version)[:2] < OLDEST_TORCH:
        oldest = ".".join(str(number) for number in OLDEST_TORCH)
        return problem("torch", value, f"maskperf needs torch {oldest} or newer", "Run ./install.sh.")
    return ok("torch", value, "new enough")


def check_torch_build(situation: Situation) -> Finding | None:
    """Return whether torch was built for what the machine has; None where torch or its build is unknown."""
    build, gpu = situation.torch_build, situation.machine.gpu
    if build is None:
        return None
    count = len(gpu.gpus) or gpu.cards_on_bus
    value = f"torch for {build}, {count} NVIDIA GPU(s)"
    if count == 0:
        meaning = "training runs on the CPU: right for the recipe demo, weeks or more for COCO"
        return ok("torch and GPU", value, meaning) if build == "cpu" else note("torch and GPU", value, meaning)
    if build == "cpu" or build.startswith("rocm"):
        fix = "Install torch for CUDA: choose Linux, Pip and CUDA on pytorch.org/get-started."
        return problem("torch and GPU", value, "this torch cannot use the GPUs: training would run on the CPU", fix)
    return ok("torch and GPU", value, "torch can use GPUs")


def check_driver(situation: Situation) -> Finding | None:
    """Return whether the driver answers and is new enough for torch; None on a machine without NVIDIA cards."""
    gpu, build = situation.machine.gpu, situation.torch_build
    if not gpu.gpus:
        if not gpu.cards_on_bus and gpu.complaint is None:
            return None
        said = gpu.complaint or "nvidia-smi is missing, or shows no GPU"
        meaning = f"{gpu.cards_on_bus} NVIDIA card(s) on the PCI bus cannot be used"
        fix = "Install the NVIDIA driver (./install_cuda_docker.sh), and start the machine again."
        return problem("GPU driver", said, meaning, fix)
    value = f"{gpu.driver_version or 'unknown'}, for CUDA up to {gpu.driver_cuda or 'unknown'}"
    if build == "cpu":
        return ok("GPU driver", value, "it answers; the torch installed here does not use it")
    wanted, offered = numbers_of(build or ""), numbers_of(gpu.driver_cuda or "")
    if not wanted or not offered:
        return note(
            "GPU driver", value, f"cannot be compared with torch, which is built for {build or 'an unknown CUDA'}"
        )
    if offered[0] < wanted[0]:
        oldest = OLDEST_DRIVER_OF_CUDA.get(wanted[0], "one that offers it")
        fix = f"Update the driver to {oldest} or newer, or install a torch built for CUDA {offered[0]}."
        return problem("GPU driver", value, f"too old for this torch, which needs CUDA {build}", fix)
    if offered < wanted:
        meaning = f"older than torch's CUDA {build}; works within CUDA {wanted[0]}, but newest functions may be missing"
        return note("GPU driver", value, meaning, "Update the driver where torch complains of it.")
    return ok("GPU driver", value, f"new enough for torch's CUDA {build}")


def check_torch_sees_gpus(situation: Situation) -> Finding | None:
    """Return whether torch sees what nvidia-smi shows; None where there is no GPU or torch was not asked."""
    gpu, probe = situation.machine.gpu, situation.torch_probe
    if not gpu.gpus or probe is None:
        return None
    seen, there = len(probe.gpu_names), len(gpu.gpus)
    value = f"{seen} of {there}"
    if probe.failure:
        fix = "Fix what the message names; driver and torch must fit each other."
        return problem("GPUs seen by torch", value, f"torch does not work: {probe.failure}", fix)
    visible = situation.environment.get("CUDA_VISIBLE_DEVICES")
    if seen < there and visible is not None:
        meaning = f"CUDA_VISIBLE_DEVICES={visible} hides the others"
        return note("GPUs seen by torch", value, meaning, "Unset CUDA_VISIBLE_DEVICES to use all of them.")
    if seen < there:
        fix = "Compare nvidia-smi with the devices that the container or job was given."
        return problem("GPUs seen by torch", value, "a run cannot use the others", fix)
    return ok("GPUs seen by torch", value, "a run can use all of them")


def check_torch_works(situation: Situation) -> Finding | None:
    """Return a problem where torch cannot even be loaded, on a machine without a GPU."""
    probe = situation.torch_probe
    if probe is None or probe.failure is None or situation.machine.gpu.gpus:
        return None
    return problem("torch loads", "no", f"torch does not work: {probe.failure}", "Run ./install.sh anew.")


def check_versions(situation: Situation) -> Finding | None:
    """Return whether packages are at the versions of the checkout; None outside a checkout.

    A mark of the build behind a plus sign, as in 2.13.0+cu130, is no difference.
    """
    if not situation.pinned:
        return None
    others = []
    for name, pinned in situation.pinned.items():
        installed = situation.pinned_installed.get(name)
        if installed is not None and installed.partition("+")[0] != pinned.partition("+")[0]:
            others.append(f"{name} {installed} (pinned: {pinned})")
    if not others:
        return ok("package versions", "as in constraints.txt", "the versions that the tests ran with")
    hidden = len(others) - PACKAGES_SHOWN
    value = ", ".join(others[:PACKAGES_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")
    meaning = "other versions than those the tests ran with; numbers may differ"
    return note("package versions", value, meaning, "Run ./install.sh to have the pinned ones.")


def check_docker(situation: Situation) -> Finding:
    docker, has_gpu = situation.docker, bool(situation.machine.gpu.gpus)
    if docker is None:
        return ok("Docker", "not found", "only needed to run maskperf as a container")
    if not docker.daemon_answers:
        return ok(
            "Docker", f"{docker.version}, its daemon does not answer", "only needed to run maskperf as a container"
        )
    if has_gpu and "nvidia" not in docker.runtimes:
        meaning = "containers cannot use the GPUs the classic way"
        fix = "Install the NVIDIA container toolkit: ./install_cuda_docker.sh --no-driver."
        return note("Docker", f"{docker.version}, without the nvidia runtime", meaning, fix)
    return ok("Docker", docker.version, "maskperf can run as a container")
