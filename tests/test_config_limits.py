from dataclasses import replace

import pytest

from maskperf.config import DataConfig, OptimizerConfig, RunConfig, SystemConfig
from maskperf.config_limits import CHOICES, RANGES
from maskperf.errors import EXIT_USAGE, ConfigError
from maskperf.overrides import TYPE_OF_KEY, validate, with_overrides

DEFAULT = RunConfig(recipe="demo")


def problems_of(config):
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value).splitlines()


def test_the_defaults_are_valid():
    validate(DEFAULT)


@pytest.mark.parametrize("key", CHOICES)
def test_every_enumerated_text_is_checked_and_its_choices_named(key):
    assert TYPE_OF_KEY[key] in (str, tuple[str, ...])
    (problem,) = problems_of(with_overrides(DEFAULT, [f"{key}=other"]))
    assert f"{key}=other" in problem
    assert all(choice in problem for choice in CHOICES[key])
    for choice in CHOICES[key]:
        validate(with_overrides(DEFAULT, [f"{key}={choice}"]))


def test_an_unknown_technique_is_refused_with_the_nearest_one():
    (problem,) = problems_of(with_overrides(DEFAULT, ["speed.without=captured_steps,packed_positive"]))
    assert problem.startswith("speed.without=packed_positive:") and "did you mean packed_positives?" in problem


def test_every_number_but_those_of_free_choice_has_a_range():
    numeric = {key for key, kind in TYPE_OF_KEY.items() if kind not in (str, bool, tuple[str, ...])}
    listed = [key for _, _, keys in RANGES for key in keys.split()]
    assert sorted(listed) == sorted(numeric)


@pytest.mark.parametrize(
    "pair",
    [
        "seed=-2",
        "seed=4611686018427387905",
        "data.short_side=0",
        "data.flip_probability=1.5",
        "data.flip_probability=-0.1",
        "data.size_divisor=48",
        "data.loader_threads=0",
        "data.pixel_means_bgr=1.0,2.0,256.0",
        "model.num_classes=1",
        "model.frozen_stages=6",
        "model.stage_blocks=1,0,1,1",
        "model.anchor_ratios=0.5,0.0",
        "model.rpn_positive_fraction=0.0",
        "model.detection_nms_iou=1.1",
        "optimizer.batch_size=0",
        "optimizer.learning_rate=0.0",
        "optimizer.momentum=1.0",
        "optimizer.weight_decay=-1.0",
        "optimizer.decay_steps=0,5",
        "evaluation.box_target=37.7",
        "system.threads=-1",
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name_and_value(pair):
    (problem,) = problems_of(with_overrides(DEFAULT, [pair]))
    assert problem.startswith(f"{pair}: out of range")
    assert "allowed is" in problem


@pytest.mark.parametrize(
    "pair",
    ["seed=4611686018427387904", "model.num_classes=0", "model.frozen_stages=0", "data.flip_probability=0"],
)
def test_the_edges_of_a_range_are_allowed(pair):
    validate(with_overrides(DEFAULT, [pair]))


@pytest.mark.parametrize(
    ("pairs", "start"),
    [
        (["data.short_side=2000"], "data.short_side=2000: must not be above data.long_side=1333"),
        (["data.train_json=a.json"], "data.train_images="),
        (["data.val_images=a"], "data.val_json="),
        (["data.root="], "data.root="),
        (["data.generate=true", "data.generate_images=0,3"], "data.generate_images=0,3"),
        (["model.rpn_negative_iou=0.8"], "model.rpn_negative_iou=0.8"),
        (["model.anchor_sizes=32,64"], "model.anchor_sizes=32,64: needs 5 sizes"),
        (["model.anchor_ratios="], "model.anchor_ratios="),
        (["optimizer.batch_size=6", "optimizer.accumulation_steps=4"], "optimizer.batch_size=6"),
        (["optimizer.decay_steps=20,10"], "optimizer.decay_steps=20,10"),
        (["optimizer.decay_steps=10,10"], "optimizer.decay_steps=10,10"),
    ],
)
def test_values_that_do_not_go_together_are_refused(pairs, start):
    (problem,) = problems_of(with_overrides(DEFAULT, pairs))
    assert problem.startswith(start)


def test_all_problems_of_a_configuration_are_named_at_once():
    config = replace(
        DEFAULT,
        data=DataConfig(flip_probability=2.0, short_side=0),
        optimizer=OptimizerConfig(batch_size=3, accumulation_steps=0),
        system=SystemConfig(device="tpu"),
    )
    starts = [problem.partition("=")[0] for problem in problems_of(config)]
    assert sorted(starts) == [
        "data.flip_probability",
        "data.short_side",
        "optimizer.accumulation_steps",
        "system.device",
    ]
