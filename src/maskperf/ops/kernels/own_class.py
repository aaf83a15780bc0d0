"""Mask logits of each RoI's own class as a Triton kernel, and their gradients as another.

Twin: ops/products.py. Both read the head's largest map once; the gradients are written in the same pass and without
atomics.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS_AT_A_TIME = tl.constexpr(64)


def logits(rectified: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Return (rois, pixels), float32, of maps (rois, pixels, channels), weights (rois, channels), offsets (rois)."""
    rois, pixels, channels = rectified.shape
    result = torch.empty(rois, pixels, device=rectified.device)
    grid = (rois, triton.cdiv(pixels, PIXELS_AT_A_TIME.value))
    if rois:
        _logits[grid](result, rectified.contiguous(), weights, offsets, pixels, channels)
    return result


def gradients(rectified: Tensor, weights: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the maps, in their type and 0 where they are, and that of the weights in float32."""
    rois, pixels, channels = rectified.shape
    rectified = rectified.contiguous()
    of_maps = torch.empty_like(rectified)
    of_weights = torch.empty(rois, channels, device=rectified.device)
    if rois:
        _gradients[(rois,)](of_maps, of_weights, rectified, weights, gradient.contiguous(), pixels, channels)
    return of_maps, of_weights


@triton.jit
@no_type_check
def _logits(result, maps, weights, offsets, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """One program: 64 pixels of one RoI."""
    BLOCK: tl.constexpr = triton.next_power_of_2(CHANNELS)
    roi = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS_AT_A_TIME + tl.arange(0, PIXELS_AT_A_TIME)
    channel = tl.arange(0, BLOCK)
    weight = tl.load(weights + roi * CHANNELS + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    is_real = (pixel < PIXELS)[:, None] & (channel < CHANNELS)[None, :]
    place = (roi * PIXELS + pixel)[:, None] * CHANNELS + channel[None, :]
    value = tl.load(maps + place, mask=is_real, other=0.0).to(tl.float32)
    logit = tl.sum(value * weight[None, :], axis=1) + tl.load(offsets + roi)
    tl.store(result + roi * PIXELS + pixel, logit, mask=pixel < PIXELS)


@triton.jit
@no_type_check
def _gradients(of_maps, of_weights, maps, weights, gradient, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """One program: one RoI."""
    BLOCK: tl.constexpr = triton.next_power_of_2(CHANNELS)
    roi = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    is_channel = channel < CHANNELS
    weight = tl.load(weights + roi * CHANNELS + channel, mask=is_channel, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, PIXELS, PIXELS_AT_A_TIME):
        pixel = first + tl.arange(0, PIXELS_AT_A_TIME)
        is_real = (pixel < PIXELS)[:, None] & is_channel[None, :]
        place = (roi * PIXELS + pixel)[:, None] * CHANNELS + channel[None, :]
        value = tl.load(maps + place, mask=is_real, other=0.0).to(tl.float32)
        slope = tl.load(gradient + roi * PIXELS + pixel, mask=pixel < PIXELS, other=0.0)[:, None]
        total += tl.sum(value * slope, axis=0)
        change = tl.where(value == 0.0, 0.0, slope * weight[None, :])
        tl.store(of_maps + place, change.to(of_maps.dtype.element_ty), mask=is_real)
    tl.store(of_weights + roi * CHANNELS + channel, total, mask=is_channel)
