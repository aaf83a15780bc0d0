import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from maskperf.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig
from maskperf.errors import EXIT_USAGE, ConfigError
from maskperf.overrides import (
    FIELDS,
    PATHS,
    SECTIONS,
    check_value,
    describe_type,
    differences,
    expand_home,
    flatten,
    format_value,
    from_json_text,
    notices_of_age,
    path_as_argument,
    to_json_text,
    validate,
    with_overrides,
)

DEFAULT = RunConfig(recipe="demo")
NAMES = {"recipe", "mlperf.organization", "mlperf.platform"}


def strategy_of(info):
    """Return the values that a type with limits allows."""
    match info:
        case inspect.BoolType():
            return st.booleans()
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.IntType(ge=least, le=most, multiple_of=step):
            return st.integers(min_value=least, max_value=most).map(lambda number: number * (step or 1))
        case inspect.FloatType(ge=ge, gt=gt, le=le, lt=lt):
            least, most = (gt if ge is None else ge), (lt if le is None else le)
            limits = {"exclude_min": gt is not None, "exclude_max": lt is not None}
            return st.floats(min_value=least, max_value=most, **limits, allow_nan=False, allow_infinity=False)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(strategy_of, items))
        case inspect.VarTupleType(item_type=item):
            return st.lists(strategy_of(item), max_size=6).map(tuple)
        case inspect.Metadata(type=inner):
            return strategy_of(inner)
    return st.text(alphabet="abcXYZ019/_-.= ,", max_size=12).map(str.strip)


# Plain values only: inside a strategy the type checks of the tests must not run, for they draw random numbers.
VALUES = st.fixed_dictionaries({key: strategy_of(inspect.type_info(entry.type)) for key, entry in FIELDS.items()})


def config_of(values):
    def part(prefix, kind):
        return {entry.name: values[f"{prefix}{entry.name}"] for entry in fields(kind) if entry.name not in SECTIONS}

    return RunConfig(**part("", RunConfig), **{name: kind(**part(f"{name}.", kind)) for name, kind in SECTIONS.items()})


def problems_of(*pairs):
    """Return the problems of the default with these pairs, one line each."""
    with pytest.raises(ConfigError) as caught:
        validate(with_overrides(DEFAULT, list(pairs)))
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("seed=7", 7),
        ("run_dir=build/a b=c", "build/a b=c"),
        ("optimizer.batch_size=16", 16),
        ("optimizer.learning_rate=1e-3", 0.001),
        ("optimizer.learning_rate=1", 1.0),
        ("optimizer.learning_rate=.5", 0.5),
        ("data.shuffle=false", False),
        ("data.negatives=True", True),
        ("optimizer.decay_steps=1,2,3", (1, 2, 3)),
        ("optimizer.decay_steps=[1, 2, 3]", (1, 2, 3)),
        ("optimizer.decay_steps=(5,)", (5,)),
        ("optimizer.decay_steps=", ()),
        ("model.stage_blocks=1,1,2,1", (1, 1, 2, 1)),
        ("data.pixel_means_bgr=1,2.5,3e0", (1.0, 2.5, 3.0)),
        ("model.backbone_weights=", ""),
        ("speed.without=packed_positives, triton_kernels", ("packed_positives", "triton_kernels")),
        ("mlperf.organization=1", "1"),
        ("mlperf.organization=~us", "~us"),
    ],
)
def test_a_value_is_read_by_the_type_of_its_field(pair, value):
    key = pair.partition("=")[0]
    changed = with_overrides(DEFAULT, [pair])
    found = flatten(changed)[key]
    assert found == value and type(found) is type(value)
    assert set(differences(changed, DEFAULT)) <= {key}


def test_the_other_values_stay_and_the_later_of_two_overrides_of_one_key_counts():
    changed = with_overrides(DEFAULT, ["optimizer.batch_size=3", "optimizer.batch_size=4", "model.num_classes=9"])
    assert differences(changed, DEFAULT) == {"optimizer.batch_size": 4, "model.num_classes": 9}


