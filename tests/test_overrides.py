import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskperf.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, SpeedConfig
from maskperf.config_limits import CHOICES, PATHS
from maskperf.errors import ConfigError
from maskperf.overrides import (
    SECTIONS,
    TYPE_OF_KEY,
    describe,
    differences,
    flatten,
    format_value,
    from_json_text,
    notices_of_age,
    path_of_word,
    to_json_text,
    with_overrides,
    word_of_path,
)
from maskperf.techniques import TECHNIQUE_NAMES

DEFAULT = RunConfig(recipe="demo")

FINITE = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(alphabet="abcXYZ019/_-.= ,", max_size=12).map(str.strip)
NAMES_IN_LISTS = st.text(alphabet="abcXYZ019/_-.", min_size=1, max_size=12)
STRATEGY_OF_TYPE = {
    str: WORDS,
    int: st.integers(),
    bool: st.booleans(),
    float: FINITE,
    tuple[int, ...]: st.lists(st.integers(), max_size=6).map(tuple),
    tuple[str, ...]: st.lists(NAMES_IN_LISTS, max_size=4).map(tuple),
    tuple[int, int]: st.tuples(st.integers(), st.integers()),
    tuple[float, ...]: st.lists(FINITE, max_size=6).map(tuple),
    tuple[float, float, float]: st.tuples(FINITE, FINITE, FINITE),
    tuple[int, int, int, int]: st.tuples(*[st.integers()] * 4),
}


# Plain values only: inside a strategy the type checks of the tests must not run, for they draw random numbers.
VALUES = st.fixed_dictionaries({key: STRATEGY_OF_TYPE[kind] for key, kind in TYPE_OF_KEY.items()})


def config_of(values):
    parts = {
        name: section(**{entry.name: values[f"{name}.{entry.name}"] for entry in fields(section)})
        for name, section in SECTIONS.items()
    }
    return RunConfig(recipe=values["recipe"], run_dir=values["run_dir"], seed=values["seed"], **parts)


def message_of(pair):
    with pytest.raises(ConfigError) as caught:
        with_overrides(DEFAULT, [pair])
    return str(caught.value)


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("seed=7", "seed", 7),
        ("run_dir=build/a b=c", "run_dir", "build/a b=c"),
        ("optimizer.batch_size=16", "optimizer.batch_size", 16),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate", 0.001),
        ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("optimizer.learning_rate=.5", "optimizer.learning_rate", 0.5),
        ("data.shuffle=false", "data.shuffle", False),
        ("data.generate=True", "data.generate", True),
        ("optimizer.decay_steps=1,2,3", "optimizer.decay_steps", (1, 2, 3)),
        ("optimizer.decay_steps=[1, 2, 3]", "optimizer.decay_steps", (1, 2, 3)),
        ("optimizer.decay_steps=(5,)", "optimizer.decay_steps", (5,)),
        ("optimizer.decay_steps=", "optimizer.decay_steps", ()),
        ("model.stage_blocks=1,1,2,1", "model.stage_blocks", (1, 1, 2, 1)),
        ("data.pixel_means_bgr=1,2.5,3e0", "data.pixel_means_bgr", (1.0, 2.5, 3.0)),
        ("model.backbone_weights=", "model.backbone_weights", ""),
        ("speed.without=packed_positives, triton_kernels", "speed.without", ("packed_positives", "triton_kernels")),
    ],
)
def test_a_value_is_read_by_the_type_of_its_field(pair, key, value):
    changed = with_overrides(DEFAULT, [pair])
    found = flatten(changed)[key]
    assert found == value
    assert type(found) is type(value)
    assert set(differences(changed, DEFAULT)) <= {key}


def test_the_other_values_stay_and_the_original_is_untouched():
    start = RunConfig(recipe="demo", optimizer=OptimizerConfig(momentum=0.8))
    changed = with_overrides(start, ["optimizer.batch_size=4", "model.num_classes=9"])
    assert differences(changed, start) == {"optimizer.batch_size": 4, "model.num_classes": 9}
    assert changed.optimizer.momentum == 0.8
    assert start.optimizer.batch_size == 2


def test_the_later_of_two_overrides_of_one_key_counts():
    assert with_overrides(DEFAULT, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("pair", "allowed"),
    [
        ("optimizer.batch_size=4.0", "whole number"),
        ("optimizer.batch_size=", "whole number"),
        ("optimizer.batch_size=1_000", "whole number"),
        ("optimizer.learning_rate=fast", "number such as"),
        ("optimizer.learning_rate=nan", "number such as"),
        ("optimizer.learning_rate=inf", "number such as"),
        ("optimizer.learning_rate=1e999", "number such as"),
        ("data.shuffle=1", "true or false"),
        ("data.shuffle=yes", "true or false"),
        ("model.stage_blocks=1,2,3", "4 whole numbers"),
        ("model.stage_blocks=1,2,3,x", "4 whole numbers"),
        ("optimizer.decay_steps=1,,2", "whole numbers"),
        ("data.pixel_means_bgr=1,2", "3 numbers"),
    ],
)
def test_a_value_of_another_type_is_refused_with_field_value_and_what_is_allowed(pair, allowed):
    message = message_of(pair)
    assert pair in message
    assert allowed in message


