"""What the loader draws: which images are mirrored, the seeds of the samplers, the order.

Each draw changes with every part of its key (run seed, purpose, epoch, image id) and with nothing else.
"""

from dataclasses import replace

import numpy as np
import pytest
from image_folder import image_index

from maskperf.config import DataConfig
from maskperf.data.images import loader
from maskperf.data.images.loader import Feeding, TrainingLoader, is_flipped, load_sample
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


def drawn(index, patch, *, passes=(1,), data=DATA, world=1, images_per_rank=4, seed=5, feeding=None):
    """Return (image id, seed of the samplers, is mirrored) of every sample in these passes of all ranks, sorted."""
    samples_seen = []
    make_batch = loader.make_batch

    def seen(samples, *rest):
        samples_seen.extend((sample.image_id, sample.sample_seed, sample.is_mirrored) for sample in samples)
        return make_batch(samples, *rest)

    patch.setattr(loader, "make_batch", seen)
    settings = {"seed": seed, "world": world, "images_per_rank": images_per_rank, "feeding": feeding or Feeding()}
    steps = IMAGES // (world * images_per_rank)
    for rank in range(world):
        ranks_loader = TrainingLoader(index, data, rank=rank, **settings)
        for pass_number in passes:
            assert len(list(ranks_loader.batches((pass_number - 1) * steps, steps))) == steps
    patch.undo()
    return sorted(samples_seen)


def test_training_draws_by_seed_epoch_and_image(index, monkeypatch):
    expected = [
        (image_id, derive_seed(5, "sample", epoch, image_id), is_flipped(5, epoch, image_id, 0.5))
        for image_id in index.image_ids.tolist()
        for epoch in (1, 2)
    ]
    assert drawn(index, monkeypatch, passes=(1, 2)) == sorted(expected)


@pytest.mark.parametrize("change", [{"seed": 6}, {"passes": (2,)}], ids=["seed", "epoch"])
def test_training_draws_change_with_seed_and_epoch(index, monkeypatch, change):
    first, other = drawn(index, monkeypatch), drawn(index, monkeypatch, **change)
    assert [image_id for image_id, _, _ in first] == [image_id for image_id, _, _ in other]
    assert not {seed for _, seed, _ in first} & {seed for _, seed, _ in other}
    assert [mirrored for _, _, mirrored in first] != [mirrored for _, _, mirrored in other]


@pytest.mark.parametrize(
    "change",
    [
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
        {"passes": (2, 1)},
    ],
    ids=lambda change: " ".join(change),
)
def test_training_draws_change_with_nothing_else(index, monkeypatch, change):
    plain = drawn(index, monkeypatch, passes=sorted(change.get("passes", (1,))))
    assert drawn(index, monkeypatch, **change) == plain


def order_of(index, *, first_step=0, steps=6, **changes) -> list[int]:
    settings = {"seed": 5, "rank": 0, "world": 1, "images_per_rank": 4, **changes}
    batches = TrainingLoader(index, DATA, **settings).batches(first_step, steps)
    return [image_id for batch in batches for image_id in batch.image_ids.tolist()]


def test_the_order_changes_with_seed_and_epoch_and_nothing_else(index):
    whole = order_of(index)
    orders = [whole, order_of(index, seed=6), order_of(index, first_step=6), order_of(index, first_step=12)]
    assert all(sorted(order) == index.image_ids.tolist() for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert order_of(index, images_per_rank=8, steps=3) == whole
    assert sum((order_of(index, rank=rank, world=2, steps=3) for rank in (0, 1)), []) == whole


def test_evaluation_draws_nothing(index):
    for position in range(IMAGES):
        first, other = (
            load_sample(index, position, data=DATA, seed=seed, epoch=epoch, training=False)
            for seed, epoch in ((5, 1), (6, 2))
        )
        assert not first.is_mirrored and not other.is_mirrored
        np.testing.assert_array_equal(first.bgr, other.bgr)
