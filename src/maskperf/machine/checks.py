"""All checks of the doctor, in the order in which they are shown; those of software and variables are here."""

import re
from collections.abc import Iterator

from maskperf.machine import check_hardware as hardware
from maskperf.machine.facts import Environment, Finding, note, ok, problem

OLDEST_PYTHON, OLDEST_TORCH = "3.11", "2.11"
# Source: CUDA Toolkit release notes, table "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version
# Compatibility" (Linux).
OLDEST_DRIVER_OF_CUDA = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
PACKAGES_SHOWN = 6
SLOW_VARIABLES = {
    "NCCL_P2P_DISABLE": "GPUs exchange gradients through main memory instead of directly",
    "NCCL_SHM_DISABLE": "GPUs of one machine exchange gradients through the network",
    "NCCL_IB_DISABLE": "machines exchange gradients without InfiniBand",
    "CUDA_LAUNCH_BLOCKING": "the CPU waits for every GPU operation",
    "TORCH_DISTRIBUTED_DEBUG": "every exchange between processes is checked",
}
HARMLESS_VALUES = ("", "0", "OFF")
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def numbers_of(version: str) -> tuple[int, ...]:
    """Return the numbers that a version starts with: (2, 13, 0) for "2.13.0+cpu"."""
    return tuple(int(number) for number in re.split(r"[^0-9.]", version)[0].split(".") if number)


def check_software(env: Environment) -> Iterator[Finding]:
    """Yield the operating system, Python and torch."""
    machine, torch, probe = env.machine, env.machine.software.get("torch"), env.torch_probe
    value = f"{machine.operating_system}, {machine.kernel}"
    if not machine.kernel.startswith("Linux"):
        yield note("system", value, "maskperf is tested on Linux; some facts below cannot be found elsewhere")
    elif "microsoft" in machine.kernel.lower():
        yield note("system", f"{value} (WSL)", "Windows may take memory and processors away during a run")
    elif machine.container:
        value += f", in a container ({machine.container})"
        yield ok("system", value, "the container's own limits count as well")
    else:
        yield ok("system", value, "Linux, as tested")
    python = machine.software["python"] or ""
    if numbers_of(python) < numbers_of(OLDEST_PYTHON):
        fix = f"Install Python {OLDEST_PYTHON} or newer, then ./install.sh."
        yield problem("Python", python, "too old for maskperf", fix)
    else:
        yield ok("Python", python, "new enough")
    value = f"{torch} (built for {env.torch_build or 'an unknown platform'})"
    if torch is None:
        yield problem("torch", "not installed", "nothing can be trained or evaluated", "Run ./install.sh.")
    elif numbers_of(torch) < numbers_of(OLDEST_TORCH):
        yield problem("torch", value, f"maskperf needs torch {OLDEST_TORCH} or newer", "Run ./install.sh.")
    else:
        yield ok("torch", value, "new enough")
    if probe and probe.failure is not None and not env.gpus:  # with GPUs, `check_cuda` reports it
        yield problem("torch loads", "no", f"torch does not work: {probe.failure}", "Run ./install.sh again.")


