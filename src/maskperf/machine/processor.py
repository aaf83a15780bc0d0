"""The processors, and the limits that a control group (version 1 or 2) sets on them and on the memory."""

import json
import os
import platform
import re
from pathlib import Path

from maskperf.machine.facts import CacheFacts, CgroupFacts, CpuFacts
from maskperf.machine.sources import first_number, read_number, read_text, run_program, whole_number

STAT_FILE = Path("/proc/stat")
CPU_FOLDER = Path("/sys/devices/system/cpu")
CGROUP_FOLDER = Path("/sys/fs/cgroup")
NO_LIMIT_BYTES = 2**60  # version 1 writes a number near 2**63 where there is no limit
# The ones that matter for matrix products, named as lscpu names them.
INSTRUCTION_SETS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    *("asimd", "asimddp", "asimdhp", "sve", "sve2", "bf16", "i8mm", "svebf16"),
)
KIB_OF_UNIT = {"": 1 / 1024, "K": 1.0, "M": 1024.0, "G": 1024.0**2}
CACHE = re.compile(r"([0-9.]+)\s*([KMG]?)(?:iB|B)?(?:\s*\((\d+) instances?\))?")


def describe_cpu() -> CpuFacts:
    """Return the facts that lscpu and /sys report; without lscpu, those of /proc/cpuinfo."""
    fields = parse_lscpu(run_program(["lscpu", "-J"]).output or "")
    return cpu_facts(fields, read_text(Path("/proc/cpuinfo")) or "", CPU_FOLDER / "cpu0" / "cpufreq")


def cpu_facts(lscpu: dict[str, str], cpuinfo: str, frequency: Path) -> CpuFacts:
    """Return the facts of one machine; `frequency` is a folder of /sys."""
    first = dict(re.findall(r"^([^:\n]+?)\s*:[ \t]*(.*)$", cpuinfo.partition("\n\n")[0], re.MULTILINE))
    model = lscpu.get("Model name") or first.get("model name")
    flags = (lscpu.get("Flags") or first.get("flags") or first.get("Features") or "").split()
    named_mhz = re.search(r"@\s*([0-9.]+)\s*GHz", model or "")
    base_mhz = float(named_mhz[1]) * 1000 if named_mhz else None
    sockets, cores = count_cores(lscpu)
    return CpuFacts(
        architecture=platform.machine(),
        model=model,
        vendor=lscpu.get("Vendor ID") or first.get("vendor_id"),
        sockets=sockets,
        physical_cores=cores,
        logical_cores=whole_number(lscpu.get("CPU(s)")) or len(re.findall(r"^processor\s*:", cpuinfo, re.M)) or None,
        usable_physical_cores=usable_physical_cores(),
        usable_logical_cores=len(_usable_cpus()),
        base_mhz=_read_mhz(frequency / "base_frequency") or base_mhz,
        maximum_mhz=first_number(lscpu.get("CPU max MHz")) or _read_mhz(frequency / "cpuinfo_max_freq"),
        current_mhz=_read_mhz(frequency / "scaling_cur_freq") or first_number(first.get("cpu MHz")),
        caches=caches_of_lscpu(lscpu),
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
        governor=read_text(frequency / "scaling_governor"),
        numa_nodes=whole_number(lscpu.get("NUMA node(s)")),
        hypervisor=lscpu.get("Hypervisor vendor") or ("unnamed" if "hypervisor" in flags else None),
    )


def busy_cores(before: str, after: str) -> float:
    """Return how many of the processors that this process may use were busy between two readings of /proc/stat."""
    shares = []
    first, second = _processor_times(before), _processor_times(after)
    for cpu in _usable_cpus():
        if cpu in first and cpu in second:
            passed = [new - old for old, new in zip(first[cpu], second[cpu], strict=True)]
            idle = passed[3] + passed[4]  # idle, and waiting for a disk
            shares.append(1 - idle / sum(passed) if sum(passed) > 0 else 0.0)
    return sum(shares, 0.0)


