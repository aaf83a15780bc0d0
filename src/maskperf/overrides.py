"""Changes of a configuration by `key=value`, its JSON form, and which values its keys may have.

A value is known by its key everywhere: `seed` at the top, `optimizer.batch_size` inside a section.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect

from maskperf.config import FilePath, RunConfig, TechniqueName
from maskperf.errors import ConfigError
from maskperf.files import did_you_mean, pretty_json

SECTIONS: dict[str, Any] = {entry.name: entry.type for entry in fields(RunConfig) if is_dataclass(entry.type)}
FIELDS: dict[str, Field] = {
    **{entry.name: entry for entry in fields(RunConfig) if entry.name not in SECTIONS},
    **{f"{name}.{entry.name}": entry for name, section in SECTIONS.items() for entry in fields(section)},
}
PATHS = tuple(key for key, entry in FIELDS.items() if entry.type == FilePath)
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
MOST_KEYS_NAMED = 10
# Keys of earlier versions: what each value is a part of now, in the order of the parts, ...
MERGED = {
    "data.generate_images": ("data.generate_train_images", "data.generate_val_images"),
    "model.rpn_iou_thresholds": ("model.rpn_negative_iou", "model.rpn_positive_iou"),
    "model.candidates_per_level": ("model.candidates_per_level_train", "model.candidates_per_level_test"),
    "optimizer.biases": ("optimizer.bias_learning_rate_factor", "optimizer.bias_weight_decay"),
}
GONE = {  # ... and those that changed no result, so that a configuration may have any value of them
    "data.generate": "no synthetic data is data.generate_images=0,0",
    "data.generate_seed": "the seed is the third number of data.generate_images=1000,200,7",
    "data.prefetch_batches": "there are two for each of data.loader_threads",
    "evaluation.max_detections": "the metric counts model.detections_per_image, and 100 at least",
    "speed.path": "the plain path is speed.without=all",
    **{f"speed.{name}": f"a technique is switched off by speed.without={name}" for name in get_args(TechniqueName)},
}

# Names that other programs have for keys, `processes` of `maskperf run` included.
NAMES_ELSEWHERE: dict[str, tuple[str, ...]] = {
    name: tuple(keys.split())
    for names, keys in (
        ("lr lr0 base_lr", "optimizer.learning_rate"),
        ("imgsz img_size image_size img_scale", "data.short_side data.long_side"),
        ("min_size shortest_edge", "data.short_side"),
        ("max_size longest_edge", "data.long_side"),
        ("epochs max_epoch num_epochs n_epochs", "optimizer.max_epochs"),
        ("iterations max_iter max_iters num_steps", "optimizer.max_steps"),
        ("batch bs batch_size ims_per_batch samples_per_gpu", "optimizer.batch_size"),
        ("wd decay", "optimizer.weight_decay"),
        ("warmup warmup_iters warmup_epochs", "optimizer.warmup_steps"),
        ("milestones lr_steps lr_drop lr_decay_epochs", "optimizer.decay_steps"),
        ("gamma lr_factor", "optimizer.decay_factor"),
        ("accumulate grad_accum gradient_accumulation_steps", "optimizer.accumulation_steps"),
        ("workers num_workers", "data.loader_threads"),
        ("gpu cuda", "system.device"),
        ("gpus num_gpus nproc world_size", "processes"),
        ("random_state random_seed manual_seed", "seed"),
        ("amp fp16 half bf16 dtype mixed_precision", "speed.precision"),
        ("weights pretrained checkpoint load_from", "model.initial_weights model.backbone_weights"),
        ("data dataset data_dir data_path", "data.root"),
        ("nc classes", "model.num_classes"),
        ("conf conf_thres score_thr score_thresh", "model.score_threshold"),
        ("iou iou_thres nms nms_thresh", "model.detection_nms_iou"),
        ("max_det max_dets max_per_img", "model.detections_per_image"),
        ("anchors", "model.anchor_sizes model.anchor_ratios"),
        ("freeze freeze_at frozen trainable_layers", "model.frozen_stages"),
        ("flip fliplr hflip", "data.flip_probability"),
        ("multiscale multi_scale", "data.short_sides"),
        ("brightness contrast saturation hsv_s hsv_v color_jitter", "data.color"),
        ("augment augmentation", "data.short_sides data.color data.scale_jitter data.copy_paste"),
        ("lsj random_resize", "data.scale_jitter"),
        ("mean pixel_mean image_mean", "data.pixel_means_bgr"),
        ("output output_dir work_dir save_dir logdir project name", "run_dir"),
        ("log_interval print_freq log_every", "system.log_every_steps"),
        ("val_interval eval_interval eval_period", "evaluation.every_epochs"),
        ("num_threads cpus", "system.threads"),
        ("tb", "log.tensorboard"),
        ("wandb mlflow trackio logger", "log.trackers"),
    )
    for name in names.split()
}


def with_overrides(config: RunConfig, pairs: Sequence[str]) -> RunConfig:
    """Return `config` with each `key=value` of `pairs` put in; the last one of a key counts.

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


