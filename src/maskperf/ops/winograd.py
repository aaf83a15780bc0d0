"""3x3 convolutions by Winograd's F(4x4, 3x3): 36 multiplications for 16 pixels, where the plain sum takes 144.

A map is cut into tiles of 4x4 outputs; each needs a patch of 6x6 inputs. A linear map takes patches, and another takes
filters, to 36 numbers each (a product of two polynomials, evaluated at six points in both directions). There the
convolution is 36 independent matrix products, and a third map leads back to the 4x4 outputs. Tiles are worked off in
chunks, so that what lies between the three maps stays in the processor's cache and memory stays bounded.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015; the points are chosen here.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

TILE = 4
PATCH = 6
FREQUENCIES = PATCH * PATCH
LOW_POINT, HIGH_POINT = 2 / 3, 3 / 2
TILES_PER_CHUNK = 256  # 9 MiB of transformed input at 256 channels; measured: 128 to 512 are much the same


@dataclass(frozen=True, kw_only=True)
class Transforms:
    """The three linear maps: patches and outputs in one direction, filters in both at once."""

    patch: Float[Tensor, "6 6"]
    output: Float[Tensor, "4 6"]
    filter: Float[Tensor, "36 9"]


@lru_cache(maxsize=4)
def transforms(dtype: torch.dtype) -> Transforms:
    """Returns the maps for the points 0, 3/2, -3/2, 2/3, -2/3 and infinity.

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
    maps = [torch.tensor(rows, dtype=torch.float64) for rows in (patch, filter_rows, output)]
    return Transforms(
        patch=maps[0].to(dtype),
        output=maps[2].T.contiguous().to(dtype),
        filter=torch.kron(maps[1], maps[1]).to(dtype),
    )


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some rows of tiles of some images; either all rows or one image. Tiles are ordered by row, image, column."""

    first_image: int
    images: int
    first_row: int
    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        return self.rows * self.images * self.columns


def cut_into_chunks(images: int, height: int, width: int, tiles_per_chunk: int = TILES_PER_CHUNK) -> Iterator[Chunk]:
    """Yields chunks of about `tiles_per_chunk` tiles that cover the maps."""
    rows, columns = -(-height // TILE), -(-width // TILE)
    if rows * columns <= tiles_per_chunk:
        step = tiles_per_chunk // (rows * columns)
        for first in range(0, images, step):
            count = min(step, images - first)
            yield Chunk(first_image=first, images=count, first_row=0, rows=rows, columns=columns)
        return
    step = max(1, tiles_per_chunk // columns)
    for image in range(images):
        for first in range(0, rows, step):
            yield Chunk(first_image=image, images=1, first_row=first, rows=min(step, rows - first), columns=columns)


class Scratch(threading.local):
    """Memory that is kept between calls, one set for each thread: fresh pages cost more than the work done in them."""

    def __init__(self):
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Returns an uninitialized tensor; it is valid until the same name is taken again."""
        count = 1
        for side in shape:
            count *= side
        held = self.buffers.get((name, dtype))
        if held is None or held.numel() < count:
            with torch.inference_mode(False):
                held = torch.empty(count, dtype=dtype)
            self.buffers[name, dtype] = held
        return held[:count].view(shape)


SCRATCH = Scratch()


def transform_weight(name: str, weight: Float[Tensor, "outputs inputs 3 3"]) -> Float[Tensor, "36 outputs inputs"]:
    """Returns the filters' 36 numbers, in scratch memory of this name."""
    outputs, inputs = weight.shape[:2]
    rows = weight.permute(0, 2, 3, 1).reshape(outputs, 9, inputs)  # no copy for channels-last weights
    result = SCRATCH.take(name, weight.dtype, FREQUENCIES, outputs, inputs)
    maps = transforms(weight.dtype).filter
    torch.bmm(maps.expand(outputs, FREQUENCIES, 9), rows, out=result.transpose(0, 1))
    return result


