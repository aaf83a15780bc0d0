from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_captured import ALONE, Repeater

from maskperf.config import DataConfig, OptimizerConfig, RunConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.images.buckets import bucket_sizes
from maskperf.data.images.loader import Feeding, TrainingLoader, static_buckets
from maskperf.data.images.raw_images import prepare_images
from maskperf.engine.build import best_convolutions, build_model, prepare_steps, synthetic_batch, warm_up
from maskperf.engine.capacity import fixed_capacity
from maskperf.engine.forward import training_losses
from maskperf.engine.gradients import Gradients
from maskperf.engine.graphs import CapturedSteps
from maskperf.model.weights import save_state
from maskperf.recipes import demo

SMALL = replace(demo().model, num_classes=4, batch_norm="frozen", frozen_stages=2)
TRAINABLE = replace(SMALL, batch_norm="trainable", frozen_stages=0)
DATA = DataConfig(short_side=60, long_side=90)
CPU = torch.device("cpu")
FOLDER = Path(__file__).parents[1] / "golden" / "data_path"


def model_with_statistics(config):
    """Return a model whose batch norms do not have the values of a new one."""
    model, _ = build_model(config, seed=6)
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.add_(0.5)
    return model


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(first, second):
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_weights_follow_the_seed_alone_and_leave_the_global_random_state_alone():
    built = []
    for global_seed, seed in ((1, 3), (2, 3), (2, 4), (5, 2**62)):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        model, notices = build_model(SMALL, seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert notices == [] and model.training
        built.append(snapshot(model))
    first, again, other, _ = built
    assert changed(first, again) == set()
    random_weights = {name for name, value in first.items() if value.ndim > 1}
    assert len(random_weights) > 20 and random_weights <= changed(first, other)


def test_initial_weights_replace_the_random_ones(tmp_path):
    source, _ = build_model(SMALL, seed=1)
    path = tmp_path / "weights.safetensors"
    metadata = {"recipe": "demo", "category_ids": [1, 2, 3], "category_names": ["a", "b", "c"], "epoch": 1}
    save_state(source.state_dict(), path, metadata)
    loaded, notices = build_model(replace(SMALL, initial_weights=str(path)), seed=2)
    assert changed(snapshot(loaded), snapshot(source)) == set()
    assert len(notices) == 1 and str(path) in notices[0]


@pytest.mark.parametrize("config", [SMALL, TRAINABLE])
def test_warm_up_leaves_model_and_random_state_as_they_were(config):
    model = model_with_statistics(config)
    before, rng_state = snapshot(model), torch.random.get_rng_state()
    requires_grad = [parameter.requires_grad for parameter in model.parameters()]
    warm_up(model, [synthetic_batch(DATA, (64, 96), 2), synthetic_batch(DATA, (96, 64), 1)])
    assert changed(snapshot(model), before) == set()
    assert torch.equal(torch.random.get_rng_state(), rng_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == requires_grad
    assert model.training


def test_warm_up_would_show_in_trainable_batch_norms_without_its_restore():
    model = model_with_statistics(TRAINABLE)
    before = snapshot(model)
    training_losses(model, synthetic_batch(DATA, (64, 96), 2)).total().backward()
    endings = {name.rsplit(".", 1)[-1] for name in changed(before, snapshot(model))}
    assert {"running_mean", "num_batches_tracked"} <= endings


@pytest.mark.parametrize("raw_images", [False, True])
def test_synthetic_batch_fills_its_padded_size_and_has_one_object_an_image(raw_images):
    batch = prepare_images(synthetic_batch(DataConfig(), (800, 1216), 3, raw_images=raw_images), CPU)
    assert batch.images.pixels.shape == (3, 3, 800, 1216)
    assert batch.images.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.sizes_hw.tolist() == [[800, 1216]] * 3
    assert batch.targets.valid.tolist() == [[True]] * 3
    assert batch.targets.boxes[2].tolist() == [[0, 0, 400, 400]]
    assert batch.targets.polygons.polygon_offsets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("raw_images", [False, True])
def test_a_step_recorded_on_synthetic_batches_takes_those_of_the_loader(raw_images):
    """Shapes, types, strides and capacity must be those of the batches to come, or they would be recorded anew."""
    index = read_coco(FOLDER / "instances.json", FOLDER / "images", training=True)
    data = replace(DATA, short_side=32, long_side=64, loader_threads=1)
    feeding = Feeding(static_sizes=True, raw_images=raw_images)
    model, _ = build_model(replace(SMALL, num_classes=81), seed=6)
    gradients, recorder = Gradients(model, ALONE), Repeater()
    captured = CapturedSteps(model, [fixed_capacity(2)], gradients=gradients, recorder=recorder, say=print)
    sizes = static_buckets(data, feeding)
    synthetic = [synthetic_batch(data, padded_hw, 2, raw_images=raw_images) for padded_hw in sizes]
    captured.record([prepare_images(batch, CPU) for batch in synthetic], parts=1)
    loader = TrainingLoader(index, data, seed=1, rank=0, world=1, images_per_rank=2, feeding=feeding)
    batches = [prepare_images(batch, CPU) for batch in loader.batches(0, 6)]
    assert {tuple(batch.images.pixels.shape[2:]) for batch in batches} <= set(sizes)
    for batch in batches:
        captured.run(batch, part=1, parts=1)
    assert (captured.replayed, captured.plain) == (6, 0)


def test_synthetic_batch_brings_a_positive_roi_to_the_box_and_mask_heads():
    model, _ = build_model(SMALL, seed=6)
    losses = training_losses(model, synthetic_batch(DATA, (64, 96), 2))
    assert losses.stacked().isfinite().all()
    assert losses.box.item() > 0
    assert losses.mask.item() > 0
    assert losses.dropped_masks.item() == 0


def test_the_search_for_the_best_convolutions_ends_with_its_block():
    model = model_with_statistics(SMALL)
    seen = []

    def batches():
        seen.append(torch.backends.cudnn.benchmark)
        yield synthetic_batch(DATA, (64, 96), 1)

    warm_up(model, batches())
    assert seen == [True] and not torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), best_convolutions():
        raise KeyError("a bug")
    assert not torch.backends.cudnn.benchmark


def test_a_cpu_has_nothing_to_prepare():
    said = []
    model, config = build_model(SMALL, seed=6)[0], RunConfig(recipe="demo", data=DATA)
    assert prepare_steps(model, config, images=2, topology=ALONE, say=said.append) is None
    assert said == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_on_a_gpu_every_padded_size_is_recorded_before_the_first_step(micro_batches):
    device = torch.device("cuda", torch.cuda.current_device())
    topology, said = replace(ALONE, device=device), []
    model = build_model(SMALL, seed=6)[0].to(device)
    optimizer = OptimizerConfig(accumulation_steps=micro_batches)
    config = RunConfig(recipe="demo", data=DATA, optimizer=optimizer)
    captured = prepare_steps(model, config, images=2, topology=topology, say=said.append)
    assert not torch.backends.cudnn.benchmark
    sizes = bucket_sizes(DATA)
    num_recorded = 2 * len(sizes) * micro_batches  # with slots for the usual number of masks, and for all
    assert said == [f"captured steps: {num_recorded} recorded, each with room for 96 objects an image"]
    for padded_hw in sizes:
        batch = prepare_images(synthetic_batch(DATA, padded_hw, 2, raw_images=True), device)
        captured.gradients.zero()
        for part in range(1, micro_batches + 1):
            captured.run(batch, part=part, parts=micro_batches)
    assert (captured.replayed, captured.plain) == (len(sizes) * micro_batches, 0)
