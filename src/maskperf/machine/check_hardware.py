"""Checks of GPUs, processors, memory and storage. A check of something that is absent or unknown returns None."""

from maskperf.config import NUM_TRAIN_FILES, NUM_VAL_IMAGES
from maskperf.machine.facts import NOTE, OK, PROBLEM, Environment, Verdict
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
MEANING_OF_STORAGE = {
    "virtual disk": "what lies below a virtual disk is unknown; its speed is measured without --quick",
    "NVMe": "random reads are fast",
    "SSD": "random reads are fast",
    "memory": "the files lie in main memory and take room there",
}
SLOW_STORAGE = {
    "hard disk": ("images are read in random order: about a hundred a second", "Copy the data to an SSD."),
    "network": ("depends on the network and on its other users", "Copy the data to a disk of this machine."),
}


def check_gpu_list(env: Environment) -> Verdict | None:
    names = [gpu.name for gpu in env.gpus]
    if not names:
        return None
    kinds = sorted(set(names))
    value = ", ".join(f"{names.count(kind)} x {kind}" for kind in kinds)
    if len(kinds) > 1:
        meaning = "GPUs of several kinds: each step lasts as long as on the slowest"
        return NOTE, value, meaning, "Choose one kind with CUDA_VISIBLE_DEVICES."
    return OK, value, f"maskperf run ... processes={len(names)} uses all of them" if names[1:] else "one GPU"


def check_gpu_memory(env: Environment) -> Verdict | None:
    sizes = [gpu.memory_gib for gpu in env.gpus if gpu.memory_gib is not None]
    if not sizes:
        return None
    images = env.config.optimizer.batch_size
    fitting = int((min(sizes) - FIXED_GIB) / GIB_PER_IMAGE)
    value = f"{min(sizes):.1f} GiB" + (" each" if len(sizes) > 1 else "")
    if fitting < images:
        meaning = f"{images} images at a time need about {FIXED_GIB + GIB_PER_IMAGE * images:.1f} GiB (estimate)"
        return NOTE, value, meaning, "Choose a smaller optimizer.batch_size, or more optimizer.accumulation_steps."
    return OK, value, f"about {fitting} images at a time on each GPU (estimate)"


def check_gpu_use(env: Environment) -> Verdict | None:
    gpu = env.machine.gpu
    if not gpu.gpus:
        return None
    if gpu.processes:
        value = ", ".join(f"{process.name} (process {process.process_id})" for process in gpu.processes[:4])
        fix = "Wait for them, end them, or choose other GPUs with CUDA_VISIBLE_DEVICES."
        return NOTE, value, "they take memory and time from a run", fix
    used = max(one.memory_used_gib or 0.0 for one in gpu.gpus)
    if used > USED_BY_DRIVER_GIB:
        value = f"{used:.1f} GiB of a GPU's memory are in use by no visible process"
        meaning = "perhaps a process outside this container; it takes memory and time from a run"
        return NOTE, value, meaning, "Look at nvidia-smi outside the container."
    return OK, "no", "a run has them for itself"


def check_gpu_split(env: Environment) -> Verdict | None:
    split = [str(gpu.index) for gpu in env.gpus if gpu.is_split]
    if not split:
        return None
    meaning = "a process uses one part of a split GPU only, and parts cannot exchange gradients with NCCL"
    fix = "For a benchmark run switch it off: sudo nvidia-smi -mig 0 (ends what runs there)."
    return NOTE, f"GPU {', '.join(split)}", meaning, fix


def check_gpu_links(env: Environment) -> Verdict | None:
    summary = link_summary(env.machine.gpu.links)
    if summary is None:
        return None
    if set(link_pairs(env.machine.gpu.links)) & set(SLOW_LINKS):
        meaning = "some pairs exchange gradients (168 MiB a step) over PCIe and the processor"
        return NOTE, summary, meaning, "Nothing to fix in software; expect a longer exchange_seconds."
    return OK, summary, "gradients (168 MiB a step) go from GPU to GPU directly"