def key_of(pair: str) -> str:
    """Return the key of a `key=value`."""
    return pair.partition("=")[0].strip()


def flatten(config: RunConfig) -> dict[str, Any]:
    """Return every value under its key, in the order of the configuration."""
    return {key: attrgetter(key)(config) for key in FIELDS}


def differences(config: RunConfig, default: RunConfig) -> dict[str, Any]:
    """Return the values of `config`, under their keys, that are not those of `default`."""
    default_values = flatten(default)
    return {key: value for key, value in flatten(config).items() if value != default_values[key]}


def format_value(value: Any) -> str:
    """Return a value as it is written in an override."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(format_value(item) for item in value)
    return str(value)


def expand_home(text: str) -> str:
    """Return a path with `~` and `~name` at its start replaced by home folders, as a shell does.

    A shell leaves them alone behind an equals sign. A file whose name begins with a tilde is reached as `./~`.
    Errors: ConfigError for a user who is unknown.
    """
    path = os.path.expanduser(text)
    if not path.startswith("~"):
        return path
    owner = text.partition("/")[0][1:]
    problem = f"there is no user {owner!r} on this machine" if owner else "this user has no home folder (HOME)"
    raise ConfigError(f"{text}: {problem}. Fix: give the whole path, or ./{text} for a file of this name")


def path_as_argument(path: Path) -> str:
    """Return the text that `expand_home` turns into this path."""
    return f"./{path}" if str(path).startswith("~") else str(path)


def to_json_text(config: RunConfig) -> str:
    """Return the configuration as JSON; `from_json_text` gives an equal one back."""
    return pretty_json(config)


def from_json_text(text: str) -> RunConfig:
    """Return the configuration that `to_json_text` wrote, of this version or an earlier one.

    A key that came later has the default, which is what the earlier version did; see `notices_of_age`.
    Errors: ConfigError for text that is not JSON, and for keys that are unknown, doubled or of another type.
    """
    found = _flat_json(text)
    problems = [unknown_key_message(key) for key in found if key not in FIELDS]
    problems += ["recipe is missing"] if "recipe" not in found else []
    values, wrong = _checked({key: found[key] for key in FIELDS if key in found})
    problems += [f"{key}={json.dumps(found[key])}: {text}" for key, text in wrong.items()]
    if problems:
        raise ConfigError("\n".join(f"configuration: {problem}" for problem in problems))
    return _from_flat(values)


def notices_of_age(text: str) -> list[str]:
    """Return a sentence about the keys that came after a configuration was written; nothing where there are none."""
    found = _flat_json(text)
    missing = [key for key in FIELDS if key not in found]
    names = ", ".join(missing[:MOST_KEYS_NAMED])
    more = f" and {len(missing) - MOST_KEYS_NAMED} more" if len(missing) > MOST_KEYS_NAMED else ""
    return [f"written by an earlier version, without {names}{more}; these have their defaults"] if missing else []


def _flat_json(text: str) -> dict[str, Any]:
    """Return every value of a configuration in JSON under its key, nothing checked but the form."""
    try:
        nested = json.loads(text, object_pairs_hook=_without_duplicates)
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
    for key, parts in MERGED.items():
        if all(part in found for part in parts):
            found[key] = [found.pop(part) for part in parts]
    if found.get("data.generate") is False:
        found["data.generate_images"] = [0, 0]
    elif isinstance(found.get("data.generate_images"), list) and "data.generate_seed" in found:
        found["data.generate_images"].append(found["data.generate_seed"])
    if found.get("speed.path") == "plain":
        found["speed.without"] = ["all"]
    return {key: value for key, value in found.items() if key not in GONE}


def validate(config: RunConfig) -> RunConfig:
    """Return the configuration. Errors: ConfigError with each value that cannot be used, alone or beside another."""
    values = flatten(config)
    problems = {**dict(_conflicts(config)), **_checked(values)[1]}
    if problems:
        raise ConfigError("\n".join(f"{key}={format_value(values[key])}: {text}" for key, text in problems.items()))
    return config


def _checked(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values that their keys allow, converted, and what is wrong with each of the others."""
    converted, problems = {}, {}
    for key, value in values.items():
        try:
            converted[key] = check_value(value, FIELDS[key].type)
        except ValueError as error:
            problems[key] = str(error)
    return converted, problems


