"""The waterfall: one training step with every switch of the configuration off, then one more on in each row."""

from dataclasses import dataclass, replace

from maskperf.config import RunConfig, SpeedConfig, plain_path

ALL_OFF, ALL_ON = "all off", "all on"


@dataclass(frozen=True, kw_only=True)
class Technique:
    """A switch that changes a training step on some kind of device, and what it does there."""

    field: str  # of SpeedConfig
    summary: str
    devices: tuple[str, ...]
    value: bool | str = True


# In the order in which they are switched on. Not here: aspect_buckets and device_preprocessing, which decide what
# batches there are and not what a step does with one.
TECHNIQUES = (
    Technique(
        field="precision",
        summary="bfloat16 products, float32 weights",
        devices=("cuda",),
        value="bfloat16",
    ),
    Technique(
        field="folded_batch_norm",
        summary="frozen batch norm inside the weights, frozen stages keep nothing",
        devices=("cpu", "cuda"),
    ),
    Technique(
        field="fast_convolutions",
        summary="Winograd for 3x3, matrix products for 1x1; on a GPU bias, sum and ReLU inside cuDNN's calls",
        devices=("cpu", "cuda"),
    ),
    Technique(field="grouped_roi_align", summary="RoIAlign of neighbouring RoIs together", devices=("cpu",)),
    Technique(
        field="sparse_rpn_backward",
        summary="backward of the RPN at the sampled anchors alone",
        devices=("cpu", "cuda"),
    ),
    Technique(
        field="class_selected_outputs",
        summary="mask logits of each RoI's own class alone",
        devices=("cpu", "cuda"),
    ),
    Technique(
        field="packed_positives",
        summary="RoI heads on the slots in use; in captured steps the mask head on as many as usual",
        devices=("cpu", "cuda"),
    ),
    Technique(field="sparse_mask_targets", summary="polygons meet only the columns they cross", devices=("cpu",)),
    Technique(field="keep_freed_memory", summary="freed memory stays with the process", devices=("cpu",)),
    Technique(field="triton_kernels", summary="own kernels for the operators", devices=("cuda",)),
    Technique(field="captured_steps", summary="the step replayed as a CUDA graph", devices=("cuda",)),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the waterfall."""

    name: str
    summary: str
    config: RunConfig


def waterfall(config: RunConfig, device: str) -> list[Row]:
    """Return the rows for a kind of device: all off, one switch more in each, and the defaults."""
    speed = plain_path()
    rows = [Row(name=ALL_OFF, summary="the plain path", config=replace(config, speed=speed))]
    for technique in techniques_of(device):
        speed = replace(speed, **{technique.field: technique.value})
        rows.append(
            Row(name=f"+ {technique.field}", summary=technique.summary, config=replace(config, speed=speed)),
        )
    return [*rows, Row(name=ALL_ON, summary="as a run has it", config=replace(config, speed=SpeedConfig()))]


def techniques_of(device: str) -> list[Technique]:
    """Return the switches that change a training step on a kind of device."""
    return [technique for technique in TECHNIQUES if device in technique.devices]


def loss_difference(losses: dict[str, float], plain: dict[str, float]) -> float:
    """Return the largest relative difference of the terms of two losses."""
    return max(abs(losses[name] - plain[name]) / max(abs(plain[name]), 1e-12) for name in plain)