def check_gpu_bus(env: Environment) -> Verdict | None:
    narrow = [gpu for gpu in env.gpus if gpu.pcie_lanes is not None and gpu.pcie_lanes < FEW_LANES]
    if not narrow:
        return None
    lanes = [f"GPU {gpu.index}: {gpu.pcie_lanes} lane(s) of generation {gpu.pcie_generation}" for gpu in narrow]
    return NOTE, ", ".join(lanes), "images and gradients reach these GPUs slowly", "Use a slot with 8 or 16 lanes."


def check_gpu_speed(env: Environment) -> Verdict | None:
    speeds = env.torch_probe.gpu_gflops if env.torch_probe else ()
    if not speeds:
        return None
    slowest, fastest = min(speeds), max(speeds)
    value = f"{slowest / 1000:.1f} TFLOP/s in float32"
    if slowest < SLOW_GPU_SHARE * fastest:
        meaning = f"of GPU {speeds.index(slowest)}; the fastest reaches {fastest / 1000:.1f}, and every step waits"
        return NOTE, value, meaning, "Look for heat, power limits and other users: nvidia-smi -q"
    return OK, value, "on the slowest GPU"


def check_cpu(env: Environment) -> Verdict:
    cpu = env.machine.cpu
    value = f"{cpu.model or 'unknown model'} ({cpu.architecture})"
    value += f", virtual ({cpu.hypervisor})" if cpu.hypervisor else ""
    wide = [name for name in WIDE_INSTRUCTION_SETS if name in cpu.instruction_sets]
    if not wide:
        meaning = "no wide vector instructions were found (AVX2, AVX-512, SVE): matrix products on the CPU are slow"
        return NOTE, value, meaning
    return OK, value, f"vector instructions that torch can use: {', '.join(wide)}"


def check_cores(env: Environment) -> Verdict:
    cpu, threads, gpus = env.machine.cpu, env.config.data.loader_threads, len(env.gpus)
    value = f"{cpu.usable_physical_cores} cores, {cpu.usable_logical_cores} logical"
    if cpu.logical_cores and cpu.logical_cores > cpu.usable_logical_cores:
        value += f" (of {cpu.logical_cores} logical cores in the machine)"
    wanted = gpus * (1 + threads)
    if gpus and cpu.usable_logical_cores < wanted:
        meaning = f"{gpus} process(es), each with {threads} loader threads, want {wanted}"
        return NOTE, value, meaning, "Use a machine or a job with more cores, or set data.loader_threads=1."
    if not gpus and cpu.usable_physical_cores <= threads:
        return OK, value, f"shared by the loader's {threads} threads and the training; on the CPU this costs little"
    return OK, value, f"enough for {max(gpus, 1)} process(es) with {threads} loader threads each"


def check_cpu_limit(env: Environment) -> Verdict | None:
    limit, cpu = env.machine.limits.cpu_cores, env.machine.cpu
    if limit is None:
        return None
    cores = cpu.usable_logical_cores
    if limit >= cores:
        return OK, f"{limit:g} cores", f"no less than the {cores} usable logical cores"
    choice = choose_threads(0, cores=cpu.usable_physical_cores, cpu_limit=limit, processes=1)
    meaning = f"more threads would be throttled in every period of 0.1 s; system.threads=0 takes {choice.count}"
    fix = f"Give the container more of the {cores} logical cores that it sees (docker run --cpus)."
    return NOTE, f"{limit:g} cores", meaning, fix


def check_hyperthreads(env: Environment) -> Verdict | None:
    cpu = env.machine.cpu
    if not cpu.physical_cores or not cpu.logical_cores:
        return None
    each = cpu.logical_cores // cpu.physical_cores
    meaning = "means one thread per physical core" if each > 1 else "counts every logical core"
    return OK, f"{each} thread(s) per core, {cpu.sockets or '?'} socket(s)", f"system.threads=0 {meaning}"