def _conflicts(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield a key and what is wrong with its value for every value that does not go with another one."""
    data, model, optimizer = config.data, config.model, config.optimizer
    if data.short_side > data.long_side:
        yield "data.short_side", f"must not be above data.long_side={data.long_side}"
    if max(data.short_sides, default=0) > data.long_side:
        yield "data.short_sides", f"none may be above data.long_side={data.long_side}"
    if data.scale_jitter[0] > data.scale_jitter[1]:
        yield "data.scale_jitter", "the first must not be above the second"
    for split in ("train", "val"):
        given = {f"data.{split}_{kind}": getattr(data, f"{split}_{kind}") for kind in ("json", "images")}
        for key in (key for key, value in given.items() if not value and any(given.values())):
            yield key, f"{' and '.join(given)} go together; give this one too"
    if data.holdout[0] and data.val_json:
        yield "data.holdout", f"a part of the training images and data.val_json={data.val_json} exclude each other"
    if len(data.generate_images) not in (2, 3) or (data.is_generated and not all(data.generate_images[:2])):
        yield "data.generate_images", "give TRAINING,VALIDATION or TRAINING,VALIDATION,SEED; both 1 or more, or both 0"
    if not data.root and not (data.train_json and (data.val_json or data.holdout[0])):
        yield "data.root", "name the folder of the data set, or give data.train_json, data.val_json and their images"
    if model.num_classes == 1:
        yield "model.num_classes", "1 is the background alone; give 0 (as many as the data has), or 2 or more"
    if model.rpn_iou_thresholds[0] > model.rpn_iou_thresholds[1]:
        yield "model.rpn_iou_thresholds", "the first must not be above the second"
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
        return f"{key} is a section; its keys are {', '.join(k for k in FIELDS if k.startswith(key + '.'))}"
    earlier = GONE | {part: f"it is a part of {new}" for new, parts in MERGED.items() for part in parts}
    if key in earlier:
        return f"unknown key {key!r}; {earlier[key]}"
    same_name = [valid for valid in FIELDS if valid.rpartition(".")[2] == key.rpartition(".")[2]]
    meant = same_name or NAMES_ELSEWHERE.get(key.rpartition(".")[2].lower().replace("-", "_"), ())
    hint = f"; did you mean {' or '.join(meant)}?" if meant else did_you_mean(key, FIELDS, cutoff=0.6)
    return f"unknown key {key!r}{hint or '; keys look like optimizer.batch_size, and maskperf keys lists them'}"


def _parse_pair(pair: str) -> tuple[str, Any]:
    key, equals, text = (part.strip() for part in pair.partition("="))
    if not equals:
        raise ConfigError(f"{pair!r} is not an override; write key=value, for example optimizer.max_epochs=1")
    if key == "recipe":
        raise ConfigError(f"recipe={text}: the recipe cannot be overridden; name it instead: maskperf run {text}")
    if key not in FIELDS:
        raise ConfigError(unknown_key_message(key))
    try:
        return key, expand_home(text) if key in PATHS else parse_value(text, FIELDS[key].type)
    except ConfigError as error:
        raise ConfigError(f"{key}={error}") from error
    except ValueError as error:
        raise ConfigError(f"{key}={text}: {error}") from error


def parse_value(text: str, kind: Any) -> Any:
    """Convert text to a value of a type with limits, such as `Annotated[int, Meta(ge=1)]`.

    Errors: ValueError with what is allowed.
    """
    info = inspect.type_info(kind)
    if isinstance(info, inspect.StrType | inspect.LiteralType):
        return check_value(text, kind)
    if not isinstance(info, inspect.TupleType | inspect.VarTupleType):
        return check_value(_parse_scalar(text), kind)
    inner = text[1:-1] if (text[:1], text[-1:]) in (("(", ")"), ("[", "]")) else text
    items = [item.strip() for item in inner.split(",")]
    if items[-1] == "":
        items.pop()  # nothing at all, or a comma at the end
    return check_value(tuple(map(_parse_scalar, items)), kind)


def _parse_scalar(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else text


def check_value(value: Any, kind: Any) -> Any:
    """Return a value as one of the type, integers as floats where these are wanted; ValueError says what is allowed."""
    try:
        converted = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"cannot be used; allowed is {describe_type(kind)}{_nearest_choice(value, kind)}") from error
    for item in converted if isinstance(converted, tuple) else (converted,):
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"cannot be used; allowed is {describe_type(kind)}")
    return converted


def _nearest_choice(value: Any, kind: Any) -> str:
    """Return a hint for the first of some names that is not among the choices."""
    info = inspect.type_info(kind)
    info = info.item_type if isinstance(info, inspect.VarTupleType) else info
    if not isinstance(info, inspect.LiteralType):
        return ""
    items = value if isinstance(value, tuple | list) else (value,)
    return next((did_you_mean(str(item), map(str, info.values)) for item in items if item not in info.values), "")


def describe_type(kind: Any) -> str:
    """Return the values that a type with limits, or its `Type`, allows, for example "an integer >= 1"."""
    info = kind if isinstance(kind, inspect.Type) else inspect.type_info(kind)
    match info:
        case inspect.LiteralType(values=values):
            return " or ".join(map(str, values))
        case inspect.TupleType(item_types=items):
            return f"{len(items)} values with commas, each {describe_type(items[0])}"
        case inspect.VarTupleType(item_type=item):
            return f"values with commas, each {describe_type(item)}"
        case inspect.IntType() | inspect.FloatType():
            noun = "an integer" if isinstance(info, inspect.IntType) else "a number"
            limits = [f"{sign} {limit}" for name, sign in SIGNS.items() if (limit := getattr(info, name)) is not None]
            multiple = f" that is a multiple of {info.multiple_of}" if info.multiple_of is not None else ""
            return f"{noun}{multiple} {' and '.join(limits)}".rstrip()
        case inspect.BoolType():
            return "true or false"
        case _:
            return "text"


def _from_flat(values: dict[str, Any]) -> RunConfig:
    nested: dict[str, Any] = {name: {} for name in SECTIONS}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (nested[section] if section else nested)[name] = value
    return RunConfig(**nested | {name: section(**nested[name]) for name, section in SECTIONS.items()})


def _without_duplicates(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    duplicates = [name for name, count in Counter(name for name, _ in entries).items() if count > 1]
    if duplicates:
        raise ConfigError(f"configuration: {', '.join(duplicates)} is given twice")
    return dict(entries)
