"""The facts that the doctor gathers and its findings. None or an empty tuple: unknown, or not asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from maskperf.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class CacheFacts:
    """All caches of one level and kind, such as L1d or L3."""

    name: str
    total_kib: float
    instances: int | None = None


@dataclass(frozen=True, kw_only=True)
class CpuFacts:
    """The processors of the whole machine, and the share that this process may use."""

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
    """The file system and the device below a folder."""

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
    """One network card; interfaces without a device, such as loop-back, are left out."""

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
    """One GPU as nvidia-smi reports it."""

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
    complaint: str | None = None  # the message of an nvidia-smi that fails
    gpus: tuple[GpuFacts, ...] = ()
    driver_version: str | None = None
    driver_cuda: str | None = None  # newest CUDA that the driver runs
    links: tuple[tuple[str, ...], ...] = ()  # row i, column j: X, NV18, PIX, PXB, PHB, NODE, SYS
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CgroupFacts:
    """Limits of a container or job. None: no limit, or none that can be read."""

    cpu_cores: float | None = None
    memory_gib: float | None = None


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """One machine; the name of the host is left out on purpose."""

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


@dataclass(frozen=True, kw_only=True)
class ProcessLimits:
    """Limits of the shell on this process (ulimit); None: unlimited."""

    open_files: int | None = None
    locked_memory_gib: float | None = None
    core_file_gib: float | None = 0.0


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """The files at the location where the recipes look for COCO 2017."""

    root: str
    was_asked_for: bool  # with --data
    train_json: bool = False
    val_json: bool = False
    train_images: int | None = None  # None: no such folder
    val_images: int | None = None
    weights: str | None = None  # the file of the backbone; None: not found


@dataclass(frozen=True, kw_only=True)
class DockerFacts:
    version: str
    runtimes: tuple[str, ...] = ()  # empty: the daemon does not answer


@dataclass(frozen=True, kw_only=True)
class DiskSpeed:
    """Speeds measured with a temporary file that had left the page cache."""

    place: str
    write_mib_per_second: float
    read_mib_per_second: float
    pictures_per_second: float  # random reads of the size of one image by as many threads as a run has
    threads: int


@dataclass(frozen=True, kw_only=True)
class ImageSpeed:
    """Images per second that one thread prepares."""

    decode_per_second: float  # JPEG to pixels alone
    prepare_per_second: float  # with resize and normalization
    jpeg_kib: float


@dataclass(frozen=True, kw_only=True)
class TorchProbe:
    """The results of `torch_probe.py`, which runs in a process of its own."""

    failure: str | None = None  # why there are no results
    gpu_names: tuple[str, ...] = ()
    gpu_gflops: tuple[float, ...] = ()  # float32 matrix product on each GPU
    cpu_gflops: float | None = None
    cpu_threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """All that the checks look at: the machine, this process, and what a run would need."""

    machine: MachineFacts  # its storage is that of the data
    config: RunConfig
    data: DataFolder
    run_storage: StorageFacts
    run_folder_writable: bool
    variables: Mapping[str, str] = field(default_factory=dict)  # of the shell
    process_limits: ProcessLimits = ProcessLimits()
    torch_build: str | None = None  # cpu, or the CUDA version it was built for
    pinned: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)  # constraints.txt: (pinned, installed)
    load_average: float | None = None
    clock_synchronized: bool | None = None
    docker: DockerFacts | None = None
    disk_speed: DiskSpeed | None = None
    disk_speed_missing: str = "left out by --quick"
    picture_speed: ImageSpeed | None = None
    torch_probe: TorchProbe | None = None

    @property
    def gpus(self) -> tuple[GpuFacts, ...]:
        return self.machine.gpu.gpus


OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. A problem stops or spoils a run; a note costs speed, or should be known."""

    level: str
    name: str
    value: str
    meaning: str
    fix: str = ""  # empty: nothing to do


ok = partial(Finding, OK)
note = partial(Finding, NOTE)
problem = partial(Finding, PROBLEM)
