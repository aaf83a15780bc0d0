from dataclasses import replace

import pytest
import torch

from maskperf.config import DataConfig
from maskperf.engine.build import build_model, made_up_batch, warm_up
from maskperf.engine.forward import training_losses
from maskperf.model.weights import save_model_weights
from maskperf.recipes import demo

SMALL = replace(demo().model, num_classes=4, batch_norm="frozen", frozen_stages=2)
TRAINABLE = replace(SMALL, batch_norm="trainable", frozen_stages=0)
DATA = DataConfig(short_side=60, long_side=90)
CPU = torch.device("cpu")


def model_with_statistics(config):
    """Returns a model whose batch norms do not have the values of a new one."""
    model, _ = build_model(config, seed=6)
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.add_(0.5)
    return model


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    assert first.keys() == second.keys()
    return {name for name in first if torch.equal(first[name], second[name])}


def test_weights_follow_the_seed_alone():
    torch.manual_seed(1)
    first = snapshot(build_model(SMALL, seed=3)[0])
    torch.manual_seed(2)
    again = snapshot(build_model(SMALL, seed=3)[0])
    assert same(first, again) == set(first)


def test_another_seed_changes_every_random_weight():
    first, other = (snapshot(build_model(SMALL, seed=seed)[0]) for seed in (3, 4))
    random_weights = {name for name, value in first.items() if value.ndim > 1}
    assert len(random_weights) > 20
    assert not same(first, other) & random_weights


def test_building_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model, notices = build_model(SMALL, seed=2**62)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert notices == []
    assert model.training


def test_initial_weights_replace_the_random_ones(tmp_path):
    source, _ = build_model(SMALL, seed=1)
    path = tmp_path / "weights.safetensors"
    metadata = {"recipe": "demo", "category_ids": [1, 2, 3], "category_names": ["a", "b", "c"], "epoch": 1}
    save_model_weights(source, path, metadata)
    loaded, notices = build_model(replace(SMALL, initial_weights=str(path)), seed=2)
    expected = snapshot(source)
    assert same(snapshot(loaded), expected) == set(expected)
    assert len(notices) == 1 and str(path) in notices[0]


@pytest.mark.parametrize("config", [SMALL, TRAINABLE])
def test_warm_up_leaves_model_and_random_state_as_they_were(config):
    model = model_with_statistics(config)
    before, rng_state = snapshot(model), torch.random.get_rng_state()
    requires_grad = [parameter.requires_grad for parameter in model.parameters()]
    warm_up(model, DATA, 2, CPU)
    after = snapshot(model)
    assert same(after, before) == set(before)
    assert torch.equal(torch.random.get_rng_state(), rng_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == requires_grad
    assert model.training


def test_warm_up_would_show_in_trainable_batch_norms_without_its_restore():
    model = model_with_statistics(TRAINABLE)
    before = snapshot(model)
    training_losses(model, made_up_batch(DATA, 2)).total().backward()
    changed = set(before) - same(before, snapshot(model))
    assert any(name.endswith("running_mean") for name in changed)
    assert any(name.endswith("num_batches_tracked") for name in changed)


def test_made_up_batch_has_the_padded_size_and_one_object_an_image():
    batch = made_up_batch(DataConfig(), 3)
    assert batch.images.pixels.shape == (3, 3, 800, 1344)
    assert batch.images.sizes_hw.tolist() == [[800, 1333]] * 3
    assert batch.targets.valid.tolist() == [[True]] * 3
    assert batch.targets.boxes[2].tolist() == [[0, 0, 400, 400]]
    assert batch.targets.polygons.ring_offsets.tolist() == [0, 1, 2, 3]


def test_made_up_batch_brings_a_positive_roi_to_the_box_and_mask_heads():
    model, _ = build_model(SMALL, seed=6)
    losses = training_losses(model, made_up_batch(DATA, 2))
    assert losses.stacked().isfinite().all()
    assert losses.box.item() > 0
    assert losses.mask.item() > 0
    assert losses.dropped_masks.item() == 0
