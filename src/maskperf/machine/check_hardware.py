"""Checks of GPUs, processors, memory and storage. What is absent or unknown has no finding."""

from collections import Counter
from collections.abc import Iterator

from maskperf.config import NUM_TRAIN_FILES, NUM_VAL_IMAGES
from maskperf.machine.facts import Environment, Finding, note, ok, problem
from maskperf.machine.gpus import link_pairs, link_summary
from maskperf.machine.threads import choose_threads

# The need of a run on good GPUs. Source: MLPerf Training 3.1, system ESC-N8-E11 (eight H100): epochs of 117,266 images
# in 79.2 s.
PUBLISHED_IMAGES_PER_SECOND_AND_GPU = 185

# A rough need of memory for one training step with images of 800 x 1333 on one device. An estimate, not measured on a
# GPU: one step of the recipe coco took 1.96, 3.08 and 5.35 GiB with 1, 2 and 4 images, as the peak of the whole process
# on the CPU (torch 2.13, float32, images of 800 x 1344). The fixed part leaves room for what CUDA adds.
FIXED_GIB = 1.5
GIB_PER_IMAGE = 1.2
USED_BY_DRIVER_GIB = 1.0
SLOW_GPU_SHARE = 0.8
SLOW_LINKS = ("PHB", "NODE", "SYS")
FEW_LANES = 8

BUSY_SHARE = 0.25
SMALL_CPU_GFLOPS_PER_THREAD = 10.0
WIDE_INSTRUCTION_SETS = ("avx512f", "amx_bf16", "avx2", "sve", "asimd")
PINNING_VARIABLES = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PROC_BIND")

# Measured on two cores, peak of the whole process: the recipe demo 0.5 GiB; the recipe coco on the CPU, with two images
# a step and a data set of ten, 3.4 GiB. The annotations of COCO 2017 come on top, and are estimated here.
DEMO_GIB = 1.0
COCO_GIB = 5.0
COCO_IMAGES_GIB = 20.0
SHARED_GIB_FOR_NCCL = 1.0
OPEN_FILES_WANTED = 4096
OPEN_FILES_NEEDED = 256

# COCO 2017: archives of 18, 0.8 and 0.24 GB that hold images already compressed; unpacked beside them, so twice.
COCO_GIB_WITH_ARCHIVES = 40.0
RUN_GIB_NEEDED = 1.0
RUN_GIB_COMFORTABLE = 5.0
# Kind: what it means, and the fix where it is slow.
STORAGE = {
    "virtual disk": ("what lies below a virtual disk is unknown; its speed is measured without --quick",),
    "NVMe": ("random reads are fast",),
    "SSD": ("random reads are fast",),
    "memory": ("the files lie in main memory and take room there",),
    "hard disk": ("images are read in random order: about a hundred a second", "Copy the data to an SSD."),
    "network": ("depends on the network and on its other users", "Copy the data to a disk of this machine."),
    None: ("the system does not report what holds this folder",),
}


def check_gpus(env: Environment) -> Iterator[Finding]:
    """Yield what the GPUs are, and what else uses or divides them."""
    gpus, processes = env.gpus, env.machine.gpu.processes
    if not gpus:
        return
    kinds = Counter(gpu.name for gpu in gpus)
    value = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    if len(kinds) > 1:
        yield note("GPUs", value, "each step lasts as long as on the slowest", "Choose one kind: CUDA_VISIBLE_DEVICES.")
    else:
        yield ok("GPUs", value, f"maskperf run ... processes={len(gpus)} uses all of them" if gpus[1:] else "one GPU")
    if sizes := [gpu.memory_gib for gpu in gpus if gpu.memory_gib is not None]:
        images, fitting = env.config.optimizer.batch_size, int((min(sizes) - FIXED_GIB) / GIB_PER_IMAGE)
        value = f"{min(sizes):.1f} GiB" + (" each" if len(sizes) > 1 else "")
        if fitting < images:
            meaning = f"{images} images at a time need about {FIXED_GIB + GIB_PER_IMAGE * images:.1f} GiB (estimate)"
            yield note("GPU memory", value, meaning, "Set optimizer.batch_size lower, or accumulation_steps higher.")
        else:
            yield ok("GPU memory", value, f"about {fitting} images at a time on each GPU (estimate)")
    used = max(gpu.memory_used_gib or 0.0 for gpu in gpus)
    if processes:
        value = ", ".join(f"{process.name} (process {process.process_id})" for process in processes[:4])
        fix = "Wait for them, end them, or choose other GPUs with CUDA_VISIBLE_DEVICES."
        yield note("GPUs in use", value, "they take memory and time from a run", fix)
    elif used > USED_BY_DRIVER_GIB:
        value = f"{used:.1f} GiB of a GPU's memory, by no visible process"
        yield note("GPUs in use", value, "perhaps from outside this container", "Look at nvidia-smi outside of it.")
    else:
        yield ok("GPUs in use", "no", "a run has them for itself")
    if split := [str(gpu.index) for gpu in gpus if gpu.is_split]:
        meaning = "a process uses one part of a split GPU only, and parts cannot exchange gradients with NCCL"
        fix = "For a benchmark run switch it off: sudo nvidia-smi -mig 0 (ends what runs there)."
        yield note("GPU splitting (MIG)", f"GPU {', '.join(split)}", meaning, fix)


