"""How words such as `optimizer.max_epochs=1` change a configuration, and which configurations can be used.

Everywhere here a value is known by its key: `seed` at the top, `optimizer.batch_size` inside a section.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

from maskperf.config import RunConfig
from maskperf.config_limits import CHOICES, PATHS, RANGES
from maskperf.errors import ConfigError
from maskperf.files import did_you_mean
from maskperf.techniques import TECHNIQUE_NAMES

SECTIONS: dict[str, Any] = {entry.name: entry.type for entry in fields(RunConfig) if is_dataclass(entry.type)}
TYPE_OF_KEY: dict[str, Any] = {
    **{entry.name: entry.type for entry in fields(RunConfig) if entry.name not in SECTIONS},
    **{f"{name}.{entry.name}": entry.type for name, section in SECTIONS.items() for entry in fields(section)},
}
MOST_KEYS_NAMED = 10
# Keys of earlier versions. Techniques never changed results, so their switches are ignored.
EARLIER_SWITCHES = frozenset(f"speed.{name}" for name in TECHNIQUE_NAMES)
EARLIER_COUNTS = ("data.generate_train_images", "data.generate_val_images")  # now data.generate_images


def with_overrides(config: RunConfig, pairs: list[str]) -> RunConfig:
    """Return `config` with each `key=value` of `pairs` put in; of two with the same key the later one counts.

    Errors: ConfigError with one line per pair that cannot be used, all of them found in one pass.
    """
    values, problems = flatten(config), []
    for pair in pairs:
        try:
            key, value = _parse_pair(pair)
            values[key] = value
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return _from_flat(values)


def flatten(config: RunConfig) -> dict[str, Any]:
    """Return every value under its key, in the order of the configuration."""
    values = {}
    for key in TYPE_OF_KEY:
        section, _, name = key.rpartition(".")
        values[key] = getattr(getattr(config, section) if section else config, name)
    return values


def differences(config: RunConfig, default: RunConfig) -> dict[str, Any]:
    """Return the values of `config`, under their keys, that are not those of `default`."""
    default_values = flatten(default)
    return {key: value for key, value in flatten(config).items() if value != default_values[key]}


def describe(config: RunConfig) -> str:
    """Return one `key=value` line per value; every line but that of the recipe can be used as an override."""
    return "\n".join(f"{key}={format_value(value)}" for key, value in flatten(config).items())


def format_value(value: Any) -> str:
    """Return a value as it is written in an override."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(format_value(item) for item in value)
    return str(value)


def path_of_word(word: str) -> str:
    """Return the path that a user means: `~` and `~name` at its start are home folders, as a shell has it.

    A shell leaves them alone behind an equals sign. What really begins with a tilde is reached as `./~`.
    Errors: ConfigError for a user who is unknown.
    """
    path = os.path.expanduser(word)
    if not path.startswith("~"):
        return path
    owner = word.partition("/")[0][1:]
    problem = f"there is no user {owner!r} on this machine" if owner else "this user has no home folder (HOME)"
    raise ConfigError(f"{word}: {problem}. Fix: give the whole path, or ./{word} for a file of this name")


def word_of_path(path: Path) -> str:
    """Return the word that `path_of_word` makes this path of."""
    return f"./{path}" if str(path).startswith("~") else str(path)


def to_json_text(config: RunConfig) -> str:
    """Return the configuration as JSON; `from_json_text` gives an equal one back."""
    nested: dict[str, Any] = {}
    for key, value in flatten(config).items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return json.dumps(nested, indent=2, allow_nan=False) + "\n"