@pytest.mark.parametrize(
    ("pair", "hint"),
    [
        ("batch_size=4", "did you mean optimizer.batch_size or evaluation.batch_size?"),
        ("max_epochs=1", "did you mean optimizer.max_epochs?"),
        ("model.momentum=0.5", "did you mean optimizer.momentum?"),
        ("optimizer.learningrate=1", "did you mean optimizer.learning_rate?"),
        ("learing_rate=1", "did you mean optimizer.learning_rate?"),
        ("sed=1", "did you mean seed?"),
        ("optimizer=1", "optimizer.learning_rate"),
        ("speed.triton_kernels=false", "speed.without=triton_kernels"),
        ("data.generate_val_images=3", "data.generate_images="),
        ("qqqqqq=1", "keys look like optimizer.batch_size"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(pair, hint):
    message = message_of(pair)
    assert pair.partition("=")[0] in message
    assert hint in message


def test_the_recipe_cannot_be_overridden():
    assert "maskperf run coco" in message_of("recipe=coco")


def test_a_word_without_an_equals_sign_is_refused_with_an_example():
    assert "key=value" in message_of("optimizer.max_epochs")


def test_all_bad_overrides_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        with_overrides(DEFAULT, ["seed=x", "data.shuffle=false", "lerning_rate=1"])
    assert len(str(caught.value).splitlines()) == 2


def test_flatten_has_every_field_once_in_the_order_of_the_configuration():
    keys = list(flatten(DEFAULT))
    expected = ["recipe", "run_dir", "seed"]
    for name in ("data", "model", "optimizer", "evaluation", "speed", "system", "mlperf"):
        expected += [f"{name}.{entry.name}" for entry in fields(getattr(DEFAULT, name))]
    assert keys == expected
    assert flatten(DEFAULT)["model.anchor_sizes"] == (32, 64, 128, 256, 512)


@settings(max_examples=40)
@given(VALUES)
def test_json_text_gives_an_equal_configuration_back(values):
    config = config_of(values)
    assert from_json_text(to_json_text(config)) == config


@settings(max_examples=40)
@given(VALUES)
def test_the_printed_lines_are_overrides_that_give_an_equal_configuration_back(values):
    config = config_of(values)
    lines = describe(config).splitlines()
    assert lines[0] == f"recipe={config.recipe}"
    assert with_overrides(RunConfig(recipe=config.recipe), lines[1:]) == config


def test_values_are_printed_as_they_are_written_in_an_override():
    assert [format_value(value) for value in (True, 3, 1e-4, (1, 2), (), "a b")] == [
        "true",
        "3",
        "0.0001",
        "1,2",
        "",
        "a b",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"recipe": "demo",', "", "recipe is missing"),
        ('"seed": -1,', '"seed": -1, "sead": 1,', "'sead'"),
        ('"seed": -1,', '"seed": -1, "seed": 2,', "seed stands there twice"),
        ('"seed": -1,', '"seed": true,', "seed=true"),
        ('"seed": -1,', '"seed": 1.5,', "seed=1.5"),
        ('"momentum": 0.9,', '"momentum": "0.9",', "optimizer.momentum="),
        ('"momentum": 0.9,', '"momentum": NaN,', "NaN"),
        ('"momentum": 0.9,', '"momentum": 1e999,', "optimizer.momentum="),
        ('"generate": false,', '"generate": 0,', "data.generate=0"),
        ('"num_classes": 81,', '"num_classes": 81, "depth": 50,', "model.depth"),
        ('"seed": -1,', '"seed": -1', "not valid JSON"),
    ],
)
def test_json_text_that_is_not_exactly_a_configuration_is_refused(old, new, expected):
    text = to_json_text(DEFAULT)
    assert old in text
    with pytest.raises(ConfigError, match="configuration: ") as caught:
        from_json_text(text.replace(old, new))
    assert expected in str(caught.value)


def test_json_text_with_tuples_of_another_length_or_no_object_is_refused():
    with pytest.raises(ConfigError, match="must be an object"):
        from_json_text("[]")
    short = to_json_text(RunConfig(recipe="x", model=ModelConfig(stage_blocks=(7, 7, 7, 7)))).replace(
        "      7,\n", "", 1
    )
    with pytest.raises(ConfigError, match=r"model\.stage_blocks"):
        from_json_text(short)


def test_a_section_that_is_no_object_is_refused():
    text = to_json_text(DEFAULT)
    start, end = text.index('"system": {'), text.index('"mlperf"')
    with pytest.raises(ConfigError) as caught:
        from_json_text(text[:start] + '"system": 3, ' + text[end:])
    assert "system is a section" in str(caught.value)


EARLIER = {  # text of a configuration that an earlier version did not write -> keys it lacks
    '  "seed": -1,\n': ["seed"],
    '    "skip_bad": false,\n': ["data.skip_bad"],
    '    "pixel_means_bgr": [\n      102.9801,\n      115.9465,\n      122.7717\n    ],\n': ["data.pixel_means_bgr"],
    '    "max_detections": 100,\n': ["evaluation.max_detections"],
    '    "every_epochs": 1,\n    "max_detections": 100,\n': ["evaluation.every_epochs", "evaluation.max_detections"],
    '    "momentum": 0.9,\n': ["optimizer.momentum"],
    '    "threads": 0,\n': ["system.threads"],
}


@pytest.mark.parametrize("cut", EARLIER)
def test_keys_that_came_after_a_configuration_was_written_have_their_defaults(cut):
    config = RunConfig(recipe="x", model=ModelConfig(num_classes=4))
    text = to_json_text(config)
    assert notices_of_age(text) == []
    assert cut in text
    older = text.replace(cut, "", 1)
    assert from_json_text(older) == config
    (notice,) = notices_of_age(older)
    assert f"without {', '.join(EARLIER[cut])};" in notice


def test_a_whole_section_that_came_later_has_its_defaults_and_the_notice_stays_short():
    nested = json.loads(to_json_text(RunConfig(recipe="x", seed=5)))
    for section in ("speed", "mlperf"):
        del nested[section]
    assert from_json_text(json.dumps(nested)) == RunConfig(recipe="x", seed=5)
    (notice,) = notices_of_age(json.dumps(nested))
    count = len(fields(DEFAULT.speed)) + len(fields(DEFAULT.mlperf))
    assert count <= 10 and notice.count("speed.") == len(fields(DEFAULT.speed))


def test_an_earlier_configuration_with_switches_of_techniques_and_two_counts_is_read():
    nested = json.loads(to_json_text(RunConfig(recipe="x", data=DataConfig(generate_images=(1000, 200)))))
    train, val = nested["data"].pop("generate_images")
    nested["data"] |= {"generate_train_images": train, "generate_val_images": val}
    nested["speed"] = {**dict.fromkeys(TECHNIQUE_NAMES, False), "precision": "float32"}
    config = from_json_text(json.dumps(nested))
    assert config.speed == SpeedConfig(precision="float32")
    assert config.data.generate_images == (1000, 200)
    (notice,) = notices_of_age(json.dumps(nested))
    assert "speed.path" in notice and "triton" not in notice


def test_an_earlier_configuration_with_a_key_that_is_gone_is_still_refused():
    nested = json.loads(to_json_text(DEFAULT))
    del nested["seed"]
    nested["data"]["threads_of_old"] = 2
    with pytest.raises(ConfigError, match=r"data\.threads_of_old"):
        from_json_text(json.dumps(nested))


NAMES = {"recipe", "mlperf.organization", "mlperf.platform"}


def test_every_text_of_the_configuration_is_a_choice_a_name_or_a_path():
    texts = {key for key, kind in TYPE_OF_KEY.items() if kind in (str, tuple[str, ...])}
    assert texts == {*CHOICES, *NAMES, *PATHS}


@pytest.mark.parametrize("key", PATHS)
def test_a_tilde_in_a_path_of_the_configuration_is_the_home_folder(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for text, expected in (("~/x y", "/home/somebody/x y"), (" ~ ", "/home/somebody"), ("./~/x", "./~/x"), ("", "")):
        assert flatten(with_overrides(DEFAULT, [f"{key}={text}"]))[key] == expected


def test_a_tilde_in_a_name_stays():
    assert with_overrides(DEFAULT, ["mlperf.organization=~us"]).mlperf.organization == "~us"


def test_unknown_users_are_errors_beside_all_others():
    with pytest.raises(ConfigError) as caught:
        with_overrides(DEFAULT, ["data.root=~nobody-here/x", "run_dir=~nobody-here", "seed=x"])
    lines = str(caught.value).splitlines()
    assert [line.partition("=")[0] for line in lines] == ["data.root", "run_dir", "seed"]
    assert "data.root=~nobody-here/x: there is no user 'nobody-here'" in lines[0]


@pytest.mark.parametrize("path", ["~", "~/x", "~x", "./~/x", "a", "/a/~", "a/~"])
def test_a_path_as_a_word_means_the_same_path(path):
    assert Path(path_of_word(word_of_path(Path(path)))) == Path(path)
