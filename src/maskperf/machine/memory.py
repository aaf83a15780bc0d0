"""The main memory: /proc/meminfo, and its modules where dmidecode or /sys may be read."""

import os
import re
from collections import Counter
from pathlib import Path

from maskperf.machine.facts import DimmFacts, MemoryFacts
from maskperf.machine.sources import first_number, read_number, read_text, run_program

MODULE_FOLDER = Path("/sys/devices/system/edac/mc")
SHARED_MEMORY = "/dev/shm"
GIB_OF_UNIT = {"kB": 2**-20, "MB": 2**-10, "GB": 1.0, "TB": 1024.0}  # dmidecode's units are powers of two
KIND_OF_MODULE = re.compile(r"DDR\d")


def describe_memory() -> MemoryFacts:
    """Return what the system tells about the memory."""
    sizes = parse_meminfo(read_text(Path("/proc/meminfo")) or "")
    dimms = parse_dmidecode(run_program(["dmidecode", "--type", "memory"]).output or "") or read_modules(MODULE_FOLDER)
    return MemoryFacts(
        total_gib=sizes.get("MemTotal", system_memory_gib()),
        available_gib=sizes.get("MemAvailable"),
        swap_gib=sizes.get("SwapTotal"),
        dimms=dimms,
        shared_memory_gib=_shared_memory_gib(),
    )


def system_memory_gib() -> float | None:
    """Return the memory that the operating system counts."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def parse_meminfo(text: str) -> dict[str, float]:
    """Return every size of /proc/meminfo in GiB."""
    return {name: int(kib) / 2**20 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def parse_dmidecode(text: str) -> tuple[DimmFacts, ...]:
    """Return the modules of `dmidecode --type memory`, those of one kind together; empty slots are left out."""
    found: Counter[tuple[float, str | None, float | None]] = Counter()
    for block in text.split("\n\n"):
        if "Memory Device\n" not in block:
            continue
        pairs = [line.strip().partition(": ") for line in block.splitlines() if ": " in line]
        fields = {name: value for name, _, value in pairs}
        size = re.fullmatch(r"(\d+) (kB|MB|GB|TB)", fields.get("Size", ""))
        if size is None:  # "No Module Installed"
            continue
        speed = first_number(fields.get("Configured Memory Speed") or fields.get("Speed"))
        kind = fields.get("Type")
        kind = kind if kind and KIND_OF_MODULE.search(kind) else None
        found[int(size[1]) * GIB_OF_UNIT[size[2]], kind, speed] += 1
    return tuple(
        DimmFacts(count=count, size_gib=size_gib, kind=kind, megatransfers_per_second=speed)
        for (size_gib, kind, speed), count in found.items()
    )


def read_modules(folder: Path) -> tuple[DimmFacts, ...]:
    """Return the modules that the error counters of the kernel (EDAC) list; their speed is not told there."""
    found: Counter[tuple[float, str | None]] = Counter()
    for module in folder.glob("mc[0-9]*/dimm[0-9]*"):
        size_mib = read_number(module / "size")
        match = KIND_OF_MODULE.search((read_text(module / "dimm_mem_type") or "").replace("-", ""))
        if size_mib:
            found[size_mib / 1024, match[0] if match else None] += 1
    return tuple(DimmFacts(count=count, size_gib=size_gib, kind=kind) for (size_gib, kind), count in found.items())


def _shared_memory_gib() -> float | None:
    try:
        space = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return space.f_blocks * space.f_frsize / 2**30