def from_json_text(text: str) -> RunConfig:
    """Return the configuration that `to_json_text` wrote, of this version or an earlier one.

    A key that came later has the default, which is what the earlier version did; see `notices_of_age`.
    Errors: ConfigError for text that is not JSON, and for keys that are unknown, doubled or of another type.
    """
    found = _flat_json(text)
    problems = [f"configuration: {unknown_key_message(key)}" for key in found if key not in TYPE_OF_KEY]
    problems += ["configuration: recipe is missing"] if "recipe" not in found else []
    values = {}
    for key, wanted in TYPE_OF_KEY.items():
        if key in found:
            try:
                values[key] = _check_json_value(key, found[key], wanted)
            except ConfigError as error:
                problems.append(f"configuration: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return _from_flat(values)


def notices_of_age(text: str) -> list[str]:
    """Return a sentence about the keys that came after a configuration was written; nothing where there are none."""
    found = _flat_json(text)
    missing = [key for key in TYPE_OF_KEY if key not in found]
    names = ", ".join(missing[:MOST_KEYS_NAMED])
    more = f" and {len(missing) - MOST_KEYS_NAMED} more" if len(missing) > MOST_KEYS_NAMED else ""
    return [f"written by an earlier version, without {names}{more}; these have their defaults"] if missing else []


def _flat_json(text: str) -> dict[str, Any]:
    """Return every value of a configuration in JSON under its key, nothing checked but the form."""
    try:
        nested = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"configuration: not valid JSON, {error}") from error
    if not isinstance(nested, dict):
        raise ConfigError("configuration: the JSON text must be an object with one entry per value or section")
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if name in SECTIONS and isinstance(value, dict):
            found.update({f"{name}.{inner}": item for inner, item in value.items()})
        else:
            found[name] = value
    if all(key in found for key in EARLIER_COUNTS):
        found["data.generate_images"] = [found.pop(key) for key in EARLIER_COUNTS]
    return {key: value for key, value in found.items() if key not in EARLIER_SWITCHES}


