"""What a container, a job or a service may use of the machine: control groups of version 1 and 2."""

from pathlib import Path

from maskperf.machine.facts import CgroupFacts
from maskperf.machine.sources import read_text

CGROUP_FOLDER = Path("/sys/fs/cgroup")
# Version 1 writes a number near 2**63 where there is no limit.
NO_LIMIT_BYTES = 2**60


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
        for group in _groups(folder, controllers, path):
            cores += _cores_of(group, controllers)
            sizes += _bytes_of(group, controllers)
    memory_gib = min(sizes) / 2**30 if sizes else None
    return CgroupFacts(cpu_cores=min(cores, default=None), memory_gib=memory_gib)


def parse_cpu_max(text: str | None) -> float | None:
    """Return the cores of "150000 100000" (1.5), None for "max 100000". Source: cgroup-v2, cpu.max."""
    words = (text or "").split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None
    return int(words[0]) / int(words[1])


def parse_bytes(text: str | None) -> int | None:
    """Return a limit in bytes, None for "max" and for numbers that stand for no limit."""
    if text is None or not text.isdigit() or int(text) >= NO_LIMIT_BYTES:
        return None
    return int(text)


def _groups(folder: Path, controllers: str, path: str) -> list[Path]:
    """Return the folders of one hierarchy, innermost first; in a container the path may not be there."""
    names = controllers.split(",")
    roots = [folder] if controllers == "" else [folder / controllers, *(folder / name for name in names)]
    found = []
    for root in roots:
        inner = root / path.lstrip("/")
        while inner != root and root in inner.parents:
            found.append(inner)
            inner = inner.parent
        found.append(root)
    return [group for group in dict.fromkeys(found) if group.is_dir()]


def _cores_of(group: Path, controllers: str) -> list[float]:
    if controllers == "":
        cores = parse_cpu_max(read_text(group / "cpu.max"))
    elif "cpu" in controllers.split(","):
        quota, period = (read_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        cores = parse_cpu_max(f"{quota} {period}")  # a quota of -1 is no number of digits: no limit
    else:
        cores = None
    return [] if cores is None else [cores]


def _bytes_of(group: Path, controllers: str) -> list[int]:
    names = {"": "memory.max"}.get(controllers, "memory.limit_in_bytes" if "memory" in controllers.split(",") else "")
    size = parse_bytes(read_text(group / names)) if names else None
    return [] if size is None else [size]
