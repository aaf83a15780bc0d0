import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from coco_folder import annotation, triangle, write_images, write_json

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.images import loader
from maskperf.data.images.canvas import canvas_buckets, canvas_groups
from maskperf.data.images.loader import (
    Feeding,
    TrainingLoader,
    evaluation_batches,
    feeding_for,
    is_flipped,
    load_sample,
    static_canvases,
)
from maskperf.errors import DataError
from maskperf.seeds import derive_seed
from maskperf.techniques import plain, using

DATA = DataConfig(short_side=24, long_side=40, size_divisor=8, loader_threads=2, prefetch_batches=3)
SIZES_HW = [(20, 30), (30, 20), (24, 24), (18, 40), (25, 50), (40, 20), (20, 30)]


@pytest.fixture
def index(tmp_path):
    document = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "dog"}]}
    for number, (height, width) in enumerate(SIZES_HW):
        image_id = 100 + number
        row = {"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width}
        document["images"].append(row)
        box = [2.0, 3.0, 10.0, 8.0]
        shapes = [triangle(2, 3)] * (number % 3 + 1)
        document["annotations"].append(annotation(number + 1, image_id, category_id=3, bbox=box, segmentation=shapes))
    write_images(tmp_path, document)
    return read_coco(write_json(tmp_path, document), tmp_path, training=True)


def training_loader(index, data=DATA, **changes) -> TrainingLoader:
    settings = {"seed": 5, "rank": 0, "world": 1, "images_per_rank": 2}
    return TrainingLoader(index, data, **{**settings, **changes})


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("maskperf-loader")]


def assert_equal(first, second):
    torch.testing.assert_close(first.images.pixels, second.images.pixels, rtol=0, atol=0)
    assert first.image_ids.tolist() == second.image_ids.tolist()
    assert first.sample_seeds.tolist() == second.sample_seeds.tolist()
    assert first.targets.boxes.tolist() == second.targets.boxes.tolist()
    assert first.targets.polygons.points.tolist() == second.targets.polygons.points.tolist()


def test_a_sample_depends_on_seed_epoch_and_image_alone(index):
    sample = load_sample(index, 2, data=DATA, seed=5, epoch=1, training=True)
    again = load_sample(index, 2, data=replace(DATA, loader_threads=7), seed=5, epoch=1, training=True)
    np.testing.assert_array_equal(sample.pixels, again.pixels)
    assert sample.sample_seed == again.sample_seed == derive_seed(5, "sample", 1, 102)
    assert load_sample(index, 2, data=DATA, seed=5, epoch=2, training=True).sample_seed != sample.sample_seed


def test_a_flipped_sample_mirrors_pixels_and_targets(index):
    plain, mirrored = (
        load_sample(index, 0, data=replace(DATA, flip_probability=chance), seed=5, epoch=1, training=True)
        for chance in (0.0, 1.0)
    )
    width = plain.pixels.shape[2]
    np.testing.assert_array_equal(mirrored.pixels, plain.pixels[:, :, ::-1])
    np.testing.assert_allclose(mirrored.boxes[:, 0], width - 1 - plain.boxes[:, 2], rtol=1e-6)
    np.testing.assert_allclose(mirrored.points[:, 0], width - 1 - plain.points[:, 0], rtol=1e-6)


def test_evaluation_never_flips(index):
    data = replace(DATA, flip_probability=1.0)
    plain = load_sample(index, 0, data=replace(DATA, flip_probability=0.0), seed=5, epoch=1, training=True)
    np.testing.assert_array_equal(
        load_sample(index, 0, data=data, seed=5, epoch=1, training=False).pixels, plain.pixels
    )


def test_about_half_of_the_images_are_flipped():
    flips = [is_flipped(1, epoch, image_id, 0.5) for epoch in range(1, 5) for image_id in range(500)]
    assert 900 < sum(flips) < 1100  # 1000 expected, standard deviation 22
    assert all(is_flipped(1, 1, image_id, 1.0) for image_id in range(500))
    assert not any(is_flipped(1, 1, image_id, 0.0) for image_id in range(500))


def test_batches_come_in_order_and_do_not_depend_on_threads(index):
    expected = list(training_loader(index, replace(DATA, loader_threads=1, prefetch_batches=0)).batches(0, 11))
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
    seen = [
        [image_id for batch in training_loader(index, rank=rank, world=2).batches(0, 2) for image_id in batch.image_ids]
        for rank in (0, 1)
    ]
    assert len(set(map(int, seen[0] + seen[1]))) >= 5


def test_batch_shapes_are_padded_to_the_divisor(index):
    for batch in training_loader(index).batches(0, 5):
        assert batch.images.pixels.shape[2] % 8 == 0
        assert batch.images.pixels.shape[3] % 8 == 0
        assert batch.targets.valid.all()
        assert batch.targets.labels.eq(1).all()


