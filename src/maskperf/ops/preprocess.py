"""Decoded images to the network's input on a device: resize, mirror, minus the means, zeros around it."""

import torch
from jaxtyping import UInt8
from torch import Tensor

from maskperf.ops.kernels import selection
from maskperf.ops.resize import resize_bytes
from maskperf.structures import Images, RawImage, RawImages


def to_images(raw: RawImages, *, dtype: torch.dtype = torch.float32) -> Images:
    """Return the images as the network takes them, channels-last, without waiting for the device.

    In float32 the same bits as `maskperf.data.images.collate` makes on the CPU; other types are rounded from those.
    One Triton kernel does it all where Triton's kernels can be used; else image by image. Not yet run on a GPU.
    """
    if selection.uses_kernels(raw.content.device):
        return Images(selection.load("preprocess").resize_images(raw, dtype), raw.sizes_hw)
    pixels = torch.zeros((len(raw.entries), *raw.padded_hw, 3), dtype=dtype, device=raw.content.device)
    for output, entry in zip(pixels, raw.entries, strict=True):
        output[: entry.new_height, : entry.new_width] = _resized(raw.content, entry).to(torch.float32) - raw.means_bgr
    return Images(pixels.permute(0, 3, 1, 2), raw.sizes_hw)


def _resized(content: Tensor, entry: RawImage) -> UInt8[Tensor, "new_height new_width 3"]:
    end = entry.first_byte + entry.height * entry.width * 3
    image = content[entry.first_byte : end].view(entry.height, entry.width, 3)
    rows = _table(content, entry.row_table, entry.row_taps, entry.new_height)
    columns = _table(content, entry.column_table, entry.column_taps, entry.new_width)
    resized = resize_bytes(image, rows, columns)
    return resized.flip(1) if entry.is_mirrored else resized


def _table(content: Tensor, first: int, taps: int, length: int) -> Tensor:
    return content[first * 4 : (first + (1 + taps) * length) * 4].view(torch.int32).view(1 + taps, length)