def check_numa(env: Environment) -> Verdict | None:
    nodes = env.machine.cpu.numa_nodes
    if nodes is None:
        return None
    if nodes == 1:
        return OK, "1", "all memory is equally near"
    fix = f"On the CPU: torchrun --nproc-per-node {nodes}, each bound with numactl --cpunodebind --membind."
    if env.gpus:
        fix = "For best speed bind each process to the node of its GPU (nvidia-smi topo -m shows it)."
    return NOTE, str(nodes), "memory of another node is slower; one process over all of them loses speed", fix


def check_governor(env: Environment) -> Verdict:
    governor = env.machine.cpu.governor
    if governor is None:
        return OK, "governor unknown", "usual in virtual machines: the host decides"
    if governor == "performance":
        return OK, governor, "full speed at once"
    meaning = "cores may start slowly after a wait; times vary more"
    return NOTE, governor, meaning, "sudo cpupower frequency-set --governor performance"


def check_load(env: Environment) -> Verdict | None:
    load, cores = env.load_average, env.machine.cpu.usable_logical_cores
    if load is None:
        return None
    value = f"load {load:.2f} on {cores} logical core(s)"
    if load > BUSY_SHARE * cores:
        meaning = "other processes are busy, or were within the last minute; measured times would suffer"
        return NOTE, value, meaning, "Find them with: top. Measure on an idle machine."
    return OK, value, "the machine is idle enough to measure"


def check_cpu_speed(env: Environment) -> Verdict | None:
    probe = env.torch_probe
    if probe is None or probe.cpu_gflops is None:
        return None
    threads = probe.cpu_threads or 1
    value = f"{probe.cpu_gflops:.0f} GFLOP/s in float32 with {threads} thread(s)"
    if probe.cpu_gflops < SMALL_CPU_GFLOPS_PER_THREAD * threads:
        meaning = "slow for this number of threads: old, limited or busy cores"
        return NOTE, value, meaning, "See the lines on cores, CPU limit and other work."
    return OK, value, "what training on the CPU can count on"


