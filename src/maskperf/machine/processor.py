"""The processors: what lscpu says where there is one, what /proc/cpuinfo and /sys say otherwise."""

import json
import os
import platform
import re
from pathlib import Path

from maskperf.machine.facts import CacheFacts, CpuFacts
from maskperf.machine.sources import read_number, read_text, run_program

CPU_FOLDER = Path("/sys/devices/system/cpu")
NODE_FOLDER = Path("/sys/devices/system/node")
# What makes a difference for matrix products; the names are those of /proc/cpuinfo.
INSTRUCTION_SETS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    *("asimd", "asimddp", "asimdhp", "sve", "sve2", "bf16", "i8mm", "svebf16"),
)
# Some ARM processors tell /proc/cpuinfo numbers only. Source: the part table of lscpu, implementer 0x41.
ARM_PARTS = {0xD0C: "Neoverse-N1", 0xD40: "Neoverse-V1", 0xD49: "Neoverse-N2", 0xD4F: "Neoverse-V2"}
KIB_OF_UNIT = {"B": 1 / 1024, "K": 1.0, "KIB": 1.0, "M": 1024.0, "MIB": 1024.0, "G": 1024.0**2, "GIB": 1024.0**2}
CACHE_NAMES = ("L1d", "L1i", "L2", "L3", "L4")


def describe_cpu() -> CpuFacts:
    """Return what the system tells about the processors."""
    lscpu = parse_lscpu(run_program(["lscpu", "-J"]).output or "")
    cpuinfo = read_text(Path("/proc/cpuinfo")) or ""
    caches = caches_of_lscpu(lscpu) or read_caches(CPU_FOLDER)
    return combine_cpu(
        lscpu,
        parse_cpuinfo(cpuinfo),
        architecture=platform.machine(),
        usable=(usable_physical_cores(), usable_logical_cores()),
        caches=caches,
        frequency=CPU_FOLDER / "cpu0" / "cpufreq",
        numa_nodes=count_nodes(NODE_FOLDER),
    )


def combine_cpu(
    lscpu: dict[str, str],
    cpuinfo: list[dict[str, str]],
    *,
    architecture: str,
    usable: tuple[int, int],
    caches: tuple[CacheFacts, ...],
    frequency: Path,
    numa_nodes: int | None,
) -> CpuFacts:
    """Return the facts of one machine; `usable` holds physical and logical cores, `frequency` is a folder of /sys."""
    first = cpuinfo[0] if cpuinfo else {}
    sockets, cores = count_cores(lscpu, cpuinfo)
    model = cpu_model(lscpu, first)
    flags = lscpu.get("Flags") or first.get("flags") or first.get("Features") or ""
    governor = read_text(frequency / "scaling_governor")
    return CpuFacts(
        architecture=architecture,
        model=model,
        vendor=lscpu.get("Vendor ID") or first.get("vendor_id"),
        sockets=sockets,
        physical_cores=cores,
        logical_cores=_whole(lscpu.get("CPU(s)")) or len(cpuinfo) or None,
        usable_physical_cores=usable[0],
        usable_logical_cores=usable[1],
        base_mhz=_mhz_of_khz(read_number(frequency / "base_frequency")) or mhz_of_name(model),
        maximum_mhz=_decimal(lscpu.get("CPU max MHz")) or _mhz_of_khz(read_number(frequency / "cpuinfo_max_freq")),
        current_mhz=_mhz_of_khz(read_number(frequency / "scaling_cur_freq")) or _decimal(first.get("cpu MHz")),
        caches=caches,
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags.split()),
        governor=governor,
        numa_nodes=_whole(lscpu.get("NUMA node(s)")) or numa_nodes,
        hypervisor=lscpu.get("Hypervisor vendor") or ("unnamed" if "hypervisor" in flags.split() else None),
    )


def parse_lscpu(text: str) -> dict[str, str]:
    """Return the fields of `lscpu -J`, flat or with sub-sections, without colons; empty where the text is no JSON."""
    try:
        entries = json.loads(text)["lscpu"]
    except (ValueError, KeyError, TypeError):
        return {}
    found: dict[str, str] = {}
    waiting = list(entries)
    while waiting:
        entry = waiting.pop(0)
        value = entry.get("data")
        if value is not None and value != "-":
            found.setdefault(entry["field"].rstrip(":"), value)
        waiting += entry.get("children", [])
    return found


