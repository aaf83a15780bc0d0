"""Images to the network's input in one Triton kernel: resize, mirror, means, zeros.

Reference: maskperf.ops.preprocess.to_images.
"""

from dataclasses import fields

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from maskperf.ops.kernels.values import jit
from maskperf.ops.resize import HALF, WEIGHT_BITS
from maskperf.structures import RawImage, RawImages

BYTES_AT_A_TIME = 1024
BLOCK = tl.constexpr(BYTES_AT_A_TIME)
ROUNDING, SHIFT = tl.constexpr(HALF), tl.constexpr(WEIGHT_BITS)
NUM_FIELDS = tl.constexpr(10)  # of RawImage, in its order


def resize_images(raw: RawImages, dtype: torch.dtype) -> Float[Tensor, "images 3 height width"]:
    """Return the images resized, mirrored where asked, minus the means, channels-last, zero where padded.

    A value is made from all old ones it takes from in one go, so a row that several new ones use is resized for each
    of them; nothing between the decoded bytes and the result is stored.
    """
    height, width = raw.padded_hw
    images, device = len(raw.entries), raw.content.device
    pixels = torch.empty(images, height, width, 3, dtype=dtype, device=device)
    rows = [[int(getattr(entry, field.name)) for field in fields(RawImage)] for entry in raw.entries]
    entries = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
    numbers = raw.content[: raw.content.numel() // 4 * 4].view(torch.int32)
    grid = (images * height, triton.cdiv(width * 3, BYTES_AT_A_TIME))
    _resize_row[grid](pixels, raw.content, numbers, entries, raw.means_bgr, height, width)
    return pixels.permute(0, 3, 1, 2)


@jit(do_not_specialize=["height"])
def _resize_row(pixels, content, numbers, entries, means_bgr, height, width):
    """One program: up to 1024 numbers of one row of one padded image. `numbers` is `content` in groups of 4 bytes."""
    output_row = tl.program_id(0).to(tl.int64)
    entry, y = entries + (output_row // height) * NUM_FIELDS, output_row % height
    first_byte, old_height, old_width = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    new_height, new_width, is_mirrored = tl.load(entry + 3), tl.load(entry + 4), tl.load(entry + 5)
    row_table, column_table, column_taps = tl.load(entry + 6), tl.load(entry + 8), tl.load(entry + 9)
    row_taps = tl.where(y < new_height, tl.load(entry + 7), 0)  # below the image there is nothing to do
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x, channel = number // 3, number % 3
    is_image = (x < new_width) & (y < new_height)
    new_x = tl.where(is_mirrored != 0, new_width - 1 - x, x)
    first_y = tl.load(numbers + row_table + y, mask=y < new_height, other=0)
    first_x = tl.load(numbers + column_table + new_x, mask=is_image, other=0)
    total = tl.full([BLOCK], ROUNDING, tl.int32)
    for row_tap in range(row_taps):
        old_y = tl.minimum(first_y + row_tap, old_height - 1)
        row_weight = tl.load(numbers + row_table + (1 + row_tap) * new_height + y)
        across = tl.full([BLOCK], ROUNDING, tl.int32)
        for column_tap in range(column_taps):
            old_x = tl.minimum(first_x + column_tap, old_width - 1)
            weight = tl.load(numbers + column_table + (1 + column_tap) * new_width + new_x, mask=is_image, other=0)
            byte = tl.load(content + first_byte + (old_y * old_width + old_x) * 3 + channel, mask=is_image, other=0)
            across += byte.to(tl.int32) * weight
        total += tl.minimum(tl.maximum(across >> SHIFT, 0), 255) * row_weight
    resized = tl.minimum(tl.maximum(total >> SHIFT, 0), 255).to(tl.float32)
    value = tl.where(is_image, resized - tl.load(means_bgr + channel), 0.0)
    tl.store(pixels + output_row * width * 3 + number, value.to(pixels.dtype.element_ty), mask=number < width * 3)