def check_picture_speed(env: Environment) -> Verdict | None:
    """Compare the cores with the images that the GPUs want."""
    speed, cores, gpus = env.picture_speed, env.machine.cpu.usable_physical_cores, len(env.gpus)
    if speed is None:
        return None
    value = f"{speed.decode_per_second:.0f} JPEGs/s decoded, {speed.prepare_per_second:.0f} images/s prepared"
    value += ", per thread"
    if gpus == 0:
        meaning = f"100 images/s would need {100 / speed.prepare_per_second:.1f} cores"
        return OK, value, f"{meaning}; training on the CPU is far slower"
    wanted = gpus * PUBLISHED_IMAGES_PER_SECOND_AND_GPU
    needed = wanted / speed.prepare_per_second
    meaning = f"{wanted} images/s ({gpus} x {PUBLISHED_IMAGES_PER_SECOND_AND_GPU}, an H100 of MLPerf 3.1)"
    meaning += f" need {needed:.0f} cores; there are {cores}"
    if needed > cores:
        return NOTE, value, meaning, "Expect the GPUs to wait, unless training is slower than that."
    threads = -(-wanted // max(1, int(speed.prepare_per_second * gpus)))
    if threads > env.config.data.loader_threads:
        return NOTE, value, meaning, f"Set data.loader_threads={threads} where data_wait_seconds is not near 0."
    return OK, value, meaning


def check_memory(env: Environment) -> Verdict:
    memory, limit = env.machine.memory, env.machine.limits.memory_gib
    free, total = memory.available_gib, memory.total_gib
    if free is None:
        return NOTE, "unknown", f"training on COCO needs about {COCO_GIB:g} GiB per process"
    usable = free if limit is None else min(free, limit)
    value = f"{free:.1f} GiB available" + (f" of {total:.1f}" if total else "")
    if limit is not None and total is not None and limit < total:
        value += f", limited to {limit:.1f} GiB (cgroup)"
    if usable < DEMO_GIB:
        fix = "End other programs, or give the container more (docker run --memory)."
        return PROBLEM, value, f"even the recipe demo needs about {DEMO_GIB:g} GiB", fix
    processes = max(1, len(env.gpus))
    wanted = COCO_GIB * processes
    if usable < wanted:
        meaning = f"enough for the demo; COCO wants about {wanted:g} GiB ({processes} process(es) of {COCO_GIB:g})"
        return NOTE, value, meaning, "Use fewer processes, or a machine with more memory."
    if usable < wanted + COCO_IMAGES_GIB:
        return OK, value, "enough; not for caching all of COCO's images too, so every epoch reads the disk"
    return OK, value, "enough, and COCO's images (19 GiB) stay in it after the first epoch"


def check_shared_memory(env: Environment) -> Verdict | None:
    size, gpus = env.machine.memory.shared_memory_gib, len(env.gpus)
    if size is None:
        return None
    value = f"{size:.2f} GiB"
    if gpus > 1 and size < SHARED_GIB_FOR_NCCL:
        meaning = f"NCCL has its buffers for {gpus} GPUs there; too little stops a run with a bus error"
        return PROBLEM, value, meaning, "docker run --ipc=host, or --shm-size=8g"
    unused = "hardly used: images are loaded by threads, not by processes"
    return OK, value, "room for NCCL's buffers" if gpus > 1 else unused


def check_open_files(env: Environment) -> Verdict:
    limit, gpus = env.process_limits.open_files, len(env.gpus)
    value, fix = "unlimited" if limit is None else str(limit), f"ulimit -n {OPEN_FILES_WANTED}"
    if limit is not None and limit < OPEN_FILES_NEEDED:
        return PROBLEM, value, "a run may be refused a file or a socket", fix
    if limit is not None and gpus > 1 and limit < OPEN_FILES_WANTED:
        return NOTE, value, f"NCCL opens many sockets for {gpus} GPUs", fix
    return OK, value, "enough"


def check_locked_memory(env: Environment) -> Verdict | None:
    if not env.machine.infiniband:
        return None
    limit = env.process_limits.locked_memory_gib
    if limit is None:
        return OK, "unlimited", "InfiniBand can register its buffers"
    meaning = "InfiniBand cannot register its buffers: NCCL fails or falls back to the slow network"
    return PROBLEM, f"{limit:.3f} GiB", meaning, "ulimit -l unlimited; in a container: docker run --ulimit memlock=-1"


def check_core_files(env: Environment) -> Verdict:
    limit = env.process_limits.core_file_gib
    if limit == 0:
        return OK, "none", "a crash leaves no large file"
    value = "unlimited" if limit is None else f"up to {limit:.1f} GiB"
    meaning = "a crash may write the whole memory of each process to the disk"
    return NOTE, value, meaning, "ulimit -c 0, unless you look for the cause of a crash."


def check_data(env: Environment) -> Verdict:
    data = env.data
    counts = (("train2017", data.train_images, NUM_TRAIN_FILES), ("val2017", data.val_images, NUM_VAL_IMAGES))
    has_json = {"train": data.train_json, "val": data.val_json}
    missing = [f"annotations/instances_{split}2017.json" for split, is_there in has_json.items() if not is_there]
    missing += [f"{folder}/" for folder, found, _ in counts if found is None]
    other = [
        f"{folder}/ ({found:,} images instead of {wanted:,})"
        for folder, found, wanted in counts
        if found is not None and found != wanted
    ]
    if not missing and not other:
        value = f"{data.root}: {NUM_TRAIN_FILES:,} and {NUM_VAL_IMAGES:,} images"
        return OK, value, "complete by its number of files; maskperf run coco checks more"
    if data.was_asked_for and not missing:
        value = f"{data.root}: {data.train_images:,} and {data.val_images:,} JPEG files"
        return NOTE, value, f"another data set: COCO 2017 has {NUM_TRAIN_FILES:,} and {NUM_VAL_IMAGES:,}"
    value = f"{data.root}: missing {', '.join(missing + other)}"
    fix = "maskperf prepare coco, or name the folder: maskperf doctor --data FOLDER, maskperf run coco data.root=FOLDER"
    if data.was_asked_for:
        return PROBLEM, value, "a COCO recipe cannot run on it", fix
    value = f"{data.root}: not found" if len(missing) == 4 else value
    return NOTE, value, "the recipe demo needs none; the COCO recipes do", fix


def check_weights(env: Environment) -> Verdict:
    if env.data.weights is not None:
        return OK, env.data.weights, "found; maskperf run reads and checks them"
    value = f"{env.config.model.backbone_weights}: not found"
    fix = "maskperf prepare coco, or give model.backbone_weights=FILE."
    return NOTE, value, "the recipe demo needs none; the COCO recipes do", fix


def check_data_space(env: Environment) -> Verdict:
    storage, needed = env.machine.storage, f"{COCO_GIB_WITH_ARCHIVES:g} GiB"
    value = f"{_space(storage.free_gib)} at {storage.path}"
    if (env.data.train_images or 0) >= NUM_TRAIN_FILES:
        return OK, value, "the data set is there already"
    if storage.free_gib is not None and storage.free_gib < COCO_GIB_WITH_ARCHIVES:
        meaning = f"COCO 2017 takes up to {needed} while its archives are there, half of it later"
        return NOTE, value, meaning, "Free some, or choose another folder with --data."
    return OK, value, f"COCO 2017 needs up to {needed} while it is unpacked"


def check_run_space(env: Environment) -> Verdict:
    free = env.run_storage.free_gib
    value = f"{_space(free)} at {env.run_storage.path}"
    if not env.run_folder_writable:
        fix = "Choose another folder with run_dir=FOLDER, or change its permissions."
        return PROBLEM, value, "this user may not write there: a run would stop at once", fix
    if free is None:
        return NOTE, value, "it is unknown whether the files of a run have room"
    if free < RUN_GIB_NEEDED:
        meaning = "a run leaves up to 0.5 GiB: weights, detections, logs"
        return PROBLEM, value, meaning, "Free some, or choose another folder with run_dir=FOLDER."
    if free < RUN_GIB_COMFORTABLE:
        return NOTE, value, "enough for one run, not for a series of five", "Free some before a series."
    return OK, value, "a run leaves up to 0.5 GiB"


def check_storage_kind(env: Environment) -> Verdict:
    storage = env.machine.storage
    parts = [storage.kind or "unknown kind", storage.model, storage.file_system]
    value = f"{', '.join(part for part in parts if part)} at {storage.path}"
    if storage.kind in SLOW_STORAGE:
        return NOTE, value, *SLOW_STORAGE[storage.kind]
    return OK, value, MEANING_OF_STORAGE.get(storage.kind or "", "the system does not report what holds this folder")


def check_disk_speed(env: Environment) -> Verdict:
    speed, gpus = env.disk_speed, len(env.gpus)
    if speed is None:
        return OK, "not measured", env.disk_speed_missing
    value = (
        f"{speed.pictures_per_second:,.0f} images/s read in random order by {speed.threads} threads; sequentially: "
        f"read {speed.read_mib_per_second:,.0f}, write {speed.write_mib_per_second:,.0f} MiB/s"
    )
    wanted = gpus * PUBLISHED_IMAGES_PER_SECOND_AND_GPU
    if speed.pictures_per_second < wanted:
        meaning = f"{gpus} GPU(s) as fast as an H100 of MLPerf 3.1 would read {wanted:,} images/s"
        fix = "Use a faster disk, or memory for all images (20 GiB): later epochs then read none."
        return NOTE, value, meaning, fix
    return OK, value, "a virtual or busy disk may give other numbers next time"


def _space(free_gib: float | None) -> str:
    return "unknown space" if free_gib is None else f"{free_gib:.1f} GiB free"
