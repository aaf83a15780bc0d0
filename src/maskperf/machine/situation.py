"""Everything the checks of the doctor look at. None stands for what could not be found out or was not asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from maskperf.config import RunConfig
from maskperf.machine.facts import MachineFacts, StorageFacts

# What a run on good GPUs asks of disk and processors. Source: MLPerf Training 3.1, system ESC-N8-E11 (eight H100):
# epochs of 117,266 images in 79.2 s.
PUBLISHED_IMAGES_PER_SECOND_AND_GPU = 185


@dataclass(frozen=True, kw_only=True)
class ProcessLimits:
    """What the shell allows this process (ulimit); None: unlimited."""

    open_files: int | None = None
    locked_memory_gib: float | None = None
    core_file_gib: float | None = 0.0


@dataclass(frozen=True, kw_only=True)
class DataPlace:
    """What lies where the recipes look for COCO 2017."""

    root: str
    was_asked_for: bool  # with --data
    train_json: bool = False
    val_json: bool = False
    train_images: int | None = None  # None: there is no such folder
    val_images: int | None = None
    weights: str | None = None  # the file of the backbone; None: not found


@dataclass(frozen=True, kw_only=True)
class DockerFacts:
    """Docker on this machine."""

    version: str
    daemon_answers: bool
    runtimes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DiskSpeed:
    """What was measured with a temporary file that had left the memory of the system."""

    place: str
    write_mib_per_second: float
    read_mib_per_second: float
    pictures_per_second: float  # random reads of one picture's size by as many threads as a run has
    threads: int


@dataclass(frozen=True, kw_only=True)
class PictureSpeed:
    """Pictures per second that one thread makes ready."""

    decode_per_second: float  # JPEG to pixels alone
    prepare_per_second: float  # with resize and normalization
    jpeg_kib: float


@dataclass(frozen=True, kw_only=True)
class TorchProbe:
    """What another process found that loaded torch."""

    failure: str | None = None  # why there is nothing else
    gpu_names: tuple[str, ...] = ()
    gpu_gflops: tuple[float, ...] = ()  # float32 matrix product on each GPU
    cpu_gflops: float | None = None
    cpu_threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A machine, the process that looks at it, and what a run would need."""

    machine: MachineFacts
    config: RunConfig
    data: DataPlace
    data_storage: StorageFacts
    run_storage: StorageFacts
    run_folder_writable: bool
    environment: Mapping[str, str] = field(default_factory=dict)
    process_limits: ProcessLimits = ProcessLimits()
    python: tuple[int, int, int] = (3, 11, 0)
    torch_build: str | None = None  # cpu, or the CUDA version it was built for
    pinned: Mapping[str, str] = field(default_factory=dict)  # constraints.txt of the checkout
    pinned_installed: Mapping[str, str | None] = field(default_factory=dict)
    load_average: float | None = None
    clock_synchronized: bool | None = None
    docker: DockerFacts | None = None
    disk_speed: DiskSpeed | None = None
    disk_speed_missing: str = "left out by --quick"
    picture_speed: PictureSpeed | None = None
    torch_probe: TorchProbe | None = None