@pytest.mark.parametrize(
    ("pair", "allowed"),
    [
        *((f"optimizer.batch_size={text}", "an integer >= 1") for text in ("4.0", ".5", "", "1_000", "true", "0")),
        *((f"optimizer.learning_rate={text}", "a number > 0") for text in ("fast", "nan", "inf", "1e999", "0.0")),
        *((f"data.shuffle={text}", "true or false") for text in ("1", "yes")),
        *((f"model.stage_blocks={text}", "4 values") for text in ("1,2,3", "1,2,3,x", "1,0,1,1")),
        ("optimizer.decay_steps=1,,2", "an integer"),
        ("optimizer.decay_steps=0,5", "an integer >= 1"),
        ("data.pixel_means_bgr=1,2", "3 values"),
        ("data.pixel_means_bgr=1.0,2.0,256.0", "<= 255"),
        ("seed=-2", ">= -1"),
        ("seed=4611686018427387905", "<= 4611686018427387904"),
        *((f"data.flip_probability={text}", ">= 0 and <= 1") for text in ("1.5", "-0.1")),
        ("data.size_divisor=48", "a multiple of 32"),
        ("model.rpn_iou_thresholds=0.3,1.1", "2 values"),
        ("model.frozen_stages=6", "<= 5"),
        ("model.anchor_ratios=0.5,0.0", "> 0"),
        ("model.detection_nms_iou=1.1", "> 0 and <= 1"),
        ("optimizer.momentum=1.0", "< 1"),
        ("system.device=tpu", "auto or cpu or cuda"),
        ("speed.without=captured_steps,packed_positive", "did you mean packed_positives?"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_key_value_and_what_is_allowed(pair, allowed):
    (problem,) = problems_of(pair)
    assert problem.startswith(f"{pair}: ") and allowed in problem


def test_every_key_has_limits_choices_or_is_free_text_and_defaults_and_edges_are_valid():
    for pairs in ([], ["seed=4611686018427387904", "model.num_classes=0", "data.flip_probability=0"]):
        validate(with_overrides(DEFAULT, pairs))
    for key, entry in FIELDS.items():
        kind = describe_type(entry.type)
        assert kind not in ("an integer", "a number"), key
        assert (kind == "text") == (key in {*NAMES, *PATHS}), key
        assert key == "recipe" or check_value(flatten(DEFAULT)[key], entry.type) == flatten(DEFAULT)[key]


@pytest.mark.parametrize(
    ("pairs", "start"),
    [
        (["data.short_side=2000"], "data.short_side=2000: must not be above data.long_side=1333"),
        (["data.short_sides=640,1400"], "data.short_sides=640,1400: none may be above data.long_side=1333"),
        (["data.scale_jitter=2,0.5"], "data.scale_jitter=2.0,0.5: the first must not be above"),
        (["data.train_json=a.json"], "data.train_images="),
        (["data.val_images=a"], "data.val_json="),
        (["data.root="], "data.root="),
        *((["data.generate_images=" + text], f"data.generate_images={text}: give") for text in ("0,3", "3", "1,2,3,4")),
        (["model.num_classes=1"], "model.num_classes=1: 1 is the background alone"),
        (["model.rpn_iou_thresholds=0.8,0.7"], "model.rpn_iou_thresholds=0.8,0.7"),
        (["model.anchor_sizes=32,64"], "model.anchor_sizes=32,64: needs 5 sizes"),
        (["model.anchor_ratios="], "model.anchor_ratios="),
        (["optimizer.batch_size=6", "optimizer.accumulation_steps=4"], "optimizer.batch_size=6"),
        (["optimizer.decay_steps=20,10"], "optimizer.decay_steps=20,10"),
        (["optimizer.decay_steps=10,10"], "optimizer.decay_steps=10,10"),
    ],
)
def test_values_that_do_not_go_together_are_refused(pairs, start):
    (problem,) = problems_of(*pairs)
    assert problem.startswith(start)


def test_all_problems_are_named_at_once():
    pairs = ["seed=x", "data.shuffle=false", "lerning_rate=1", "data.root=~nobody-here/x", "system.device=tpu"]
    lines = problems_of(*pairs)
    assert [line.partition("=")[0] for line in lines if "=" in line] == ["seed", "data.root", "system.device"]
    assert len(lines) == 4 and "data.root=~nobody-here/x: there is no user 'nobody-here'" in lines[2]
    config = replace(DEFAULT, data=DataConfig(flip_probability=2.0, short_side=0), model=ModelConfig(num_classes=1))
    with pytest.raises(ConfigError) as caught:
        validate(config)
    found = {line.partition("=")[0] for line in str(caught.value).splitlines()}
    assert found == {"data.flip_probability", "data.short_side", "model.num_classes"}


@pytest.mark.parametrize(
    ("pair", "hint"),
    [
        ("batch_size=4", "did you mean optimizer.batch_size or evaluation.batch_size?"),
        ("max_epochs=1", "did you mean optimizer.max_epochs?"),
        ("lr=1", "did you mean optimizer.learning_rate?"),
        ("train.imgsz=640", "did you mean data.short_side or data.long_side?"),
        ("Grad-Accum=2", "did you mean optimizer.accumulation_steps?"),
        ("gpus=8", "did you mean processes?"),
        ("model.momentum=0.5", "did you mean optimizer.momentum?"),
        ("optimizer.learningrate=1", "did you mean optimizer.learning_rate?"),
        ("sed=1", "did you mean seed?"),
        ("optimizer=1", "optimizer.learning_rate"),
        ("speed.triton_kernels=false", "speed.without=triton_kernels"),
        ("data.generate_val_images=3", "data.generate_images"),
        ("data.generate=false", "data.generate_images=0,0"),
        ("model.rpn_positive_iou=0.5", "model.rpn_iou_thresholds"),
        ("evaluation.max_detections=300", "model.detections_per_image"),
        ("qqqqqq=1", "keys look like optimizer.batch_size"),
        ("recipe=coco", "maskperf run coco"),
        ("optimizer.max_epochs", "key=value"),
    ],
)
def test_a_key_that_cannot_be_used_is_refused_with_the_nearest_valid_one(pair, hint):
    (problem,) = problems_of(pair)
    assert pair.partition("=")[0] in problem and hint in problem


def test_the_keys_are_in_the_order_of_the_configuration():
    sections = ("data", "model", "optimizer", "evaluation", "speed", "system", "log", "checkpoint", "mlperf")
    expected = [f"{name}.{entry.name}" for name in sections for entry in fields(getattr(DEFAULT, name))]
    assert list(flatten(DEFAULT)) == ["recipe", "run_dir", "seed", *expected]


@settings(max_examples=40)
@given(VALUES)
def test_json_text_and_the_printed_lines_give_an_equal_configuration_back(values):
    config = config_of(values)
    assert from_json_text(to_json_text(config)) == config
    pairs = [f"{key}={format_value(value)}" for key, value in flatten(config).items() if key != "recipe"]
    assert with_overrides(RunConfig(recipe=config.recipe), pairs) == config


def test_values_are_printed_as_they_are_written_in_an_override():
    values = (True, 3, 1e-4, (1, 2), (), "a b")
    assert list(map(format_value, values)) == ["true", "3", "0.0001", "1,2", "", "a b"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"recipe": "demo",', "", "recipe is missing"),
        ('"seed": -1,', '"seed": -1, "sead": 1,', "'sead'"),
        ('"seed": -1,', '"seed": -1, "seed": 2,', "seed is given twice"),
        *(('"seed": -1,', f'"seed": {value},', f"seed={value}: ") for value in ("true", '"1"', "1.0", "null")),
        ('"momentum": 0.9,', '"momentum": "0.9",', "optimizer.momentum="),
        ('"momentum": 0.9,', '"momentum": NaN,', "NaN"),
        ('"momentum": 0.9,', '"momentum": 1e999,', "optimizer.momentum="),
        ('"shuffle": true,', '"shuffle": 1,', "data.shuffle=1"),
        ('"num_classes": 81,', '"num_classes": 81, "depth": 50,', "model.depth"),
        ('"threads": 0,', '"threads": 0, "threads_of_old": 2,', "system.threads_of_old"),
        ("      3,\n", "", "model.stage_blocks="),
        ('"system": {', '"system": 3, "other": {', "system is a section"),
        ('"seed": -1,', '"seed": -1', "not valid JSON"),
    ],
)
def test_json_text_that_is_not_exactly_a_configuration_is_refused(old, new, expected):
    text = to_json_text(DEFAULT)
    assert old in text
    for spoilt, named in ((text.replace(old, new, 1), expected), ("[]", "must be an object")):
        with pytest.raises(ConfigError, match="configuration: ") as caught:
            from_json_text(spoilt)
        assert named in str(caught.value)


def test_keys_that_came_after_a_configuration_was_written_have_their_defaults_and_the_notice_stays_short():
    config = RunConfig(recipe="x", seed=5, optimizer=OptimizerConfig(batch_size=4))
    nested = json.loads(to_json_text(config))
    assert notices_of_age(json.dumps(nested)) == []
    del nested["system"]["threads"], nested["optimizer"]["momentum"]
    (notice,) = notices_of_age(json.dumps(nested))
    assert from_json_text(json.dumps(nested)) == config
    assert "without optimizer.momentum, system.threads; these have their defaults" in notice
    del nested["model"]
    (notice,) = notices_of_age(json.dumps(nested))
    assert from_json_text(json.dumps(nested)) == config
    assert notice.count("model.") == 10 and f" and {len(fields(ModelConfig)) + 2 - 10} more;" in notice


EARLIER_VALUES = {
    "data.generate_train_images": 1000,
    "data.generate_val_images": 200,
    "data.generate_seed": 7,
    "data.prefetch_batches": 9,
    "model.rpn_negative_iou": 0.2,
    "model.rpn_positive_iou": 0.6,
    "model.candidates_per_level_train": 20,
    "model.candidates_per_level_test": 10,
    "optimizer.bias_learning_rate_factor": 1.0,
    "optimizer.bias_weight_decay": 0.5,
    "evaluation.max_detections": 50,
    "speed.triton_kernels": False,
}


@pytest.mark.parametrize(
    ("generate", "path", "images", "without"),
    [(True, "fast", (1000, 200, 7), ()), (False, "plain", (0, 0), ("all",))],
)
def test_a_configuration_with_the_keys_of_an_earlier_version_means_the_same(generate, path, images, without):
    expected = {"data.generate_images": images, "model.rpn_iou_thresholds": (0.2, 0.6), "speed.without": without}
    expected |= {"model.candidates_per_level": (20, 10), "optimizer.biases": (1.0, 0.5)}
    nested = json.loads(to_json_text(DEFAULT))
    for key in expected.keys() - {"speed.without"}:
        section, _, name = key.partition(".")
        del nested[section][name]
    for key, value in {**EARLIER_VALUES, "data.generate": generate, "speed.path": path}.items():
        section, _, name = key.partition(".")
        nested[section][name] = value
    found = flatten(from_json_text(json.dumps(nested)))
    assert {key: found[key] for key in expected} == expected and notices_of_age(json.dumps(nested)) == []


@pytest.mark.parametrize("key", PATHS)
def test_a_tilde_in_a_path_of_the_configuration_is_the_home_folder(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for text, expected in (("~/x y", "/home/somebody/x y"), (" ~ ", "/home/somebody"), ("./~/x", "./~/x"), ("", "")):
        assert flatten(with_overrides(DEFAULT, [f"{key}={text}"]))[key] == expected


@pytest.mark.parametrize("path", ["~", "~/x", "~x", "./~/x", "a", "/a/~", "a/~"])
def test_a_path_as_an_argument_means_the_same_path(path):
    assert Path(expand_home(path_as_argument(Path(path)))) == Path(path)
