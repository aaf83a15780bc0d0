"""The number of threads of a process: one per core that it may use and that is free, within its CPU quota."""

import os
import time
from dataclasses import dataclass

from maskperf.machine.processor import STAT_FILE, busy_cores, describe_limits, usable_physical_cores
from maskperf.machine.sources import read_text

LOOK_SECONDS = 0.25  # how long the other programs are watched; the kernel counts in hundredths of a second


@dataclass(frozen=True, kw_only=True)
class ThreadChoice:
    """The threads of one process, and why there are that many."""

    count: int
    reason: str

    def line(self) -> str:
        return f"{self.count} thread{'s' if self.count != 1 else ''}: {self.reason}"


def threads_of_process(wanted: int) -> ThreadChoice:
    """Return the threads of this process on this machine; `wanted` is system.threads."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun starts several, which share the machine
    limit = describe_limits().cpu_cores
    busy = 0.0
    if not wanted and processes == 1:  # processes that start together would take each other for neighbours
        before = read_text(STAT_FILE) or ""
        time.sleep(LOOK_SECONDS)
        busy = busy_cores(before, read_text(STAT_FILE) or "")
    return choose_threads(wanted, cores=usable_physical_cores(), cpu_limit=limit, processes=processes, busy=busy)


def choose_threads(
    wanted: int, *, cores: int, cpu_limit: float | None, processes: int, busy: float = 0.0
) -> ThreadChoice:
    """Return `wanted` threads; where that is 0, the share of one of `processes`.

    cores: physical ones. cpu_limit: CPU quota of the control group in cores, None for no limit; threads beyond it
    would be throttled, all of them at once. busy: cores that other programs keep busy; a thread that shares its core
    with one of them makes all others wait for it. Measured in docs/performance.md.
    """
    if wanted:
        return ThreadChoice(count=wanted, reason=f"system.threads={wanted}")
    usable, reason = cores, f"{cores} physical core{'s' if cores != 1 else ''}"
    if cpu_limit is not None and cpu_limit < cores:
        usable, reason = max(1, int(cpu_limit)), f"CPU quota of {cpu_limit:g} cores"
    free = max(1, int(cores - busy + 0.5))
    if free < usable:
        usable, reason = free, f"{cores} physical cores, {busy:.1f} of them busy with other programs"
    if processes > 1:
        reason += f" for {processes} processes"
    return ThreadChoice(count=max(1, usable // processes), reason=reason)
