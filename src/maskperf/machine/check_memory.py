"""Checks of main memory, shared memory and the limits of the shell."""

from maskperf.machine.finding import Finding, note, ok, problem
from maskperf.machine.situation import Situation

# Measured on two cores, peak of the whole process: the recipe demo 0.5 GiB; the recipe coco on the CPU, with two images
# a step and a data set of ten, 3.4 GiB. The annotations of COCO 2017 come on top, and are estimated here.
DEMO_GIB = 1.0
COCO_GIB = 5.0
COCO_PICTURES_GIB = 20.0
SHARED_GIB_FOR_NCCL = 1.0
OPEN_FILES_WANTED = 4096
OPEN_FILES_NEEDED = 256


def check_memory(situation: Situation) -> Finding:
    memory, limit = situation.machine.memory, situation.machine.limits.memory_gib
    free, total = memory.available_gib, memory.total_gib
    if free is None:
        return note("memory", "unknown", f"training on COCO needs about {COCO_GIB:g} GiB per process")
    usable = free if limit is None else min(free, limit)
    value = f"{free:.1f} GiB available" + (f" of {total:.1f}" if total else "")
    if limit is not None and total is not None and limit < total:
        value += f", limited to {limit:.1f} GiB (cgroup)"
    if usable < DEMO_GIB:
        meaning = f"even the recipe demo needs about {DEMO_GIB:g} GiB"
        return problem(
            "memory", value, meaning, "End other programs, or give the container more (docker run --memory)."
        )
    processes = max(1, len(situation.machine.gpu.gpus))
    wanted = COCO_GIB * processes
    if usable < wanted:
        meaning = f"enough for the demo; COCO wants about {wanted:g} GiB ({processes} process(es) of {COCO_GIB:g})"
        return note("memory", value, meaning, "Use fewer processes, or a machine with more memory.")
    if usable < wanted + COCO_PICTURES_GIB:
        return ok("memory", value, "enough; not for keeping all of COCO's pictures too, so every epoch reads the disk")
    return ok("memory", value, "enough, and COCO's pictures (19 GiB) stay in it after the first epoch")


def check_shared_memory(situation: Situation) -> Finding | None:
    """Return whether /dev/shm is large enough; None where its size is unknown."""
    size, gpus = situation.machine.memory.shared_memory_gib, len(situation.machine.gpu.gpus)
    if size is None:
        return None
    value = f"{size:.2f} GiB"
    if gpus > 1 and size < SHARED_GIB_FOR_NCCL:
        meaning = f"NCCL keeps its buffers for {gpus} GPUs there; too little stops a run with a bus error"
        return problem("/dev/shm", value, meaning, "docker run --ipc=host, or --shm-size=8g")
    if gpus > 1:
        return ok("/dev/shm", value, "room for NCCL's buffers")
    return ok("/dev/shm", value, "hardly used: pictures are loaded by threads, not by processes")


def check_open_files(situation: Situation) -> Finding:
    limit, gpus = situation.process_limits.open_files, len(situation.machine.gpu.gpus)
    value = "unlimited" if limit is None else str(limit)
    fix = f"ulimit -n {OPEN_FILES_WANTED}"
    if limit is not None and limit < OPEN_FILES_NEEDED:
        return problem("open files (ulimit -n)", value, "a run may be refused a file or a socket", fix)
    if limit is not None and gpus > 1 and limit < OPEN_FILES_WANTED:
        return note("open files (ulimit -n)", value, f"NCCL opens many sockets for {gpus} GPUs", fix)
    return ok("open files (ulimit -n)", value, "enough")


def check_locked_memory(situation: Situation) -> Finding | None:
    """Return whether memory may be locked for InfiniBand; None on a machine without it."""
    if not situation.machine.infiniband:
        return None
    limit = situation.process_limits.locked_memory_gib
    if limit is None:
        return ok("locked memory (ulimit -l)", "unlimited", "InfiniBand can register its buffers")
    meaning = "InfiniBand cannot register its buffers: NCCL fails or falls back to the slow network"
    fix = "ulimit -l unlimited; in a container: docker run --ulimit memlock=-1"
    return problem("locked memory (ulimit -l)", f"{limit:.3f} GiB", meaning, fix)


def check_core_files(situation: Situation) -> Finding:
    limit = situation.process_limits.core_file_gib
    if limit == 0:
        return ok("core files (ulimit -c)", "none", "a crash leaves no large file")
    value = "unlimited" if limit is None else f"up to {limit:.1f} GiB"
    meaning = "a crash may write the whole memory of each process to the disk"
    return note("core files (ulimit -c)", value, meaning, "ulimit -c 0, unless you look for the cause of a crash.")
