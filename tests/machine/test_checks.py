import inspect
from dataclasses import replace

import pytest
from synthetic_machine import STORAGE, gpu, gpu_env, plain_env, with_cpu, with_machine

from maskperf.config import OptimizerConfig
from maskperf.machine import check_hardware, checks
from maskperf.machine.check_hardware import FIXED_GIB, GIB_PER_IMAGE, check_gpu_memory
from maskperf.machine.checks import CHECKS, examine, numbers_of
from maskperf.machine.facts import (
    CgroupFacts,
    DataFolder,
    DiskSpeed,
    DockerFacts,
    GpuGroup,
    GpuProcess,
    InfinibandFacts,
    MemoryFacts,
    PictureSpeed,
    ProcessLimits,
    TorchProbe,
)


def test_every_check_that_is_written_is_used_once():
    written = {
        function
        for module in (checks, check_hardware)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("check_")
    }
    assert set(CHECKS) == written and len(CHECKS) == len(written) == 42


@pytest.mark.parametrize("env", [plain_env(), gpu_env(8)], ids=["cpu", "8 gpus"])
def test_a_good_machine_has_nothing_to_fix_and_every_name_once(env):
    findings = examine(env)
    assert [finding for finding in findings if finding.level != "ok" or finding.fix] == []
    assert len({finding.name for finding in findings}) == len(findings) > 20


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0+cpu", (2, 13, 0)), ("13.0", (13, 0)), ("cpu", ()), ("", ()), ("2.14.0a0", (2, 14, 0))],
)
def test_numbers_at_the_start_of_a_version(version, expected):
    assert numbers_of(version) == expected


@pytest.mark.parametrize("memory_gib", [4.0, 8.0, 11.0, 79.6])
def test_the_number_of_images_reported_to_fit_does_fit(memory_gib):
    env = gpu_env(1, gpus=(gpu(0, memory_gib=memory_gib),))
    one = replace(env, config=replace(env.config, optimizer=OptimizerConfig(batch_size=1)))
    fitting = int(check_gpu_memory(one).meaning.split()[1])
    assert FIXED_GIB + GIB_PER_IMAGE * fitting <= memory_gib < FIXED_GIB + GIB_PER_IMAGE * (fitting + 1)


def with_memory(env, **changes):
    return with_machine(env, memory=replace(env.machine.memory, **changes))


def with_data(**changes):
    return plain_env(data=replace(plain_env().data, **changes))


def with_storage(env, **changes):
    return with_machine(env, storage=replace(STORAGE, **changes))


def with_limit(cores):
    return with_machine(plain_env(), limits=CgroupFacts(cpu_cores=cores))


def limited(env, **limits):
    return replace(env, process_limits=ProcessLimits(**limits))


def with_build(build, env):
    return replace(env, torch_build=build)


def with_port(state, rate=None, env=None):
    port = InfinibandFacts(name="mlx5_0 port 1", state=state, rate=rate)
    return with_machine(env or plain_env(), infiniband=(port,))


def prepared(per_second):
    return PictureSpeed(decode_per_second=300.0, prepare_per_second=per_second, jpeg_kib=140.0)


ONE_GPU, BOTH_GPUS = TorchProbe(gpu_names=("H100",)), TorchProbe(gpu_names=("H100", "H100"))
BROKEN_TORCH = TorchProbe(failure="ImportError: libcudart.so.13")
RUNC = DockerFacts(version="28.2.2", runtimes=("runc",))
PINNED = {"torch": ("2.13.0", "2.13.0+cpu"), "numpy": ("2.4.6", "2.4.6"), "pytest": ("9.2.0", None)}
NOTHING = DataFolder(root="/x", was_asked_for=True)
DISK = DiskSpeed(
    place="/data", write_mib_per_second=500.0, read_mib_per_second=900.0, pictures_per_second=1000.0, threads=2
)
FEW_CORES = with_cpu(gpu_env(8), usable_physical_cores=8, usable_logical_cores=16)
RANKS = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}

