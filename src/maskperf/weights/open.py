"""Weights of any family, ready for maskperf's model: its configuration, its state, and what its labels mean."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from maskperf.config import ModelConfig, RunConfig
from maskperf.errors import ConfigError
from maskperf.files import sha256_of_file
from maskperf.model.conventions import CONVENTIONS
from maskperf.model.families import OWN, current_names
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weight_problems import file_error, model_problems, raise_any, sizes_of
from maskperf.model.weights import WeightFile, read_weight_file
from maskperf.overrides import from_json_text, with_overrides
from maskperf.recipes import coco
from maskperf.weights.categories import categories_named, coco_categories, model_metadata, read_names

TORCHVISION_COCO_V1 = "bf2d0c1e"  # first digits of the SHA-256 of the file that torchvision publishes


class OpenedWeights(NamedTuple):
    """A whole model."""

    config: RunConfig  # with the conventions of the weights, and the resize and means that belong to them
    state: dict[str, Tensor]  # of MaskRcnn(config.model)
    categories: dict[int, str]  # names by id, in the order of the labels; empty: nobody knows
    notices: list[str]


def open_weights(source: str | Path | WeightFile, *, conventions: str = "", names: Path | None = None) -> OpenedWeights:
    """Return the whole model that a file of any family holds, read already or not. No code from the file is run.

    `conventions` and `names` are for what a file cannot say: which conventions its numbers have, where a family has
    several, and what its labels are called.
    Errors: DataError where anything about the file, or about that of the names, cannot be used.
    """
    file = source if isinstance(source, WeightFile) else read_weight_file(source)
    config, notices = config_of(file, conventions)
    wanted = empty_state(config.model)
    found, required, *_ = file.for_model(wanted)
    fix = "maskperf weights FILE says what the file holds; a whole Mask R-CNN with a ResNet and FPN is needed."
    raise_any(model_problems(found, required, file=str(file.path), fix=fix))
    complete = {name: found.get(name, torch.zeros((), dtype=torch.int64)) for name in wanted}
    categories, more = categories_of_file(file, config.model.num_classes, names)
    return OpenedWeights(config, complete, categories, [*notices, *more])


def foreign_metadata(path: Path) -> dict[str, object]:
    """Return the metadata of a file of another family, as a run writes it; empty for the reference's and unknown files.

    Errors: DataError for a file that is missing or damaged.
    """
    file = read_weight_file(path)
    if file.family is None or file.family is OWN:
        return {}
    config, _ = config_of(file)
    categories, _ = categories_of_file(file, config.model.num_classes, None)
    return model_metadata(config, categories)


def empty_state(config: ModelConfig) -> dict[str, Tensor]:
    """Return the state of a model of this configuration without its values: names, types and shapes."""
    with torch.device("meta"):
        return MaskRcnn(config).state_dict()


def config_of(file: WeightFile, conventions: str = "") -> tuple[RunConfig, list[str]]:
    """Return the configuration that fits the tensors of a file, and notices.

    Errors: DataError where they belong to no family, or to another than that of `conventions`.
    """
    family = file.family
    if "config" in file.metadata:
        config = from_json_text(json.loads(file.metadata["config"]))
        if conventions not in ("", config.model.conventions):
            raise ConfigError(f"{file.path}: has the conventions {config.model.conventions}. Fix: leave that out.")
        model = replace(config.model, backbone_weights="", initial_weights="")
        return replace(config, model=model), [f"configuration: the one stored in {file.path}"]
    if family is None:
        first = ", ".join(list(file.state)[:3]) or "none"
        problem = "these names belong to no Mask R-CNN that is known here (torchvision, detectron2, mmdetection, ...)."
        raise file_error(file.path, "names of tensors", first, problem, "Give the weights of such a model.")
    allowed = (family.conventions, *family.variants)
    if conventions and conventions not in allowed:
        raise ConfigError(f"{conventions}: {file.path} is of {family.title}. Fix: choose {' or '.join(allowed)}.")
    chosen, notices = conventions or file.conventions, []
    if not conventions and family.name == "torchvision" and sha256_of_file(file.path).startswith(TORCHVISION_COCO_V1):
        chosen = "torchvision_coco_v1"
    elif not conventions and len(allowed) > 1:
        others = " or ".join(name for name in allowed if name != chosen)
        notices = [f"{file.path}: taken for {chosen}; if it is not, give --conventions {others}"]
    rules, base = CONVENTIONS[chosen], coco()
    sizes = sizes_of(current_names(file.state, family), family.name_in_file)
    model = replace(base.model, batch_norm="frozen", backbone_weights="")
    data = replace(base.data, resize=rules.resize, pixel_means_bgr=rules.means_bgr, check_counts=False)
    pairs = [f"model.conventions={chosen}", *(f"{key}={value}" for key, value in sizes.items())]
    return with_overrides(replace(base, model=model, data=data), pairs), notices


def categories_of_file(file: WeightFile, num_classes: int, names: Path | None) -> tuple[dict[int, str], list[str]]:
    """Return names by id in the order of the labels, and notices about where they come from."""
    if names is not None:
        return read_names(names, num_classes), []
    if "category_ids" in file.metadata:
        ids, known = (json.loads(file.metadata[key]) for key in ("category_ids", "category_names"))
        return dict(zip(ids, known, strict=True)), []
    noted = _names_in_notes(file)
    if len(noted) == num_classes - 1:
        return categories_named(noted), [f"{file.path}: has the names of its {len(noted)} classes"]
    found = coco_categories(num_classes)
    if found:
        return found, [f"{file.path}: {num_classes} classes are taken for COCO's; give --names if they are not"]
    return {}, [f"{file.path}: does not say what its {num_classes - 1} classes are; --names FILE would"]


def _names_in_notes(file: WeightFile) -> Sequence[str]:
    """Return the names that mmdetection writes beside its weights."""
    info = file.notes.get("dataset_meta", {})
    names = info.get("classes", info.get("CLASSES")) if isinstance(info, dict) else None
    names = names if names is not None else file.notes.get("CLASSES", ())
    return [str(name) for name in names] if isinstance(names, list | tuple) else []
