"""Every layer of the model with its output, parameters and arithmetic, from shapes alone: nothing is computed."""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from maskperf.model.heads import BOX_POOL_SIZE, MASK_POOL_SIZE
from maskperf.model.mask_rcnn import STRIDES, MaskRcnn

TITLES = ("layer", "kind", "output", "parameters", "multiply-adds", "trained")
SIZE_DIVISOR = 32  # what the top-down path of the pyramid needs


@dataclass(frozen=True)
class LayerRow:
    """One layer. A layer that is called several times (the RPN head, once per level) has one row."""

    name: str
    kind: str
    output_shape: tuple[int, ...]  # of the first call; for the RPN head this is P2
    calls: int
    parameters: int
    multiply_adds: int  # of convolutions and linear layers, over all calls; 0 for batch norms
    frozen: bool  # nothing in it is trained


def list_layers(
    model: MaskRcnn,
    image_size_hw: tuple[int, int] = (800, 1344),
    *,
    images: int = 1,
    box_rois: int = 512,
    mask_rois: int = 128,
) -> list[LayerRow]:
    """Return a row for every layer with parameters or buffers, in the order of the state dict.

    `image_size_hw` is the padded size; `box_rois` and `mask_rois` are counts per image. RoIAlign, which has no weights,
    is left out.

    Errors: ValueError for a size that is not a multiple of 32.
    """
    if any(side % SIZE_DIVISOR or side <= 0 for side in image_size_hw):
        raise ValueError(f"image_size_hw={image_size_hw}: both sides must be positive multiples of {SIZE_DIVISOR}")
    modules = model.named_modules()
    layers = {name: module for name, module in modules if [*module.parameters(False), *module.buffers(False)]}
    calls: dict[str, list[tuple[tuple[int, ...], int]]] = defaultdict(list)

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[name].append((tuple(output.shape), _multiply_adds(module, inputs[0], output)))

    handles = [module.register_forward_hook(partial(record, name)) for name, module in layers.items()]
    try:
        _run_on_shapes(model, image_size_hw, images, {"box": box_rois, "mask": mask_rois})
    finally:
        for handle in handles:
            handle.remove()
    return [_row(name, module, calls[name]) for name, module in layers.items()]


def format_layers(rows: list[LayerRow]) -> str:
    """Return a plain table, one line per layer, and the totals of parameters and multiply-adds."""
    cells = [TITLES] + [
        (
            row.name,
            row.kind,
            " x ".join(str(side) for side in row.output_shape) + (f" ({row.calls} calls)" if row.calls != 1 else ""),
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
            "no" if row.frozen else "yes",
        )
        for row in rows
    ]
    sides = [f"{side}{max(map(len, column))}" for side, column in zip("<<<>>>", zip(*cells, strict=True), strict=True)]
    lines = ["  ".join(map(format, line, sides)) for line in cells]
    rule = "-" * len(lines[0])
    total = sum(row.parameters for row in rows)
    frozen = sum(row.parameters for row in rows if row.frozen)
    totals = f"parameters: {total:,} in all, {total - frozen:,} trained, {frozen:,} frozen"
    multiply_adds = f"multiply-adds of one forward pass: {sum(row.multiply_adds for row in rows):,}"
    return "\n".join([lines[0], rule, *lines[1:], rule, totals, multiply_adds])


def _run_on_shapes(model: MaskRcnn, image_size_hw: tuple[int, int], images: int, rois: dict[str, int]) -> None:
    """Call every part once in the order of a training step, on tensors without content."""
    channels = model.config.fpn_channels
    with torch.no_grad():
        stages = _call(model.backbone["body"], torch.empty(images, 3, *image_size_hw, device="meta"))
        features = _call(model.backbone["fpn"], stages)
        assert len(features) == len(STRIDES), "the RPN head is called once per level"
        for feature in features:
            _call(model.rpn["head"], feature)
        for head, side in (("box", BOX_POOL_SIZE), ("mask", MASK_POOL_SIZE)):
            _call(model.roi_heads[head], torch.empty(images * rois[head], channels, side, side, device="meta"))


def _call(module: nn.Module, argument: Tensor | list[Tensor]) -> Any:
    """Return the module's output for an argument on the meta device; the module's own tensors stay where they are."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return functional_call(module, {name: tensor.to("meta") for name, tensor in tensors}, (argument,))


def _multiply_adds(module: nn.Module, argument: Tensor, output: Tensor) -> int:
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return 0
    of_each = argument if isinstance(module, nn.ConvTranspose2d) else output
    return of_each.numel() * module.weight[0].numel()


def _row(name: str, module: nn.Module, calls: list[tuple[tuple[int, ...], int]]) -> LayerRow:
    parameters = list(module.parameters(recurse=False))
    return LayerRow(
        name=name,
        kind="Conv2d" if isinstance(module, nn.Conv2d) else type(module).__name__,
        output_shape=calls[0][0] if calls else (),
        calls=len(calls),
        parameters=sum(parameter.numel() for parameter in parameters),
        multiply_adds=sum(count for _, count in calls),
        frozen=not any(parameter.requires_grad for parameter in parameters),
    )
