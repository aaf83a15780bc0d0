from dataclasses import replace

import numpy as np
import pytest
import torch
from image_folder import image_index, triangle

from maskperf.config import DataConfig
from maskperf.data.images.loader import Feeding, TrainingLoader, evaluation_batches
from maskperf.data.images.raw_images import UploadBuffers, images_on_device, pack_images, prepare_images
from maskperf.structures import Batch, Images, RawImages, Targets

CPU = torch.device("cpu")
DATA = DataConfig(short_side=24, long_side=40, size_divisor=8, loader_threads=2)
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


def test_the_buffers_keep_its_largest_buffers_and_no_more_than_it_may(buffers):
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
    return image_index(tmp_path, SIZES_HW, polygons=[[[triangle(2, 3)] * (n % 3 + 1)] for n in range(len(SIZES_HW))])


def batches_of(index, feeding: Feeding, num_steps: int = 12, pin_memory: bool = False):
    options = {"seed": 5, "rank": 0, "world": 1, "images_per_rank": 2, "pin_memory": pin_memory}
    return TrainingLoader(index, DATA, feeding=feeding, **options).batches(0, num_steps)


@pytest.mark.parametrize("aspect_buckets", [False, True])
@pytest.mark.parametrize("static_sizes", [False, True])
def test_raw_images_become_the_batches_of_the_cpu(index, aspect_buckets, static_sizes):
    feeding = Feeding(aspect_buckets=aspect_buckets, static_sizes=static_sizes)
    raw = batches_of(index, replace(feeding, raw_images=True))
    for expected, batch in zip(batches_of(index, feeding), raw, strict=True):
        assert isinstance(batch.images, RawImages)
        found = prepare_images(batch, CPU)
        assert isinstance(found.images, Images)
        assert torch.equal(found.images.pixels, expected.images.pixels)
        assert torch.equal(found.images.sizes_hw, batch.images.sizes_hw)
        assert torch.equal(found.images.sizes_hw, expected.images.sizes_hw)
        assert torch.equal(found.targets.boxes, expected.targets.boxes)
        assert torch.equal(found.targets.polygons.points, expected.targets.polygons.points)
        assert found.sample_seeds.tolist() == expected.sample_seeds.tolist()


def test_evaluation_takes_raw_images_too(index):
    options = {"batch_size": 2, "rank": 0, "world": 1}
    made = list(evaluation_batches(index, DATA, **options))
    feeding = Feeding(raw_images=True, static_sizes=True)
    for expected, batch in zip(made, evaluation_batches(index, DATA, feeding=feeding, **options), strict=True):
        assert torch.equal(images_on_device(batch.images, CPU).pixels, expected.images.pixels)
        assert batch.images.sizes_hw.tolist() == expected.images.sizes_hw.tolist()
        assert batch.original_sizes_hw.tolist() == expected.original_sizes_hw.tolist()


def test_a_batch_that_is_ready_passes_through(index):
    batch = next(batches_of(index, Feeding()))
    prepared = prepare_images(batch, CPU)
    assert isinstance(prepared, Batch)
    assert isinstance(prepared.targets, Targets)
    assert prepared.images.pixels.data_ptr() == batch.images.pixels.data_ptr()


def test_images_are_prepared_once(index):
    batch = next(batches_of(index, RAW))
    prepare_images(batch, CPU)
    with pytest.raises(RuntimeError, match="prepared before"):
        prepare_images(batch, CPU)


def test_the_loader_lives_on_few_buffers(index, monkeypatch):
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **options: made.append(args) or empty(*args, **options))
    for batch in batches_of(index, RAW, num_steps=300):
        prepare_images(batch, CPU)
    sizes = len({size for (size,) in made})
    assert 1 <= len(made) <= (3 * DATA.loader_threads + 1) * sizes


def test_all_batches_may_be_held_before_the_first_is_prepared(index):
    expected = [batch.images.pixels for batch in batches_of(index, Feeding(), num_steps=40)]
    held = list(batches_of(index, RAW, num_steps=40))
    found = [prepare_images(batch, CPU).images.pixels for batch in held]
    assert all(map(torch.equal, found, expected))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_the_bits_are_those_of_the_cpu_while_buffers_go_round(index):
    feeding = Feeding(aspect_buckets=True, static_sizes=True)
    raw = batches_of(index, replace(feeding, raw_images=True), num_steps=60, pin_memory=True)
    prepared = [prepare_images(batch, torch.device("cuda")) for batch in raw]
    for expected, found in zip(batches_of(index, feeding, num_steps=60), prepared, strict=True):
        assert torch.equal(found.images.pixels.cpu(), expected.images.pixels)