def transform_patches(x: Float[Tensor, "images h w channels"], chunk: Chunk) -> Float[Tensor, "36 tiles channels"]:
    """Returns the 36 numbers of each tile's 6x6 patch, zeros outside the map."""
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

    row = chunk.images * chunk.columns * channels
    shape = (PATCH, padded_rows, chunk.images, chunk.columns, channels)
    line = padded_width * channels
    overlapping = block.as_strided(shape, (channels, chunk.images * line, line, TILE * channels, 1))
    spread = SCRATCH.take("spread", x.dtype, *shape).copy_(overlapping)
    across = SCRATCH.take("across", x.dtype, PATCH, padded_rows, row)
    torch.mm(transforms(x.dtype).patch, spread.view(PATCH, -1), out=across.view(PATCH, -1))
    result = SCRATCH.take("patches", x.dtype, PATCH, PATCH, chunk.rows, row)
    last_start = padded_rows - PATCH
    _combine_rows([across[:, start : last_start + start + 1 : TILE] for start in range(PATCH)], list(result))
    return result.view(FREQUENCIES, chunk.tiles, channels)


def _combine_rows(rows: list[Tensor], results: list[Tensor]) -> None:
    """Applies the patch's map to six tensors. Passes over short overlapping rows: faster than small matrix products."""
    even, odd = results[0], results[5]
    for place, point, other in ((1, HIGH_POINT, LOW_POINT), (3, LOW_POINT, HIGH_POINT)):
        torch.sub(rows[4], rows[2], alpha=other**2, out=even)
        torch.sub(rows[3], rows[1], alpha=other**2, out=odd)
        torch.add(even, odd, alpha=point, out=results[place])
        torch.sub(even, odd, alpha=point, out=results[place + 1])
    square = LOW_POINT**2 + HIGH_POINT**2
    torch.sub(rows[4], rows[2], alpha=square, out=results[0]).add_(rows[0])
    torch.sub(rows[5], rows[3], alpha=square, out=results[5]).add_(rows[1])


def transform_tiles(x: Float[Tensor, "images h w channels"], chunk: Chunk) -> Float[Tensor, "36 tiles channels"]:
    """Returns 36 numbers of each tile's 4x4 pixels by the transposed output map, zeros outside the map."""
    channels = x.shape[3]
    spread = SCRATCH.take("spread", x.dtype, TILE, TILE, chunk.rows, chunk.images, chunk.columns, channels)
    if chunk.first_row + chunk.rows > x.shape[1] // TILE or x.shape[2] % TILE:
        spread.zero_()
    for tiles, pixels in _matching_parts(spread, x, chunk):
        tiles.copy_(pixels)
    expand = transforms(x.dtype).output.T
    across = SCRATCH.take("across", x.dtype, TILE, PATCH, chunk.tiles * channels)
    torch.matmul(expand, spread.view(TILE, TILE, -1), out=across)
    result = SCRATCH.take("tiles", x.dtype, PATCH, PATCH * chunk.tiles * channels)
    torch.mm(expand, across.view(TILE, -1), out=result)
    return result.view(FREQUENCIES, chunk.tiles, channels)


def write_outputs(
    products: Float[Tensor, "36 tiles channels"],
    out: Float[Tensor, "images h w channels"],
    chunk: Chunk,
    *,
    bias: Tensor | None,
    relu: bool,
) -> None:
    """Writes the outputs of a chunk's tiles, those outside the map left out."""
    channels = out.shape[3]
    shrink = transforms(out.dtype).output
    across = SCRATCH.take("across", out.dtype, TILE, PATCH * chunk.tiles * channels)
    torch.mm(shrink, products.view(PATCH, -1), out=across)
    tiles = SCRATCH.take("spread", out.dtype, TILE, TILE, chunk.rows, chunk.images, chunk.columns, channels)
    torch.matmul(shrink, across.view(TILE, PATCH, -1), out=tiles.view(TILE, TILE, -1))
    if bias is not None:
        tiles.add_(bias)
    for part, pixels in _matching_parts(tiles, out, chunk):
        if relu:
            torch.clamp_min(part, 0, out=pixels)
        else:
            pixels.copy_(part)


