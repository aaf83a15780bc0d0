"""Environments of synthetic machines, for the tests of the checks."""

from dataclasses import fields, is_dataclass, replace

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
