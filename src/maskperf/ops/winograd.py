"""3x3 convolutions by Winograd's F(4x4, 3x3): 36 multiplications for 16 pixels, where the plain sum takes 144.

A map is cut into tiles of 4x4 outputs; each needs a patch of 6x6 inputs. A linear map takes patches, and another takes
filters, to 36 numbers each (a product of two polynomials, evaluated at six points in both directions). There the
convolution is 36 independent matrix products, and a third map leads back to the 4x4 outputs. Tiles are worked off in
chunks, so that what lies between the three maps stays in the processor's cache and memory stays bounded.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015; the points are chosen here.
"""

import math
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

TILE = 4
# Chunks are for the transforms: what lies between two passes stays in the cache. Batches of chunks are for the matrix
# products, which are faster in larger pieces. Measured at 128, 256 and 512 channels.
NUMBERS_PER_CHUNK = 168 * 256
MOST_TILES_PER_CHUNK = 256
TILES_PER_BATCH = 640
PATCH = 6
FREQUENCIES = PATCH * PATCH
LOW_POINT, HIGH_POINT = 2 / 3, 3 / 2
SPARSE_SHARE = 0.9  # of the tiles; below it the rows of tiles of a gradient are worked off one by one
SPARSE_COLUMNS = 16  # fewer tiles are too few for passes of their own
CHANNELS_OF_A_GLANCE = 16


class Chunk(NamedTuple):
    """Some rows of tiles of some images; either all rows or one image. Tiles are ordered by row, image, column."""

    first_image: int
    images: int
    first_row: int
    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        return self.rows * self.images * self.columns


