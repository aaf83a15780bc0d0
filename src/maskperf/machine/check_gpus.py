"""Checks of the GPUs: memory, other users, splitting, links and speed."""

from maskperf.machine.facts import GpuFacts
from maskperf.machine.finding import Finding, note, ok
from maskperf.machine.gpus import link_summary
from maskperf.machine.situation import Situation

FIXED_GIB = 1.5
GIB_PER_IMAGE = 1.2
USED_BY_DRIVER_GIB = 1.0
SLOW_GPU_SHARE = 0.8
SLOW_LINKS = ("PHB", "NODE", "SYS")


def needed_gib(images: int) -> float:
    """Return a rough need of memory for one training step with so many images of 800 x 1333 on one device.

    An estimate, not measured on a GPU: one step of the recipe coco took 1.96, 3.08 and 5.35 GiB with 1, 2 and 4
    images, as the peak of the whole process on the CPU (torch 2.13, float32, images of 800 x 1344). The fixed part
    leaves room for what CUDA adds.
    """
    return FIXED_GIB + GIB_PER_IMAGE * images


def check_gpu_list(situation: Situation) -> Finding | None:
    """Return the GPUs; None on a machine without one."""
    gpus = situation.machine.gpu.gpus
    if not gpus:
        return None
    names = [gpu.name for gpu in gpus]
    kinds = sorted(set(names))
    value = ", ".join(f"{names.count(kind)} x {kind}" for kind in kinds)
    if len(kinds) > 1:
        meaning = "GPUs of several kinds: each step lasts as long as on the slowest"
        fix = "Choose one kind with CUDA_VISIBLE_DEVICES."
        return note("GPUs", value, meaning, fix)
    return ok("GPUs", value, f"maskperf run ... processes={len(gpus)} uses all of them" if len(gpus) > 1 else "one GPU")


def check_gpu_memory(situation: Situation) -> Finding | None:
    """Return how many images fit; None where no GPU tells its memory."""
    sizes = [gpu.memory_gib for gpu in situation.machine.gpu.gpus if gpu.memory_gib is not None]
    if not sizes:
        return None
    smallest = min(sizes)
    images = situation.config.optimizer.batch_size
    fitting = int((smallest - FIXED_GIB) / GIB_PER_IMAGE)
    value = f"{smallest:.1f} GiB each" if len(sizes) > 1 else f"{smallest:.1f} GiB"
    if fitting < images:
        meaning = f"{images} images at a time need about {needed_gib(images):.1f} GiB (estimate)"
        fix = "Choose a smaller optimizer.batch_size, or more optimizer.accumulation_steps."
        return note("GPU memory", value, meaning, fix)
    return ok("GPU memory", value, f"about {fitting} images at a time on each GPU (estimate)")


def check_gpu_use(situation: Situation) -> Finding | None:
    """Return who else computes on the GPUs; None on a machine without one."""
    gpu = situation.machine.gpu
    if not gpu.gpus:
        return None
    used = [_used(one) for one in gpu.gpus if _used(one) > USED_BY_DRIVER_GIB]
    if gpu.processes:
        value = ", ".join(f"{process.name} (process {process.process_id})" for process in gpu.processes[:4])
        fix = "Wait for them, end them, or choose other GPUs with CUDA_VISIBLE_DEVICES."
        return note("GPUs in use", value, "they take memory and time from a run", fix)
    if used:
        value = f"{max(used):.1f} GiB of a GPU's memory are taken, by nobody who is seen here"
        meaning = "perhaps a process outside this container; it takes memory and time from a run"
        return note("GPUs in use", value, meaning, "Look at nvidia-smi outside the container.")
    return ok("GPUs in use", "by nobody", "a run has them for itself")


def check_gpu_split(situation: Situation) -> Finding | None:
    """Return a note where a GPU is split (MIG); None otherwise."""
    split = [str(gpu.index) for gpu in situation.machine.gpu.gpus if gpu.is_split]
    if not split:
        return None
    meaning = "a process uses one part of a split GPU only, and parts cannot exchange gradients with NCCL"
    fix = "For a benchmark run switch it off: sudo nvidia-smi -mig 0 (ends what runs there)."
    return note("GPU splitting (MIG)", f"GPU {', '.join(split)}", meaning, fix)


def check_gpu_links(situation: Situation) -> Finding | None:
    """Return how the GPUs are linked; None for fewer than two, or where the driver does not tell."""
    links = situation.machine.gpu.links
    summary = link_summary(links)
    if summary is None:
        return None
    kinds = {links[row][column] for row in range(len(links)) for column in range(row)}
    if kinds & set(SLOW_LINKS):
        meaning = "some pairs exchange gradients (168 MiB a step) over PCIe and the processor"
        return note("GPU links", summary, meaning, "Nothing to fix in software; expect a longer exchange_seconds.")
    return ok("GPU links", summary, "gradients (168 MiB a step) go from GPU to GPU directly")


def check_gpu_bus(situation: Situation) -> Finding | None:
    """Return a note where a GPU has few PCIe lanes; None where all have enough or do not tell."""
    narrow = [gpu for gpu in situation.machine.gpu.gpus if gpu.pcie_lanes is not None and gpu.pcie_lanes < 8]
    if not narrow:
        return None
    value = ", ".join(
        f"GPU {gpu.index}: {gpu.pcie_lanes} lane(s) of generation {gpu.pcie_generation}" for gpu in narrow
    )
    return note("PCIe", value, "pictures and gradients reach these GPUs slowly", "Use a slot with 8 or 16 lanes.")


def check_gpu_speed(situation: Situation) -> Finding | None:
    """Return the measured speed of each GPU; None where it was not measured."""
    probe = situation.torch_probe
    if probe is None or not probe.gpu_gflops:
        return None
    slowest, fastest = min(probe.gpu_gflops), max(probe.gpu_gflops)
    value = f"{slowest / 1000:.1f} TFLOP/s in float32"
    if slowest < SLOW_GPU_SHARE * fastest:
        place = probe.gpu_gflops.index(slowest)
        meaning = f"of GPU {place}; the fastest reaches {fastest / 1000:.1f}, and every step waits for the slowest"
        return note(
            "matrix products, GPU", value, meaning, "Look for heat, power limits and other users: nvidia-smi -q"
        )
    return ok("matrix products, GPU", value, "on the slowest GPU")


def _used(gpu: GpuFacts) -> float:
    return gpu.memory_used_gib or 0.0