def parse_cpuinfo(text: str) -> list[dict[str, str]]:
    """Return one dictionary per logical core of /proc/cpuinfo."""
    cores = []
    for block in re.split(r"\n\s*\n", text):
        pairs = [line.partition(":") for line in block.splitlines() if ":" in line]
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        if "processor" in fields:
            cores.append(fields)
    return cores


def cpu_model(lscpu: dict[str, str], first: dict[str, str]) -> str | None:
    """Return the name of the processor; `first` is the first core of /proc/cpuinfo."""
    name = lscpu.get("Model name") or first.get("model name")
    if name is None and first.get("CPU implementer") == "0x41" and "CPU part" in first:
        name = ARM_PARTS.get(int(first["CPU part"], 16))
    return name


def count_cores(lscpu: dict[str, str], cpuinfo: list[dict[str, str]]) -> tuple[int | None, int | None]:
    """Return sockets and physical cores of the machine."""
    sockets = _whole(lscpu.get("Socket(s)"))
    per_socket = _whole(lscpu.get("Core(s) per socket"))
    if per_socket is None and (clusters := _whole(lscpu.get("Cluster(s)"))):  # ARM machines without ACPI topology
        per_cluster = _whole(lscpu.get("Core(s) per cluster"))
        return sockets, clusters * per_cluster if per_cluster else None
    if sockets and per_socket:
        return sockets, sockets * per_socket
    named = [(core["physical id"], core["core id"]) for core in cpuinfo if {"physical id", "core id"} <= core.keys()]
    if not named:
        return sockets, None
    return len({socket for socket, _ in named}), len(set(named))


def mhz_of_name(model: str | None) -> float | None:
    """Return the base frequency that a name such as "Xeon(R) Gold 6130 CPU @ 2.10GHz" holds."""
    match = re.search(r"@\s*([0-9.]+)\s*GHz", model or "")
    return None if match is None else float(match[1]) * 1000


def caches_of_lscpu(fields: dict[str, str]) -> tuple[CacheFacts, ...]:
    """Return the caches; lscpu gives the sum of all, and newer versions the number: "64 MiB (64 instances)".

    The field is "L3 cache", or "L3" where lscpu uses sub-sections.
    """
    caches = []
    for name in CACHE_NAMES:
        match = re.match(
            r"([0-9.]+)\s*([KMG]?i?B?)(?:\s*\((\d+) instances?\))?", fields.get(f"{name} cache", fields.get(name, ""))
        )
        if match:
            kib = float(match[1]) * KIB_OF_UNIT[match[2].upper() or "B"]
            caches.append(CacheFacts(name=name, total_kib=kib, instances=int(match[3]) if match[3] else None))
    return tuple(caches)


def read_caches(cpu_folder: Path) -> tuple[CacheFacts, ...]:
    """Return the caches that /sys lists; a cache that several cores share counts once."""
    sizes: dict[str, dict[str, float]] = {}
    for index in cpu_folder.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, kind, size = (read_text(index / name) for name in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)([KMG])", size or "")
        if match is None:
            continue
        name = f"L{level}{ {'Data': 'd', 'Instruction': 'i'}.get(kind or '', '') }"
        sharers = read_text(index / "shared_cpu_list") or index.parts[-3]
        sizes.setdefault(name, {})[sharers] = int(match[1]) * KIB_OF_UNIT[match[2]]
    return tuple(
        CacheFacts(name=name, total_kib=sum(found.values()), instances=len(found))
        for name, found in sorted(sizes.items())
    )


def count_nodes(folder: Path) -> int | None:
    """Return the number of NUMA nodes."""
    return len(list(folder.glob("node[0-9]*"))) or None


def usable_logical_cores() -> int:
    """Return how many logical cores this process may run on."""
    return len(_allowed())


def usable_physical_cores() -> int:
    """Return how many cores of their own this process may use; two threads of one core count once."""
    cores = set()
    for logical in _allowed():
        siblings = read_text(CPU_FOLDER / f"cpu{logical}" / "topology" / "thread_siblings_list")
        cores.add(siblings or str(logical))
    return len(cores)


def _allowed() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _decimal(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else None


def _mhz_of_khz(khz: int | None) -> float | None:
    return None if khz is None else khz / 1000
