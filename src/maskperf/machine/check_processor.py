"""Checks of the processors: cores for the work there is, what slows them, and what else runs on them."""

from maskperf.machine.finding import Finding, note, ok
from maskperf.machine.situation import PUBLISHED_IMAGES_PER_SECOND_AND_GPU, Situation
from maskperf.machine.threads import choose_threads

BUSY_SHARE = 0.25
PINNING_VARIABLES = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PROC_BIND")
SMALL_CPU_GFLOPS_PER_THREAD = 10.0


def check_cpu(situation: Situation) -> Finding:
    cpu = situation.machine.cpu
    value = f"{cpu.model or 'unknown model'} ({cpu.architecture})"
    if cpu.hypervisor:
        value += f", virtual ({cpu.hypervisor})"
    wide = [name for name in ("avx512f", "amx_bf16", "avx2", "sve", "asimd") if name in cpu.instruction_sets]
    if not wide:
        meaning = "no wide vector instructions were seen (AVX2, AVX-512, SVE): matrix products on the CPU are slow"
        return note("processor", value, meaning)
    return ok("processor", value, f"vector instructions that torch can use: {', '.join(wide)}")


def check_cores(situation: Situation) -> Finding:
    cpu, data = situation.machine.cpu, situation.config.data
    gpus = len(situation.machine.gpu.gpus)
    value = f"{cpu.usable_physical_cores} cores, {cpu.usable_logical_cores} logical"
    if cpu.logical_cores and cpu.logical_cores > cpu.usable_logical_cores:
        value += f" (of {cpu.logical_cores} logical cores in the machine)"
    wanted = gpus * (1 + data.loader_threads)
    if gpus and cpu.usable_logical_cores < wanted:
        meaning = f"{gpus} process(es), each with {data.loader_threads} loader threads, want {wanted}"
        fix = "Use a machine or a job with more cores, or set data.loader_threads=1."
        return note("cores", value, meaning, fix)
    if not gpus and cpu.usable_physical_cores <= data.loader_threads:
        meaning = (
            f"the loader's {data.loader_threads} threads and the training share them; on the CPU this costs little"
        )
        return ok("cores", value, meaning)
    return ok("cores", value, f"enough for {max(gpus, 1)} process(es) with {data.loader_threads} loader threads each")


def check_cpu_limit(situation: Situation) -> Finding | None:
    """Return a note where a container or job may use less than the cores it sees; None without a limit."""
    limit, cpu = situation.machine.limits.cpu_cores, situation.machine.cpu
    cores = cpu.usable_logical_cores
    if limit is None:
        return None
    value = f"{limit:g} cores' time"
    if limit >= cores:
        return ok("CPU limit (cgroup)", value, f"no less than the {cores} logical cores that can be used")
    choice = choose_threads(0, cores=cpu.usable_physical_cores, cpu_limit=limit, processes=1)
    meaning = f"more threads would be stopped for a part of every 0.1 s; system.threads=0 takes {choice.count}"
    fix = f"Give the container more of the {cores} logical cores that it sees (docker run --cpus)."
    return note("CPU limit (cgroup)", value, meaning, fix)


def check_hyperthreads(situation: Situation) -> Finding | None:
    """Return how logical and physical cores stand; None where one of them is unknown."""
    cpu = situation.machine.cpu
    if not cpu.physical_cores or not cpu.logical_cores:
        return None
    each = cpu.logical_cores // cpu.physical_cores
    value = f"{each} thread(s) per core, {cpu.sockets or '?'} socket(s)"
    if each > 1:
        return ok("hyperthreads", value, "system.threads=0 means one thread per physical core")
    return ok("hyperthreads", value, "every logical core is one of its own, as far as the system tells")


def check_numa(situation: Situation) -> Finding | None:
    """Return the number of memory nodes; None where it is unknown."""
    nodes, gpus = situation.machine.cpu.numa_nodes, len(situation.machine.gpu.gpus)
    if nodes is None:
        return None
    if nodes == 1:
        return ok("NUMA nodes", "1", "all memory is equally near")
    meaning = "memory of another node is slower; one process over all of them loses speed"
    if gpus:
        fix = "For best speed bind each process to the node of its GPU (nvidia-smi topo -m shows it)."
    else:
        fix = f"On the CPU: torchrun --nproc-per-node {nodes}, each bound with numactl --cpunodebind --membind."
    return note("NUMA nodes", str(nodes), meaning, fix)


