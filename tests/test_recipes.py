import pytest

from maskperf.data.images.sampler import steps_per_epoch
from maskperf.engine.optimizer import learning_rates_at
from maskperf.overrides import validate
from maskperf.recipes import RECIPES

TRAIN_IMAGES = 117_266
# batch: learning rate, epochs after which the rate falls, proposals (mlperf_logging, training_3.1.0/rcps_maskrcnn.json)
CONVERGENCE_POINTS = {
    8: (0.01, (9.82, 13.10), 1000),
    48: (0.06, (9.82, 13.09), 6000),
    64: (0.08, (9.82, 13.09), 6000),
    96: (0.12, (9.82, 13.09), 6000),
    128: (0.16, (9.81, 13.09), 6000),
    256: (0.24, (12.25, 16.34), 6000),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_named_after_its_function(name):
    config = RECIPES[name]()
    validate(config)
    assert config.recipe == name


@pytest.mark.parametrize("batch_size", CONVERGENCE_POINTS)
def test_convergence_points_are_the_published_ones(batch_size):
    config = RECIPES[f"coco_batch_{batch_size}"]()
    rate, decay_epochs, proposals = CONVERGENCE_POINTS[batch_size]
    assert (config.optimizer.batch_size, config.optimizer.learning_rate) == (batch_size, rate)
    assert config.model.proposals_train == proposals
    per_epoch = steps_per_epoch(TRAIN_IMAGES, batch_size)
    epochs = [step / per_epoch for step in config.optimizer.decay_steps]
    assert epochs == pytest.approx(decay_epochs, abs=0.01)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("coco")])
def test_no_learning_rate_of_the_warm_up_is_negative(name):
    optimizer = RECIPES[name]().optimizer
    assert all(min(learning_rates_at(update, optimizer)) > 0 for update in range(1, optimizer.warmup_steps + 1))


def test_the_benchmark_keeps_its_targets_and_the_demo_its_own():
    for name, recipe in RECIPES.items():
        evaluation = recipe().evaluation
        wanted = (0.55, 0.55) if name == "demo" else (0.377, 0.339)
        assert (evaluation.box_target, evaluation.mask_target) == wanted
