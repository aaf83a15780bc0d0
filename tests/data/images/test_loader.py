import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch
from image_folder import SMALL as DATA
from image_folder import image_index, training_loader, triangle

from maskperf.data.images import loader
from maskperf.data.images.buckets import bucket_sizes, group_numbers, image_buckets
from maskperf.data.images.collate import make_batch
from maskperf.data.images.loader import Feeding, evaluation_batches, feeding_for, load_sample, static_buckets
from maskperf.errors import DataError
from maskperf.seeds import derive_seed
from maskperf.techniques import plain, using

SIZES_HW = [(20, 30), (30, 20), (24, 24), (18, 40), (25, 50), (40, 20), (20, 30)]
STATIC = Feeding(static_sizes=True)


@pytest.fixture
def index(tmp_path):
    return image_index(tmp_path, SIZES_HW, polygons=[[[triangle(2, 3)] * (n % 3 + 1)] for n in range(len(SIZES_HW))])


def sample_of(index, position: int, data=DATA, *, epoch=1, training=True):
    return load_sample(index, position, data=data, seed=5, epoch=epoch, training=training)


def pixels_of(sample) -> torch.Tensor:
    return make_batch([sample], size_divisor=1).images.pixels[0]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("maskperf-loader")]


@pytest.mark.parametrize(("feeding", "images_per_rank"), [(Feeding(), 2), (STATIC, 3)], ids=["plain", "static"])
def test_a_batch_holds_its_samples_among_zeros_each_with_the_draws_of_its_pass(index, feeding, images_per_rank):
    passes_of = {
        derive_seed(5, "sample", number, image_id): (number, image_id)
        for number in range(1, 30)
        for image_id in index.image_ids.tolist()
    }
    num_mixed = 0
    for batch in training_loader(index, feeding=feeding, images_per_rank=images_per_rank).batches(0, 14):
        drawn = [passes_of[seed] for seed in batch.sample_seeds.tolist()]
        assert [image_id for _, image_id in drawn] == batch.image_ids.tolist()
        num_mixed += len({number for number, _ in drawn}) > 1
        assert batch.images.pixels.shape[2] % 8 == batch.images.pixels.shape[3] % 8 == 0
        assert batch.targets.labels.eq(batch.targets.valid).all()
        for pixels, (number, image_id) in zip(batch.images.pixels, drawn, strict=True):
            sample = sample_of(index, image_id - 100, epoch=number)
            height, width = sample.size_hw
            assert torch.equal(pixels[:, :height, :width], pixels_of(sample))
            assert not pixels[:, height:].any() and not pixels[:, :, width:].any()
    assert (num_mixed > 0) == feeding.static_sizes


