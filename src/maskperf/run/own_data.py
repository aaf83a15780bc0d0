"""The configuration of a training on own data: what nobody said is chosen from the data and the start."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskperf.config import DataConfig, EvaluationConfig, ModelConfig, OptimizerConfig, RunConfig
from maskperf.data.coco.index import CocoIndex
from maskperf.data.coco.layout import DataLayout
from maskperf.data.images.buckets import round_up
from maskperf.data.images.sampler import steps_per_epoch
from maskperf.overrides import flatten, format_value, key_of, validate, with_overrides
from maskperf.recipes import OWN_DATA, demo
from maskperf.run.data import read_training_split

# How an image becomes a tensor is that of the weights; files, order and augmentation are not.
PREPROCESSING = ("short_side", "long_side", "resize", "size_divisor", "pixel_means_bgr", "max_image_pixels")
HOLDOUT = (0.2, 0)  # of a data set without a validation part
FEWEST_EPOCHS, MOST_EPOCHS = 12, 300  # 12: the usual schedule on COCO
IMAGES_SEEN = {"scratch": 5000, "weights": 4000}  # of a small data set, in as many epochs as that takes
EVALUATIONS = 10  # of a run
CLIP_NORM = 10.0
SIDES = (64, 256)  # of the small model: the shorter side in pixels
MOST_ELONGATED = 2.0
USUAL_OBJECTS = 30  # of an image, for which the small model has proposals
# Learning rate for one image of a batch: where training starts, and with which method.
RATES = {
    ("scratch", "sgd"): 0.02 / 8,
    ("scratch", "adamw"): 0.001 / 8,
    ("weights", "sgd"): 0.01 / 16,
    ("weights", "adamw"): 0.0001 / 16,
    ("backbone", "sgd"): 0.02 / 16,
    ("backbone", "adamw"): 0.0002 / 16,
}


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a training starts from: a configuration with `model.initial_weights`, a backbone, or nothing."""

    weights: RunConfig | None = None
    category_names: tuple[str, ...] = ()  # of the weights; empty where they do not say
    backbone: str = ""
    model: str = "small"  # "small" or "r50", where there are no weights

    @property
    def kind(self) -> str:
        return "weights" if self.weights is not None else "backbone" if self.backbone else "scratch"


@dataclass(frozen=True)
class Plan:
    """A complete configuration, and what to say about how it came to be."""

    config: RunConfig
    train: CocoIndex
    lines: tuple[str, ...]


def plan_training(layout: DataLayout, start: Start, pairs: list[str], device: str) -> Plan:
    """Return the plan for a data set; `pairs` are the user's values, which win over all others.

    Errors: ConfigError for a value that cannot be used, DataError for annotations that cannot.
    """
    config, given = with_overrides(_base(layout, start, device), pairs), {key_of(pair) for pair in pairs}
    train = read_training_split(config.data)
    lines = [_start_line(start)]
    chosen: dict[str, object] = {}
    if start.kind == "scratch" and start.model == "small":
        chosen |= _sizes_for(train, given, config.data)
    elif start.weights is not None:
        same = bool(start.category_names) and start.category_names == train.category_names
        if not same:
            chosen["model.reset_predictors"] = True
            lines.append(_other_classes_line(start, train))
    config = _with_values(config, chosen, given)
    config = _with_values(config, _schedule_for(config, start, len(train.image_ids), given), given)
    validate(config)
    return Plan(config, train, (*lines, *_plan_lines(config, train)))


def _base(layout: DataLayout, start: Start, device: str) -> RunConfig:
    """Return the values that do not depend on what is in the files."""
    values: dict[str, Any] = {
        "root": "",
        "train_json": str(layout.train.json_path),
        "train_images": str(layout.train.image_folder),
    }
    if layout.val is None:
        values["holdout"] = HOLDOUT
    else:
        values |= {"val_json": str(layout.val.json_path), "val_images": str(layout.val.image_folder)}
    is_small = start.kind == "scratch" and start.model == "small"
    if start.weights is not None:
        model = start.weights.model
        values |= {name: getattr(start.weights.data, name) for name in PREPROCESSING}
    else:
        model = replace(demo().model if is_small else ModelConfig(), backbone_weights=start.backbone)
        if start.kind == "scratch":  # random statistics and weights are nothing to freeze
            model = replace(model, batch_norm="trainable", frozen_stages=0)
    batch_size = 8 if is_small or device != "cpu" else 2
    return RunConfig(
        recipe=OWN_DATA,
        data=DataConfig(**values),
        model=replace(model, num_classes=0),
        optimizer=OptimizerConfig(batch_size=batch_size, clip_norm=CLIP_NORM, schedule="cosine", decay_steps=()),
        evaluation=EvaluationConfig(box_target=0.0, mask_target=0.0, batch_size=8 if is_small else 0),
    )