def _processor_times(stat: str) -> dict[int, list[int]]:
    """Return for each processor its first eight times, which add up to the whole."""
    lines = re.findall(r"^cpu([0-9]+) (.*)$", stat, re.MULTILINE)
    return {int(number): [int(text) for text in times.split()[:8]] for number, times in lines}


def parse_lscpu(text: str) -> dict[str, str]:
    """Return the fields of `lscpu -J`, flat or with sub-sections, without colons; empty where the text is not JSON."""
    try:
        waiting = list(json.loads(text)["lscpu"])
    except (ValueError, KeyError, TypeError):
        return {}
    found: dict[str, str] = {}
    while waiting:
        entry = waiting.pop(0)
        if entry.get("data") not in (None, "-"):
            found.setdefault(entry["field"].rstrip(":"), entry["data"])
        waiting += entry.get("children", [])
    return found


def count_cores(lscpu: dict[str, str]) -> tuple[int | None, int | None]:
    """Return sockets and physical cores of the machine."""
    sockets, clusters = (whole_number(lscpu.get(name)) for name in ("Socket(s)", "Cluster(s)"))
    per_socket, per_cluster = (whole_number(lscpu.get(f"Core(s) per {name}")) for name in ("socket", "cluster"))
    if per_socket is None and clusters and per_cluster:  # ARM machines without ACPI topology
        return sockets, clusters * per_cluster
    return sockets, sockets * per_socket if sockets and per_socket else None


def caches_of_lscpu(fields: dict[str, str]) -> tuple[CacheFacts, ...]:
    """Return the sums of the caches, with their number where lscpu reports it: "64 MiB (64 instances)".

    The field is "L3 cache", or "L3" where lscpu uses sub-sections.
    """
    caches = []
    for name in ("L1d", "L1i", "L2", "L3", "L4"):
        match = CACHE.match(fields.get(f"{name} cache", fields.get(name, "")))
        if match:
            kib = float(match[1]) * KIB_OF_UNIT[match[2]]
            caches.append(CacheFacts(name=name, total_kib=kib, instances=whole_number(match[3])))
    return tuple(caches)


def usable_physical_cores() -> int:
    """Return how many cores this process may use; two hardware threads of one core count once."""
    siblings = (CPU_FOLDER / f"cpu{cpu}" / "topology" / "thread_siblings_list" for cpu in _usable_cpus())
    return len({read_text(path) or str(path) for path in siblings})


def _usable_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _read_mhz(path: Path) -> float | None:
    khz = read_number(path)
    return None if khz is None else khz / 1000


def describe_limits() -> CgroupFacts:
    """Return the limits of this process."""
    return read_limits(CGROUP_FOLDER, read_text(Path("/proc/self/cgroup")) or "")


def read_limits(folder: Path, membership: str) -> CgroupFacts:
    """Return the smallest limit of all groups from the process's own up to the root.

    `membership` is the text of /proc/self/cgroup: lines such as "0::/user.slice" (version 2) or "4:memory:/job".
    """
    cores: list[float] = []
    sizes: list[int] = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        names = dict.fromkeys([controllers, *controllers.split(",")])
        for group in [group for name in names for group in _groups(folder / name, path)]:
            quota, period = (read_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
            for text in (read_text(group / "cpu.max"), f"{quota} {period}"):
                cores += [count for count in [parse_cpu_max(text)] if count is not None]
            for name in ("memory.max", "memory.limit_in_bytes"):
                size = read_number(group / name)
                sizes += [size] if size is not None and size < NO_LIMIT_BYTES else []
    return CgroupFacts(cpu_cores=min(cores, default=None), memory_gib=min(sizes) / 2**30 if sizes else None)


def parse_cpu_max(text: str | None) -> float | None:
    """Return the cores of "150000 100000" (1.5), None for "max 100000". Source: cgroup-v2, cpu.max."""
    match = re.fullmatch(r"(\d+) (\d+)", text or "")
    return int(match[1]) / int(match[2]) if match else None


def _groups(root: Path, path: str) -> list[Path]:
    """Return the folders of one hierarchy, innermost first; in a container the path may not exist."""
    inner = root / path.lstrip("/")
    return [group for group in (inner, *inner.parents) if group.is_relative_to(root) and group.is_dir()]
