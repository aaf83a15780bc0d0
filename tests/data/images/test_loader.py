import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_folder import image_index, triangle

from maskperf.config import DataConfig
from maskperf.data.images import loader
from maskperf.data.images.buckets import bucket_sizes, group_numbers, image_buckets
from maskperf.data.images.collate import make_batch
from maskperf.data.images.loader import (
    Feeding,
    TrainingLoader,
    evaluation_batches,
    feeding_for,
    load_sample,
    static_buckets,
)
from maskperf.errors import DataError
from maskperf.seeds import derive_seed
from maskperf.techniques import plain, using

DATA = DataConfig(short_side=24, long_side=40, size_divisor=8, loader_threads=2)
SIZES_HW = [(20, 30), (30, 20), (24, 24), (18, 40), (25, 50), (40, 20), (20, 30)]
STATIC = Feeding(static_sizes=True)


@pytest.fixture
def index(tmp_path):
    return image_index(tmp_path, SIZES_HW, polygons=[[[triangle(2, 3)] * (n % 3 + 1)] for n in range(len(SIZES_HW))])


def training_loader(index, data=DATA, **changes) -> TrainingLoader:
    return TrainingLoader(index, data, **{"seed": 5, "rank": 0, "world": 1, "images_per_rank": 2, **changes})


def sample_of(index, position: int, data=DATA, *, epoch=1, training=True):
    return load_sample(index, position, data=data, seed=5, epoch=epoch, training=training)


def pixels_of(sample) -> torch.Tensor:
    return make_batch([sample], size_divisor=1).images.pixels[0]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("maskperf-loader")]


def assert_equal(first, second):
    assert torch.equal(first.images.pixels, second.images.pixels)
    assert first.image_ids.tolist() == second.image_ids.tolist()
    assert first.sample_seeds.tolist() == second.sample_seeds.tolist()
    assert torch.equal(first.targets.boxes, second.targets.boxes)
    assert torch.equal(first.targets.polygons.points, second.targets.polygons.points)


def wheres(caught) -> list[str]:
    return sorted(problem.where for problem in caught.value.problems)


def test_a_flipped_sample_mirrors_pixels_and_targets_but_not_in_evaluation(index):
    never, always = (replace(DATA, flip_probability=chance) for chance in (0.0, 1.0))
    plain, mirrored = sample_of(index, 0, never), sample_of(index, 0, always)
    width = plain.size_hw[1]
    assert torch.equal(pixels_of(mirrored), pixels_of(plain).flip(2))
    np.testing.assert_allclose(mirrored.boxes[:, 0], width - 1 - plain.boxes[:, 2], rtol=1e-6)
    np.testing.assert_allclose(mirrored.points[:, 0], width - 1 - plain.points[:, 0], rtol=1e-6)
    assert torch.equal(pixels_of(sample_of(index, 0, always, training=False)), pixels_of(plain))


def test_batches_come_in_order_and_do_not_depend_on_threads(index):
    expected = list(training_loader(index, replace(DATA, loader_threads=1)).batches(0, 11))
    found = list(training_loader(index, replace(DATA, loader_threads=4)).batches(0, 11))
    assert len(found) == 11
    for first, second in zip(found, expected, strict=True):
        assert_equal(first, second)


def test_a_run_can_be_replayed_from_the_middle(index):
    whole = list(training_loader(index).batches(0, 10))
    for first_step in (1, 6):
        part = list(training_loader(index).batches(first_step, 4))
        for first, second in zip(part, whole[first_step : first_step + 4], strict=True):
            assert_equal(first, second)


def test_ranks_take_different_images(index):
    ranks = [training_loader(index, rank=rank, world=2).batches(0, 2) for rank in (0, 1)]
    assert len({image_id for batches in ranks for batch in batches for image_id in batch.image_ids.tolist()}) >= 5


