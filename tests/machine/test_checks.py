"""The checks of the doctor on synthetic machines."""

from dataclasses import fields, is_dataclass, replace

import pytest

from maskperf.config import OptimizerConfig
from maskperf.machine.check_hardware import FIXED_GIB, GIB_PER_IMAGE
from maskperf.machine.checks import examine, numbers_of
from maskperf.machine.facts import (
    CgroupFacts,
    CpuFacts,
    DataFolder,
    DiskSpeed,
    DockerFacts,
    Environment,
    GpuFacts,
    GpuGroup,
    GpuProcess,
    ImageSpeed,
    InfinibandFacts,
    MachineFacts,
    MemoryFacts,
    NetworkFacts,
    StorageFacts,
    TorchProbe,
)
from maskperf.recipes import coco

STORAGE = StorageFacts(path="/data", file_system="ext4", device="nvme0n1", kind="NVMe", size_gib=900.0, free_gib=500.0)
MACHINE = MachineFacts(
    operating_system="Debian 13",
    kernel="Linux 6.12",
    container=None,
    cpu=CpuFacts(
        architecture="x86_64",
        model="A Processor",
        sockets=1,
        physical_cores=16,
        logical_cores=32,
        usable_physical_cores=16,
        usable_logical_cores=32,
        instruction_sets=("avx2", "avx512f"),
        governor="performance",
        numa_nodes=1,
    ),
    memory=MemoryFacts(total_gib=256.0, available_gib=200.0, swap_gib=0.0, shared_memory_gib=128.0),
    storage=STORAGE,
    network=(NetworkFacts(name="eth0", state="up", gigabits_per_second=10.0),),
    infiniband=(),
    gpu=GpuGroup(),
    limits=CgroupFacts(),
    software={"python": "3.13.1", "torch": "2.13.0+cpu"},
)
COUNTS = {"train_images": 118287, "val_images": 5000, "train_json": True, "val_json": True}
IDLE = Environment(
    machine=MACHINE,
    config=coco(),
    data=DataFolder(root="/data/coco", was_asked_for=False, weights="/data/R-50.pkl", **COUNTS),
    run_storage=STORAGE,
    run_folder_writable=True,
    torch_build="cpu",
    load_average=0.1,
    clock_synchronized=True,
)