def test_a_batch_holds_the_pixels_of_its_samples(index):
    for batch in training_loader(index).batches(0, 5):
        assert batch.images.pixels.is_contiguous(memory_format=torch.channels_last)
        for place, image_id in enumerate(batch.image_ids.tolist()):
            sample = load_sample(index, image_id - 100, data=DATA, seed=5, epoch=2, training=True)
            if sample.sample_seed != batch.sample_seeds[place]:
                sample = load_sample(index, image_id - 100, data=DATA, seed=5, epoch=1, training=True)
            height, width = batch.images.sizes_hw[place].tolist()
            found = batch.images.pixels[place, :, :height, :width].numpy()
            np.testing.assert_array_equal(found, sample.pixels)


def test_buckets_bring_images_of_one_canvas_together(index):
    groups = dict(zip(index.image_ids.tolist(), canvas_groups(index.sizes_hw, DATA).tolist(), strict=True))
    in_a_pass = sum(-(-count // 2) for count in Counter(groups.values()).values())
    assert len(set(groups.values())) == 3
    seen = []
    for batch in training_loader(index, feeding=Feeding(aspect_buckets=True)).batches(0, in_a_pass):
        assert len({groups[image_id] for image_id in batch.image_ids.tolist()}) == 1
        largest = batch.images.sizes_hw.max(dim=0).values
        least = (-(-largest // DATA.size_divisor) * DATA.size_divisor).tolist()
        assert list(batch.images.pixels.shape[2:]) == least
        seen += batch.image_ids.tolist()
    assert sorted(seen) == index.image_ids.tolist()


@pytest.mark.parametrize(("world", "images_per_rank"), [(1, 2), (2, 1), (2, 2)])
def test_batches_of_static_canvases_are_full_and_alike_in_all_processes(index, world, images_per_rank):
    options = {"world": world, "images_per_rank": images_per_rank, "feeding": Feeding(static_canvas=True)}
    num_steps = 7 * 4 // (world * images_per_rank)  # of four passes
    ranks = [training_loader(index, rank=rank, **options).batches(0, num_steps) for rank in range(world)]
    drawn = Counter()
    for parts in zip(*ranks, strict=True):
        (canvas,) = {tuple(part.images.pixels.shape[2:]) for part in parts}
        assert canvas in canvas_buckets(DATA)
        assert [len(part.image_ids) for part in parts] == [images_per_rank] * world
        drawn.update(seed for part in parts for seed in part.sample_seeds.tolist())
    passes = range(
        1, 5 + world * images_per_rank
    )  # a group of few images may begin a pass before the others end theirs
    seed_of = {derive_seed(5, "sample", number, image_id) for number in passes for image_id in index.image_ids.tolist()}
    assert set(drawn) <= seed_of
    assert set(drawn.values()) == {1}


def test_images_of_one_batch_have_the_draws_of_their_own_passes(index):
    feeding = Feeding(static_canvas=True)
    batches = list(training_loader(index, feeding=feeding, images_per_rank=3).batches(0, 14))
    passes_of = {
        derive_seed(5, "sample", number, image_id): (number, image_id)
        for number in range(1, 30)
        for image_id in index.image_ids.tolist()
    }
    drawn = [[passes_of[seed] for seed in batch.sample_seeds.tolist()] for batch in batches]
    assert [[image_id for _, image_id in entries] for entries in drawn] == [b.image_ids.tolist() for b in batches]
    assert any(len({number for number, _ in entries}) > 1 for entries in drawn)
    for batch, entries in zip(batches, drawn, strict=True):
        for place, (number, image_id) in enumerate(entries):
            sample = load_sample(index, image_id - 100, data=DATA, seed=5, epoch=number, training=True)
            height, width = sample.size_hw
            np.testing.assert_array_equal(batch.images.pixels[place, :, :height, :width].numpy(), sample.pixels)


def test_buckets_change_the_order_and_padding_but_no_image(index):
    def images_of(feeding: Feeding) -> dict:
        batches = training_loader(index, feeding=feeding).batches(0, 5)
        entries = [(batch, place) for batch in batches for place in range(len(batch.image_ids))]
        found = {}
        for batch, place in entries:
            height, width = batch.images.sizes_hw[place].tolist()
            pixels = batch.images.pixels[place]
            assert not pixels[:, height:].any()
            assert not pixels[:, :, width:].any()
            boxes = batch.targets.boxes[place][batch.targets.valid[place]]
            found.setdefault(int(batch.sample_seeds[place]), (pixels[:, :height, :width], boxes))
        return found

    plain, bucketed = images_of(Feeding()), images_of(Feeding(aspect_buckets=True, static_canvas=True))
    common = set(plain) & set(bucketed)
    assert len(common) >= 6  # the two may be in different passes at the end
    for seed in common:
        assert torch.equal(plain[seed][0], bucketed[seed][0])
        assert torch.equal(plain[seed][1], bucketed[seed][1])


def test_switches_mean_something_else_on_a_gpu():
    assert feeding_for(torch.device("cpu")) == Feeding(aspect_buckets=True)
    on_gpu = feeding_for(torch.device("cuda", 0))
    assert on_gpu == Feeding(aspect_buckets=True, static_canvas=True, raw_pictures=True)
    with using(plain()):
        assert feeding_for(torch.device("cpu")) == feeding_for(torch.device("cuda", 0)) == Feeding()


def test_images_are_not_grouped_where_the_data_say_so(index):
    data = replace(DATA, group_by_aspect=False)
    for feeding in (Feeding(), Feeding(aspect_buckets=True)):
        assert len(set(training_loader(index, data, feeding=feeding).groups().tolist())) == 1
    static = Feeding(static_canvas=True)
    assert static_canvases(data, static) == static_canvases(DATA, Feeding()) == ()
    assert static_canvases(DATA, static) == canvas_buckets(DATA)
    batches = [list(training_loader(index, data, feeding=feeding).batches(0, 4)) for feeding in (Feeding(), static)]
    assert [batch.image_ids.tolist() for batch in batches[0]] == [batch.image_ids.tolist() for batch in batches[1]]


def test_an_image_of_many_objects_and_an_object_of_many_rings_are_whole(tmp_path):
    document = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "dog"}]}
    for image_id in (1, 2):
        document["images"].append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 30, "width": 40})
    for number in range(500):
        shape = [triangle(number % 20, number % 13)]
        document["annotations"].append(annotation(number + 1, 1, category_id=3, segmentation=shape))
    rings = [triangle(number % 25, number % 17) for number in range(190)]
    document["annotations"].append(annotation(900, 2, category_id=3, segmentation=rings))
    write_images(tmp_path, document)
    many = read_coco(write_json(tmp_path, document), tmp_path, training=True)
    (batch,) = training_loader(many, replace(DATA, shuffle=False, flip_probability=0.0)).batches(0, 1)
    assert batch.targets.valid.sum(dim=1).tolist() == [500, 1]
    polygons = batch.targets.polygons
    assert (polygons.max_points, polygons.max_rings) == (570, 190)
    assert len(polygons.points) == 3 * (500 + 190)
    expected = load_sample(many, 1, data=replace(DATA, flip_probability=0.0), seed=5, epoch=1, training=True)
    np.testing.assert_array_equal(polygons.points[1500:].numpy(), expected.points)


