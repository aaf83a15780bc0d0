"""Environments of synthetic machines, for the tests of the checks."""

from dataclasses import replace

from maskperf.machine.facts import (
    CgroupFacts,
    CpuFacts,
    DataFolder,
    Environment,
    GpuFacts,
    GpuGroup,
    MachineFacts,
    MemoryFacts,
    NetworkFacts,
    StorageFacts,
)
from maskperf.recipes import coco

STORAGE = StorageFacts(path="/data", file_system="ext4", device="nvme0n1", kind="NVMe", size_gib=900.0, free_gib=500.0)
CPU = CpuFacts(
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
)


def plain_env(**changes):
    """Return an idle machine without a GPU on which every check finds nothing to fix."""
    machine = MachineFacts(
        operating_system="Debian 13",
        kernel="Linux 6.12",
        container=None,
        cpu=CPU,
        memory=MemoryFacts(total_gib=256.0, available_gib=200.0, swap_gib=0.0, shared_memory_gib=128.0),
        storage=STORAGE,
        network=(NetworkFacts(name="eth0", state="up", gigabits_per_second=10.0),),
        infiniband=(),
        gpu=GpuGroup(),
        limits=CgroupFacts(),
        software={"python": "3.13.1", "torch": "2.13.0+cpu"},
    )
    counts = {"train_images": 118287, "val_images": 5000, "train_json": True, "val_json": True}
    data = DataFolder(root="/data/coco", was_asked_for=False, weights="/data/R-50.pkl", **counts)
    values = {"machine": machine, "config": coco(), "data": data, "run_storage": STORAGE, "run_folder_writable": True}
    return Environment(**values | {"torch_build": "cpu", "load_average": 0.1, "clock_synchronized": True} | changes)


def with_machine(env, **changes):
    return replace(env, machine=replace(env.machine, **changes))


def with_cpu(env=None, **changes):
    env = env or plain_env()
    return with_machine(env, cpu=replace(env.machine.cpu, **changes))


def gpu(index=0, **changes):
    values = {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.6, "memory_used_gib": 0.01, "pcie_lanes": 16}
    return GpuFacts(index=index, **values | changes)


def gpu_env(count, *, gpus=None, group=None, **changes):
    """Return a machine with H100s linked by NVLink, a torch for CUDA 13 and cores for all of them."""
    links = tuple(tuple("X" if row == column else "NV18" for column in range(count)) for row in range(count))
    values = {"gpus": gpus or tuple(map(gpu, range(count))), "links": links if count > 1 else (), "cards_on_bus": count}
    values |= {"driver_version": "580.95.05", "driver_cuda": "13.0", **(group or {})}
    cpu = replace(CPU, usable_physical_cores=96, usable_logical_cores=192, physical_cores=96, logical_cores=192)
    base = plain_env(**{"torch_build": "13.0", **changes})
    software = base.machine.software | {"torch": "2.13.0+cu130"}
    return with_machine(base, gpu=GpuGroup(**values), cpu=cpu, software=software)
