import threading

import pytest
import torch

from maskperf.ops.winograd import (
    TILES_PER_BATCH,
    Scratch,
    choose_chunk_size,
    cut_into_chunks,
    in_batches,
)


@pytest.mark.parametrize("tiles_per_chunk", [1, 7, 64, 10**6])
@pytest.mark.parametrize(("images", "height", "width"), [(1, 1, 1), (3, 14, 14), (2, 50, 84), (5, 3, 90), (0, 8, 8)])
def test_chunks_hold_every_tile_once_and_keep_their_size(images, height, width, tiles_per_chunk):
    rows, columns = -(-height // 4), -(-width // 4)
    seen = torch.zeros(images, rows, dtype=torch.int64)
    for chunk in cut_into_chunks(images, height, width, tiles_per_chunk):
        assert chunk.columns == columns
        assert chunk.tiles <= max(tiles_per_chunk, columns)  # a row of tiles is never cut
        assert chunk.images == 1 or chunk.rows == rows
        part = seen[chunk.first_image : chunk.first_image + chunk.images]
        part = part[:, chunk.first_row : chunk.first_row + chunk.rows]
        assert part.shape == (chunk.images, chunk.rows)
        part += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("tiles_per_batch", [1, 50, TILES_PER_BATCH])
@pytest.mark.parametrize(("images", "height", "width"), [(1, 1, 1), (33, 14, 14), (2, 200, 336), (0, 8, 8)])
def test_batches_hold_the_chunks_in_their_order_and_keep_their_size(images, height, width, tiles_per_batch):
    chunks = list(cut_into_chunks(images, height, width, 168))
    batches = list(in_batches(chunks, tiles_per_batch))
    assert [chunk for batch in batches for chunk in batch] == chunks
    sizes = [sum(chunk.tiles for chunk in batch) for batch in batches]
    assert all(len(batch) == 1 or size <= tiles_per_batch for batch, size in zip(batches, sizes, strict=True))
    assert all(size + after[0].tiles > tiles_per_batch for size, after in zip(sizes, batches[1:], strict=False))


def test_chunks_of_more_channels_have_fewer_tiles():
    assert [choose_chunk_size(channels) for channels in (0, 1, 128, 256, 512, 10**6)] == [256, 256, 256, 168, 84, 1]


def test_memory_is_kept_grows_where_needed_and_is_apart_for_names_and_formats():
    scratch = Scratch()
    first = scratch.take("a", torch.float32, 2, 3)
    assert first.shape == (2, 3)
    assert scratch.take("a", torch.float32, 4).data_ptr() == first.data_ptr()
    assert scratch.take("b", torch.float32, 4).data_ptr() != first.data_ptr()
    assert scratch.take("a", torch.float64, 4).dtype == torch.float64
    grown = scratch.take("a", torch.float32, 7)
    assert grown.shape == (7,)
    assert scratch.buffers["a", torch.float32].numel() == 7


def test_each_thread_has_its_own():
    scratch = Scratch()
    own = scratch.take("a", torch.float32, 5)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(scratch.take("a", torch.float32, 5)))
    thread.start()
    thread.join()
    assert taken[0].data_ptr() != own.data_ptr()
