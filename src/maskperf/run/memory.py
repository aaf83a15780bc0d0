"""How much memory this process has taken."""

import resource

import torch

GIB = 2**30


def peak_memory_gib() -> dict[str, float | None]:
    """Return the largest amounts so far: of the process, and of its GPU (None without one)."""
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB  # Linux counts in KiB
    device = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_initialized() else None
    return {"process": process, "device": device}


def memory_now_gib() -> float | None:
    """Return what is in use: on the GPU where this process uses one, else by the process; None where unknown."""
    if torch.cuda.is_initialized():
        return torch.cuda.memory_allocated() / GIB
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / GIB
    except OSError:
        return None