def changed(facts, changes):
    """Return facts with other values; a dictionary changes what is in a field."""
    if not is_dataclass(facts):
        return facts | changes
    values = {
        name: changed(getattr(facts, name), value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return replace(facts, **values)


def plain_env(env=IDLE, **changes):
    """Return an idle machine without a GPU on which every check finds nothing to fix, but for some changes."""
    of_machine = {field.name for field in fields(MachineFacts)} & changes.keys()
    return changed(env, {"machine": {name: changes.pop(name) for name in of_machine}} | changes)


def gpu(index=0, **changes):
    values = {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.6, "memory_used_gib": 0.01, "pcie_lanes": 16}
    return GpuFacts(index=index, **values | changes)


def gpu_env(count, **changes):
    """Return a machine with H100s linked by NVLink, a torch for CUDA 13 and cores for all of them."""
    links = tuple(tuple("X" if row == column else "NV18" for column in range(count)) for row in range(count))
    group = {"gpus": tuple(map(gpu, range(count))), "links": links if count > 1 else (), "cards_on_bus": count}
    group |= {"driver_version": "580.95.05", "driver_cuda": "13.0"}
    cores = {"usable_physical_cores": 96, "usable_logical_cores": 192, "physical_cores": 96, "logical_cores": 192}
    base = plain_env(torch_build="13.0", software={"torch": "2.13.0+cu130"}, gpu=group, cpu=cores)
    return plain_env(base, **changes)


# What these checks look at is not there, or not measured, on a good machine.
NO_OBJECT = {
    *("torch loads", "GPUs seen by torch", "package versions", "GPU splitting (MIG)", "PCIe", "matrix products, GPU"),
    *("CPU limit (cgroup)", "matrix products, CPU", "images", "locked memory (ulimit -l)", "network card"),
}
GPUS_ALONE = {"GPU driver", "GPUs", "GPU memory", "GPUs in use", "GPU links"}


def finding_of(name, env):
    return {finding.name: finding for finding in examine(env)}.get(name)


def prepared(per_second):
    return ImageSpeed(decode_per_second=300.0, prepare_per_second=per_second, jpeg_kib=140.0)


ONE_GPU, BOTH_GPUS = TorchProbe(gpu_names=("H100",)), TorchProbe(gpu_names=("H100", "H100"))
BROKEN_TORCH = TorchProbe(failure="ImportError: libcudart.so.13")
RUNC = DockerFacts(version="28.2.2", runtimes=("runc",))
PINNED = {"torch": ("2.13.0", "2.13.0+cpu"), "numpy": ("2.4.6", "2.4.6"), "pytest": ("9.2.0", None)}
NOTHING = DataFolder(root="/x", was_asked_for=True)
DISK = DiskSpeed(
    place="/data", write_mib_per_second=500.0, read_mib_per_second=900.0, pictures_per_second=1000.0, threads=2
)
ACTIVE = (InfinibandFacts(name="mlx5_0 port 1", state="ACTIVE", rate="400 Gb/sec (4X NDR)"),)
LOCKED = {"locked_memory_gib": 2**-14}
HARMLESS = {"NCCL_P2P_DISABLE": "0", "TORCH_DISTRIBUTED_DEBUG": "OFF"}
FEW_CORES = gpu_env(8, cpu={"usable_physical_cores": 8, "usable_logical_cores": 16})
RANKS = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}

# The name of the finding, the environment, the level (None: no finding), and a text that the finding holds.
CASES = [
    ("system", plain_env(kernel="Linux 6.12"), "ok", "Linux"),
    ("system", plain_env(container="docker"), "ok", "container (docker)"),
    ("system", plain_env(kernel="Linux 5.15.167-microsoft-standard-WSL2"), "note", "WSL"),
    ("system", plain_env(kernel="Darwin 24"), "note", "Darwin"),
    ("Python", plain_env(software={"python": "3.10.9"}), "problem", "3.11"),
    ("Python", plain_env(software={"python": "3.11.0"}), "ok", "3.11.0"),
    ("Python", plain_env(software={"python": "4.0.0"}), "ok", ""),
    ("torch", plain_env(software={"torch": None}), "problem", "./install.sh"),
    ("torch", plain_env(software={"torch": "2.10.1"}), "problem", "2.11"),
    ("torch", plain_env(software={"torch": "2.11.0+cu130"}), "ok", ""),
    ("torch", plain_env(software={"torch": "3.0.0"}), "ok", ""),
    ("torch loads", plain_env(torch_probe=BROKEN_TORCH), "problem", "libcudart"),
    ("torch loads", plain_env(torch_probe=TorchProbe()), None, ""),
    ("torch loads", gpu_env(1, torch_probe=BROKEN_TORCH), None, ""),  # reported once, by torch_sees_gpus
    ("torch and GPU", gpu_env(1, torch_build="cpu"), "problem", "CUDA"),
    ("torch and GPU", gpu_env(1, torch_build="rocm 6.4"), "problem", ""),
    ("torch and GPU", plain_env(gpu=GpuGroup(cards_on_bus=2)), "problem", ""),
    ("torch and GPU", plain_env(torch_build="13.0"), "note", ""),
    ("torch and GPU", plain_env(torch_build=None), None, ""),
    *[
        ("GPU driver", gpu_env(1, gpu={"driver_cuda": cuda}, torch_build=build), level, text)
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
    ("GPU driver", plain_env(gpu=GpuGroup(cards_on_bus=4)), "problem", "4 NVIDIA card(s)"),
    ("GPU driver", plain_env(gpu=GpuGroup(complaint="NVIDIA-SMI has failed")), "problem", "has failed"),
    ("GPUs seen by torch", gpu_env(2, torch_probe=BOTH_GPUS), "ok", ""),
    ("GPUs seen by torch", gpu_env(2, torch_probe=ONE_GPU), "problem", "1 of 2"),
    ("GPUs seen by torch", gpu_env(2, torch_probe=ONE_GPU, variables={"CUDA_VISIBLE_DEVICES": "1"}), "note", "=1"),
    ("GPUs seen by torch", gpu_env(1, torch_probe=BROKEN_TORCH), "problem", "libcudart"),
    ("GPUs seen by torch", plain_env(torch_probe=BOTH_GPUS), None, ""),
    ("package versions", plain_env(pinned=PINNED), "ok", ""),
    ("package versions", plain_env(pinned=PINNED | {"numpy": ("2.4.6", "2.5.0")}), "note", "2.5.0 (pinned: 2.4.6)"),
    ("package versions", plain_env(pinned={f"p{number}": ("1", "2") for number in range(9)}), "note", "and 3 more"),
    ("GPUs", gpu_env(2), "ok", "2 x NVIDIA H100 80GB HBM3"),
    ("GPUs", gpu_env(2, gpu={"gpus": (gpu(0), gpu(1, name="NVIDIA L40S"))}), "note", "1 x NVIDIA L40S"),
    ("GPU memory", gpu_env(2, gpu={"gpus": (gpu(0), gpu(1, memory_gib=2.0))}), "note", "2.0 GiB each"),
    ("GPU memory", gpu_env(1, gpu={"gpus": (gpu(0, memory_gib=None),)}), None, ""),
    ("GPUs in use", gpu_env(1, gpu={"processes": (GpuProcess(process_id=7, name="py"),)}), "note", "py (process 7)"),
    ("GPUs in use", gpu_env(1, gpu={"gpus": (gpu(0, memory_used_gib=30.0),)}), "note", "30.0 GiB"),
    ("GPU splitting (MIG)", gpu_env(2, gpu={"gpus": (gpu(0, is_split=False), gpu(1, is_split=True))}), "note", "GPU 1"),
    ("GPU links", gpu_env(8), "ok", "NV18 (28 pairs)"),
    ("GPU links", gpu_env(2, gpu={"links": (("X", "SYS"), ("SYS", "X"))}), "note", "SYS"),
    ("GPU links", gpu_env(2, gpu={"links": (("X", "PIX"), ("PIX", "X"))}), "ok", "PIX"),
    ("PCIe", gpu_env(2, gpu={"gpus": (gpu(0), gpu(1, pcie_lanes=1, pcie_generation=3))}), "note", "GPU 1: 1 lane(s)"),
    ("matrix products, GPU", gpu_env(2, torch_probe=TorchProbe(gpu_gflops=(50000.0, 48000.0))), "ok", "48.0 TFLOP/s"),
    ("matrix products, GPU", gpu_env(2, torch_probe=TorchProbe(gpu_gflops=(50000.0, 20000.0))), "note", "GPU 1"),
    ("processor", plain_env(cpu={"instruction_sets": ("avx",)}), "note", ""),
    ("processor", plain_env(cpu={"hypervisor": "KVM"}), "ok", "KVM"),
    ("cores", FEW_CORES, "note", "want 24"),  # 8 processes, each with itself and two loader threads
    ("cores", FEW_CORES, "note", "of 192 logical cores"),
    ("cores", plain_env(cpu={"usable_physical_cores": 2, "usable_logical_cores": 2}), "ok", ""),
    ("CPU limit (cgroup)", plain_env(limits={"cpu_cores": 4.0}), "note", "system.threads=0 takes 4"),
    ("CPU limit (cgroup)", plain_env(limits={"cpu_cores": 0.5}), "note", "system.threads=0 takes 1"),
    ("CPU limit (cgroup)", plain_env(limits={"cpu_cores": 3.9}), "note", "system.threads=0 takes 3"),
    ("CPU limit (cgroup)", plain_env(limits={"cpu_cores": 20.0}), "note", "system.threads=0 takes 16"),
    ("CPU limit (cgroup)", plain_env(limits={"cpu_cores": 32.0}), "ok", ""),
    ("hyperthreads", plain_env(), "ok", "2 thread(s) per core, 1 socket(s)"),
    ("hyperthreads", plain_env(cpu={"logical_cores": 16}), "ok", "1 thread(s)"),
    ("hyperthreads", plain_env(cpu={"physical_cores": None}), None, ""),
    ("NUMA nodes", plain_env(cpu={"numa_nodes": 2}), "note", "numactl"),
    ("NUMA nodes", gpu_env(2, cpu={"numa_nodes": 2}), "note", "GPU"),
    ("NUMA nodes", plain_env(cpu={"numa_nodes": None}), None, ""),
    ("CPU frequency", plain_env(cpu={"governor": "powersave"}), "note", "cpupower"),
    ("CPU frequency", plain_env(cpu={"governor": None}), "ok", ""),
    ("other work", plain_env(load_average=8.0), "ok", ""),  # a quarter of 32 logical cores
    ("other work", plain_env(load_average=8.1), "note", ""),
    ("other work", plain_env(load_average=None), None, ""),
    ("thread variables", plain_env(variables={"OMP_NUM_THREADS": "1"}), "ok", "OMP_NUM_THREADS=1"),
    ("thread variables", plain_env(variables={"KMP_AFFINITY": "compact"}), "note", "Unset KMP_AFFINITY"),
    ("matrix products, CPU", plain_env(torch_probe=TorchProbe(cpu_gflops=1500.0, cpu_threads=16)), "ok", ""),
    ("matrix products, CPU", plain_env(torch_probe=TorchProbe(cpu_gflops=150.0, cpu_threads=16)), "note", ""),
    ("matrix products, CPU", plain_env(torch_probe=BROKEN_TORCH), None, ""),
    ("images", plain_env(picture_speed=prepared(50.0)), "ok", ""),
    ("images", gpu_env(8, picture_speed=prepared(100.0)), "ok", ""),  # two threads: 200 a second
    ("images", gpu_env(8, picture_speed=prepared(50.0)), "note", "data.loader_threads=4"),
    ("images", gpu_env(8, picture_speed=prepared(50.0)), "note", "need 30 cores"),  # 1480 / 50, rounded
    ("images", gpu_env(8, picture_speed=prepared(10.0)), "note", "148 cores; there are 96"),
    ("memory", plain_env(memory={"available_gib": 0.5}), "problem", "demo"),
    ("memory", plain_env(memory={"available_gib": 3.0}), "note", "COCO wants"),
    ("memory", plain_env(memory={"available_gib": 16.0}), "ok", "reads the disk"),
    ("memory", plain_env(memory={"available_gib": 100.0}), "ok", "stay in it"),
    ("memory", plain_env(memory={"available_gib": None}), "note", "per process"),
    ("memory", plain_env(limits={"memory_gib": 0.5}), "problem", "limited to 0.5 GiB"),
    ("memory", gpu_env(8, memory={"available_gib": 20.0}), "note", "8 process(es)"),
    ("memory", gpu_env(1, memory={"available_gib": 20.0}), "ok", ""),
    ("/dev/shm", gpu_env(2, memory={"shared_memory_gib": 0.0625}), "problem", "--ipc=host"),  # docker's default
    ("/dev/shm", gpu_env(1, memory={"shared_memory_gib": 0.0625}), "ok", ""),
    ("/dev/shm", gpu_env(2, memory={"shared_memory_gib": 8.0}), "ok", ""),
    ("/dev/shm", plain_env(memory=MemoryFacts()), None, ""),
    ("open files (ulimit -n)", plain_env(process_limits={"open_files": 64}), "problem", ""),
    ("open files (ulimit -n)", plain_env(process_limits={"open_files": 1024}), "ok", ""),
    ("open files (ulimit -n)", gpu_env(8, process_limits={"open_files": 1024}), "note", "ulimit -n 4096"),
    ("open files (ulimit -n)", gpu_env(8, process_limits={"open_files": 4096}), "ok", ""),
    ("open files (ulimit -n)", gpu_env(8, process_limits={"open_files": None}), "ok", "unlimited"),
    ("locked memory (ulimit -l)", plain_env(process_limits=LOCKED), None, ""),
    ("locked memory (ulimit -l)", plain_env(infiniband=ACTIVE, process_limits=LOCKED), "problem", "ulimit -l"),
    ("locked memory (ulimit -l)", plain_env(infiniband=ACTIVE), "ok", ""),
    ("core files (ulimit -c)", plain_env(process_limits={"core_file_gib": 0.0}), "ok", ""),
    ("core files (ulimit -c)", plain_env(process_limits={"core_file_gib": 1.0}), "note", "1.0 GiB"),
    ("core files (ulimit -c)", plain_env(process_limits={"core_file_gib": None}), "note", "unlimited"),
    ("COCO 2017", plain_env(data={"train_json": False}), "note", "annotations/instances_train2017.json"),
    ("COCO 2017", plain_env(data={"val_images": None}), "note", "val2017/"),
    ("COCO 2017", plain_env(data={"train_images": 100}), "note", "100 images instead of 118,287"),
    ("COCO 2017", plain_env(data=NOTHING), "problem", "maskperf prepare coco"),
    ("COCO 2017", plain_env(data=replace(NOTHING, was_asked_for=False)), "note", "/x: not found"),
    ("COCO 2017", plain_env(data={"was_asked_for": True, "train_images": 100, "val_images": 0}), "note", "100 and 0"),
    ("backbone weights", plain_env(data={"weights": None}), "note", "data/R-50.pkl: not found"),
    ("space for data", plain_env(storage={"free_gib": 10.0}), "ok", ""),
    ("space for data", plain_env(data={"train_images": None}, storage={"free_gib": 10.0}), "note", ""),
    ("space for data", plain_env(data={"train_images": 8}, storage={"free_gib": 10.0}), "note", ""),
    ("space for data", plain_env(data={"train_images": None}), "ok", ""),
    ("space for runs", plain_env(run_storage={"free_gib": 100.0}), "ok", ""),
    ("space for runs", plain_env(run_storage={"free_gib": 3.0}), "note", ""),
    ("space for runs", plain_env(run_storage={"free_gib": 0.2}), "problem", ""),
    ("space for runs", plain_env(run_storage={"free_gib": None}), "note", ""),
    ("space for runs", plain_env(run_folder_writable=False), "problem", ""),
    *[
        ("storage of data", plain_env(storage={"kind": kind}), level, kind or "unknown kind")
        for level, kinds in (
            ("ok", ("NVMe", "SSD", "virtual disk", "memory", None)),
            ("note", ("hard disk", "network")),
        )
        for kind in kinds
    ],
    ("disk speed", plain_env(disk_speed=DISK), "ok", ""),
    ("disk speed", gpu_env(5, disk_speed=DISK), "ok", ""),  # 925 images a second
    ("disk speed", gpu_env(8, disk_speed=DISK), "note", "1,480"),
    ("disk speed", plain_env(disk_speed_missing="may not write"), "ok", "may not write"),
    ("network", plain_env(), "ok", "eth0: 10 Gbit/s"),
    ("network", plain_env(infiniband=(replace(ACTIVE[0], state="DOWN"),)), "note", ""),
    ("network", plain_env(infiniband=ACTIVE), "ok", "400 Gb/sec"),
    *[
        ("network card", plain_env(variables={"NCCL_SOCKET_IFNAME": named}), None, "")
        for named in ("eth0", "eth", "ib0,eth", "lo", "^docker0", "=eth0", "")
    ],
    *[
        ("network card", plain_env(variables={"GLOO_SOCKET_IFNAME": named}), "problem", named)
        for named in ("ib0", "eth1", "bond0,ib")
    ],
    ("NCCL and CUDA variables", plain_env(variables=HARMLESS), "ok", ""),
    ("NCCL and CUDA variables", plain_env(variables={"NCCL_P2P_DISABLE": "1"}), "note", "Unset NCCL_P2P_DISABLE"),
    ("NCCL and CUDA variables", plain_env(variables={"TORCH_DISTRIBUTED_DEBUG": "detail"}), "note", "=detail"),
    ("torchrun variables", plain_env(variables={"WORLD_SIZE": "1", "RANK": "0"}), "ok", ""),
    ("torchrun variables", plain_env(variables=RANKS), "note", "one of 2 processes"),
    ("torchrun variables", plain_env(variables={"WORLD_SIZE": "2"}), "problem", "MASTER_ADDR"),
    ("torchrun variables", plain_env(variables=RANKS | {"RANK": "first"}), "problem", "RANK=first"),
    ("torchrun variables", plain_env(variables={"RANK": ""}), "problem", ""),
    ("clock", plain_env(clock_synchronized=False), "note", "timedatectl"),
    ("clock", plain_env(clock_synchronized=None), "ok", ""),
    ("Docker", plain_env(), "ok", "not found"),
    ("Docker", plain_env(docker=RUNC), "ok", ""),
    ("Docker", gpu_env(1, docker=RUNC), "note", "nvidia"),
    ("Docker", gpu_env(1, docker=replace(RUNC, runtimes=("nvidia", "runc"))), "ok", ""),
    ("Docker", gpu_env(1, docker=replace(RUNC, runtimes=())), "ok", "does not answer"),
]


@pytest.mark.parametrize(
    ("name", "env", "level", "text"), CASES, ids=[f"{index}-{case[0]}" for index, case in enumerate(CASES)]
)
def test_finding(name, env, level, text):
    finding = finding_of(name, env)
    assert (finding.level if finding else None) == level
    if finding:
        assert text in f"{finding.value} {finding.meaning} {finding.fix}"
        assert level != "problem" or finding.fix


@pytest.mark.parametrize(("env", "missing"), [(plain_env(), NO_OBJECT | GPUS_ALONE), (gpu_env(8), NO_OBJECT)])
def test_a_good_machine_has_nothing_to_fix_and_a_line_of_each_check_with_an_object(env, missing):
    findings, names = examine(env), list(dict.fromkeys(name for name, *_ in CASES))
    assert [finding for finding in findings if finding.level != "ok" or finding.fix] == []
    assert [finding.name for finding in findings] == [name for name in names if name not in missing]
    assert len(names) == 42


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0+cpu", (2, 13, 0)), ("13.0", (13, 0)), ("cpu", ()), ("", ()), ("2.14.0a0", (2, 14, 0))],
)
def test_numbers_at_the_start_of_a_version(version, expected):
    assert numbers_of(version) == expected


@pytest.mark.parametrize("memory_gib", [4.0, 8.0, 11.0, 79.6])
def test_the_number_of_images_reported_to_fit_does_fit(memory_gib):
    env = gpu_env(1, gpu={"gpus": (gpu(0, memory_gib=memory_gib),)})
    one = replace(env, config=replace(env.config, optimizer=OptimizerConfig(batch_size=1)))
    fitting = int(finding_of("GPU memory", one).meaning.split()[1])
    assert FIXED_GIB + GIB_PER_IMAGE * fitting <= memory_gib < FIXED_GIB + GIB_PER_IMAGE * (fitting + 1)
