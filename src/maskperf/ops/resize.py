"""Pillow's bilinear resize of bytes, number for number, in integer operations that run on any device.

Each axis is resized by itself, first the columns, then the rows, and rounded to bytes in between. A new number is a
weighted sum of old ones; the weights are integers, in units of 2**-22. Growing takes from two neighbours, shrinking
from as many as lie within one new pixel to either side.
"""

import functools

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

WEIGHT_BITS = 22
HALF = 1 << (WEIGHT_BITS - 1)  # added before the bits below a whole number are cut off
TABLES_KEPT = 1024  # of some 17 KB each; a data set has few sizes


@functools.lru_cache(maxsize=TABLES_KEPT)
def resize_table(length: int, new_length: int) -> Int32[np.ndarray, "lines new_length"]:
    """Return for each new place the first old one it takes from, and in the lines below the weights from there on.

    Read-only: callers share it. Places beyond the last old one have the weight 0.
    Source: Pillow's precompute_coeffs and normalize_coeffs_8bpc, in the same order of float64 operations.
    """
    if length == new_length:
        table = np.stack([np.arange(new_length), np.full(new_length, 1 << WEIGHT_BITS)])
    else:
        scale = length / new_length
        support = max(scale, 1.0)
        centre = (np.arange(new_length) + 0.5) * scale
        first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
        last = np.minimum((centre + support + 0.5).astype(np.int64), length)
        tap = np.arange(int((last - first).max()))[:, None]
        distance = np.abs((tap + first - centre + 0.5) * (1.0 / support))
        weights = np.where((distance < 1.0) & (tap < last - first), 1.0 - distance, 0.0)
        weights /= np.cumsum(weights, axis=0)[-1]  # one after the other: another order may round otherwise
        table = np.concatenate([first[None], (weights * (1 << WEIGHT_BITS) + 0.5).astype(np.int64)])
    table = table.astype(np.int32)
    table.flags.writeable = False
    return table


def resize_bytes(
    image: UInt8[Tensor, "height width channels"],
    row_table: Int32[Tensor, "row_lines new_height"],
    column_table: Int32[Tensor, "column_lines new_width"],
) -> UInt8[Tensor, "new_height new_width channels"]:
    """Return the image at the size the two tables are for: the bytes of Pillow before its version 13.

    Since then Pillow begins with the rows where they shrink most; see maskperf.data.images.transforms.
    """
    return _resample(_resample(image, column_table, axis=1), row_table, axis=0)


def _resample(image: Tensor, table: Tensor, *, axis: int) -> Tensor:
    if table.shape[1] == image.shape[axis]:
        return image
    first, last = table[0], image.shape[axis] - 1
    total: Tensor | int = HALF
    for tap, weights in enumerate(table[1:]):
        part = image.index_select(axis, (first + tap).clamp(max=last)).to(torch.int32)
        total = total + part * weights.view(-1, *[1] * (2 - axis))
    assert isinstance(total, Tensor)  # a table has one line of weights at least
    return (total >> WEIGHT_BITS).clamp(0, 255).to(torch.uint8)
