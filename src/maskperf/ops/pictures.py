"""Decoded pictures to the network's input on a device: resize, mirror, minus the means, zeros around it."""

import torch
from jaxtyping import UInt8
from torch import Tensor

from maskperf.ops.kernels import selection
from maskperf.ops.resize import resize_bytes
from maskperf.structures import Images, RawPicture, RawPictures


def to_images(raw: RawPictures, *, dtype: torch.dtype = torch.float32) -> Images:
    """Return the pictures as the network takes them, channels-last, without waiting for the device.

    In float32 the same bits as `maskperf.data.images.collate` makes on the CPU; other types are rounded from those.
    One Triton kernel does it all where Triton's kernels can be used. Not yet run on a GPU.
    """
    if selection.uses_kernels(raw.content.device):
        return Images(selection.load("pictures").resize_pictures(raw, dtype), raw.sizes_hw)
    return to_images_reference(raw, dtype)


def to_images_reference(raw: RawPictures, dtype: torch.dtype) -> Images:
    """Return what `to_images` returns, picture by picture."""
    pixels = torch.zeros((len(raw.places), *raw.canvas_hw, 3), dtype=dtype, device=raw.content.device)
    for canvas, place in zip(pixels, raw.places, strict=True):
        canvas[: place.new_height, : place.new_width] = _resized(raw.content, place).to(torch.float32) - raw.means_bgr
    return Images(pixels.permute(0, 3, 1, 2), raw.sizes_hw)


def _resized(content: Tensor, place: RawPicture) -> UInt8[Tensor, "new_height new_width 3"]:
    end = place.first_byte + place.height * place.width * 3
    picture = content[place.first_byte : end].view(place.height, place.width, 3)
    rows = _table(content, place.row_table, place.row_taps, place.new_height)
    columns = _table(content, place.column_table, place.column_taps, place.new_width)
    resized = resize_bytes(picture, rows, columns)
    return resized.flip(1) if place.is_mirrored else resized


def _table(content: Tensor, first: int, taps: int, length: int) -> Tensor:
    return content[first * 4 : (first + (1 + taps) * length) * 4].view(torch.int32).view(1 + taps, length)