def check_gpu_speed(env: Environment) -> Iterator[Finding]:
    """Yield the links between GPUs, their bus, and the matrix products that torch measured on them."""
    links = env.machine.gpu.links
    if summary := link_summary(links):
        if set(link_pairs(links)) & set(SLOW_LINKS):
            meaning = "some pairs exchange gradients (168 MiB a step) over PCIe and the processor"
            yield note("GPU links", summary, meaning, "Nothing to fix in software; expect a longer exchange_seconds.")
        else:
            yield ok("GPU links", summary, "gradients (168 MiB a step) go from GPU to GPU directly")
    narrow = [gpu for gpu in env.gpus if gpu.pcie_lanes is not None and gpu.pcie_lanes < FEW_LANES]
    if narrow:
        value = ", ".join(
            f"GPU {gpu.index}: {gpu.pcie_lanes} lane(s) of generation {gpu.pcie_generation}" for gpu in narrow
        )
        yield note("PCIe", value, "images and gradients reach these GPUs slowly", "Use a slot with 8 or 16 lanes.")
    if speeds := env.torch_probe.gpu_gflops if env.torch_probe else ():
        slowest, fastest = min(speeds), max(speeds)
        value = f"{slowest / 1000:.1f} TFLOP/s in float32"
        if slowest < SLOW_GPU_SHARE * fastest:
            meaning = f"of GPU {speeds.index(slowest)}; the fastest reaches {fastest / 1000:.1f}, and every step waits"
            yield note("matrix products, GPU", value, meaning, "Look for heat and power limits: nvidia-smi -q")
        else:
            yield ok("matrix products, GPU", value, "on the slowest GPU")


def check_cores(env: Environment) -> Iterator[Finding]:
    """Yield what the processors are, and how many cores a run may use."""
    cpu, limit = env.machine.cpu, env.machine.limits.cpu_cores
    cores, threads, gpus = cpu.usable_logical_cores, env.config.data.loader_threads, len(env.gpus)
    value = f"{cpu.model or 'unknown model'} ({cpu.architecture})"
    value += f", virtual ({cpu.hypervisor})" if cpu.hypervisor else ""
    if wide := [name for name in WIDE_INSTRUCTION_SETS if name in cpu.instruction_sets]:
        yield ok("processor", value, f"vector instructions that torch can use: {', '.join(wide)}")
    else:
        yield note("processor", value, "no AVX2, AVX-512 or SVE: matrix products on the CPU are slow")
    value = f"{cpu.usable_physical_cores} cores, {cores} logical"
    if cpu.logical_cores and cpu.logical_cores > cores:
        value += f" (of {cpu.logical_cores} logical cores in the machine)"
    wanted = gpus * (1 + threads)
    if gpus and cores < wanted:
        meaning = f"{gpus} process(es), each with {threads} loader threads, want {wanted}"
        yield note("cores", value, meaning, "Use a machine or a job with more cores, or set data.loader_threads=1.")
    elif not gpus and cpu.usable_physical_cores <= threads:
        yield ok("cores", value, f"shared by the loader's {threads} threads and the training, which costs little")
    else:
        yield ok("cores", value, f"enough for {max(gpus, 1)} process(es) with {threads} loader threads each")
    if limit is not None and limit >= cores:
        yield ok("CPU limit (cgroup)", f"{limit:g} cores", f"no less than the {cores} usable logical cores")
    elif limit is not None:
        choice = choose_threads(0, cores=cpu.usable_physical_cores, cpu_limit=limit, processes=1)
        meaning = f"more threads would be throttled in every period of 0.1 s; system.threads=0 takes {choice.count}"
        yield note("CPU limit (cgroup)", f"{limit:g} cores", meaning, "Give the container more (docker run --cpus).")
    if cpu.physical_cores and cpu.logical_cores:
        value = f"{cpu.logical_cores // cpu.physical_cores} thread(s) per core, {cpu.sockets or '?'} socket(s)"
        yield ok("hyperthreads", value, "system.threads=0 means one thread per physical core")


