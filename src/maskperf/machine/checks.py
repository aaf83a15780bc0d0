"""All checks of the doctor, in the order in which they are shown; those of software and variables are here."""

import re

from maskperf.machine import check_hardware as hardware
from maskperf.machine.facts import Environment, Finding, note, ok, problem

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
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
PINNING_VARIABLES = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PROC_BIND")
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def numbers_of(version: str) -> tuple[int, ...]:
    """Return the numbers that a version starts with: (2, 13, 0) for "2.13.0+cpu"."""
    return tuple(int(number) for number in re.split(r"[^0-9.]", version)[0].split(".") if number)


def check_system(env: Environment) -> Finding:
    machine = env.machine
    value = f"{machine.operating_system}, {machine.kernel}"
    if not machine.kernel.startswith("Linux"):
        return note("system", value, "maskperf is tested on Linux; some facts below cannot be found elsewhere")
    if "microsoft" in machine.kernel.lower():
        return note("system", f"{value} (WSL)", "Windows may take memory and processors away during a run")
    if machine.container:
        value += f", in a container ({machine.container})"
        return ok("system", value, "the container's own limits count as well")
    return ok("system", value, "Linux, as tested")


def check_python(env: Environment) -> Finding:
    value, oldest = (".".join(map(str, version)) for version in (env.python, OLDEST_PYTHON))
    if env.python[:2] < OLDEST_PYTHON:
        fix = f"Install Python {oldest} or newer, then ./install.sh."
        return problem("Python", value, f"maskperf needs Python {oldest} or newer", fix)
    return ok("Python", value, "new enough")


def check_torch(env: Environment) -> Finding:
    version = env.machine.software.get("torch")
    if version is None:
        return problem("torch", "not installed", "nothing can be trained or evaluated", "Run ./install.sh.")
    value = f"{version} (built for {env.torch_build or 'an unknown platform'})"
    if numbers_of(version)[:2] < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return problem("torch", value, f"maskperf needs torch {oldest} or newer", "Run ./install.sh.")
    return ok("torch", value, "new enough")


def check_torch_works(env: Environment) -> Finding | None:
    """Report a torch that cannot be loaded, on a machine without a GPU."""
    probe = env.torch_probe
    if probe is None or probe.failure is None or env.machine.gpu.gpus:
        return None
    return problem("torch loads", "no", f"torch does not work: {probe.failure}", "Run ./install.sh again.")


def check_torch_build(env: Environment) -> Finding | None:
    build, gpu, name = env.torch_build, env.machine.gpu, "torch and GPU"
    if build is None:
        return None
    count = len(gpu.gpus) or gpu.cards_on_bus
    value = f"torch for {build}, {count} NVIDIA GPU(s)"
    if count == 0:
        meaning = "training runs on the CPU: right for the recipe demo, weeks or more for COCO"
        return ok(name, value, meaning) if build == "cpu" else note(name, value, meaning)
    if build == "cpu" or build.startswith("rocm"):
        fix = "Install torch for CUDA: choose Linux, Pip and CUDA on pytorch.org/get-started."
        return problem(name, value, "this torch cannot use the GPUs: training would run on the CPU", fix)
    return ok(name, value, "torch can use GPUs")


def check_driver(env: Environment) -> Finding | None:
    """Check that the driver answers and is new enough for torch; None on a machine without NVIDIA cards."""
    gpu, build, name = env.machine.gpu, env.torch_build, "GPU driver"
    if not gpu.gpus and not gpu.cards_on_bus and gpu.complaint is None:
        return None
    if not gpu.gpus:
        value = gpu.complaint or "nvidia-smi is missing, or shows no GPU"
        fix = "Install the NVIDIA driver (./install_cuda_docker.sh), and start the machine again."
        return problem(name, value, f"{gpu.cards_on_bus} NVIDIA card(s) on the PCI bus cannot be used", fix)
    value = f"{gpu.driver_version or 'unknown'}, for CUDA up to {gpu.driver_cuda or 'unknown'}"
    if build == "cpu":
        return ok(name, value, "it answers; the torch installed here does not use it")
    wanted, offered = numbers_of(build or ""), numbers_of(gpu.driver_cuda or "")
    if not wanted or not offered:
        return note(name, value, f"cannot be compared with torch, which is built for {build or 'an unknown CUDA'}")
    if offered[0] < wanted[0]:
        oldest = OLDEST_DRIVER_OF_CUDA.get(wanted[0], "one that offers it")
        fix = f"Update the driver to {oldest} or newer, or install a torch built for CUDA {offered[0]}."
        return problem(name, value, f"too old for this torch, which needs CUDA {build}", fix)
    if offered < wanted:
        meaning = f"older than torch's CUDA {build}; works within CUDA {wanted[0]}, but newest functions may be missing"
        return note(name, value, meaning, "Update the driver if torch reports an error about it.")
    return ok(name, value, f"new enough for torch's CUDA {build}")


