"""The number of threads of a process: one per core that it may use, within its CPU quota."""

import os
from dataclasses import dataclass

from maskperf.machine.processor import describe_limits, usable_physical_cores


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
    return choose_threads(wanted, cores=usable_physical_cores(), cpu_limit=limit, processes=processes)


def choose_threads(wanted: int, *, cores: int, cpu_limit: float | None, processes: int) -> ThreadChoice:
    """Return `wanted` threads; where that is 0, the share of one of `processes`.

    cores: physical ones. cpu_limit: CPU quota of the control group in cores, None for no limit; threads beyond it
    would be throttled, all of them at once.
    """
    if wanted:
        return ThreadChoice(count=wanted, reason=f"system.threads={wanted}")
    usable, reason = cores, f"{cores} physical core{'s' if cores != 1 else ''}"
    if cpu_limit is not None and cpu_limit < cores:
        usable, reason = max(1, int(cpu_limit)), f"CPU quota of {cpu_limit:g} cores"
    if processes > 1:
        reason += f" for {processes} processes"
    return ThreadChoice(count=max(1, usable // processes), reason=reason)