def check_steadiness(env: Environment) -> Iterator[Finding]:
    """Yield what makes the processors slower than they could be, or their speed vary."""
    cpu, load, variables = env.machine.cpu, env.load_average, env.variables
    if cpu.numa_nodes == 1:
        yield ok("NUMA nodes", "1", "all memory is equally near")
    elif cpu.numa_nodes is not None:
        fix = f"torchrun --nproc-per-node {cpu.numa_nodes}, each process bound with numactl --cpunodebind --membind."
        if env.gpus:
            fix = "For best speed bind each process to the node of its GPU (nvidia-smi topo -m shows it)."
        meaning = "memory of another node is slower; one process over all of them loses speed"
        yield note("NUMA nodes", str(cpu.numa_nodes), meaning, fix)
    if cpu.governor is None:
        yield ok("CPU frequency", "governor unknown", "usual in virtual machines: the host decides")
    elif cpu.governor == "performance":
        yield ok("CPU frequency", cpu.governor, "full speed at once")
    else:
        fix = "sudo cpupower frequency-set --governor performance"
        yield note("CPU frequency", cpu.governor, "cores may start slowly after a wait; times vary more", fix)
    if load is not None:
        value = f"load {load:.2f} on {cpu.usable_logical_cores} logical core(s)"
        if load > BUSY_SHARE * cpu.usable_logical_cores:
            yield note("other work", value, "measured times would suffer", "Find it with top; use an idle machine.")
        else:
            yield ok("other work", value, "the machine is idle enough to measure")
    threads = variables.get("OMP_NUM_THREADS")
    if pinning := [name for name in PINNING_VARIABLES if variables.get(name)]:
        value = ", ".join(f"{name}={variables[name]}" for name in pinning)
        fix = f"Unset {' and '.join(pinning)}, unless it was chosen on purpose."
        yield note("thread variables", value, "binds threads to cores; several processes may share one", fix)
    elif threads is None:
        yield ok("thread variables", "OMP_NUM_THREADS is not set", "system.threads decides")
    else:
        yield ok("thread variables", f"OMP_NUM_THREADS={threads}", "for other libraries; system.threads sets torch's")