def check_governor(situation: Situation) -> Finding:
    governor = situation.machine.cpu.governor
    if governor is None:
        return ok("CPU frequency", "governor not told", "usual in virtual machines: the host decides")
    if governor == "performance":
        return ok("CPU frequency", governor, "full speed at once")
    fix = "sudo cpupower frequency-set --governor performance"
    return note("CPU frequency", governor, "cores may start slowly after a wait; times vary more", fix)


def check_load(situation: Situation) -> Finding | None:
    """Return what else keeps the cores busy; None where the system does not tell."""
    load, cores = situation.load_average, situation.machine.cpu.usable_logical_cores
    if load is None:
        return None
    value = f"load {load:.2f} on {cores} logical core(s)"
    if load > BUSY_SHARE * cores:
        meaning = "other processes are busy, or were within the last minute; measured times would suffer"
        return note("other work", value, meaning, "Find them with: top. Measure on an idle machine.")
    return ok("other work", value, "the machine is idle enough to measure")


def check_thread_variables(situation: Situation) -> Finding:
    environment = situation.environment
    pinning = [f"{name}={environment[name]}" for name in PINNING_VARIABLES if environment.get(name)]
    if pinning:
        meaning = "binds threads to cores; several processes may then share the same ones"
        fix = f"Unset {' and '.join(text.partition('=')[0] for text in pinning)}, unless it was chosen on purpose."
        return note("thread variables", ", ".join(pinning), meaning, fix)
    threads = environment.get("OMP_NUM_THREADS")
    if threads is None:
        return ok("thread variables", "OMP_NUM_THREADS is not set", "system.threads decides")
    meaning = "a run sets torch's threads itself, from system.threads; the variable rules only libraries beside torch"
    return ok("thread variables", f"OMP_NUM_THREADS={threads}", meaning)


def check_clock(situation: Situation) -> Finding:
    if situation.clock_synchronized is None:
        return ok("clock", "not told", "durations do not depend on it, but time stamps in mlperf.log do")
    if situation.clock_synchronized:
        return ok("clock", "synchronized (NTP)", "time stamps in mlperf.log are right")
    meaning = "time stamps in mlperf.log may be wrong, or jump during a run"
    return note("clock", "not synchronized", meaning, "sudo timedatectl set-ntp true")


def check_picture_speed(situation: Situation) -> Finding | None:
    """Return whether the cores can make pictures ready as fast as the GPUs want them; None where not measured."""
    speed, cpu = situation.picture_speed, situation.machine.cpu
    if speed is None:
        return None
    gpus = len(situation.machine.gpu.gpus)
    value = (
        f"{speed.decode_per_second:.0f} JPEGs/s decoded, {speed.prepare_per_second:.0f} images/s made ready, per thread"
    )
    if gpus == 0:
        cores = 100 / speed.prepare_per_second
        return ok("pictures", value, f"100 images/s would need {cores:.1f} cores; training on the CPU is far slower")
    wanted = gpus * PUBLISHED_IMAGES_PER_SECOND_AND_GPU
    cores = wanted / speed.prepare_per_second
    meaning = (
        f"{wanted} images/s ({gpus} x {PUBLISHED_IMAGES_PER_SECOND_AND_GPU}, an H100 of MLPerf 3.1) need {cores:.0f}"
    )
    meaning += f" cores; there are {cpu.usable_physical_cores}"
    if cores > cpu.usable_physical_cores:
        return note("pictures", value, meaning, "Expect the GPUs to wait, unless training is slower than that.")
    threads = -(-wanted // max(1, int(speed.prepare_per_second * gpus)))
    if threads > situation.config.data.loader_threads:
        return note(
            "pictures", value, meaning, f"Set data.loader_threads={threads} where data_wait_seconds is not near 0."
        )
    return ok("pictures", value, meaning)


def check_cpu_speed(situation: Situation) -> Finding | None:
    """Return the measured speed of matrix products on the CPU; None where it was not measured."""
    probe = situation.torch_probe
    if probe is None or probe.cpu_gflops is None:
        return None
    threads = probe.cpu_threads or 1
    value = f"{probe.cpu_gflops:.0f} GFLOP/s in float32 with {threads} thread(s)"
    if probe.cpu_gflops < SMALL_CPU_GFLOPS_PER_THREAD * threads:
        meaning = "slow for this number of threads: old, limited or busy cores"
        return note("matrix products, CPU", value, meaning, "See the lines on cores, CPU limit and other work.")
    return ok("matrix products, CPU", value, "what training on the CPU can count on")