def choose_chunk_size(channels: int) -> int:
    """Return the number of tiles in a chunk of maps with so many channels."""
    return max(1, min(NUMBERS_PER_CHUNK // max(1, channels), MOST_TILES_PER_CHUNK))


def cut_into_chunks(images: int, height: int, width: int, tiles_per_chunk: int) -> Iterator[Chunk]:
    """Yield chunks of about `tiles_per_chunk` tiles that cover the maps, or of single rows where those have more."""
    rows, columns = -(-height // TILE), -(-width // TILE)
    most_images, most_rows = max(1, tiles_per_chunk // (rows * columns)), max(1, tiles_per_chunk // columns)
    for image, row in product(range(0, images, most_images), range(0, rows, most_rows)):
        yield Chunk(image, min(most_images, images - image), row, min(most_rows, rows - row), columns)


def in_batches(chunks: Iterable[Chunk], tiles_per_batch: int = TILES_PER_BATCH) -> Iterator[list[Chunk]]:
    """Yield the chunks in lists of at most `tiles_per_batch` tiles, or of one chunk."""
    batch: list[Chunk] = []
    for chunk in chunks:
        if batch and sum(other.tiles for other in batch) + chunk.tiles > tiles_per_batch:
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


def matching_parts(
    tiles: Float[Tensor, "4 4 rows images columns channels"],
    pixels: Float[Tensor, "all_images h w channels"],
    chunk: Chunk,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield views of the tiles and of the same pixels, in the tiles' order of axes: whole tiles, then cut ones.

    One copy of all whole tiles is faster than one for each of the 16 places in a tile.
    """
    height, width = pixels.shape[1:3]
    pixels = pixels[chunk.first_image : chunk.first_image + chunk.images]
    for rows, used_rows in _whole_and_cut(chunk.first_row, chunk.rows, height):
        top, num_rows = TILE * (chunk.first_row + rows.start), rows.stop - rows.start
        band = pixels[:, top : top + num_rows * used_rows].unflatten(1, (num_rows, used_rows))
        for columns, used_columns in _whole_and_cut(0, chunk.columns, width):
            left, num_columns = TILE * columns.start, columns.stop - columns.start
            part = band[:, :, :, left : left + num_columns * used_columns].unflatten(3, (num_columns, used_columns))
            yield tiles[:used_rows, :used_columns, rows, :, columns], part.permute(2, 4, 1, 0, 3, 5)


def _whole_and_cut(first: int, count: int, size: int) -> Iterator[tuple[slice, int]]:
    """Yield the tiles, counted from `first`, that lie in the map whole, and the last one if its edge is cut."""
    whole = min(count, size // TILE - first)
    if whole > 0:
        yield slice(0, whole), TILE
    if whole < count:
        yield slice(whole, count), size % TILE


class Scratch(threading.local):
    """Memory that is kept between calls, one set for each thread: fresh pages cost more than the work done in them."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return an uninitialized tensor; it is valid until the same name is taken again."""
        count = math.prod(shape)
        held = self.buffers.get((name, dtype))
        if held is None or held.numel() < count:
            with torch.inference_mode(False):
                held = torch.empty(count, dtype=dtype)
            self.buffers[name, dtype] = held
        return held[:count].view(shape)


SCRATCH = Scratch()


class Transforms(NamedTuple):
    """The three linear maps: patches and outputs in one direction, filters in both at once."""

    patch: Float[Tensor, "6 6"]
    output: Float[Tensor, "4 6"]
    filter: Float[Tensor, "36 9"]


@lru_cache(maxsize=4)
def transforms(dtype: torch.dtype) -> Transforms:
    """Return the maps for the points 0, 3/2, -3/2, 2/3, -2/3 and infinity.

    With p the point and q the other of 3/2 and 2/3, the patch's row is the polynomial x (x + p) (x^2 - q^2) and the
    filter's row is (1, p, p^2) over 2 p^2 (p^2 - q^2). With the usual points 1, -1, 2, -2 rounding errors are twice as
    large.
    """
    low, high, square = LOW_POINT, HIGH_POINT, LOW_POINT**2 + HIGH_POINT**2
    patch = [[1.0, 0, -square, 0, 1, 0]]
    filter_rows = [[1.0, 0, 0]]
    output = [[1.0, 0, 0, 0]]
    for point, other in ((high, low), (-high, low), (low, high), (-low, high)):
        size = 2 * point**2 * (point**2 - other**2)
        patch.append([0, -point * other**2, -(other**2), point, 1, 0])
        filter_rows.append([1 / size, point / size, point**2 / size])
        output.append([1.0, point, point**2, point**3])
    patch.append([0, 1.0, 0, -square, 0, 1])
    filter_rows.append([0, 0, 1.0])
    output.append([0, 0, 0, 1.0])
    maps = [torch.tensor(rows, dtype=torch.float64) for rows in (patch, output, filter_rows)]
    return Transforms(maps[0].to(dtype), maps[1].T.contiguous().to(dtype), torch.kron(maps[2], maps[2]).to(dtype))


def transform_weight(name: str, weight: Float[Tensor, "outputs inputs 3 3"]) -> Float[Tensor, "36 outputs inputs"]:
    """Return the filters' 36 numbers, in scratch memory of this name."""
    outputs, inputs = weight.shape[:2]
    rows = weight.permute(0, 2, 3, 1).reshape(outputs, 9, inputs)  # no copy for channels-last weights
    result = SCRATCH.take(name, weight.dtype, FREQUENCIES, outputs, inputs)
    maps = transforms(weight.dtype).filter
    torch.bmm(maps.expand(outputs, FREQUENCIES, 9), rows, out=result.transpose(0, 1))
    return result


def padded_block(x: Float[Tensor, "images h w channels"], chunk: Chunk) -> Float[Tensor, "rows some columns channels"]:
    """Return the pixels that a chunk's patches cover, zeros outside the map; rows come first."""
    height, width, channels = x.shape[1:]
    padded_rows, padded_width = TILE * chunk.rows + 2, TILE * chunk.columns + 2
    block = SCRATCH.take("block", x.dtype, padded_rows, chunk.images, padded_width, channels)
    above = TILE * chunk.first_row - 1
    first, last = max(0, above), min(height, above + padded_rows)
    images = x[chunk.first_image : chunk.first_image + chunk.images]
    block[: first - above].zero_()
    block[last - above :].zero_()
    block[:, :, 0].zero_()
    block[:, :, 1 + width :].zero_()
    block[first - above : last - above, :, 1 : 1 + width].copy_(images[:, first:last].transpose(0, 1))
    return block


def is_sparse(grad: Float[Tensor, "images h w channels"]) -> bool:
    """Return whether many tiles of a wide map seem to hold zeros alone: decides the sizes of chunks, not numbers."""
    if grad.shape[0] == 0 or grad.shape[2] < SPARSE_COLUMNS * TILE:
        return False
    live_pixels = grad[..., :CHANNELS_OF_A_GLANCE].abs().amax(3) != 0
    live_tiles = F.max_pool2d(live_pixels[None].to(grad.dtype), TILE, ceil_mode=True)
    return bool(live_tiles.mean() < SPARSE_SHARE)


def live_columns(block: Float[Tensor, "rows some columns channels"]) -> Int[Tensor, " live"] | None:
    """Return the columns of tiles whose patches are not all zero; None where all are live. NaN is not zero."""
    for channels in (block[..., :CHANNELS_OF_A_GLANCE], block):  # of a dense map, a glance at a few channels is enough
        live = (channels.abs().amax((0, 1, 3)) != 0).unfold(0, PATCH, TILE).any(1)
        if live.all():
            return None
    return live.nonzero()[:, 0]


def transform_patches(
    block: Float[Tensor, "padded_rows images padded_width channels"],
    out: Float[Tensor, "36 tiles channels"],
    columns: Int[Tensor, " live"] | None = None,
) -> None:
    """Write the 36 numbers of each tile's 6x6 patch, of the given columns of tiles or of all."""
    padded_rows, images, padded_width, channels = block.shape
    step, count = TILE, padded_width // TILE
    if columns is not None:
        block = block.index_select(2, (TILE * columns[:, None] + torch.arange(PATCH)).flatten())
        step, count = PATCH, len(columns)
    shape = (PATCH, padded_rows, images, count, channels)
    strides = (channels, *block.stride()[:2], step * channels, 1)
    spread = SCRATCH.take("spread", block.dtype, *shape).copy_(block.as_strided(shape, strides))
    across = SCRATCH.take("across", block.dtype, *shape)
    torch.mm(transforms(block.dtype).patch, spread.flatten(1), out=across.flatten(1))
    last = padded_rows - PATCH
    results = out.view(PATCH, PATCH, last // TILE + 1, images, count, channels)
    _combine_rows([across[:, start : last + start + 1 : TILE] for start in range(PATCH)], list(results))


def _combine_rows(rows: list[Tensor], results: list[Tensor]) -> None:
    """Apply the patch's map to six tensors. Passes over overlapping views: faster than small matrix products."""
    even, odd = results[0], results[5]
    for place, point, other in ((1, HIGH_POINT, LOW_POINT), (3, LOW_POINT, HIGH_POINT)):
        torch.sub(rows[4], rows[2], alpha=other**2, out=even)
        torch.sub(rows[3], rows[1], alpha=other**2, out=odd)
        torch.add(even, odd, alpha=point, out=results[place])
        torch.sub(even, odd, alpha=point, out=results[place + 1])
    square = LOW_POINT**2 + HIGH_POINT**2
    torch.sub(rows[4], rows[2], alpha=square, out=results[0]).add_(rows[0])
    torch.sub(rows[5], rows[3], alpha=square, out=results[5]).add_(rows[1])


def transform_tiles(
    x: Float[Tensor, "images h w channels"],
    chunk: Chunk,
    out: Float[Tensor, "36 tiles channels"],
    columns: Int[Tensor, " live"] | None = None,
) -> None:
    """Write 36 numbers of each tile's 4x4 pixels by the transposed output map, zeros outside the map."""
    channels = x.shape[3]
    spread = SCRATCH.take("spread", x.dtype, TILE, TILE, chunk.rows, chunk.images, chunk.columns, channels)
    if chunk.first_row + chunk.rows > x.shape[1] // TILE or x.shape[2] % TILE:
        spread.zero_()
    for tiles, pixels in matching_parts(spread, x, chunk):
        tiles.copy_(pixels)
    if columns is not None:
        spread = spread.index_select(4, columns)
    expand = transforms(x.dtype).output.T
    across = SCRATCH.take("across", x.dtype, TILE, PATCH, out.shape[1] * channels)
    torch.matmul(expand, spread.view(TILE, TILE, across.shape[2]), out=across)
    results = out.view(PATCH, PATCH, out.shape[1] * channels).transpose(0, 1)
    torch.bmm(expand.expand(PATCH, PATCH, TILE), across.transpose(0, 1), out=results)


def write_outputs(
    products: Float[Tensor, "36 tiles channels"],
    out: Float[Tensor, "images h w channels"],
    chunk: Chunk,
    *,
    columns: Int[Tensor, " live"] | None = None,
    bias: Tensor | None = None,
    relu: bool = False,
) -> None:
    """Write the outputs of a chunk's tiles, those outside the map left out, and zeros for columns that are not live.

    A bias is for chunks whose columns are all live.
    """
    channels = out.shape[3]
    shrink = transforms(out.dtype).output
    across = SCRATCH.take("across", out.dtype, TILE, PATCH, products.shape[1] * channels)
    frequencies = products.view(PATCH, PATCH, across.shape[2]).transpose(0, 1)
    torch.bmm(shrink.expand(PATCH, TILE, PATCH), frequencies, out=across.transpose(0, 1))
    count = chunk.columns if columns is None else len(columns)
    tiles = SCRATCH.take("spread", out.dtype, TILE, TILE, chunk.rows, chunk.images, count, channels)
    torch.matmul(shrink, across, out=tiles.view(TILE, TILE, across.shape[2]))
    if columns is not None:
        tiles = tiles.new_zeros((*tiles.shape[:4], chunk.columns, channels)).index_copy_(4, columns, tiles)
    if bias is not None:
        tiles.add_(bias)
    for part, pixels in matching_parts(tiles, out, chunk):
        if relu:
            torch.clamp_min(part, 0, out=pixels)
        else:
            pixels.copy_(part)


def convolve(
    x: Float[Tensor, "images h w inputs"],
    weight: Float[Tensor, "outputs inputs 3 3"],
    out: Float[Tensor, "images h w outputs"],
    *,
    bias: Tensor | None = None,
    relu: bool = False,
) -> None:
    """Write the convolution, stride 1 and padding 1, with its bias and rectifier into `out`."""
    filters = transform_weight("filters", weight).transpose(1, 2)
    for patches, parts in transformed_batches(x, choose_chunk_size(x.shape[3])):
        products = SCRATCH.take("products", x.dtype, FREQUENCIES, patches.shape[1], out.shape[3])
        torch.bmm(patches, filters, out=products)
        for part in parts:
            write_outputs(products[:, part.tiles], out, part.chunk, bias=bias, relu=relu)


def convolve_backward(
    grad: Float[Tensor, "images h w outputs"],
    x: Float[Tensor, "images h w inputs"],
    weight: Float[Tensor, "outputs inputs 3 3"],
    grad_x: Float[Tensor, "images h w inputs"] | None,
    grad_weight: Float[Tensor, "outputs inputs 3 3"] | None,
) -> None:
    """Write the gradients that are given a place. Both use the same transformed patches of `grad`.

    The input's gradient is the convolution of `grad` with the filters turned by half a turn. The weight's gradient,
    turned as well, is the correlation of patches of `grad` with tiles of `x`. Where all of a chunk's column of tiles
    has patches of zeros in `grad` it is left out of both, as if `x` were finite there: a loss that looks at a few
    places of a large map leaves many such.
    """
    outputs, inputs = weight.shape[:2]
    if grad_x is not None:
        filters = transform_weight("filters", weight.flip(2, 3))
    if grad_weight is not None:
        sums = SCRATCH.take("sums", x.dtype, FREQUENCIES, outputs, inputs).zero_()
    tiles_per_chunk = 1 if is_sparse(grad) else choose_chunk_size(outputs)
    for patches, parts in transformed_batches(grad, tiles_per_chunk, skips_zeros=True):
        if grad_weight is not None:
            tiles = SCRATCH.take("tiles", x.dtype, FREQUENCIES, patches.shape[1], inputs)
            for part in parts:
                transform_tiles(x, part.chunk, tiles[:, part.tiles], part.columns)
            torch.baddbmm(sums, patches.transpose(1, 2), tiles, out=sums)
        if grad_x is not None:
            products = SCRATCH.take("products", x.dtype, FREQUENCIES, patches.shape[1], inputs)
            torch.bmm(patches, filters, out=products)
            for part in parts:
                write_outputs(products[:, part.tiles], grad_x, part.chunk, columns=part.columns)
    if grad_weight is not None:
        turned = torch.mm(transforms(x.dtype).filter.T, sums.view(FREQUENCIES, -1)).view(3, 3, outputs, inputs)
        grad_weight.copy_(turned.flip(0, 1).permute(2, 3, 0, 1))


class Part(NamedTuple):
    """The tiles of a chunk whose patches are transformed."""

    chunk: Chunk
    columns: Int[Tensor, " live"] | None  # None: all
    tiles: slice  # among those of the batch


def transformed_batches(
    x: Float[Tensor, "images h w channels"], tiles_per_chunk: int, *, skips_zeros: bool = False
) -> Iterator[tuple[Float[Tensor, "36 tiles channels"], list[Part]]]:
    """Yield the transformed patches of each batch of chunks, in scratch memory, and whose they are."""
    for batch in in_batches(cut_into_chunks(x.shape[0], x.shape[1], x.shape[2], tiles_per_chunk)):
        patches = SCRATCH.take("patches", x.dtype, FREQUENCIES, sum(chunk.tiles for chunk in batch), x.shape[3])
        parts, first = [], 0
        for chunk in batch:
            block = padded_block(x, chunk)
            columns = live_columns(block) if skips_zeros else None
            count = chunk.rows * chunk.images * (chunk.columns if columns is None else len(columns))
            parts.append(Part(chunk, columns, slice(first, first + count)))
            transform_patches(block, patches[:, parts[-1].tiles], columns)
            first += count
        yield patches[:, :first], parts