# The check without "check_", the environment, the level (None: no finding), and a text that the finding holds.
CASES = [
    ("system", with_machine(plain_env(), kernel="Linux 6.12"), "ok", "Linux"),
    ("system", with_machine(plain_env(), container="docker"), "ok", "container (docker)"),
    ("system", with_machine(plain_env(), kernel="Linux 5.15.167-microsoft-standard-WSL2"), "note", "WSL"),
    ("system", with_machine(plain_env(), kernel="Darwin 24"), "note", "Darwin"),
    ("python", plain_env(python=(3, 10, 9)), "problem", "3.11"),
    ("python", plain_env(python=(3, 11, 0)), "ok", "3.11.0"),
    ("python", plain_env(python=(4, 0, 0)), "ok", ""),
    ("torch", with_machine(plain_env(), software={"torch": None}), "problem", "./install.sh"),
    ("torch", with_machine(plain_env(), software={"torch": "2.10.1"}), "problem", "2.11"),
    ("torch", with_machine(plain_env(), software={"torch": "2.11.0+cu130"}), "ok", ""),
    ("torch", with_machine(plain_env(), software={"torch": "3.0.0"}), "ok", ""),
    ("torch_works", plain_env(torch_probe=BROKEN_TORCH), "problem", "libcudart"),
    ("torch_works", plain_env(torch_probe=TorchProbe()), None, ""),
    ("torch_works", gpu_env(1, torch_probe=BROKEN_TORCH), None, ""),  # reported once, by torch_sees_gpus
    ("torch_build", gpu_env(1), "ok", ""),
    ("torch_build", with_build("cpu", gpu_env(1)), "problem", "CUDA"),
    ("torch_build", with_build("rocm 6.4", gpu_env(1)), "problem", ""),
    ("torch_build", with_machine(plain_env(), gpu=GpuGroup(cards_on_bus=2)), "problem", ""),
    ("torch_build", plain_env(), "ok", ""),
    ("torch_build", plain_env(torch_build="13.0"), "note", ""),
    ("torch_build", plain_env(torch_build=None), None, ""),
    *[
        ("driver", with_build(build, gpu_env(1, group={"driver_cuda": cuda})), level, text)
        for cuda, build, level, text in (
            ("13.0", "13.0", "ok", ""),
            ("13.1", "13.0", "ok", ""),
            ("12.8", "13.0", "problem", "580.65.06"),
            ("12.2", "12.8", "note", ""),
            ("13.0", "12.8", "ok", ""),
            (None, "13.0", "note", ""),
            ("13.0", None, "note", ""),
            ("12.4", "cpu", "ok", ""),
        )
    ],
    ("driver", with_machine(plain_env(), gpu=GpuGroup(cards_on_bus=4)), "problem", "4 NVIDIA card(s)"),
    ("driver", with_machine(plain_env(), gpu=GpuGroup(complaint="NVIDIA-SMI has failed")), "problem", "has failed"),
    ("driver", plain_env(), None, ""),
    ("torch_sees_gpus", gpu_env(2, torch_probe=BOTH_GPUS), "ok", ""),
    ("torch_sees_gpus", gpu_env(2, torch_probe=ONE_GPU), "problem", "1 of 2"),
    ("torch_sees_gpus", gpu_env(2, torch_probe=ONE_GPU, variables={"CUDA_VISIBLE_DEVICES": "1"}), "note", "=1"),
    ("torch_sees_gpus", gpu_env(1, torch_probe=BROKEN_TORCH), "problem", "libcudart"),
    ("torch_sees_gpus", gpu_env(2), None, ""),
    ("torch_sees_gpus", plain_env(torch_probe=BOTH_GPUS), None, ""),
    ("versions", plain_env(pinned=PINNED), "ok", ""),
    ("versions", plain_env(pinned={**PINNED, "numpy": ("2.4.6", "2.5.0")}), "note", "numpy 2.5.0 (pinned: 2.4.6)"),
    ("versions", plain_env(pinned={f"package{number}": ("1", "2") for number in range(9)}), "note", "and 3 more"),
    ("versions", plain_env(), None, ""),
    ("gpu_list", gpu_env(2), "ok", "2 x NVIDIA H100 80GB HBM3"),
    ("gpu_list", gpu_env(2, gpus=(gpu(0), gpu(1, name="NVIDIA L40S"))), "note", "1 x NVIDIA L40S"),
    ("gpu_memory", gpu_env(1), "ok", ""),
    ("gpu_memory", gpu_env(2, gpus=(gpu(0), gpu(1, memory_gib=2.0))), "note", "2.0 GiB each"),
    ("gpu_memory", gpu_env(1, gpus=(gpu(0, memory_gib=None),)), None, ""),
    ("gpu_use", gpu_env(1), "ok", ""),
    ("gpu_use", gpu_env(1, group={"processes": (GpuProcess(process_id=7, name="py"),)}), "note", "py (process 7)"),
    ("gpu_use", gpu_env(1, gpus=(gpu(0, memory_used_gib=30.0),)), "note", "30.0 GiB"),
    ("gpu_split", gpu_env(2), None, ""),
    ("gpu_split", gpu_env(2, gpus=(gpu(0, is_split=False), gpu(1, is_split=True))), "note", "GPU 1"),
    ("gpu_links", gpu_env(8), "ok", "NV18 (28 pairs)"),
    ("gpu_links", gpu_env(2, group={"links": (("X", "SYS"), ("SYS", "X"))}), "note", "SYS"),
    ("gpu_links", gpu_env(2, group={"links": (("X", "PIX"), ("PIX", "X"))}), "ok", "PIX"),
    ("gpu_bus", gpu_env(1), None, ""),
    ("gpu_bus", gpu_env(2, gpus=(gpu(0), gpu(1, pcie_lanes=1, pcie_generation=3))), "note", "GPU 1: 1 lane(s)"),
    ("gpu_speed", gpu_env(2, torch_probe=TorchProbe(gpu_gflops=(50000.0, 48000.0))), "ok", "48.0 TFLOP/s"),
    ("gpu_speed", gpu_env(2, torch_probe=TorchProbe(gpu_gflops=(50000.0, 20000.0))), "note", "GPU 1"),
    ("gpu_speed", gpu_env(2), None, ""),
    *[
        (name, plain_env(), None, "")
        for name in ("gpu_list", "gpu_memory", "gpu_use", "gpu_split", "gpu_links", "gpu_bus")
    ],
    ("cpu", with_cpu(instruction_sets=("avx",)), "note", ""),
    ("cpu", with_cpu(hypervisor="KVM"), "ok", "KVM"),
    ("cores", gpu_env(8), "ok", ""),
    ("cores", FEW_CORES, "note", "want 24"),  # 8 processes, each with itself and two loader threads
    ("cores", FEW_CORES, "note", "of 192 logical cores"),
    ("cores", with_cpu(usable_physical_cores=2, usable_logical_cores=2), "ok", ""),
    ("cpu_limit", with_limit(4.0), "note", "system.threads=0 takes 4"),
    ("cpu_limit", with_limit(0.5), "note", "system.threads=0 takes 1"),
    ("cpu_limit", with_limit(3.9), "note", "system.threads=0 takes 3"),
    ("cpu_limit", with_limit(20.0), "note", "system.threads=0 takes 16"),
    ("cpu_limit", with_limit(32.0), "ok", ""),
    ("cpu_limit", plain_env(), None, ""),
    ("hyperthreads", with_cpu(), "ok", "2 thread(s) per core, 1 socket(s)"),
    ("hyperthreads", with_cpu(logical_cores=16), "ok", "1 thread(s)"),
    ("hyperthreads", with_cpu(physical_cores=None), None, ""),
    ("numa", with_cpu(numa_nodes=2), "note", "numactl"),
    ("numa", with_cpu(gpu_env(2), numa_nodes=2), "note", "GPU"),
    ("numa", with_cpu(numa_nodes=None), None, ""),
    ("governor", with_cpu(governor="powersave"), "note", "cpupower"),
    ("governor", with_cpu(governor=None), "ok", ""),
    ("load", plain_env(load_average=8.0), "ok", ""),  # a quarter of 32 logical cores
    ("load", plain_env(load_average=8.1), "note", ""),
    ("load", plain_env(load_average=None), None, ""),
    ("thread_variables", plain_env(variables={"OMP_NUM_THREADS": "1"}), "ok", "OMP_NUM_THREADS=1"),
    ("thread_variables", plain_env(variables={"KMP_AFFINITY": "compact"}), "note", "Unset KMP_AFFINITY"),
    ("cpu_speed", plain_env(torch_probe=TorchProbe(cpu_gflops=1500.0, cpu_threads=16)), "ok", ""),
    ("cpu_speed", plain_env(torch_probe=TorchProbe(cpu_gflops=150.0, cpu_threads=16)), "note", ""),
    ("cpu_speed", plain_env(torch_probe=BROKEN_TORCH), None, ""),
    ("picture_speed", plain_env(), None, ""),
    ("picture_speed", plain_env(picture_speed=prepared(50.0)), "ok", ""),
    ("picture_speed", gpu_env(8, picture_speed=prepared(100.0)), "ok", ""),  # two threads: 200 a second
    ("picture_speed", gpu_env(8, picture_speed=prepared(50.0)), "note", "data.loader_threads=4"),
    ("picture_speed", gpu_env(8, picture_speed=prepared(50.0)), "note", "need 30 cores"),  # 1480 / 50, rounded
    ("picture_speed", gpu_env(8, picture_speed=prepared(10.0)), "note", "148 cores; there are 96"),
    ("memory", with_memory(plain_env(), available_gib=0.5), "problem", "demo"),
    ("memory", with_memory(plain_env(), available_gib=3.0), "note", "COCO wants"),
    ("memory", with_memory(plain_env(), available_gib=16.0), "ok", "reads the disk"),
    ("memory", with_memory(plain_env(), available_gib=100.0), "ok", "stay in it"),
    ("memory", with_memory(plain_env(), available_gib=None), "note", "per process"),
    ("memory", with_machine(plain_env(), limits=CgroupFacts(memory_gib=0.5)), "problem", "limited to 0.5 GiB"),
    ("memory", with_memory(gpu_env(8), available_gib=20.0), "note", "8 process(es)"),
    ("memory", with_memory(gpu_env(1), available_gib=20.0), "ok", ""),
    ("shared_memory", with_memory(gpu_env(2), shared_memory_gib=0.0625), "problem", "--ipc=host"),  # docker's default
    ("shared_memory", with_memory(gpu_env(1), shared_memory_gib=0.0625), "ok", ""),
    ("shared_memory", with_memory(gpu_env(2), shared_memory_gib=8.0), "ok", ""),
    ("shared_memory", with_machine(plain_env(), memory=MemoryFacts()), None, ""),
    ("open_files", limited(plain_env(), open_files=64), "problem", ""),
    ("open_files", limited(plain_env(), open_files=1024), "ok", ""),
    ("open_files", limited(gpu_env(8), open_files=1024), "note", "ulimit -n 4096"),
    ("open_files", limited(gpu_env(8), open_files=4096), "ok", ""),
    ("open_files", limited(gpu_env(8), open_files=None), "ok", "unlimited"),
    ("locked_memory", limited(plain_env(), locked_memory_gib=2**-14), None, ""),
    ("locked_memory", limited(with_port("ACTIVE"), locked_memory_gib=2**-14), "problem", "ulimit -l"),
    ("locked_memory", with_port("ACTIVE"), "ok", ""),
    ("core_files", limited(plain_env(), core_file_gib=0.0), "ok", ""),
    ("core_files", limited(plain_env(), core_file_gib=1.0), "note", "1.0 GiB"),
    ("core_files", limited(plain_env(), core_file_gib=None), "note", "unlimited"),
    ("data", plain_env(), "ok", ""),
    ("data", with_data(train_json=False), "note", "annotations/instances_train2017.json"),
    ("data", with_data(val_images=None), "note", "val2017/"),
    ("data", with_data(train_images=100), "note", "100 images instead of 118,287"),
    ("data", plain_env(data=NOTHING), "problem", "maskperf prepare coco"),
    ("data", plain_env(data=replace(NOTHING, was_asked_for=False)), "note", "/x: not found"),
    ("data", with_data(was_asked_for=True, train_images=100, val_images=0), "note", "100 and 0 JPEG files"),
    ("weights", plain_env(), "ok", ""),
    ("weights", with_data(weights=None), "note", "data/R-50.pkl: not found"),
    ("data_space", with_storage(plain_env(), free_gib=10.0), "ok", ""),
    ("data_space", with_storage(with_data(train_images=None), free_gib=10.0), "note", ""),
    ("data_space", with_storage(with_data(train_images=8), free_gib=10.0), "note", ""),
    ("data_space", with_data(train_images=None), "ok", ""),
    *[
        ("run_space", plain_env(run_storage=replace(STORAGE, free_gib=free), run_folder_writable=writable), level, "")
        for free, writable, level in (
            (100.0, True, "ok"),
            (3.0, True, "note"),
            (0.2, True, "problem"),
            (100.0, False, "problem"),
            (None, True, "note"),
        )
    ],
    *[
        ("storage_kind", with_storage(plain_env(), kind=kind), level, kind or "unknown kind")
        for level, kinds in (
            ("ok", ("NVMe", "SSD", "virtual disk", "memory", None)),
            ("note", ("hard disk", "network")),
        )
        for kind in kinds
    ],
    ("disk_speed", plain_env(disk_speed=DISK), "ok", ""),
    ("disk_speed", gpu_env(5, disk_speed=DISK), "ok", ""),  # 925 images a second
    ("disk_speed", gpu_env(8, disk_speed=DISK), "note", "1,480"),
    ("disk_speed", plain_env(disk_speed_missing="may not write"), "ok", "may not write"),
    ("network", plain_env(), "ok", "eth0: 10 Gbit/s"),
    ("network", with_port("DOWN", "10 Gb/sec (4X SDR)"), "note", ""),
    ("network", with_port("ACTIVE", "400 Gb/sec (4X NDR)"), "ok", "400 Gb/sec"),
    ("interfaces", plain_env(), None, ""),
    *[
        ("interfaces", plain_env(variables={"NCCL_SOCKET_IFNAME": named}), None, "")
        for named in ("eth0", "eth", "ib0,eth", "lo", "^docker0", "=eth0", "")
    ],
    *[
        ("interfaces", plain_env(variables={"GLOO_SOCKET_IFNAME": named}), "problem", named)
        for named in ("ib0", "eth1", "bond0,ib")
    ],
    ("slow_variables", plain_env(), "ok", ""),
    ("slow_variables", plain_env(variables={"NCCL_P2P_DISABLE": "0", "TORCH_DISTRIBUTED_DEBUG": "OFF"}), "ok", ""),
    ("slow_variables", plain_env(variables={"NCCL_P2P_DISABLE": "1"}), "note", "Unset NCCL_P2P_DISABLE"),
    ("slow_variables", plain_env(variables={"TORCH_DISTRIBUTED_DEBUG": "detail"}), "note", "=detail"),
    ("rank_variables", plain_env(), "ok", ""),
    ("rank_variables", plain_env(variables={"WORLD_SIZE": "1", "RANK": "0"}), "ok", ""),
    ("rank_variables", plain_env(variables=RANKS), "note", "one of 2 processes"),
    ("rank_variables", plain_env(variables={"WORLD_SIZE": "2"}), "problem", "MASTER_ADDR"),
    ("rank_variables", plain_env(variables={**RANKS, "RANK": "first"}), "problem", "RANK=first"),
    ("rank_variables", plain_env(variables={"RANK": ""}), "problem", ""),
    ("clock", plain_env(clock_synchronized=False), "note", "timedatectl"),
    ("clock", plain_env(clock_synchronized=None), "ok", ""),
    ("docker", plain_env(), "ok", "not found"),
    ("docker", plain_env(docker=RUNC), "ok", ""),
    ("docker", gpu_env(1, docker=RUNC), "note", "nvidia"),
    ("docker", gpu_env(1, docker=replace(RUNC, runtimes=("nvidia", "runc"))), "ok", ""),
    ("docker", gpu_env(1, docker=replace(RUNC, runtimes=())), "ok", "does not answer"),
]


@pytest.mark.parametrize(
    ("name", "env", "level", "text"), CASES, ids=[f"{index}-{case[0]}" for index, case in enumerate(CASES)]
)
def test_finding(name, env, level, text):
    (check,) = (check for check in CHECKS if check.__name__ == f"check_{name}")
    finding = check(env)
    assert (finding.level if finding else None) == level
    if finding:
        assert text in f"{finding.value} {finding.meaning} {finding.fix}"
        assert level != "problem" or finding.fix