def test_aspect_buckets_bring_images_of_one_padded_size_together(index):
    numbers = group_numbers(image_buckets(index.sizes_hw, DATA)).tolist()
    groups = dict(zip(index.image_ids.tolist(), numbers, strict=True))
    in_a_pass = sum(-(-count // 2) for count in Counter(numbers).values())
    assert len(set(numbers)) == 3
    seen = []
    for batch in training_loader(index, feeding=Feeding(aspect_buckets=True)).batches(0, in_a_pass):
        assert len({groups[image_id] for image_id in batch.image_ids.tolist()}) == 1
        largest = batch.images.sizes_hw.max(dim=0).values
        assert list(batch.images.pixels.shape[2:]) == (-(-largest // 8) * 8).tolist()
        seen += batch.image_ids.tolist()
    assert sorted(seen) == index.image_ids.tolist()


@pytest.mark.parametrize(("world", "images_per_rank"), [(1, 2), (2, 1), (2, 2)])
def test_batches_of_static_buckets_are_full_and_alike_in_all_processes(index, world, images_per_rank):
    options = {"world": world, "images_per_rank": images_per_rank, "feeding": STATIC}
    num_steps = 7 * 4 // (world * images_per_rank)  # of four passes
    ranks = [training_loader(index, rank=rank, **options).batches(0, num_steps) for rank in range(world)]
    drawn = Counter()
    for parts in zip(*ranks, strict=True):
        (padded_hw,) = {tuple(part.images.pixels.shape[2:]) for part in parts}
        assert padded_hw in bucket_sizes(DATA)
        assert [len(part.image_ids) for part in parts] == [images_per_rank] * world
        drawn.update(seed for part in parts for seed in part.sample_seeds.tolist())
    passes = range(1, 5 + world * images_per_rank)  # a small group may begin a pass before the others end theirs
    keys = [(number, image_id) for number in passes for image_id in index.image_ids.tolist()]
    assert set(drawn) <= {derive_seed(5, "sample", *key) for key in keys}
    assert set(drawn.values()) == {1}


def test_techniques_mean_something_else_on_a_gpu():
    assert feeding_for(torch.device("cpu")) == Feeding(aspect_buckets=True)
    on_gpu = feeding_for(torch.device("cuda", 0))
    assert on_gpu == Feeding(aspect_buckets=True, static_sizes=True, raw_images=True)
    with using(plain()):
        assert feeding_for(torch.device("cpu")) == feeding_for(torch.device("cuda", 0)) == Feeding()


def test_images_are_not_grouped_where_the_configuration_says_so(index):
    data = replace(DATA, group_by_aspect=False)
    for feeding in (Feeding(), Feeding(aspect_buckets=True)):
        assert len(set(training_loader(index, data, feeding=feeding).groups().tolist())) == 1
    assert static_buckets(data, STATIC) == static_buckets(DATA, Feeding()) == ()
    assert static_buckets(DATA, STATIC) == bucket_sizes(DATA)
    plain, static = (training_loader(index, data, feeding=feeding).batches(0, 4) for feeding in (Feeding(), STATIC))
    assert [batch.image_ids.tolist() for batch in plain] == [batch.image_ids.tolist() for batch in static]


def test_few_batches_are_made_ahead_by_threads_that_end_with_the_iterator(index, monkeypatch):
    made = []
    monkeypatch.setattr(loader, "make_batch", lambda samples, *rest: made.append(1) or make_batch(samples, *rest))
    batches = training_loader(index).batches(0, 1000)
    next(batches)
    assert loader_threads()
    batches.close()
    assert 1 <= len(made) <= 1 + 3
    assert loader_threads() == []
    assert len(list(training_loader(index).batches(0, 3))) == 3
    assert loader_threads() == []


def test_all_bad_images_are_named_at_the_first_failure(index, tmp_path, monkeypatch):
    (tmp_path / "101.jpg").write_bytes(b"")
    (tmp_path / "103.jpg").write_bytes((tmp_path / "103.jpg").read_bytes()[:300])
    (tmp_path / "106.jpg").unlink()
    evaluated = evaluation_batches(index, DATA, batch_size=2, rank=0, world=1)
    for batches in (training_loader(index).batches(0, 100), evaluated):
        with pytest.raises(DataError) as caught:
            list(batches)
        wheres = sorted(problem.where for problem in caught.value.problems)
        assert wheres == ["image id 101", "image id 103", "image id 106"]
    assert loader_threads() == []
    monkeypatch.setattr(loader, "CHECK_LIMIT_SECONDS", 0.0)
    with pytest.raises(DataError) as caught:
        list(training_loader(index).batches(0, 100))
    first, last = caught.value.problems
    assert first.where.startswith("image id ")
    assert (last.file, last.where, last.value) == (str(tmp_path), "all images", "7 of 7")


def test_the_limit_of_pixels_holds_when_images_are_loaded(index):
    with pytest.raises(DataError) as caught:
        sample_of(index, 4, replace(DATA, max_image_pixels=1249))
    assert caught.value.problems[0].value == "25 x 50, 1,250 pixels"


def test_another_error_of_a_thread_reaches_the_consumer(index, monkeypatch):
    monkeypatch.setattr(loader, "make_batch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(training_loader(index).batches(0, 5))
    assert loader_threads() == []


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_brings_every_image_exactly_once(index, world):
    ranks = [evaluation_batches(index, DATA, batch_size=2, rank=rank, world=world) for rank in range(world)]
    found = Counter()
    for batch in (batch for batches in ranks for batch in batches):
        found.update(zip(batch.image_ids.tolist(), map(tuple, batch.original_sizes_hw.tolist()), strict=True))
    assert found == Counter((100 + number, size_hw) for number, size_hw in enumerate(SIZES_HW))
    assert loader_threads() == []
