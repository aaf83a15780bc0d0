"""What `maskperf bench gpu` measures: the sections, their time limits and sizes. No torch here."""

from dataclasses import dataclass, field

import msgspec

from maskperf.config import ModelConfig
from maskperf.machine.threads import threads_of_process


@dataclass(frozen=True, kw_only=True)
class KernelSizes:
    """How large the work of the kernels is; by default that of two images of the benchmark."""

    images: int = 2
    size_hw: tuple[int, int] = (800, 1344)
    channels: int = 256
    box_rois: int = 512  # of an image, pooled to 7 x 7
    mask_rois: int = 128  # of an image, pooled to 14 x 14
    candidates: int = 2000  # of a group, before NMS; five groups an image
    objects: int = 20  # of an image
    sampled_anchors: int = 256  # of an image


@dataclass(frozen=True, kw_only=True)
class GpuPlan:
    """Sizes and limits of one measurement on one card. The defaults fit in 10 minutes."""

    device: str = "cuda"
    model: ModelConfig = field(default_factory=ModelConfig)  # random weights
    kernels: KernelSizes = field(default_factory=KernelSizes)
    canvases_hw: tuple[tuple[int, int], ...] = (
        *((800, 1344), (800, 1216), (800, 1088)),
        *((1344, 800), (1216, 800), (1088, 800)),
    )
    batch_sizes: tuple[int, ...] = (2, 8, 16)  # measured on the first canvas
    usual_batch: int = 8  # for everything else
    objects: int = 45  # of an image, as crowded batches of COCO have
    repeats: int = 10
    steps_at_a_time: int = 3  # of one measurement, as a run does not wait for the device between them either
    warm_up_calls: int = 5  # captured steps are recorded after some plain ones
    threads: int = field(default_factory=lambda: threads_of_process(0).count)
    peer_python: str = ""  # a Python with torchvision; empty: nothing is compared
    seconds: float = 570.0  # for all sections together


# In this order, each with the most seconds it may take: what matters most comes first, should the time run out.
SECTION_SECONDS = {
    "device": 30.0,
    "kernel roi_align": 40.0,
    "kernel ranking": 30.0,
    "kernel nms": 30.0,
    "kernel rasterize": 30.0,
    "kernel matching": 30.0,
    "kernel patches": 30.0,
    "kernel sampling": 30.0,
    "kernel pictures": 30.0,
    "switches": 110.0,
    "peer": 130.0,
    "steps": 150.0,
    "convolutions": 90.0,
}


def plan_to_json(plan: GpuPlan) -> str:
    """Return the plan as text for the process of a section."""
    return msgspec.json.encode(plan).decode()


def plan_from_json(text: str) -> GpuPlan:
    """Return the plan that `plan_to_json` wrote."""
    return msgspec.json.decode(text, type=GpuPlan)
