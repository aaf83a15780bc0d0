"""RoIAlign over the feature pyramid as Triton kernels, float32 or bfloat16 maps, sums in float32.

Twin: ops/roi_align.py. Nothing is copied together, and the backward pass has no atomics, so it gives the same bits
every time. Not yet run on a GPU.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskperf.ops.kernels.pyramid import channels_last, level_of, pyramid_argument
from maskperf.ops.kernels.roi_align_gradient import pyramid_gradient
from maskperf.ops.kernels.roi_align_places import cells_of_bin, scaled_sides
from maskperf.ops.roi_align_samples import assign_levels, image_of_row

MAX_CHANNELS = 256  # of one program


def pyramid_roi_align(
    features: list[Tensor],
    boxes: Float32[Tensor, "images rois 4"],
    *,
    size: int,
    strides: tuple[int, ...],
    image_offsets: Int[Tensor, " images_plus_1"] | None = None,
    most_of_image: int = 0,
) -> Float[Tensor, "images_rois channels size size"]:
    """Returns each box's pooled map, channels-last, from the level of the pyramid that fits its size.

    Differentiable in the features, not in the boxes. Maps that are not channels-last are copied first.
    `image_offsets`: see ops/roi_align.py; then no image may have more than `most_of_image` boxes.
    """
    images, rois = boxes.shape[:2]
    if image_offsets is None:
        image_offsets, most_of_image = torch.arange(images + 1, device=boxes.device) * rois, rois
    rows = boxes.detach().flatten(0, 1).contiguous()
    return _PyramidRoiAlign.apply(rows, image_offsets, size, strides, most_of_image, *features)


class _PyramidRoiAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        boxes: Tensor,
        image_offsets: Tensor,
        size: int,
        strides: tuple[int, ...],
        most: int,
        *features: Tensor,
    ) -> Tensor:
        levels = assign_levels(boxes, len(strides))
        ctx.save_for_backward(boxes, image_offsets, levels)
        ctx.most_of_image, ctx.strides, ctx.shapes = most, strides, [level.shape for level in features]
        channels = features[0].shape[1]
        pooled = features[0].new_empty(len(boxes), size, size, channels)
        if pooled.numel() > 0:
            maps = [channels_last(level) for level in features]
            grid = (len(boxes), size, triton.cdiv(channels, MAX_CHANNELS))
            _pool_row[grid](
                pooled,
                pyramid_argument(maps, strides),
                boxes,
                levels,
                image_of_row(image_offsets, len(boxes)),
                size,
                channels,
                enable_fp_fusion=False,  # the positions must not be rounded otherwise than the twin's
            )
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps = pyramid_gradient(
            gradient, *ctx.saved_tensors, shapes=ctx.shapes, strides=ctx.strides, most_of_image=ctx.most_of_image
        )
        return None, None, None, None, None, *maps


@triton.jit
@no_type_check
def _pool_row(pooled, pyramid, boxes, levels, image_of_roi, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """One program: one row of bins of one RoI, and up to 256 channels."""
    BINS: tl.constexpr = triton.next_power_of_2(SIZE)
    BLOCK: tl.constexpr = 256 if CHANNELS >= 256 else triton.next_power_of_2(CHANNELS)
    roi = tl.program_id(0).to(tl.int64)
    bin_row = tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, BINS)
    is_real = (column < SIZE)[:, None] & (channel < CHANNELS)[None, :]
    rows, height, width, scale = level_of(pyramid, tl.load(levels + roi))
    x1, y1, x_step, y_step = scaled_sides(boxes + roi * 4, scale, SIZE)
    rows += tl.load(image_of_roi + roi).to(tl.int64) * height.to(tl.int64) * width.to(tl.int64) * CHANNELS
    total = tl.zeros([BINS, BLOCK], tl.float32)
    y_cells, y_parts = cells_of_bin(y1, y_step, bin_row, height)
    x_cells, x_parts = cells_of_bin(x1, x_step, column, width)
    for y in tl.static_range(4):
        row = rows + y_cells[y].to(tl.int32) * width.to(tl.int32) * CHANNELS
        for x in tl.static_range(4):
            place = x_cells[x].to(tl.int32) * CHANNELS
            value = tl.load(row + (place[:, None] + channel[None, :]), mask=is_real, other=0.0)
            total = tl.fma((x_parts[x] * y_parts[y])[:, None], value.to(tl.float32), total)
    place = ((roi * SIZE + bin_row) * SIZE + column) * CHANNELS
    tl.store(pooled + place[:, None] + channel[None, :], total.to(pooled.dtype.element_ty), mask=is_real)
