from dataclasses import replace
from pathlib import Path

import pytest

from maskperf.config import RunConfig
from maskperf.data.coco.index import read_coco
from maskperf.engine.distributed import Topology
from maskperf.recipes import demo
from maskperf.run.data import micro_batches

FOLDER = Path(__file__).parents[1] / "golden" / "data_path"
JSON, IMAGES = FOLDER / "instances.json", FOLDER / "images"


@pytest.fixture(scope="module")
def data():
    return read_coco(JSON, IMAGES, training=True)


def settings_of(*, seed=5, rank=0, world=1, accumulation_steps=1, batch_size=2) -> tuple[RunConfig, Topology]:
    config = demo()
    config = replace(
        config,
        seed=seed,
        data=replace(config.data, short_side=32, long_side=64, group_by_aspect=False, loader_threads=2),
        optimizer=replace(config.optimizer, batch_size=batch_size, accumulation_steps=accumulation_steps),
    )
    return config, Topology(rank=rank, world=world)


def drawn(data, *, updates_done=0, num_steps=3, **changes) -> list[list[tuple[list[int], list[int]]]]:
    """Return image ids and sampler seeds of each micro-batch of each step."""
    steps = micro_batches(*settings_of(**changes), data, updates_done, num_steps)
    return [[(batch.image_ids.tolist(), batch.sample_seeds.tolist()) for batch in step] for step in steps]


def flat(steps) -> list[tuple[int, int]]:
    return [pair for step in steps for ids, seeds in step for pair in zip(ids, seeds, strict=True)]


def test_a_step_has_as_many_micro_batches_as_asked(data):
    assert [[len(ids) for ids, _ in step] for step in drawn(data)] == [[2], [2], [2]]
    assert [[len(ids) for ids, _ in step] for step in drawn(data, accumulation_steps=2)] == [[1, 1]] * 3


def test_images_and_draws_do_not_depend_on_how_a_batch_is_split(data):
    whole = sorted(flat(drawn(data)))
    assert sorted(flat(drawn(data, accumulation_steps=2))) == whole
    assert sorted(sum((flat(drawn(data, world=2, rank=rank)) for rank in (0, 1)), [])) == whole


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_updates_done_are_left_out(data, accumulation_steps):
    whole = drawn(data, num_steps=7, accumulation_steps=accumulation_steps)
    for updates_done in (1, 4):
        rest = drawn(data, updates_done=updates_done, num_steps=3, accumulation_steps=accumulation_steps)
        assert rest == whole[updates_done : updates_done + 3]
