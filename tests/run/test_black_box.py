from dataclasses import replace

import pytest
import torch
from permissions import UMASKS, modes, umask
from small_batches import small_batch, small_model

from maskperf.bench.run_lengths import as_run_lengths
from maskperf.config import OptimizerConfig
from maskperf.engine.distributed import Topology
from maskperf.engine.optimizer import build_optimizer, optimizer_tensors
from maskperf.engine.step import train_step
from maskperf.errors import ConfigError, DataError
from maskperf.recipes import demo
from maskperf.run.black_box import BATCHES_FILE, FACTS_FILE, Facts, load_black_box, polygon_limits, save_black_box
from maskperf.run.replay import restored
from maskperf.structures import tensors_of

ALONE = Topology()


def own_config(optimizer):
    return replace(demo(), model=small_model(seed=0).config, optimizer=optimizer)


@pytest.fixture
def saved(tmp_path):
    return _saved(tmp_path, "sgd")


def _saved(tmp_path, method):
    model = small_model(seed=0)
    config = OptimizerConfig(batch_size=1, learning_rate=0.01, warmup_steps=0, method=method)
    optimizer = build_optimizer(model, config)
    batches = [small_batch(0), as_run_lengths(small_batch(1))]
    train_step(model, optimizer, batches, update=1, config=config, topology=ALONE)
    facts = Facts(
        event="non-finite",
        text="step 2: a test",
        update=2,
        epoch=1,
        processes=2,
        accumulation_steps=1,
        image_ids=[batch.image_ids.tolist() for batch in batches],
        polygon_limits=[polygon_limits(batch) for batch in batches],
        weights_are_from_before_the_step=True,
    )
    save_black_box(tmp_path / "box", model, optimizer, batches, facts=facts, config=own_config(config))
    return tmp_path / "box", model, optimizer, batches, facts


def test_all_comes_back_bit_for_bit(saved):
    folder, model, optimizer, batches, facts = saved
    box = load_black_box(folder)
    assert box.facts == facts and box.config.optimizer.method == "sgd"
    assert all(torch.equal(box.weights[name], value) for name, value in model.state_dict().items())
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert box.optimizer.keys() == {f"momentum_buffer.{name}" for name in trainable}
    for name, parameter in trainable.items():
        assert torch.equal(box.optimizer[f"momentum_buffer.{name}"], optimizer.state[parameter]["momentum_buffer"])
    for one, other in zip(box.micro_batches, batches, strict=True):
        assert polygon_limits(one) == polygon_limits(other)
        for left, right in zip(tensors_of(one), tensors_of(other), strict=True):
            assert left.dtype == right.dtype and torch.equal(left, right)


@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_a_replay_has_the_state_of_the_optimizer(tmp_path, method):
    folder, model, optimizer, *_ = _saved(tmp_path, method)
    found = optimizer_tensors(*restored(load_black_box(folder), torch.device("cpu")))
    wanted = optimizer_tensors(model, optimizer)
    assert found.keys() == wanted.keys() and any(value.count_nonzero() for value in wanted.values())
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("mask", UMASKS)
def test_its_files_have_the_permissions_of_the_umask(saved, tmp_path, mask):
    _, model, optimizer, batches, facts = saved
    with umask(mask):
        save_black_box(tmp_path / "other", model, optimizer, batches, facts=facts, config=demo())
    assert list(modes(tmp_path / "other").values()) == [f"{0o666 & ~mask:o}"] * 5


def test_a_folder_that_is_no_black_box_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no black box"):
        load_black_box(tmp_path)


@pytest.mark.parametrize("name", [BATCHES_FILE, FACTS_FILE])
def test_a_damaged_file_is_named(saved, name):
    path = saved[0] / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        load_black_box(saved[0])
