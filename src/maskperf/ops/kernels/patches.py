"""The 3x3 cells around chosen cells of a pyramid as Triton kernels, in both directions; sums in float32.

Reference: model/patches.py. The backward writes the gradient of the whole pyramid once, tile by tile, and every cell
adds up what it gets in the order of the samples: the same bits every time.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskperf.ops.kernels.pyramid import TILE, empty_maps, level_of, locate, pyramid_argument, store_tile, tile_cells
from maskperf.ops.kernels.values import jit

CELLS = tl.constexpr(9)  # of a patch
SAMPLES_AT_A_TIME = tl.constexpr(256)
MAX_CHANNELS = tl.constexpr(128)  # of one program


def cell_patches(
    features: list[Tensor], cells: Int64[Tensor, "images samples"]
) -> Float[Tensor, "images samples nine channels"]:
    """Return the nine cells around each cell, row by row, with zeros outside of its map.

    Cells are counted over all levels of an image. Maps that are not channels-last are copied first.
    """
    return _CellPatches.apply(cells.contiguous(), *features)


class _CellPatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cells: Tensor, *features: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        ctx.shapes = [level.shape for level in features]
        patches = features[0].new_empty(*cells.shape, CELLS.value, features[0].shape[1])
        if patches.numel() > 0:
            _take[_grid(cells.numel(), patches)](patches, _argument(features), cells, cells.shape[1], patches.shape[3])
        return patches

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (cells,) = ctx.saved_tensors
        images, samples, _, channels = gradient.shape
        maps, tiles = empty_maps(ctx.shapes, gradient)
        if tiles * channels > 0:
            arguments = (gradient.contiguous(), cells, images, samples, channels)
            _add_up_tile[_grid(tiles, gradient)](_argument(maps), *arguments, num_warps=8)
        return None, *maps


def _argument(maps: Sequence[Tensor]) -> tuple[tuple, ...]:
    return pyramid_argument(maps, (1,) * len(maps))  # cells are counted, not measured in pixels


def _grid(programs: int, patches: Tensor) -> tuple[int, int]:
    return programs, triton.cdiv(patches.shape[3], MAX_CHANNELS.value)


@jit(do_not_specialize=["samples"])
def _take(patches, pyramid, cells, samples, CHANNELS: tl.constexpr):
    """One program: one patch, and up to 128 channels."""
    BLOCK: tl.constexpr = min(MAX_CHANNELS, triton.next_power_of_2(CHANNELS))
    sample = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    level, _, row, column = locate(pyramid, tl.load(cells + sample).to(tl.int32), 1, 1)
    rows, height, width, _ = level_of(pyramid, level)
    height, width = height.to(tl.int32), width.to(tl.int32)
    rows += (sample // samples) * height * width * CHANNELS
    number = tl.arange(0, 16)
    y, x = row + number // 3 - 1, column + number % 3 - 1
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    is_real = (number < CELLS)[:, None] & (channel < CHANNELS)[None, :]
    offset = (y * width + x) * CHANNELS
    value = tl.load(rows + (offset[:, None] + channel[None, :]), mask=is_real & inside[:, None], other=0.0)
    patch = patches + sample * (CELLS * CHANNELS)
    tl.store(patch + (number[:, None] * CHANNELS + channel[None, :]), value, mask=is_real)


@jit(do_not_specialize=["images", "samples"])
def _add_up_tile(pyramid, gradient, cells, images, samples, CHANNELS: tl.constexpr):
    """One program: one tile of one level of one image, and up to 128 channels."""
    BLOCK: tl.constexpr = min(MAX_CHANNELS, triton.next_power_of_2(CHANNELS))
    level, image, top, left = locate(pyramid, tl.program_id(0), images, TILE)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = tile_cells(top, left)
    first = image.to(tl.int64) * samples
    total = tl.zeros([TILE * TILE, BLOCK], tl.float32)
    for start in range(0, samples, SAMPLES_AT_A_TIME):
        sample = start + tl.arange(0, SAMPLES_AT_A_TIME)
        own = tl.load(cells + first + sample, mask=sample < samples, other=-1).to(tl.int32)
        of_level, _, row, column = locate(pyramid, own, 1, 1)
        is_near = (of_level == level) & (row >= top - 1) & (row <= top + TILE)
        is_near = is_near & (column >= left - 1) & (column <= left + TILE)
        coming = tl.min(tl.where(is_near, sample, samples), axis=0)
        while coming < samples:
            centre = locate(pyramid, tl.load(cells + first + coming).to(tl.int32), 1, 1)
            down, across = y - centre[2] + 1, x - centre[3] + 1
            is_part = (down >= 0) & (down < 3) & (across >= 0) & (across < 3)
            part = ((first + coming) * CELLS + down * 3 + across) * CHANNELS
            is_real = is_part[:, None] & (channel < CHANNELS)[None, :]
            total += tl.load(gradient + part[:, None] + channel[None, :], mask=is_real, other=0.0).to(tl.float32)
            coming = tl.min(tl.where(is_near & (sample > coming), sample, samples), axis=0)
    store_tile(level_of(pyramid, level), total, image, y, x, channel, CHANNELS)
