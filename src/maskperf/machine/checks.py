"""All checks of the doctor, in the order in which they are shown; those of software and variables are here."""

import re
from collections.abc import Callable

from maskperf.machine import check_hardware as hardware
from maskperf.machine.facts import NOTE, OK, PROBLEM, Environment, Finding, Verdict

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


def check_system(env: Environment) -> Verdict:
    machine = env.machine
    value = f"{machine.operating_system}, {machine.kernel}"
    if not machine.kernel.startswith("Linux"):
        return NOTE, value, "maskperf is tested on Linux; some facts below cannot be found elsewhere"
    if "microsoft" in machine.kernel.lower():
        return NOTE, f"{value} (WSL)", "Windows may take memory and processors away during a run"
    if machine.container:
        value += f", in a container ({machine.container})"
        return OK, value, "the container's own limits count as well"
    return OK, value, "Linux, as tested"


def check_python(env: Environment) -> Verdict:
    value, oldest = (".".join(map(str, version)) for version in (env.python, OLDEST_PYTHON))
    if env.python[:2] < OLDEST_PYTHON:
        fix = f"Install Python {oldest} or newer, then ./install.sh."
        return PROBLEM, value, f"maskperf needs Python {oldest} or newer", fix
    return OK, value, "new enough"


def check_torch(env: Environment) -> Verdict:
    version = env.machine.software.get("torch")
    if version is None:
        return PROBLEM, "not installed", "nothing can be trained or evaluated", "Run ./install.sh."
    value = f"{version} (built for {env.torch_build or 'an unknown platform'})"
    if numbers_of(version)[:2] < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return PROBLEM, value, f"maskperf needs torch {oldest} or newer", "Run ./install.sh."
    return OK, value, "new enough"


def check_torch_works(env: Environment) -> Verdict | None:
    """Report a torch that cannot be loaded, on a machine without a GPU."""
    probe = env.torch_probe
    if probe is None or probe.failure is None or env.machine.gpu.gpus:
        return None
    return PROBLEM, "no", f"torch does not work: {probe.failure}", "Run ./install.sh again."


def check_torch_build(env: Environment) -> Verdict | None:
    build, gpu = env.torch_build, env.machine.gpu
    if build is None:
        return None
    count = len(gpu.gpus) or gpu.cards_on_bus
    value = f"torch for {build}, {count} NVIDIA GPU(s)"
    if count == 0:
        meaning = "training runs on the CPU: right for the recipe demo, weeks or more for COCO"
        return (OK, value, meaning) if build == "cpu" else (NOTE, value, meaning)
    if build == "cpu" or build.startswith("rocm"):
        fix = "Install torch for CUDA: choose Linux, Pip and CUDA on pytorch.org/get-started."
        return PROBLEM, value, "this torch cannot use the GPUs: training would run on the CPU", fix
    return OK, value, "torch can use GPUs"


def check_driver(env: Environment) -> Verdict | None:
    """Check that the driver answers and is new enough for torch; None on a machine without NVIDIA cards."""
    gpu, build = env.machine.gpu, env.torch_build
    if not gpu.gpus and not gpu.cards_on_bus and gpu.complaint is None:
        return None
    if not gpu.gpus:
        value = gpu.complaint or "nvidia-smi is missing, or shows no GPU"
        fix = "Install the NVIDIA driver (./install_cuda_docker.sh), and start the machine again."
        return PROBLEM, value, f"{gpu.cards_on_bus} NVIDIA card(s) on the PCI bus cannot be used", fix
    value = f"{gpu.driver_version or 'unknown'}, for CUDA up to {gpu.driver_cuda or 'unknown'}"
    if build == "cpu":
        return OK, value, "it answers; the torch installed here does not use it"
    wanted, offered = numbers_of(build or ""), numbers_of(gpu.driver_cuda or "")
    if not wanted or not offered:
        return NOTE, value, f"cannot be compared with torch, which is built for {build or 'an unknown CUDA'}"
    if offered[0] < wanted[0]:
        oldest = OLDEST_DRIVER_OF_CUDA.get(wanted[0], "one that offers it")
        fix = f"Update the driver to {oldest} or newer, or install a torch built for CUDA {offered[0]}."
        return PROBLEM, value, f"too old for this torch, which needs CUDA {build}", fix
    if offered < wanted:
        meaning = f"older than torch's CUDA {build}; works within CUDA {wanted[0]}, but newest functions may be missing"
        return NOTE, value, meaning, "Update the driver if torch reports an error about it."
    return OK, value, f"new enough for torch's CUDA {build}"


