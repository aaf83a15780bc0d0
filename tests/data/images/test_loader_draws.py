"""What the loader draws: which images are mirrored, and the seeds of the samplers.

Each draw changes with every part of its key (run seed, purpose, epoch, image id) and with nothing else.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from image_folder import image_index, training_loader

from maskperf.config import DataConfig
from maskperf.data.images import loader
from maskperf.data.images.loader import Feeding, load_sample
from maskperf.seeds import derive_seed

IMAGES = 24
DATA = DataConfig(short_side=16, long_side=24, size_divisor=8, group_by_aspect=False, loader_threads=2)
MANY = range(1000, 1400)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return image_index(tmp_path_factory.mktemp("draws"), [(16, 20), (20, 16)] * (IMAGES // 2))


def draws(seed=5, epoch=1, image_ids=MANY, purpose="flip", more=()) -> np.ndarray:
    return np.array([loader._uniform(seed, epoch, image_id, purpose, *more) for image_id in image_ids])


CHANGES = [
    *({"seed": 6}, {"seed": 2**62}, {"epoch": 2}, {"epoch": 13}, {"image_ids": range(1001, 1401)}),
    *({"purpose": "scale"}, {"purpose": "sample"}, {"purpose": "order"}, {"more": (0,)}, {"more": (1,)}),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_draw_changes_with_each_part_of_its_key(change):
    first, other = draws(), draws(**change)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.2  # of unrelated ones: 0 with deviation 0.05
    assert 150 < ((first < 0.5) == (other < 0.5)).sum() < 250  # 200 expected, standard deviation 10


def test_draws_repeat_and_are_spread_evenly():
    first = draws()
    assert 0 <= first.min() < 0.02 and 0.98 < first.max() < 1 and len(set(first)) == 400
    assert np.array_equal(first, draws())


def test_an_image_is_flipped_about_every_other_epoch():
    times = np.sum([draws(epoch=epoch, image_ids=range(100)) < 0.5 for epoch in range(1, 41)], axis=0)
    assert times.min() >= 8 and times.max() <= 32  # 20 expected of 40, standard deviation 3.2
    assert 1800 < times.sum() < 2200  # 2000 expected, standard deviation 32


@pytest.mark.parametrize(
    "change",
    [
        {"passes": (1, 2)},
        {"world": 3, "images_per_rank": 2},
        {"images_per_rank": 1},
        {"images_per_rank": 24},
        {"data": replace(DATA, loader_threads=1)},
        {"data": replace(DATA, loader_threads=5)},
        {"data": replace(DATA, shuffle=False)},
        {"data": replace(DATA, short_side=32, long_side=48)},
        {"data": replace(DATA, group_by_aspect=True)},
        {"data": replace(DATA, group_by_aspect=True), "feeding": Feeding(aspect_buckets=True, static_sizes=True)},
        {"feeding": Feeding(raw_images=True)},
    ],
    ids=lambda change: " ".join(change),
)
def test_training_draws_by_seed_epoch_and_image_and_nothing_else(index, monkeypatch, change):
    found, make_batch = [], loader.make_batch

    def seen(samples, *rest):
        found.extend((sample.image_id, sample.sample_seed, sample.is_mirrored) for sample in samples)
        return make_batch(samples, *rest)

    monkeypatch.setattr(loader, "make_batch", seen)
    options = {"data": DATA, "world": 1, "images_per_rank": 4, **change}
    passes = options.pop("passes", (1,))
    steps = IMAGES // (options["world"] * options["images_per_rank"])
    for rank, pass_number in product(range(options["world"]), passes):
        batches = training_loader(index, rank=rank, **options).batches((pass_number - 1) * steps, steps)
        assert len(list(batches)) == steps
    keys = product(passes, index.image_ids.tolist())
    expected = [(key[1], derive_seed(5, "sample", *key), loader._uniform(5, *key, "flip") < 0.5) for key in keys]
    assert sorted(found) == sorted(expected)


def test_evaluation_draws_nothing(index):
    for position in range(IMAGES):
        first, other = (
            load_sample(index, position, data=DATA, seed=seed, epoch=epoch, training=False)
            for seed, epoch in ((5, 1), (6, 2))
        )
        assert not first.is_mirrored and not other.is_mirrored
        np.testing.assert_array_equal(first.bgr, other.bgr)