def check_cuda(env: Environment) -> Iterator[Finding]:
    """Yield whether torch, the driver and the GPUs fit each other; the driver only on a machine with NVIDIA cards."""
    gpu, build, probe = env.machine.gpu, env.torch_build, env.torch_probe
    count = len(gpu.gpus) or gpu.cards_on_bus
    value = f"torch for {build}, {count} NVIDIA GPU(s)"
    if build is not None and count == 0:
        yield (ok if build == "cpu" else note)("torch and GPU", value, "the CPU trains: the demo, or COCO in weeks")
    elif build is not None and (build == "cpu" or build.startswith("rocm")):
        fix = "Install torch for CUDA: choose Linux, Pip and CUDA on pytorch.org/get-started."
        yield problem("torch and GPU", value, "this torch cannot use the GPUs: training would run on the CPU", fix)
    elif build is not None:
        yield ok("torch and GPU", value, "torch can use GPUs")
    if gpu.gpus:
        yield _driver(env)
    elif gpu.cards_on_bus or gpu.complaint is not None:
        value = gpu.complaint or "nvidia-smi is missing, or shows no GPU"
        meaning = f"{gpu.cards_on_bus} NVIDIA card(s) on the PCI bus cannot be used"
        yield problem("GPU driver", value, meaning, "Install it (./install_cuda_docker.sh), and restart the machine.")
    if not gpu.gpus or probe is None:
        return
    name, value = "GPUs seen by torch", f"{len(probe.gpu_names)} of {len(gpu.gpus)}"
    visible = env.variables.get("CUDA_VISIBLE_DEVICES")
    if probe.failure:
        yield problem(name, value, f"torch does not work: {probe.failure}", "Driver and torch must fit each other.")
    elif len(probe.gpu_names) >= len(gpu.gpus):
        yield ok(name, value, "a run can use all of them")
    elif visible is not None:
        yield note(name, value, f"CUDA_VISIBLE_DEVICES={visible} hides the others", "Unset it to use all of them.")
    else:
        yield problem(name, value, "a run cannot use the others", "Look at the devices that the container or job has.")


def _driver(env: Environment) -> Finding:
    """Return whether a driver that answers is new enough for torch."""
    gpu, build = env.machine.gpu, env.torch_build
    value = f"{gpu.driver_version or 'unknown'}, for CUDA up to {gpu.driver_cuda or 'unknown'}"
    wanted, offered = numbers_of(build or ""), numbers_of(gpu.driver_cuda or "")
    if build == "cpu":
        return ok("GPU driver", value, "it answers; the torch installed here does not use it")
    if not wanted or not offered:
        return note("GPU driver", value, f"cannot be compared with torch, built for {build or 'an unknown CUDA'}")
    if offered[0] < wanted[0]:
        oldest = OLDEST_DRIVER_OF_CUDA.get(wanted[0], "one that offers it")
        fix = f"Update the driver to {oldest} or newer, or install a torch built for CUDA {offered[0]}."
        return problem("GPU driver", value, f"too old for this torch, which needs CUDA {build}", fix)
    if offered < wanted:
        meaning = f"older than torch's CUDA {build}; works within CUDA {wanted[0]}, but newest functions may be missing"
        return note("GPU driver", value, meaning, "Update the driver if torch reports an error about it.")
    return ok("GPU driver", value, f"new enough for torch's CUDA {build}")


