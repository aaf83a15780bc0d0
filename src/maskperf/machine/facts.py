"""What can be known about a machine. None, or an empty tuple, stands for what could not be found out."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CacheFacts:
    """All caches of one level and kind, such as L1d or L3."""

    name: str
    total_kib: float
    instances: int | None = None


@dataclass(frozen=True, kw_only=True)
class CpuFacts:
    """The processors of the whole machine, and what this process may use of them."""

    architecture: str  # x86_64, aarch64
    model: str | None = None
    vendor: str | None = None
    sockets: int | None = None
    physical_cores: int | None = None  # of the machine, all sockets together
    logical_cores: int | None = None
    usable_physical_cores: int = 1  # what this process may run on
    usable_logical_cores: int = 1
    base_mhz: float | None = None
    maximum_mhz: float | None = None
    current_mhz: float | None = None
    caches: tuple[CacheFacts, ...] = ()
    instruction_sets: tuple[str, ...] = ()  # of avx2, avx512f, avx512_bf16, amx_bf16, sve, bf16, ...
    governor: str | None = None  # performance, powersave, ...
    numa_nodes: int | None = None
    hypervisor: str | None = None  # KVM, VMware, ...; None: none was seen


@dataclass(frozen=True, kw_only=True)
class DimmFacts:
    """Memory modules of one kind."""

    count: int
    size_gib: float
    kind: str | None = None  # DDR5
    megatransfers_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """The main memory, and the file system in it that processes share."""

    total_gib: float | None = None
    available_gib: float | None = None
    swap_gib: float | None = None
    dimms: tuple[DimmFacts, ...] = ()  # mostly only root can read them
    shared_memory_gib: float | None = None  # size of /dev/shm


@dataclass(frozen=True, kw_only=True)
class StorageFacts:
    """What holds a folder."""

    path: str  # the folder, or the nearest one above it that exists
    file_system: str | None = None  # ext4, xfs, nfs4, overlay, tmpfs
    device: str | None = None  # nvme0n1; several with + between them
    kind: str | None = None  # NVMe, SSD, hard disk, virtual disk, network, memory
    model: str | None = None
    device_gib: float | None = None
    size_gib: float | None = None  # of the file system
    free_gib: float | None = None  # for this user


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """One network card. Loop-back and other synthetic interfaces are left out."""

    name: str
    state: str | None = None  # up, down, unknown
    gigabits_per_second: float | None = None
    driver: str | None = None


@dataclass(frozen=True, kw_only=True)
class InfinibandFacts:
    """One port of an InfiniBand or RoCE adapter."""

    name: str  # mlx5_0 port 1
    state: str | None = None  # ACTIVE, DOWN
    rate: str | None = None  # 400 Gb/sec (4X NDR)
    link_layer: str | None = None  # InfiniBand, Ethernet
    gigabits_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """One GPU as nvidia-smi tells it."""

    index: int
    name: str
    memory_gib: float | None = None
    memory_used_gib: float | None = None
    power_limit_watts: float | None = None
    maximum_sm_mhz: float | None = None
    maximum_memory_mhz: float | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    is_split: bool | None = None  # MIG


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A program that computes on a GPU; None where a container hides it."""

    process_id: int
    name: str
    memory_gib: float | None = None


@dataclass(frozen=True, kw_only=True)
class GpuGroup:
    """All NVIDIA GPUs of the machine, their driver, and how they are linked."""

    cards_on_bus: int = 0  # NVIDIA display or compute cards on the PCI bus, with a driver or without
    complaint: str | None = None  # what nvidia-smi said where it is there and fails
    gpus: tuple[GpuFacts, ...] = ()
    driver_version: str | None = None
    driver_cuda: str | None = None  # newest CUDA that the driver runs
    links: tuple[tuple[str, ...], ...] = ()  # row i, column j: X, NV18, PIX, PXB, PHB, NODE, SYS
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CgroupFacts:
    """What a container or job may use of the machine. None: no limit, or none that can be read."""

    cpu_cores: float | None = None
    memory_gib: float | None = None


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """One machine. The name of the host is left out on purpose."""

    operating_system: str  # Ubuntu 24.04.3 LTS
    kernel: str
    container: str | None  # docker, podman, kubernetes, lxc; None: none was seen
    cpu: CpuFacts
    memory: MemoryFacts
    storage: StorageFacts
    network: tuple[NetworkFacts, ...]
    infiniband: tuple[InfinibandFacts, ...]
    gpu: GpuGroup
    limits: CgroupFacts
    software: dict[str, str | None]  # versions of python and of packages