def validate(config: RunConfig) -> None:
    """Return nothing.

    Errors: one ConfigError with a line for every value that cannot be used, alone or beside another.
    """
    values = flatten(config)
    problems = [
        f"{key}={name}: unknown; allowed are {', '.join(allowed)}{did_you_mean(name, allowed)}"
        for key, allowed in CHOICES.items()
        for name in _items_of(values[key])
        if name not in allowed
    ]
    for allowed, fits, keys in RANGES:
        for key in keys.split():
            if not all(fits(number) for number in _items_of(values[key])):
                problems.append(f"{key}={format_value(values[key])}: out of range; allowed is {allowed}")
    problems += [f"{key}={format_value(values[key])}: {text}" for key, text in _conflicts(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _items_of(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _conflicts(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield a key and what is wrong with its value for every value that does not go with another one."""
    data, model, optimizer = config.data, config.model, config.optimizer
    if data.short_side > data.long_side:
        yield "data.short_side", f"must not be above data.long_side={data.long_side}"
    for split in ("train", "val"):
        given = {f"data.{split}_{kind}": getattr(data, f"{split}_{kind}") for kind in ("json", "images")}
        for key in (key for key, value in given.items() if not value and any(given.values())):
            yield key, f"{' and '.join(given)} go together; give this one too"
    if not data.root and not (data.train_json and data.val_json):
        yield "data.root", "name the folder of the data set, or give data.train_json, data.val_json and their images"
    if data.generate and not all(data.generate_images):
        yield "data.generate_images", "both must be 1 or more while data.generate=true"
    if model.rpn_negative_iou > model.rpn_positive_iou:
        yield "model.rpn_negative_iou", f"must not be above model.rpn_positive_iou={model.rpn_positive_iou}"
    if len(model.anchor_sizes) != 5:
        yield "model.anchor_sizes", f"needs 5 sizes, one for each level P2 to P6; there are {len(model.anchor_sizes)}"
    if not model.anchor_ratios:
        yield "model.anchor_ratios", "needs one ratio or more"
    if optimizer.accumulation_steps >= 1 and optimizer.batch_size % optimizer.accumulation_steps:
        yield "optimizer.batch_size", f"must be a multiple of accumulation_steps={optimizer.accumulation_steps}"
    if any(first >= second for first, second in pairwise(optimizer.decay_steps)):
        yield "optimizer.decay_steps", "each step must be later than the one before it"


def unknown_key_message(key: str) -> str:
    """Return a sentence that names the unknown key and the valid keys nearest to it."""
    if key in SECTIONS:
        return f"{key} is a section; its keys are {', '.join(k for k in TYPE_OF_KEY if k.startswith(key + '.'))}"
    if key in EARLIER_SWITCHES:
        return f"unknown key {key!r}; a technique is switched off by speed.without={key.partition('.')[2]}"
    if key in EARLIER_COUNTS:
        return f"unknown key {key!r}; the numbers of training and validation images are data.generate_images=1000,200"
    last = key.rpartition(".")[2]
    keys_of_name: dict[str, list[str]] = {}
    for valid in TYPE_OF_KEY:
        keys_of_name.setdefault(valid.rpartition(".")[2], []).append(valid)
    nearest = keys_of_name.get(last) or difflib.get_close_matches(key, TYPE_OF_KEY, n=1, cutoff=0.75)
    if not nearest:
        names = difflib.get_close_matches(last, keys_of_name, n=1, cutoff=0.6)
        nearest = keys_of_name[names[0]] if names else []
    if nearest:
        return f"unknown key {key!r}; did you mean {' or '.join(nearest)}?"
    return f"unknown key {key!r}; keys look like {next(k for k in TYPE_OF_KEY if k.startswith('optimizer.'))}"


def _parse_pair(pair: str) -> tuple[str, Any]:
    key, equals, text = pair.partition("=")
    key = key.strip()
    if not equals:
        raise ConfigError(f"{pair!r} is not an override; write key=value, for example optimizer.max_epochs=1")
    if key == "recipe":
        raise ConfigError(f"recipe={text}: the recipe cannot be overridden; name it instead: maskperf run {text}")
    if key not in TYPE_OF_KEY:
        raise ConfigError(unknown_key_message(key))
    if key in PATHS:
        try:
            return key, path_of_word(text.strip())
        except ConfigError as error:
            raise ConfigError(f"{key}={error}") from error
    return key, _parse_value(key, text.strip(), TYPE_OF_KEY[key])


def _parse_value(key: str, text: str, wanted: Any) -> Any:
    if get_origin(wanted) is tuple:
        inner = text[1:-1] if (text[:1], text[-1:]) in (("(", ")"), ("[", "]")) else text
        words = [word.strip() for word in inner.split(",")]
        if words[-1] == "":
            words.pop()  # nothing at all, or a comma at the end
        return tuple(_parse_item(key, text, word, kind) for word, kind in _items(key, text, words, wanted))
    return _parse_item(key, text, text, wanted)


def _parse_item(key: str, text: str, word: str, wanted: Any) -> Any:
    if wanted is str:
        return word
    if wanted is bool and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if wanted is int and re.fullmatch(r"[+-]?[0-9]+", word):
        return int(word)
    if wanted is float and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", word):
        number = float(word)
        if math.isfinite(number):
            return number
    raise _wrong_type(key, text, TYPE_OF_KEY[key])


def _check_json_value(key: str, value: Any, wanted: Any) -> Any:
    if get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise _wrong_type(key, json.dumps(value), wanted)
        return tuple(_check_json_item(key, item, kind) for item, kind in _items(key, json.dumps(value), value, wanted))
    return _check_json_item(key, value, wanted)


def _check_json_item(key: str, value: Any, wanted: Any) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted or (wanted is float and not math.isfinite(value)):
        raise _wrong_type(key, json.dumps(value), TYPE_OF_KEY[key])
    return value


def _items(key: str, text: str, items: list, wanted: Any) -> Iterator[tuple[Any, Any]]:
    """Return each item of a list with the type it must have."""
    kinds = get_args(wanted)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(items)
    if len(items) != len(kinds):
        raise _wrong_type(key, text, wanted)
    return zip(items, kinds, strict=True)


def _wrong_type(key: str, text: str, wanted: Any) -> ConfigError:
    singular = {
        bool: "true or false",
        int: "a whole number such as 4",
        float: "a number such as 0.02 or 1e-3",
        str: "text",
    }
    allowed = singular.get(wanted, "")
    if get_origin(wanted) is tuple:
        kinds = get_args(wanted)
        count = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
        plural = {int: "whole numbers", float: "numbers", str: "names"}[kinds[0]]
        allowed = f"{count}{plural} with commas, such as {'a,b' if kinds[0] is str else '1,2,3,4'}"
    return ConfigError(f"{key}={text}: cannot be used; allowed is {allowed}")


def _from_flat(values: dict[str, Any]) -> RunConfig:
    parts: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    top = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (parts[section] if section else top)[name] = value
    return RunConfig(**top, **{name: section(**parts[name]) for name, section in SECTIONS.items()})


def _without_doubles(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in entries]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f"configuration: {', '.join(doubled)} stands there twice")
    return dict(entries)


def _refuse_constant(word: str) -> Any:
    raise ConfigError(f"configuration: {word} is not a number that can be used")