def check_versions(env: Environment) -> Iterator[Finding]:
    """Compare packages with the versions of the checkout, without the build behind a plus sign (2.13.0+cu130)."""
    others = [
        f"{name} {installed} (pinned: {pinned})"
        for name, (pinned, installed) in env.pinned.items()
        if installed is not None and installed.partition("+")[0] != pinned.partition("+")[0]
    ]
    if others:
        hidden = len(others) - PACKAGES_SHOWN
        value = ", ".join(others[:PACKAGES_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")
        yield note("package versions", value, "numbers may differ from those of the tests", "Run ./install.sh.")
    elif env.pinned:
        yield ok("package versions", "as in constraints.txt", "the versions that the tests ran with")


def check_network(env: Environment) -> Iterator[Finding]:
    """Yield the network, and a card that NCCL or Gloo is configured to use and that does not exist."""
    machine = env.machine
    links = [f"{port.name}: {port.rate}" for port in machine.infiniband if port.state == "ACTIVE"]
    is_idle = bool(machine.infiniband) and not links
    for card in machine.network:
        if card.state != "down":
            speed = card.gigabits_per_second
            links.append(f"{card.name}: {'speed unknown' if speed is None else f'{speed:g} Gbit/s'}")
    value = ", ".join(links) or "none in use"
    if is_idle:
        meaning = f"{len(machine.infiniband)} InfiniBand port(s), none active; matters for several machines only"
        yield note("network", value, meaning, "Look at the cables and the switch: ibstat")
    else:
        yield ok("network", value, "matters for several machines only: each step exchanges 168 MiB of gradients")
    cards = [card.name for card in machine.network] + ["lo"]
    named = {name: env.variables.get(name, "") for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")}
    for variable, text in named.items():
        prefixes = tuple(filter(None, text.split(",")))
        if text and text[0] not in "^=" and not any(card.startswith(prefixes) for card in cards):
            meaning = f"no network card has such a name; there are {', '.join(cards)}"
            yield problem("network card", f"{variable}={text}", meaning, f"Unset {variable}, or name one of them.")
            return


def check_variables(env: Environment) -> Iterator[Finding]:
    """Yield variables that slow down the exchange between processes, and those that torchrun sets."""
    variables = env.variables
    slow = [name for name in SLOW_VARIABLES if variables.get(name, "").upper() not in HARMLESS_VALUES]
    if slow:
        value = ", ".join(f"{name}={variables[name]}" for name in slow)
        fix = f"Unset {' and '.join(slow)}, unless it was set on purpose."
        yield note("NCCL and CUDA variables", value, "; ".join(SLOW_VARIABLES[name] for name in slow), fix)
    else:
        yield ok("NCCL and CUDA variables", "none that slows a run", "exchange between processes is not slowed")
    found = {name: variables[name] for name in RANK_VARIABLES if name in variables}
    name, value = "torchrun variables", ", ".join(f"{name}={text}" for name, text in found.items()) or "none"
    fix = f"Outside torchrun: unset {' '.join(found)}."
    numbers = [found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in found]
    are_numbers = all(number.isdigit() for number in numbers)
    world = int(found.get("WORLD_SIZE", "1")) if are_numbers else 1
    missing = [name for name in RANK_VARIABLES if name not in found]
    if not are_numbers:
        yield problem(name, value, "a run reads them as whole numbers and would stop", fix)
    elif world > 1 and missing:
        yield problem(name, value, f"a run would wait for {world - 1} more, but {', '.join(missing)} is missing", fix)
    elif world > 1:
        yield note(name, value, f"a run here acts as one of {world} processes, and waits for the others", fix)
    else:
        yield ok(name, value, "a single process all the same" if found else "a run is one process, or starts its own")


def check_services(env: Environment) -> Iterator[Finding]:
    """Yield the clock and Docker."""
    docker, unneeded = env.docker, "only needed to run maskperf as a container"
    if env.clock_synchronized is None:
        yield ok("clock", "unknown", "durations do not depend on it, but time stamps in mlperf.log do")
    elif env.clock_synchronized:
        yield ok("clock", "synchronized (NTP)", "time stamps in mlperf.log are right")
    else:
        yield note("clock", "not synchronized", "times in mlperf.log may be wrong", "sudo timedatectl set-ntp true")
    if docker is None:
        yield ok("Docker", "not found", unneeded)
    elif not docker.runtimes:
        yield ok("Docker", f"{docker.version}, its daemon does not answer", unneeded)
    elif env.gpus and "nvidia" not in docker.runtimes:
        value, fix = f"{docker.version}, without the nvidia runtime", "./install_cuda_docker.sh --no-driver"
        yield note("Docker", value, "containers cannot use the GPUs the classic way", fix)
    else:
        yield ok("Docker", docker.version, "maskperf can run as a container")


# In the order in which the findings are shown.
CHECKS = (
    *(check_software, check_cuda, check_versions, hardware.check_gpus, hardware.check_gpu_speed),
    *(hardware.check_cores, hardware.check_steadiness, hardware.check_cpu_speed, hardware.check_memory),
    *(hardware.check_limits, hardware.check_data, hardware.check_space, hardware.check_storage),
    *(check_network, check_variables, check_services),
)


def examine(env: Environment) -> list[Finding]:
    """Return the findings of all checks that have an object on this machine."""
    return [finding for check in CHECKS for finding in check(env)]
