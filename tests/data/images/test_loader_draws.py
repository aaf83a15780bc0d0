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
from maskperf.data.images.loader import Feeding, is_flipped, load_sample
from maskperf.seeds import derive_seed

IMAGES = 24
DATA = DataConfig(short_side=16, long_side=24, size_divisor=8, group_by_aspect=False, loader_threads=2)
MANY = range(1000, 1400)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return image_index(tmp_path_factory.mktemp("draws"), [(16, 20), (20, 16)] * (IMAGES // 2))


def flips(seed=5, epoch=1, image_ids=MANY, probability=0.5) -> np.ndarray:
    return np.array([is_flipped(seed, epoch, image_id, probability) for image_id in image_ids])


def assert_unrelated(first: np.ndarray, second: np.ndarray):
    """Independent coins agree 200 times in 400, with a standard deviation of 10."""
    assert 150 < (first == second).sum() < 250


@pytest.mark.parametrize(
    "change",
    [{"seed": 6}, {"seed": 2**62}, {"epoch": 2}, {"epoch": 13}, {"image_ids": range(1001, 1401)}],
    ids=["seed", "large seed", "epoch", "late epoch", "image"],
)
def test_flips_change_with_each_part_of_their_key(change):
    assert_unrelated(flips(), flips(**change))


def test_flips_have_a_purpose_of_their_own():
    for purpose in ("sample", "order"):
        coins = [derive_seed(5, purpose, 1, image_id) >> 61 == 0 for image_id in MANY]
        assert_unrelated(flips(), np.array(coins))


def test_an_image_is_flipped_about_every_other_epoch():
    times = np.sum([flips(epoch=epoch, image_ids=range(100)) for epoch in range(1, 41)], axis=0)
    assert times.min() >= 8 and times.max() <= 32  # 20 expected of 40, standard deviation 3.2
    assert 1800 < times.sum() < 2200  # 2000 expected, standard deviation 32


def test_a_larger_probability_only_adds_flips():
    few, more = flips(probability=0.2), flips(probability=0.7)
    assert 0 < few.sum() < more.sum() < len(MANY)
    assert not (few & ~more).any()
    assert flips(probability=1.0).all()
    assert not flips(probability=0.0).any()


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
    assert sorted(found) == sorted((key[1], derive_seed(5, "sample", *key), is_flipped(5, *key, 0.5)) for key in keys)


def test_evaluation_draws_nothing(index):
    for position in range(IMAGES):
        first, other = (
            load_sample(index, position, data=DATA, seed=seed, epoch=epoch, training=False)
            for seed, epoch in ((5, 1), (6, 2))
        )
        assert not first.is_mirrored and not other.is_mirrored
        np.testing.assert_array_equal(first.bgr, other.bgr)
