from dataclasses import replace

import numpy as np
import pytest
import torch
from image_folder import SMALL as DATA
from image_folder import assert_equal, image_index, training_loader

from maskperf.data.images.loader import Feeding, evaluation_batches
from maskperf.data.images.raw_images import UploadBuffers, pack_images, prepare_images
from maskperf.structures import Images, RawImages, to_device

CPU = torch.device("cpu")
RAW = Feeding(raw_images=True)
SIZES_HW = [(20, 30), (30, 20), (24, 24), (18, 40), (60, 90), (40, 20), (20, 30)]


@pytest.fixture
def buffers():
    return UploadBuffers(max_waiting=2, pin_memory=False)


def test_a_buffer_is_used_again_after_it_came_back_once(buffers):
    first, give_back = buffers.take(100)
    assert buffers.take(100)[0].data_ptr() != first.data_ptr()
    give_back(None)
    with pytest.raises(RuntimeError, match="prepared before"):
        give_back(None)
    assert buffers.take(1000)[0].numel() >= 1000  # too small for this
    assert buffers.take(90)[0].data_ptr() == first.data_ptr()


def test_a_buffer_waits_until_its_copy_is_done(buffers):
    done = []
    first, give_back = buffers.take(100)
    give_back(lambda: bool(done))
    assert buffers.take(100)[0].data_ptr() != first.data_ptr()
    done.append(True)
    assert buffers.take(100)[0].data_ptr() == first.data_ptr()


def test_the_largest_buffers_wait_and_no_more_than_may(buffers):
    lent = [buffers.take(size) for size in (1000, 10, 100_000, 500)]
    for _, give_back in lent:
        give_back(None)
    kept = {buffer.data_ptr() for buffer, _ in lent if buffer.numel() >= 1000}
    assert {buffers.take(800)[0].data_ptr(), buffers.take(800)[0].data_ptr()} == kept
    assert buffers.take(1)[0].numel() < 100  # a new one


def test_batches_that_are_held_do_not_share_memory(buffers):
    images = [np.full((4, 5, 3), value, np.uint8) for value in range(8)]
    options = {"padded_hw": (8, 8), "means_bgr": (0.0, 0.0, 0.0), "buffers": buffers}
    held = [pack_images([image], [(4, 5)], [False], **options) for image in images]
    for value, raw in enumerate(held):
        first_byte = raw.entries[0].first_byte
        assert raw.content[first_byte : first_byte + 60].eq(value).all()


@pytest.fixture
def index(tmp_path):
    return image_index(tmp_path, SIZES_HW)


def batches_of(index, feeding: Feeding, num_steps: int = 40, pin_memory: bool = False):
    return training_loader(index, feeding=feeding, pin_memory=pin_memory).batches(0, num_steps)


@pytest.mark.parametrize("aspect_buckets", [False, True])
@pytest.mark.parametrize("static_sizes", [False, True])
def test_raw_images_become_the_batches_of_the_cpu(index, aspect_buckets, static_sizes):
    feeding = Feeding(aspect_buckets=aspect_buckets, static_sizes=static_sizes)
    raw = list(batches_of(index, replace(feeding, raw_images=True)))  # all are held before the first is prepared
    assert all(isinstance(batch.images, RawImages) for batch in raw)
    prepared = [prepare_images(batch, CPU) for batch in raw]
    assert_equal(prepared, batches_of(index, feeding))
    assert all(isinstance(batch.images, Images) for batch in prepared)


def test_evaluation_takes_raw_images_too(index):
    options = {"batch_size": 2, "rank": 0, "world": 1}
    feeding = Feeding(raw_images=True, static_sizes=True)
    raw = evaluation_batches(index, DATA, feeding=feeding, **options)
    assert_equal([prepare_images(batch, CPU) for batch in raw], evaluation_batches(index, DATA, **options))


def test_a_batch_that_is_ready_passes_through(index):
    batch = next(batches_of(index, Feeding()))
    prepared = prepare_images(batch, CPU)
    assert prepared.images.pixels.data_ptr() == batch.images.pixels.data_ptr()


def test_the_loader_lives_on_few_buffers(index, monkeypatch):
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **options: made.append(args) or empty(*args, **options))
    for batch in batches_of(index, RAW, num_steps=300):
        prepare_images(batch, CPU)
    sizes = len({size for (size,) in made})
    assert 1 <= len(made) <= (3 * DATA.loader_threads + 1) * sizes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_the_bits_are_those_of_the_cpu_while_buffers_go_round(index):
    feeding = Feeding(aspect_buckets=True, static_sizes=True)
    raw = batches_of(index, replace(feeding, raw_images=True), num_steps=60, pin_memory=True)
    prepared = [to_device(prepare_images(batch, torch.device("cuda")), CPU) for batch in raw]
    assert_equal(prepared, batches_of(index, feeding, num_steps=60))