def check_torch_sees_gpus(env: Environment) -> Verdict | None:
    gpu, probe = env.machine.gpu, env.torch_probe
    if not gpu.gpus or probe is None:
        return None
    value = f"{len(probe.gpu_names)} of {len(gpu.gpus)}"
    if probe.failure:
        fix = "Fix what the message names; driver and torch must fit each other."
        return PROBLEM, value, f"torch does not work: {probe.failure}", fix
    if len(probe.gpu_names) >= len(gpu.gpus):
        return OK, value, "a run can use all of them"
    visible = env.variables.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        meaning = f"CUDA_VISIBLE_DEVICES={visible} hides the others"
        return NOTE, value, meaning, "Unset CUDA_VISIBLE_DEVICES to use all of them."
    fix = "Compare nvidia-smi with the devices that the container or job was given."
    return PROBLEM, value, "a run cannot use the others", fix


def check_versions(env: Environment) -> Verdict | None:
    """Compare packages with the versions of the checkout, without the build behind a plus sign (2.13.0+cu130)."""
    if not env.pinned:
        return None
    others = [
        f"{name} {installed} (pinned: {pinned})"
        for name, (pinned, installed) in env.pinned.items()
        if installed is not None and installed.partition("+")[0] != pinned.partition("+")[0]
    ]
    if not others:
        return OK, "as in constraints.txt", "the versions that the tests ran with"
    hidden = len(others) - PACKAGES_SHOWN
    value = ", ".join(others[:PACKAGES_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")
    meaning = "other versions than those the tests ran with; numbers may differ"
    return NOTE, value, meaning, "Run ./install.sh to have the pinned ones."


def check_thread_variables(env: Environment) -> Verdict:
    pinning = {name: env.variables[name] for name in PINNING_VARIABLES if env.variables.get(name)}
    if pinning:
        value = ", ".join(f"{name}={text}" for name, text in pinning.items())
        meaning = "binds threads to cores; several processes may then share the same ones"
        return NOTE, value, meaning, f"Unset {' and '.join(pinning)}, unless it was chosen on purpose."
    threads = env.variables.get("OMP_NUM_THREADS")
    if threads is None:
        return OK, "OMP_NUM_THREADS is not set", "system.threads decides"
    meaning = "a run sets torch's threads itself, from system.threads; the variable affects other libraries only"
    return OK, f"OMP_NUM_THREADS={threads}", meaning


def check_network(env: Environment) -> Verdict:
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
        return NOTE, value, meaning, "Look at the cables and the switch: ibstat"
    return OK, value, "matters for several machines only: each step exchanges 168 MiB of gradients"


def check_interfaces(env: Environment) -> Verdict | None:
    """Report a network card that NCCL or Gloo is configured to use and that does not exist."""
    cards = [card.name for card in env.machine.network] + ["lo"]
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        named = env.variables.get(variable, "")
        if not named or named[0] in "^=":
            continue
        prefixes = tuple(prefix for prefix in named.split(",") if prefix)
        if not any(card.startswith(prefixes) for card in cards):
            meaning = f"no network card has such a name; there are {', '.join(cards)}"
            return PROBLEM, f"{variable}={named}", meaning, f"Unset {variable}, or name one of them."
    return None


def check_slow_variables(env: Environment) -> Verdict:
    found = [name for name in SLOW_VARIABLES if env.variables.get(name, "").upper() not in HARMLESS_VALUES]
    if not found:
        return OK, "none that slows a run", "exchange between processes is not slowed"
    value = ", ".join(f"{name}={env.variables[name]}" for name in found)
    fix = f"Unset {' and '.join(found)}, unless it was set on purpose."
    return NOTE, value, "; ".join(SLOW_VARIABLES[name] for name in found), fix


def check_rank_variables(env: Environment) -> Verdict:
    found = {variable: env.variables[variable] for variable in RANK_VARIABLES if variable in env.variables}
    if not found:
        return OK, "none", "a run here is one process, or starts its own"
    value = ", ".join(f"{variable}={text}" for variable, text in found.items())
    fix = f"Outside torchrun: unset {' '.join(found)}."
    numbers = [found[variable] for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if variable in found]
    if not all(number.isdigit() for number in numbers):
        return PROBLEM, value, "a run reads them as whole numbers and would stop", fix
    world = int(found.get("WORLD_SIZE", "1"))
    missing = [variable for variable in RANK_VARIABLES if variable not in found]
    if world > 1 and missing:
        meaning = f"a run would wait for {world - 1} other process(es), and cannot: {', '.join(missing)} missing"
        return PROBLEM, value, meaning, fix
    if world > 1:
        return NOTE, value, f"a run here acts as one of {world} processes, and waits for the others", fix
    return OK, value, "a single process all the same"


def check_clock(env: Environment) -> Verdict:
    if env.clock_synchronized is None:
        return OK, "unknown", "durations do not depend on it, but time stamps in mlperf.log do"
    if env.clock_synchronized:
        return OK, "synchronized (NTP)", "time stamps in mlperf.log are right"
    meaning = "time stamps in mlperf.log may be wrong, or jump during a run"
    return NOTE, "not synchronized", meaning, "sudo timedatectl set-ntp true"


def check_docker(env: Environment) -> Verdict:
    docker, unneeded = env.docker, "only needed to run maskperf as a container"
    if docker is None:
        return OK, "not found", unneeded
    if not docker.runtimes:
        return OK, f"{docker.version}, its daemon does not answer", unneeded
    if env.machine.gpu.gpus and "nvidia" not in docker.runtimes:
        fix = "Install the NVIDIA container toolkit: ./install_cuda_docker.sh --no-driver."
        value = f"{docker.version}, without the nvidia runtime"
        return NOTE, value, "containers cannot use the GPUs the classic way", fix
    return OK, docker.version, "maskperf can run as a container"


# In the order in which the findings are shown, by name.
CHECKS: dict[str, Callable[[Environment], Verdict | None]] = {
    "system": check_system,
    "Python": check_python,
    "torch": check_torch,
    "torch loads": check_torch_works,
    "torch and GPU": check_torch_build,
    "GPU driver": check_driver,
    "GPUs seen by torch": check_torch_sees_gpus,
    "package versions": check_versions,
    "GPUs": hardware.check_gpu_list,
    "GPU memory": hardware.check_gpu_memory,
    "GPUs in use": hardware.check_gpu_use,
    "GPU splitting (MIG)": hardware.check_gpu_split,
    "GPU links": hardware.check_gpu_links,
    "PCIe": hardware.check_gpu_bus,
    "matrix products, GPU": hardware.check_gpu_speed,
    "processor": hardware.check_cpu,
    "cores": hardware.check_cores,
    "CPU limit (cgroup)": hardware.check_cpu_limit,
    "hyperthreads": hardware.check_hyperthreads,
    "NUMA nodes": hardware.check_numa,
    "CPU frequency": hardware.check_governor,
    "other work": hardware.check_load,
    "thread variables": check_thread_variables,
    "matrix products, CPU": hardware.check_cpu_speed,
    "images": hardware.check_picture_speed,
    "memory": hardware.check_memory,
    "/dev/shm": hardware.check_shared_memory,
    "open files (ulimit -n)": hardware.check_open_files,
    "locked memory (ulimit -l)": hardware.check_locked_memory,
    "core files (ulimit -c)": hardware.check_core_files,
    "COCO 2017": hardware.check_data,
    "backbone weights": hardware.check_weights,
    "space for data": hardware.check_data_space,
    "space for runs": hardware.check_run_space,
    "storage of data": hardware.check_storage_kind,
    "disk speed": hardware.check_disk_speed,
    "network": check_network,
    "network card": check_interfaces,
    "NCCL and CUDA variables": check_slow_variables,
    "torchrun variables": check_rank_variables,
    "clock": check_clock,
    "Docker": check_docker,
}


def examine(env: Environment) -> list[Finding]:
    """Return the findings of all checks that have an object on this machine."""
    verdicts = ((name, check(env)) for name, check in CHECKS.items())
    return [Finding(verdict[0], name, *verdict[1:]) for name, verdict in verdicts if verdict is not None]