def test_a_batch_is_padded_to_the_divisor_and_holds_the_pixels_of_its_samples(index):
    seeds = {derive_seed(5, "sample", epoch, image_id): epoch for epoch in (1, 2) for image_id in range(100, 107)}
    for batch in training_loader(index).batches(0, 5):
        assert batch.images.pixels.shape[2] % 8 == batch.images.pixels.shape[3] % 8 == 0
        assert batch.targets.valid.all()
        assert batch.targets.labels.eq(1).all()
        for number, image_id in enumerate(batch.image_ids.tolist()):
            sample = sample_of(index, image_id - 100, epoch=seeds[int(batch.sample_seeds[number])])
            height, width = batch.images.sizes_hw[number].tolist()
            assert torch.equal(batch.images.pixels[number, :, :height, :width], pixels_of(sample))


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
    passes = range(
        1, 5 + world * images_per_rank
    )  # a group of few images may begin a pass before the others end theirs
    seeds = {derive_seed(5, "sample", number, image_id) for number in passes for image_id in index.image_ids.tolist()}
    assert set(drawn) <= seeds
    assert set(drawn.values()) == {1}


def test_images_of_one_batch_have_the_draws_of_their_own_passes(index):
    batches = list(training_loader(index, feeding=STATIC, images_per_rank=3).batches(0, 14))
    passes_of = {
        derive_seed(5, "sample", number, image_id): (number, image_id)
        for number in range(1, 30)
        for image_id in index.image_ids.tolist()
    }
    drawn = [[passes_of[seed] for seed in batch.sample_seeds.tolist()] for batch in batches]
    assert [[image_id for _, image_id in entries] for entries in drawn] == [b.image_ids.tolist() for b in batches]
    assert any(len({number for number, _ in entries}) > 1 for entries in drawn)
    for batch, entries in zip(batches, drawn, strict=True):
        for pixels, (number, image_id) in zip(batch.images.pixels, entries, strict=True):
            sample = sample_of(index, image_id - 100, epoch=number)
            height, width = sample.size_hw
            assert torch.equal(pixels[:, :height, :width], pixels_of(sample))
            assert not pixels[:, height:].any()
            assert not pixels[:, :, width:].any()


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


def test_an_image_of_many_objects_and_an_object_of_many_polygons_are_whole(tmp_path):
    objects = [[triangle(number % 20, number % 13)] for number in range(500)]
    parts = [triangle(number % 25, number % 17) for number in range(190)]
    many = image_index(tmp_path, [(30, 40), (30, 40)], polygons=[objects, [parts]])
    data = replace(DATA, shuffle=False, flip_probability=0.0)
    (batch,) = training_loader(many, data).batches(0, 1)
    assert batch.targets.valid.sum(dim=1).tolist() == [500, 1]
    polygons = batch.targets.polygons
    assert (polygons.max_points, polygons.max_rings) == (570, 190)
    assert len(polygons.points) == 3 * (500 + 190)
    np.testing.assert_array_equal(polygons.points[1500:].numpy(), sample_of(many, 1, data).points)


def test_threads_end_when_the_iterator_is_closed_or_used_up(index):
    batches = training_loader(index).batches(0, 1000)
    next(batches)
    assert loader_threads()
    batches.close()
    assert loader_threads() == []
    assert len(list(training_loader(index).batches(0, 3))) == 3
    assert loader_threads() == []


def test_no_more_batches_are_made_ahead_than_asked(index, monkeypatch):
    made = []
    monkeypatch.setattr(loader, "make_batch", lambda samples, *rest: made.append(1) or make_batch(samples, *rest))
    batches = training_loader(index).batches(0, 1000)
    next(batches)
    batches.close()
    assert 1 <= len(made) <= 1 + 3


def test_all_bad_images_are_named_at_the_first_failure(index, tmp_path, monkeypatch):
    (tmp_path / "101.jpg").write_bytes(b"")
    (tmp_path / "103.jpg").write_bytes((tmp_path / "103.jpg").read_bytes()[:300])
    (tmp_path / "106.jpg").unlink()
    with pytest.raises(DataError) as caught:
        list(training_loader(index).batches(0, 100))
    assert wheres(caught) == ["image id 101", "image id 103", "image id 106"]
    with pytest.raises(DataError) as caught:
        list(evaluation_batches(index, DATA, batch_size=2, rank=0, world=1))
    assert wheres(caught) == ["image id 101", "image id 103", "image id 106"]
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
    def failing(samples, size_divisor, packing):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(loader, "make_batch", failing)
    with pytest.raises(ZeroDivisionError, match="planted"):
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