def _matching_parts(
    tiles: Float[Tensor, "4 4 rows images columns channels"],
    pixels: Float[Tensor, "all_images h w channels"],
    chunk: Chunk,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields views of the tiles and of the same pixels, in the tiles' order of axes: whole tiles, then cut ones."""
    height, width = pixels.shape[1:3]
    pixels = pixels[chunk.first_image : chunk.first_image + chunk.images]
    for tile_rows, used_rows in _whole_and_cut(chunk.first_row, chunk.rows, height):
        top = TILE * (chunk.first_row + tile_rows.start)
        count = tile_rows.stop - tile_rows.start
        band = pixels[:, top : top + count * used_rows].unflatten(1, (count, used_rows))
        for tile_columns, used_columns in _whole_and_cut(0, chunk.columns, width):
            left, across = TILE * tile_columns.start, tile_columns.stop - tile_columns.start
            part = band[:, :, :, left : left + across * used_columns].unflatten(3, (across, used_columns))
            yield tiles[:used_rows, :used_columns, tile_rows, :, tile_columns], part.permute(2, 4, 1, 0, 3, 5)


def _whole_and_cut(first: int, count: int, size: int) -> Iterator[tuple[slice, int]]:
    """Yields the tiles, counted from `first`, that lie in the map whole, and the last one if its edge is cut."""
    whole = min(count, size // TILE - first)
    if whole > 0:
        yield slice(0, whole), TILE
    if whole < count:
        yield slice(whole, count), size % TILE


def convolve(
    x: Float[Tensor, "images h w inputs"],
    weight: Float[Tensor, "outputs inputs 3 3"],
    out: Float[Tensor, "images h w outputs"],
    *,
    bias: Tensor | None = None,
    relu: bool = False,
) -> None:
    """Writes the convolution, stride 1 and padding 1, with its bias and rectifier into `out`."""
    filters = transform_weight("filters", weight).transpose(1, 2)
    for chunk in cut_into_chunks(*x.shape[:3]):
        patches = transform_patches(x, chunk)
        products = SCRATCH.take("products", x.dtype, FREQUENCIES, chunk.tiles, weight.shape[0])
        write_outputs(torch.bmm(patches, filters, out=products), out, chunk, bias=bias, relu=relu)


def convolve_backward(
    grad: Float[Tensor, "images h w outputs"],
    x: Float[Tensor, "images h w inputs"],
    weight: Float[Tensor, "outputs inputs 3 3"],
    grad_x: Float[Tensor, "images h w inputs"] | None,
    grad_weight: Float[Tensor, "outputs inputs 3 3"] | None,
) -> None:
    """Writes the gradients that are given a place. Both use the same transformed patches of `grad`.

    The input's gradient is the convolution of `grad` with the filters turned by half a turn. The weight's gradient,
    turned as well, is the correlation of patches of `grad` with tiles of `x`.
    """
    outputs, inputs = weight.shape[:2]
    if grad_x is not None:
        filters = transform_weight("filters", weight.flip(2, 3))
    if grad_weight is not None:
        sums = SCRATCH.take("sums", x.dtype, FREQUENCIES, outputs, inputs)
        if grad.shape[0] == 0:
            sums.zero_()
    for index, chunk in enumerate(cut_into_chunks(*grad.shape[:3])):
        patches = transform_patches(grad, chunk)
        if grad_weight is not None:
            kept = 1 if index > 0 else 0  # the first chunk overwrites what a former call left
            torch.baddbmm(sums, patches.transpose(1, 2), transform_tiles(x, chunk), beta=kept, out=sums)
        if grad_x is not None:
            products = SCRATCH.take("products", x.dtype, FREQUENCIES, chunk.tiles, inputs)
            write_outputs(torch.bmm(patches, filters, out=products), grad_x, chunk, bias=None, relu=False)
    if grad_weight is not None:
        turned = torch.mm(transforms(x.dtype).filter.T, sums.view(FREQUENCIES, -1)).view(3, 3, outputs, inputs)
        grad_weight.copy_(turned.flip(0, 1).permute(2, 3, 0, 1))