def check_torch_sees_gpus(env: Environment) -> Finding | None:
    gpu, probe, name = env.machine.gpu, env.torch_probe, "GPUs seen by torch"
    if not gpu.gpus or probe is None:
        return None
    value = f"{len(probe.gpu_names)} of {len(gpu.gpus)}"
    if probe.failure:
        fix = "Fix what the message names; driver and torch must fit each other."
        return problem(name, value, f"torch does not work: {probe.failure}", fix)
    if len(probe.gpu_names) >= len(gpu.gpus):
        return ok(name, value, "a run can use all of them")
    visible = env.variables.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        meaning = f"CUDA_VISIBLE_DEVICES={visible} hides the others"
        return note(name, value, meaning, "Unset CUDA_VISIBLE_DEVICES to use all of them.")
    fix = "Compare nvidia-smi with the devices that the container or job was given."
    return problem(name, value, "a run cannot use the others", fix)


def check_versions(env: Environment) -> Finding | None:
    """Compare packages with the versions of the checkout, without the build behind a plus sign (2.13.0+cu130)."""
    if not env.pinned:
        return None
    others = [
        f"{name} {installed} (pinned: {pinned})"
        for name, (pinned, installed) in env.pinned.items()
        if installed is not None and installed.partition("+")[0] != pinned.partition("+")[0]
    ]
    if not others:
        return ok("package versions", "as in constraints.txt", "the versions that the tests ran with")
    hidden = len(others) - PACKAGES_SHOWN
    value = ", ".join(others[:PACKAGES_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")
    meaning = "other versions than those the tests ran with; numbers may differ"
    return note("package versions", value, meaning, "Run ./install.sh to have the pinned ones.")


def check_thread_variables(env: Environment) -> Finding:
    pinning = {name: env.variables[name] for name in PINNING_VARIABLES if env.variables.get(name)}
    if pinning:
        value = ", ".join(f"{name}={text}" for name, text in pinning.items())
        meaning = "binds threads to cores; several processes may then share the same ones"
        fix = f"Unset {' and '.join(pinning)}, unless it was chosen on purpose."
        return note("thread variables", value, meaning, fix)
    threads = env.variables.get("OMP_NUM_THREADS")
    if threads is None:
        return ok("thread variables", "OMP_NUM_THREADS is not set", "system.threads decides")
    meaning = "a run sets torch's threads itself, from system.threads; the variable affects other libraries only"
    return ok("thread variables", f"OMP_NUM_THREADS={threads}", meaning)


def check_network(env: Environment) -> Finding:
    machine = env.machine
    ports = [port for port in machine.infiniband if port.state == "ACTIVE"]
    links = [f"{port.name}: {port.rate}" for port in ports]
    for card in machine.network:
        if card.state != "down":
            speed = card.gigabits_per_second
            links.append(f"{card.name}: {'speed unknown' if speed is None else f'{speed:g} Gbit/s'}")
    value = ", ".join(links) or "none in use"
    if machine.infiniband and not ports:
        meaning = f"{len(machine.infiniband)} InfiniBand port(s), none active; matters for several machines only"
        return note("network", value, meaning, "Look at the cables and the switch: ibstat")
    return ok("network", value, "matters for several machines only: each step exchanges 168 MiB of gradients")


def check_interfaces(env: Environment) -> Finding | None:
    """Report a network card that NCCL or Gloo is configured to use and that does not exist."""
    cards = [card.name for card in env.machine.network] + ["lo"]
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        named = env.variables.get(variable, "")
        if not named or named[0] in "^=":
            continue
        prefixes = tuple(prefix for prefix in named.split(",") if prefix)
        if not any(card.startswith(prefixes) for card in cards):
            meaning = f"no network card has such a name; there are {', '.join(cards)}"
            return problem("network card", f"{variable}={named}", meaning, f"Unset {variable}, or name one of them.")
    return None


def check_slow_variables(env: Environment) -> Finding:
    found = [name for name in SLOW_VARIABLES if env.variables.get(name, "").upper() not in HARMLESS_VALUES]
    if not found:
        return ok("NCCL and CUDA variables", "none that slows a run", "exchange between processes is not slowed")
    value = ", ".join(f"{name}={env.variables[name]}" for name in found)
    fix = f"Unset {' and '.join(found)}, unless it was set on purpose."
    return note("NCCL and CUDA variables", value, "; ".join(SLOW_VARIABLES[name] for name in found), fix)


def check_rank_variables(env: Environment) -> Finding:
    name = "torchrun variables"
    found = {variable: env.variables[variable] for variable in RANK_VARIABLES if variable in env.variables}
    if not found:
        return ok(name, "none", "a run here is one process, or starts its own")
    value = ", ".join(f"{variable}={text}" for variable, text in found.items())
    fix = f"Outside torchrun: unset {' '.join(found)}."
    numbers = [found[variable] for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if variable in found]
    if not all(number.isdigit() for number in numbers):
        return problem(name, value, "a run reads them as whole numbers and would stop", fix)
    world = int(found.get("WORLD_SIZE", "1"))
    missing = [variable for variable in RANK_VARIABLES if variable not in found]
    if world > 1 and missing:
        meaning = f"a run would wait for {world - 1} other process(es), and cannot: {', '.join(missing)} missing"
        return problem(name, value, meaning, fix)
    if world > 1:
        return note(name, value, f"a run here acts as one of {world} processes, and waits for the others", fix)
    return ok(name, value, "a single process all the same")


def check_clock(env: Environment) -> Finding:
    if env.clock_synchronized is None:
        return ok("clock", "unknown", "durations do not depend on it, but time stamps in mlperf.log do")
    if env.clock_synchronized:
        return ok("clock", "synchronized (NTP)", "time stamps in mlperf.log are right")
    meaning = "time stamps in mlperf.log may be wrong, or jump during a run"
    return note("clock", "not synchronized", meaning, "sudo timedatectl set-ntp true")


def check_docker(env: Environment) -> Finding:
    docker, unneeded = env.docker, "only needed to run maskperf as a container"
    if docker is None:
        return ok("Docker", "not found", unneeded)
    if not docker.runtimes:
        return ok("Docker", f"{docker.version}, its daemon does not answer", unneeded)
    if env.machine.gpu.gpus and "nvidia" not in docker.runtimes:
        fix = "Install the NVIDIA container toolkit: ./install_cuda_docker.sh --no-driver."
        value = f"{docker.version}, without the nvidia runtime"
        return note("Docker", value, "containers cannot use the GPUs the classic way", fix)
    return ok("Docker", docker.version, "maskperf can run as a container")


CHECKS = (
    *(check_system, check_python, check_torch, check_torch_works, check_torch_build, check_driver),
    *(check_torch_sees_gpus, check_versions),
    *(hardware.check_gpu_list, hardware.check_gpu_memory, hardware.check_gpu_use, hardware.check_gpu_split),
    *(hardware.check_gpu_links, hardware.check_gpu_bus, hardware.check_gpu_speed),
    *(hardware.check_cpu, hardware.check_cores, hardware.check_cpu_limit, hardware.check_hyperthreads),
    *(hardware.check_numa, hardware.check_governor, hardware.check_load, check_thread_variables),
    *(hardware.check_cpu_speed, hardware.check_picture_speed),
    *(hardware.check_memory, hardware.check_shared_memory, hardware.check_open_files, hardware.check_locked_memory),
    *(hardware.check_core_files, hardware.check_data, hardware.check_weights, hardware.check_data_space),
    *(hardware.check_run_space, hardware.check_storage_kind, hardware.check_disk_speed),
    *(check_network, check_interfaces, check_slow_variables, check_rank_variables, check_clock, check_docker),
)


def examine(env: Environment) -> list[Finding]:
    """Return the findings of all checks that have an object on this machine."""
    return [finding for check in CHECKS if (finding := check(env)) is not None]