def test_threads_end_when_the_iterator_is_closed(index):
    batches = training_loader(index).batches(0, 1000)
    next(batches)
    assert loader_threads()
    batches.close()
    assert loader_threads() == []


def test_threads_end_when_the_batches_are_used_up(index):
    assert len(list(training_loader(index).batches(0, 3))) == 3
    assert loader_threads() == []


def test_no_more_batches_are_made_ahead_than_asked(index, monkeypatch):
    made = []
    make_batch = loader.make_batch

    def counting(samples, size_divisor, packing):
        made.append(len(samples))
        return make_batch(samples, size_divisor, packing)

    monkeypatch.setattr(loader, "make_batch", counting)
    batches = training_loader(index).batches(0, 1000)
    next(batches)
    batches.close()
    assert 1 <= len(made) <= 1 + 3


def test_all_bad_images_are_named_at_the_first_failure(index, tmp_path):
    (tmp_path / "101.jpg").write_bytes(b"")
    (tmp_path / "103.jpg").write_bytes((tmp_path / "103.jpg").read_bytes()[:300])
    (tmp_path / "106.jpg").unlink()
    with pytest.raises(DataError) as caught:
        list(training_loader(index).batches(0, 100))
    assert sorted(problem.where for problem in caught.value.problems) == [
        "image id 101",
        "image id 103",
        "image id 106",
    ]
    assert loader_threads() == []


def test_the_images_that_the_time_did_not_reach_are_counted(index, tmp_path, monkeypatch):
    (tmp_path / "101.jpg").write_bytes(b"")
    monkeypatch.setattr(loader, "CHECK_LIMIT_SECONDS", 0.0)
    with pytest.raises(DataError) as caught:
        list(training_loader(index).batches(0, 100))
    first, last = caught.value.problems
    assert first.where == "image id 101"
    assert (last.file, last.where, last.value) == (str(tmp_path), "all images", "7 of 7")
    assert last.message == "The check of all images stopped after 0 s; so many were not looked at."


def test_the_limit_of_pixels_holds_when_images_are_loaded(index):
    with pytest.raises(DataError) as caught:
        load_sample(index, 4, data=replace(DATA, max_image_pixels=1249), seed=5, epoch=1, training=True)
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
    found = {}
    for rank in range(world):
        for batch in evaluation_batches(index, DATA, batch_size=2, rank=rank, world=world):
            for image_id, size_hw in zip(batch.image_ids.tolist(), batch.original_sizes_hw.tolist(), strict=True):
                assert image_id not in found
                found[image_id] = tuple(size_hw)
    assert found == {100 + number: size_hw for number, size_hw in enumerate(SIZES_HW)}
    assert loader_threads() == []


def test_a_bad_image_stops_evaluation(index, tmp_path):
    (tmp_path / "104.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError) as caught:
        list(evaluation_batches(index, DATA, batch_size=2, rank=0, world=1))
    assert [problem.where for problem in caught.value.problems] == ["image id 104"]
