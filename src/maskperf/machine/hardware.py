"""Main memory, network cards, and the storage below a folder: from /proc, /sys and dmidecode."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

from maskperf.machine.facts import DimmFacts, InfinibandFacts, MemoryFacts, NetworkFacts, StorageFacts
from maskperf.machine.sources import first_number, read_number, read_text, run_program, system_memory_gib

MODULE_FOLDER = Path("/sys/devices/system/edac/mc")
NETWORK_FOLDER = Path("/sys/class/net")
INFINIBAND_FOLDER = Path("/sys/class/infiniband")
BLOCK_FOLDER = Path("/sys/dev/block")
SHARED_MEMORY = Path("/dev/shm")
GIB_OF_UNIT = {"kB": 2**-20, "MB": 2**-10, "GB": 1.0, "TB": 1024.0}  # dmidecode's units are powers of two
SECTOR_BYTES = 512  # the unit of /sys/.../size, whatever the device's own sectors are
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs", "gpfs", "ceph", "9p", "fuse.sshfs")
KIND_OF_FILE_SYSTEM = {**dict.fromkeys(NETWORK_FILE_SYSTEMS, "network"), "tmpfs": "memory", "ramfs": "memory"}
VIRTUAL_DISK = re.compile(r"(vd|xvd)[a-z]+")


def describe_memory() -> MemoryFacts:
    sizes = parse_meminfo(read_text(Path("/proc/meminfo")) or "")
    dimms = parse_dmidecode(run_program(["dmidecode", "--type", "memory"]).output or "") or read_modules(MODULE_FOLDER)
    return MemoryFacts(
        total_gib=sizes.get("MemTotal", system_memory_gib()),
        available_gib=sizes.get("MemAvailable"),
        swap_gib=sizes.get("SwapTotal"),
        dimms=dimms,
        shared_memory_gib=shutil.disk_usage(SHARED_MEMORY).total / 2**30 if SHARED_MEMORY.exists() else None,
    )


def parse_meminfo(text: str) -> dict[str, float]:
    """Return every size of /proc/meminfo in GiB."""
    return {name: int(kib) / 2**20 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def parse_dmidecode(text: str) -> tuple[DimmFacts, ...]:
    """Return the modules of `dmidecode --type memory`, grouped by kind; empty slots are left out."""
    found: Counter[tuple[float, str | None, float | None]] = Counter()
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^\s*(.+?): (.*)$", block, re.MULTILINE))
        size = re.fullmatch(r"(\d+) (kB|MB|GB|TB)", fields.get("Size", ""))
        if size is None or "Memory Device\n" not in block:  # an empty slot has "No Module Installed"
            continue
        speed = first_number(fields.get("Configured Memory Speed") or fields.get("Speed"))
        found[int(size[1]) * GIB_OF_UNIT[size[2]], _ddr(fields.get("Type")), speed] += 1
    return tuple(
        DimmFacts(count=count, size_gib=size_gib, kind=kind, megatransfers_per_second=speed)
        for (size_gib, kind, speed), count in found.items()
    )


def read_modules(folder: Path) -> tuple[DimmFacts, ...]:
    """Return the modules that the error counters of the kernel (EDAC) list; they do not report the speed."""
    found: Counter[tuple[float, str | None]] = Counter()
    for module in folder.glob("mc[0-9]*/dimm[0-9]*"):
        size_mib = read_number(module / "size")
        if size_mib:
            found[size_mib / 1024, _ddr(read_text(module / "dimm_mem_type"))] += 1
    return tuple(DimmFacts(count=count, size_gib=size_gib, kind=kind) for (size_gib, kind), count in found.items())


def _ddr(kind: str | None) -> str | None:
    match = re.search(r"(LPDDR|DDR)\d\w*", kind or "")
    return match[0] if match else None


def describe_network(folder: Path = NETWORK_FOLDER) -> tuple[NetworkFacts, ...]:
    """Return the cards by name; interfaces without a device (loop-back, bridges) are left out."""
    found = []
    for entry in sorted(path for path in folder.glob("*") if (path / "device").exists()):
        megabits = read_number(entry / "speed")  # -1, or not readable, where it is unknown
        driver = entry / "device" / "driver"
        found.append(
            NetworkFacts(
                name=entry.name,
                state=read_text(entry / "operstate"),
                gigabits_per_second=megabits / 1000 if megabits is not None and megabits > 0 else None,
                driver=driver.resolve().name if driver.exists() else None,
            )
        )
    return tuple(found)


def describe_infiniband(folder: Path = INFINIBAND_FOLDER) -> tuple[InfinibandFacts, ...]:
    """Return the ports by name."""
    return tuple(
        InfinibandFacts(
            name=f"{port.parts[-3]} port {port.name}",
            state=(read_text(port / "state") or "").rpartition(": ")[2] or None,
            rate=read_text(port / "rate"),
            link_layer=read_text(port / "link_layer"),
            gigabits_per_second=first_number(read_text(port / "rate")),
        )
        for port in sorted(folder.glob("*/ports/*"))
    )


def describe_storage(path: str | Path) -> StorageFacts:
    """Return what holds `path`; where that does not exist yet, what holds the folder it will be in."""
    folder = existing_folder(Path(path))
    number = os.stat(folder).st_dev
    space = shutil.disk_usage(folder)
    file_system = file_system_of(read_text(Path("/proc/self/mountinfo")) or "", folder)
    disks = disks_below(BLOCK_FOLDER / f"{os.major(number)}:{os.minor(number)}")
    kinds = {kind_of_disk(disk) for disk in disks}
    models = sorted({model for disk in disks if (model := read_text(disk / "device" / "model"))})
    sectors = [count for disk in disks if (count := read_number(disk / "size")) is not None]
    return StorageFacts(
        path=str(folder),
        file_system=file_system,
        device="+".join(disk.name for disk in disks) or None,
        kind=KIND_OF_FILE_SYSTEM.get(file_system or "") or (kinds.pop() if len(kinds) == 1 else None),
        model=", ".join(models) or None,
        device_gib=sum(sectors) * SECTOR_BYTES / 2**30 if sectors else None,
        size_gib=space.total / 2**30,
        free_gib=space.free / 2**30,
    )


def existing_folder(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def file_system_of(mountinfo: str, path: Path) -> str | None:
    """Return the type of the file system that /proc/self/mountinfo names for `path`: the longest mount point counts.

    Of two on the same mount point the later one hides the earlier one.
    """
    best, file_system = -1, None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if path.is_relative_to(mount) and len(mount) >= best:
            best, file_system = len(mount), after.split()[0]
    return file_system


def disks_below(device: Path) -> list[Path]:
    """Return the disk of a folder of /sys/dev/block, or the disks that a volume (LVM, RAID, encrypted) is made of."""
    if not device.exists():
        return []
    folder = device.resolve()
    folder = folder.parent if (folder / "partition").exists() else folder
    lower = sorted((folder / "slaves").glob("*"))
    return list(dict.fromkeys(disk for entry in lower for disk in disks_below(entry))) or [folder]


def kind_of_disk(folder: Path) -> str | None:
    """Return what kind of disk this is; a virtual disk does not reveal what is below it."""
    if VIRTUAL_DISK.fullmatch(folder.name):
        return "virtual disk"
    if folder.name.startswith("nvme"):
        return "NVMe"
    return {"0": "SSD", "1": "hard disk"}.get(read_text(folder / "queue" / "rotational") or "")