def _sizes_for(train: CocoIndex, given: Collection[str], data: DataConfig) -> dict[str, object]:
    """Return image sizes, anchors and proposals for a small model: those of the images and objects."""
    sides = np.sort(train.sizes_hw, axis=1).astype(np.float64)
    lowest, highest = SIDES
    short = int(min(max(round_up(math.ceil(np.median(sides[:, 0])), 32), lowest), highest))
    short = data.short_side if "data.short_side" in given else short
    elongation = min(MOST_ELONGATED, float(np.quantile(sides[:, 1] / sides[:, 0], 0.95)))
    long = round_up(math.ceil(short * elongation), 32)
    scales = np.minimum(short / sides[:, 0], long / sides[:, 1])
    counts = np.diff(train.object_offsets)
    extent = train.boxes[:, 2:] - train.boxes[:, :2] + 1
    objects = np.sqrt(extent.prod(axis=1)) * np.repeat(scales, counts)
    smallest = int(min(max(float(np.quantile(objects, 0.1)), 8.0), short / 8))
    most = float(np.quantile(counts, 0.99)) / USUAL_OBJECTS
    many = {key: math.ceil(value * max(1.0, most)) for key, value in PROPOSALS.items()}
    return {
        "data.short_side": short,
        "data.long_side": long,
        "model.anchor_sizes": tuple(
            max(1, min(smallest * factor, int(short * limit))) for factor, limit in zip(FACTORS, LIMITS, strict=True)
        ),
        **many,
        "model.candidates_per_level": (many["model.proposals_train"] * 3 // 2, many["model.proposals_train"]),
    }


PROPOSALS = {"model.proposals_train": 100, "model.proposals_test": 60, "model.roi_samples_per_image": 48}
FACTORS = (1, 2, 4, 8, 16)  # of the anchors of one level and the next ...
LIMITS = (1.0, 1.0, 0.5, 0.75, 1.0)  # ... and how much of the shorter side they may have


def _schedule_for(config: RunConfig, start: Start, num_images: int, given: Collection[str]) -> dict[str, object]:
    """Return batch, rate and length for so many images."""
    optimizer = config.optimizer
    batch_size = optimizer.batch_size if "optimizer.batch_size" in given else min(optimizer.batch_size, num_images)
    per_epoch = steps_per_epoch(num_images, batch_size)
    seen = IMAGES_SEEN["scratch" if start.kind == "scratch" else "weights"]
    epochs = min(max(FEWEST_EPOCHS, math.ceil(seen / num_images)), MOST_EPOCHS)
    if "optimizer.max_epochs" in given and optimizer.max_epochs:
        epochs = optimizer.max_epochs
    elif "optimizer.max_steps" in given:
        epochs = math.ceil(optimizer.max_steps / per_epoch)
    steps = epochs * per_epoch
    steps = min(steps, optimizer.max_steps) if "optimizer.max_steps" in given else steps
    values: dict[str, object] = {
        "optimizer.batch_size": batch_size,
        "optimizer.learning_rate": RATES[start.kind, optimizer.method] * batch_size,
        "optimizer.max_epochs": epochs,
        "optimizer.max_steps": steps,
        "optimizer.warmup_steps": min(500, math.ceil(steps / 10)),
        "optimizer.warmup_factor": 0.1,
        "evaluation.every_epochs": max(1, epochs // EVALUATIONS),
    }
    if "optimizer.schedule" not in given and "optimizer.decay_steps" in given:
        values["optimizer.schedule"] = "steps"
    if optimizer.schedule == "steps" and steps > 2:
        values["optimizer.decay_steps"] = tuple(sorted({steps * 2 // 3 + 1, steps * 8 // 9 + 1}))
    return values


def _with_values(config: RunConfig, values: dict[str, object], given: Collection[str]) -> RunConfig:
    return with_overrides(config, [f"{key}={format_value(value)}" for key, value in values.items() if key not in given])


def _start_line(start: Start) -> str:
    if start.weights is not None:
        return f"start: the weights {start.weights.model.initial_weights}"
    if start.backbone:
        return f"start: the backbone {start.backbone}; FPN and heads from random weights"
    advice = "--weights FILE or --backbone R-50.pkl starts from a trained model, which finds more on photographs"
    return f"start: from nothing, model {start.model}; {advice}"


def _other_classes_line(start: Start, train: CocoIndex) -> str:
    before = f"have {len(start.category_names)} others" if start.category_names else "do not name theirs"
    own = f"{len(train.category_names)} classes of this data"
    return f"classes: the weights {before}; the predictors of box and mask begin anew, for the {own}"


def _plan_lines(config: RunConfig, train: CocoIndex) -> list[str]:
    optimizer, values = config.optimizer, flatten(config)
    names = ", ".join(train.category_names[:8]) + ", ..." * (len(train.category_names) > 8)
    keys = ("data.short_side", "data.long_side", "model.anchor_sizes")
    sizes = [f"{key}={format_value(values[key])}" for key in keys]
    per_epoch = steps_per_epoch(len(train.image_ids), optimizer.batch_size)
    fraction, seed = config.data.holdout
    split = f"validate on: {fraction:.0%} of the images, held out by a hash of their ids and the seed {seed}"
    return [
        *([f"{split} (data.holdout={fraction:g},{seed})"] if fraction else []),
        f"train on: {len(train.image_ids):,} images, {len(train.labels):,} objects, "
        f"{len(train.category_names)} classes ({names})",
        f"sizes: {' '.join(sizes)}",
        f"plan: {optimizer.max_epochs} {'epoch' if optimizer.max_epochs == 1 else 'epochs'} of {per_epoch} steps, "
        f"{optimizer.max_steps:,} in all; batch {optimizer.batch_size}, {optimizer.method}, learning rate "
        f"{optimizer.learning_rate:g} after {optimizer.warmup_steps} steps, {optimizer.schedule}",
    ]
