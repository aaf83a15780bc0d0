"""The waterfall: one training step with every switch of the configuration off, then one more on in each row."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from maskperf.config import RunConfig, SpeedConfig
from maskperf.techniques import TECHNIQUE_NAMES

ALL_OFF, ALL_ON = "all off", "all on"
PRECISION = "precision"


@dataclass(frozen=True, kw_only=True)
class Technique:
    """What changes a training step on some kind of device, and what it does there."""

    name: str  # one of TECHNIQUE_NAMES, or PRECISION
    summary: str
    devices: tuple[str, ...]


# In the order in which they are switched on. Not here: aspect_buckets and device_preprocessing, which decide what
# batches there are and not what a step does with one.
TECHNIQUES = (
    Technique(name=PRECISION, summary="bfloat16 products, float32 weights", devices=("cuda",)),
    Technique(
        name="folded_batch_norm",
        summary="frozen batch norm inside the weights, frozen stages keep nothing",
        devices=("cpu", "cuda"),
    ),
    Technique(
        name="fast_convolutions",
        summary="Winograd for 3x3, matrix products for 1x1; on a GPU bias, sum and ReLU inside cuDNN's calls",
        devices=("cpu", "cuda"),
    ),
    Technique(name="grouped_roi_align", summary="RoIAlign of neighbouring RoIs together", devices=("cpu",)),
    Technique(
        name="sparse_rpn_backward",
        summary="backward of the RPN at the sampled anchors alone",
        devices=("cpu", "cuda"),
    ),
    Technique(
        name="class_selected_outputs",
        summary="mask logits of each RoI's own class alone",
        devices=("cpu", "cuda"),
    ),
    Technique(
        name="packed_positives",
        summary="RoI heads on the slots in use; in captured steps the mask head on as many as usual",
        devices=("cpu", "cuda"),
    ),
    Technique(name="sparse_mask_targets", summary="polygons meet only the columns they cross", devices=("cpu",)),
    Technique(name="keep_freed_memory", summary="freed memory stays with the process", devices=("cpu",)),
    Technique(name="triton_kernels", summary="own kernels for the operators", devices=("cuda",)),
    Technique(name="captured_steps", summary="the step replayed as a CUDA graph", devices=("cuda",)),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the waterfall."""

    name: str
    summary: str
    config: RunConfig


def waterfall(config: RunConfig, device: str) -> list[Row]:
    """Return the rows for a kind of device: all off, one technique more in each, and the defaults."""
    summaries = ["the plain path", *(technique.summary for technique in techniques_of(device))]
    rows = [
        Row(name=name, summary=summary, config=replace(config, speed=speed))
        for (name, speed), summary in zip(cumulative_speeds(device).items(), summaries, strict=True)
    ]
    return [*rows, Row(name=ALL_ON, summary="as a run has it", config=replace(config, speed=SpeedConfig()))]


def cumulative_speeds(device: str) -> dict[str, SpeedConfig]:
    """Return the configuration of each row by its name: all off, then one technique more in each."""
    precision, names, speeds = "float32", [], {ALL_OFF: speed_with((), precision="float32")}
    for technique in techniques_of(device):
        if technique.name == PRECISION:
            precision = "bfloat16"
        else:
            names.append(technique.name)
        speeds[f"+ {technique.name}"] = speed_with(names, precision=precision)
    return speeds


def speed_with(names: Collection[str], *, precision: str) -> SpeedConfig:
    """Return the configuration in which these techniques are on, and no others."""
    others = tuple(name for name in TECHNIQUE_NAMES if name not in names)
    return SpeedConfig(without=others, precision=precision) if names else SpeedConfig(path="plain", precision=precision)


def techniques_of(device: str) -> list[Technique]:
    """Return what changes a training step on a kind of device."""
    return [technique for technique in TECHNIQUES if device in technique.devices]


def loss_difference(losses: dict[str, float], plain: dict[str, float]) -> float:
    """Return the largest relative difference of the terms of two losses."""
    return max(abs(losses[name] - plain[name]) / max(abs(plain[name]), 1e-12) for name in plain)
