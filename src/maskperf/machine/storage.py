"""What holds a folder: its file system, the device below it, and the space that is left."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from maskperf.machine.facts import StorageFacts
from maskperf.machine.sources import read_number, read_text

BLOCK_FOLDER = Path("/sys/dev/block")
SECTOR_BYTES = 512  # the unit of /sys/.../size, whatever the device's own sectors are
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs", "gpfs", "ceph", "9p", "fuse.sshfs")
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
VIRTUAL_DISK = re.compile(r"(vd|xvd)[a-z]+")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A block device, or the disks below one that is made of several."""

    name: str
    kind: str | None
    model: str | None
    size_gib: float | None


def describe_storage(path: str | Path) -> StorageFacts:
    """Return what holds `path`; where that does not exist yet, what holds the folder it will be in."""
    place = existing_place(Path(path))
    number = os.stat(place).st_dev
    space = shutil.disk_usage(place)
    file_system = file_system_of(read_text(Path("/proc/self/mountinfo")) or "", place)
    device = read_device(BLOCK_FOLDER / f"{os.major(number)}:{os.minor(number)}")
    kind = kind_of_file_system(file_system) or (device.kind if device else None)
    return StorageFacts(
        path=str(place),
        file_system=file_system,
        device=device.name if device else None,
        kind=kind,
        model=device.model if device else None,
        device_gib=device.size_gib if device else None,
        size_gib=space.total / 2**30,
        free_gib=space.free / 2**30,
    )


def existing_place(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def file_system_of(mountinfo: str, place: Path) -> str | None:
    """Return the type of the file system that /proc/self/mountinfo names for a place: the longest mount point counts.

    Of two on the same mount point the later one hides the earlier one.
    """
    best, file_system = -1, None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        words = before.split()
        if len(words) < 5 or not after:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
        if place.is_relative_to(mount) and len(mount) >= best:
            best, file_system = len(mount), after.split()[0]
    return file_system


def kind_of_file_system(file_system: str | None) -> str | None:
    """Return "network" or "memory" for file systems that lie on no disk of this machine."""
    if file_system in NETWORK_FILE_SYSTEMS:
        return "network"
    return "memory" if file_system in MEMORY_FILE_SYSTEMS else None


def read_device(link: Path) -> Device | None:
    """Return the device of a folder of /sys/dev/block; for a partition its disk, for a volume the disks below it."""
    if not link.exists():
        return None
    folder = link.resolve()
    if (folder / "partition").exists():
        folder = folder.parent
    disks = disks_below(folder)
    models = sorted({model for disk in disks if (model := read_text(disk / "device" / "model"))})
    kinds = {kind_of_disk(disk) for disk in disks}
    sectors = [read_number(disk / "size") for disk in disks]
    known = [count for count in sectors if count is not None]
    return Device(
        name="+".join(disk.name for disk in disks),
        kind=kinds.pop() if len(kinds) == 1 else None,
        model=", ".join(models) or None,
        size_gib=sum(known) * SECTOR_BYTES / 2**30 if known else None,
    )


def disks_below(folder: Path) -> list[Path]:
    """Return the disks that a volume (LVM, RAID, encrypted) lies on; a plain disk is its own."""
    below = sorted((folder / "slaves").glob("*"))
    if not below:
        return [folder]
    disks: list[Path] = []
    for entry in below:
        lower = entry.resolve()
        lower = lower.parent if (lower / "partition").exists() else lower
        disks += [disk for disk in disks_below(lower) if disk not in disks]
    return disks


def kind_of_disk(folder: Path) -> str | None:
    """Return what kind of disk this is; virtual disks say nothing true about what is below them."""
    if VIRTUAL_DISK.fullmatch(folder.name):
        return "virtual disk"
    if folder.name.startswith("nvme"):
        return "NVMe"
    return {0: "SSD", 1: "hard disk"}.get(read_number(folder / "queue" / "rotational"))
