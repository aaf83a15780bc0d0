"""How Winograd's convolution cuts maps into tiles of 4x4 pixels, tiles into chunks, chunks into batches; its memory."""

import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

TILE = 4
# Chunks are for the transforms: what lies between two passes stays in the cache. Batches of chunks are for the matrix
# products, which are faster in larger pieces. Measured at 128, 256 and 512 channels.
NUMBERS_PER_CHUNK = 168 * 256
MOST_TILES_PER_CHUNK = 256
TILES_PER_BATCH = 640


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


def choose_chunk_size(channels: int) -> int:
    """Return the number of tiles in a chunk of maps with so many channels."""
    return max(1, min(NUMBERS_PER_CHUNK // max(1, channels), MOST_TILES_PER_CHUNK))


def cut_into_chunks(images: int, height: int, width: int, tiles_per_chunk: int) -> Iterator[Chunk]:
    """Yield chunks of about `tiles_per_chunk` tiles that cover the maps, or of single rows where those have more."""
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


def in_batches(chunks: Iterable[Chunk], tiles_per_batch: int = TILES_PER_BATCH) -> Iterator[list[Chunk]]:
    """Yield the chunks in lists of at most `tiles_per_batch` tiles, or of one chunk."""
    batch: list[Chunk] = []
    for chunk in chunks:
        if batch and count_tiles(batch) + chunk.tiles > tiles_per_batch:
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


def count_tiles(chunks: Iterable[Chunk]) -> int:
    return sum(chunk.tiles for chunk in chunks)


def with_places(batch: list[Chunk]) -> Iterator[tuple[Chunk, slice]]:
    """Yield each chunk and the places of its tiles among those of the batch."""
    first = 0
    for chunk in batch:
        yield chunk, slice(first, first + chunk.tiles)
        first += chunk.tiles


def matching_parts(
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
    """Yield the tiles, counted from `first`, that lie in the map whole, and the last one if its edge is cut."""
    whole = min(count, size // TILE - first)
    if whole > 0:
        yield slice(0, whole), TILE
    if whole < count:
        yield slice(whole, count), size % TILE


class Scratch(threading.local):
    """Memory that is kept between calls, one set for each thread: fresh pages cost more than the work done in them."""

    def __init__(self):
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
