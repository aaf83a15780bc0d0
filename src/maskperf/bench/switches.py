"""The waterfall: one training step on the plain path, then with one technique more in each row."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from maskperf.config import SpeedConfig, TechniqueName

ALL_OFF, ALL_ON = "all off", "all on"
PRECISION = "precision"
CPU, GPU, BOTH = ("cpu",), ("cuda",), ("cpu", "cuda")
# The kinds of device and what a technique does there, in the order in which they are switched on. Not here:
# aspect_buckets and device_preprocessing, which decide what batches there are and not what a step does with one.
TECHNIQUES = {
    PRECISION: (GPU, "bfloat16 products, float32 weights"),
    "folded_batch_norm": (BOTH, "frozen batch norm inside the weights, frozen stages save nothing"),
    "fast_convolutions": (
        BOTH,
        "Winograd for 3x3, matrix products for 1x1; on a GPU bias, sum and ReLU inside cuDNN's calls",
    ),
    "grouped_roi_align": (CPU, "RoIAlign of neighbouring RoIs together"),
    "sparse_rpn_backward": (BOTH, "backward of the RPN at the sampled anchors alone"),
    "class_selected_outputs": (BOTH, "mask logits of each RoI's own class alone"),
    "packed_positives": (BOTH, "RoI heads on the slots in use; in captured steps the mask head on as many as usual"),
    "sparse_mask_targets": (CPU, "polygons meet only the columns they cross"),
    "keep_freed_memory": (CPU, "freed memory stays with the process"),
    "triton_kernels": (GPU, "own kernels for the operators"),
    "captured_steps": (GPU, "the step replayed as a CUDA graph"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the waterfall."""

    name: str
    summary: str
    speed: SpeedConfig


def waterfall(device: str) -> list[Row]:
    """Return the rows for a kind of device: all off, one technique more in each, and the defaults."""
    rows = [Row(name=ALL_OFF, summary="the plain path", speed=speed_with((), precision="float32"))]
    names: list[str] = []
    for name, (devices, summary) in TECHNIQUES.items():
        if device in devices:
            names.append(name)
            speed = speed_with(names, precision="bfloat16" if PRECISION in names else "float32")
            rows.append(Row(name=f"+ {name}", summary=summary, speed=speed))
    return [*rows, Row(name=ALL_ON, summary="as a run has it", speed=SpeedConfig())]


def speed_with(names: Collection[str], *, precision: Literal["float32", "bfloat16"]) -> SpeedConfig:
    """Return the configuration in which these techniques are on, and no others."""
    others = tuple(name for name in get_args(TechniqueName) if name not in names)
    return SpeedConfig(without=others if names else ("all",), precision=precision)


def loss_difference(losses: dict[str, float], plain: dict[str, float]) -> float:
    """Return the largest relative difference of the terms of two losses."""
    return max(abs(losses[name] - plain[name]) / max(abs(plain[name]), 1e-12) for name in plain)