def check_cpu_speed(env: Environment) -> Iterator[Finding]:
    """Yield the measured speed of the cores, beside the images that the GPUs want."""
    probe, speed, gpus = env.torch_probe, env.picture_speed, len(env.gpus)
    if probe is not None and probe.cpu_gflops is not None:
        threads = probe.cpu_threads or 1
        value = f"{probe.cpu_gflops:.0f} GFLOP/s in float32 with {threads} thread(s)"
        if probe.cpu_gflops < SMALL_CPU_GFLOPS_PER_THREAD * threads:
            fix = "See the lines on cores, CPU limit and other work."
            yield note("matrix products, CPU", value, "slow: old, limited or busy cores", fix)
        else:
            yield ok("matrix products, CPU", value, "what training on the CPU can count on")
    if speed is None:
        return
    per_second, cores = speed.prepare_per_second, env.machine.cpu.usable_physical_cores
    value = f"{speed.decode_per_second:.0f} JPEGs/s decoded, {per_second:.0f} images/s prepared, per thread"
    wanted = gpus * PUBLISHED_IMAGES_PER_SECOND_AND_GPU
    needed, threads = wanted / per_second, -(-wanted // max(1, int(per_second * gpus)))
    meaning = f"{wanted} images/s ({gpus} x {PUBLISHED_IMAGES_PER_SECOND_AND_GPU}, an H100 of MLPerf 3.1)"
    meaning += f" need {needed:.0f} cores; there are {cores}"
    if gpus == 0:
        yield ok("images", value, f"100 images/s would need {100 / per_second:.1f} cores; a CPU trains far slower")
    elif needed > cores:
        yield note("images", value, meaning, "Expect the GPUs to wait, unless training is slower than that.")
    elif threads > env.config.data.loader_threads:
        yield note("images", value, meaning, f"Set data.loader_threads={threads} if data_wait_seconds is not near 0.")
    else:
        yield ok("images", value, meaning)


def check_memory(env: Environment) -> Iterator[Finding]:
    """Yield the main memory and the shared memory in it."""
    memory, limit, gpus = env.machine.memory, env.machine.limits.memory_gib, len(env.gpus)
    free, total, shared = memory.available_gib, memory.total_gib, memory.shared_memory_gib
    processes = max(1, gpus)
    wanted = COCO_GIB * processes
    if free is None:
        yield note("memory", "unknown", f"training on COCO needs about {COCO_GIB:g} GiB per process")
    else:
        usable = free if limit is None else min(free, limit)
        value = f"{free:.1f} GiB available" + (f" of {total:.1f}" if total else "")
        if limit is not None and total is not None and limit < total:
            value += f", limited to {limit:.1f} GiB (cgroup)"
        if usable < DEMO_GIB:
            fix = "End other programs, or give the container more (docker run --memory)."
            yield problem("memory", value, f"even the recipe demo needs about {DEMO_GIB:g} GiB", fix)
        elif usable < wanted:
            meaning = f"enough for the demo; COCO wants about {wanted:g} GiB ({processes} process(es) of {COCO_GIB:g})"
            yield note("memory", value, meaning, "Use fewer processes, or a machine with more memory.")
        elif usable < wanted + COCO_IMAGES_GIB:
            yield ok("memory", value, "enough; not for caching all of COCO's images too, so every epoch reads the disk")
        else:
            yield ok("memory", value, "enough, and COCO's images (19 GiB) stay in it after the first epoch")
    if shared is not None and gpus > 1 and shared < SHARED_GIB_FOR_NCCL:
        meaning = f"NCCL has its buffers for {gpus} GPUs there; too little stops a run with a bus error"
        yield problem("/dev/shm", f"{shared:.2f} GiB", meaning, "docker run --ipc=host, or --shm-size=8g")
    elif shared is not None:
        unused = "hardly used: images are loaded by threads, not by processes"
        yield ok("/dev/shm", f"{shared:.2f} GiB", "room for NCCL's buffers" if gpus > 1 else unused)


def check_limits(env: Environment) -> Iterator[Finding]:
    """Yield the limits of the shell."""
    limits, gpus = env.process_limits, len(env.gpus)
    files, locked, core = limits.open_files, limits.locked_memory_gib, limits.core_file_gib
    name, fix = "open files (ulimit -n)", f"ulimit -n {OPEN_FILES_WANTED}"
    value = "unlimited" if files is None else str(files)
    if files is not None and files < OPEN_FILES_NEEDED:
        yield problem(name, value, "a run may be refused a file or a socket", fix)
    elif files is not None and gpus > 1 and files < OPEN_FILES_WANTED:
        yield note(name, value, f"NCCL opens many sockets for {gpus} GPUs", fix)
    else:
        yield ok(name, value, "enough")
    if env.machine.infiniband and locked is None:
        yield ok("locked memory (ulimit -l)", "unlimited", "InfiniBand can register its buffers")
    elif env.machine.infiniband:
        meaning = "InfiniBand cannot register its buffers: NCCL fails or falls back to the slow network"
        fix = "ulimit -l unlimited; in a container: docker run --ulimit memlock=-1"
        yield problem("locked memory (ulimit -l)", f"{locked:.3f} GiB", meaning, fix)
    if core == 0:
        yield ok("core files (ulimit -c)", "none", "a crash leaves no large file")
    else:
        value, fix = (
            "unlimited" if core is None else f"up to {core:.1f} GiB",
            "ulimit -c 0, unless you look for a crash.",
        )
        yield note("core files (ulimit -c)", value, "a crash may write the memory of each process to the disk", fix)


def check_data(env: Environment) -> Iterator[Finding]:
    """Yield the files of COCO 2017 and of the backbone."""
    data, needed = env.data, "the recipe demo needs none; the COCO recipes do"
    fix = "maskperf prepare coco, or name it: maskperf doctor --data FOLDER, maskperf run coco data.root=FOLDER"
    counts = {"train2017/": (data.train_images, NUM_TRAIN_FILES), "val2017/": (data.val_images, NUM_VAL_IMAGES)}
    has_json = {"train": data.train_json, "val": data.val_json}
    missing = [f"annotations/instances_{split}2017.json" for split, is_there in has_json.items() if not is_there]
    missing += [folder for folder, (found, _) in counts.items() if found is None]
    other = [
        f"{folder} ({found:,} images instead of {wanted:,})"
        for folder, (found, wanted) in counts.items()
        if found not in (None, wanted)
    ]
    if not missing and not other:
        value = f"{data.root}: {NUM_TRAIN_FILES:,} and {NUM_VAL_IMAGES:,} images"
        yield ok("COCO 2017", value, "complete by its number of files; maskperf run coco checks more")
    elif data.was_asked_for and not missing:
        value = f"{data.root}: {data.train_images:,} and {data.val_images:,} JPEG files"
        yield note("COCO 2017", value, f"another data set: COCO 2017 has {NUM_TRAIN_FILES:,} and {NUM_VAL_IMAGES:,}")
    elif data.was_asked_for:
        value = f"{data.root}: missing {', '.join(missing + other)}"
        yield problem("COCO 2017", value, "a COCO recipe cannot run on it", fix)
    else:
        value = "not found" if len(missing) == 4 else f"missing {', '.join(missing + other)}"
        yield note("COCO 2017", f"{data.root}: {value}", needed, fix)
    if data.weights is not None:
        yield ok("backbone weights", data.weights, "found; maskperf run reads and checks them")
    else:
        value = f"{env.config.model.backbone_weights}: not found"
        yield note("backbone weights", value, needed, "maskperf prepare coco, or give model.backbone_weights=FILE.")


def check_space(env: Environment) -> Iterator[Finding]:
    """Yield the free space for the data and for the runs."""
    data, runs = env.machine.storage, env.run_storage
    needed, free = f"{COCO_GIB_WITH_ARCHIVES:g} GiB", runs.free_gib
    value, run_value = (
        f"{'unknown space' if place.free_gib is None else f'{place.free_gib:.1f} GiB free'} at {place.path}"
        for place in (data, runs)
    )
    if (env.data.train_images or 0) >= NUM_TRAIN_FILES:
        yield ok("space for data", value, "the data set is there already")
    elif data.free_gib is not None and data.free_gib < COCO_GIB_WITH_ARCHIVES:
        fix = "Free some, or choose another folder with --data."
        yield note("space for data", value, f"COCO 2017 takes up to {needed} while its archives are there", fix)
    else:
        yield ok("space for data", value, f"COCO 2017 needs up to {needed} while it is unpacked")
    name, value = "space for runs", run_value
    if not env.run_folder_writable:
        yield problem(name, value, "this user may not write there", "Set run_dir=FOLDER, or change its permissions.")
    elif free is None:
        yield note(name, value, "it is unknown whether the files of a run have room")
    elif free < RUN_GIB_NEEDED:
        yield problem(name, value, "a run leaves up to 0.5 GiB", "Free some, or choose another folder: run_dir=FOLDER.")
    elif free < RUN_GIB_COMFORTABLE:
        yield note(name, value, "enough for one run, not for a series of five", "Free some before a series.")
    else:
        yield ok(name, value, "a run leaves up to 0.5 GiB")


def check_storage(env: Environment) -> Iterator[Finding]:
    """Yield what holds the data, and its measured speed."""
    storage, speed, gpus = env.machine.storage, env.disk_speed, len(env.gpus)
    parts = [storage.kind or "unknown kind", storage.model, storage.file_system]
    value = f"{', '.join(part for part in parts if part)} at {storage.path}"
    meaning, *fixes = STORAGE[storage.kind]
    yield (note if fixes else ok)("storage of data", value, meaning, *fixes)
    wanted = gpus * PUBLISHED_IMAGES_PER_SECOND_AND_GPU
    if speed is None:
        yield ok("disk speed", "not measured", env.disk_speed_missing)
        return
    value = (
        f"{speed.pictures_per_second:,.0f} images/s read in random order by {speed.threads} threads; sequentially: "
        f"read {speed.read_mib_per_second:,.0f}, write {speed.write_mib_per_second:,.0f} MiB/s"
    )
    if speed.pictures_per_second < wanted:
        meaning = f"{gpus} GPU(s) as fast as an H100 of MLPerf 3.1 would read {wanted:,} images/s"
        yield note("disk speed", value, meaning, "Use a faster disk, or 20 GiB of memory for all images.")
    else:
        yield ok("disk speed", value, "a virtual or busy disk may give other numbers next time")
