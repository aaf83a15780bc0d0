"""Which configuration and categories belong to a file of weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskperf.cli.run import resolve
from maskperf.config import RunConfig, SystemConfig
from maskperf.errors import ConfigError, Problem
from maskperf.overrides import from_json_text, notices_of_age, validate, with_overrides


def read_weights_metadata(path: Path) -> dict[str, Any]:
    """Return what the file says about its model; empty for files of others, which say nothing that is known here.

    Errors: DataError where the file is missing or damaged.
    """
    from maskperf.model.weights import MODEL_FORMAT, read_header, read_metadata  # torch is imported here

    if path.suffix != ".safetensors" or MODEL_FORMAT not in read_header(path).get("format", ""):
        return {}
    return read_metadata(path)


def resolve_for_weights(
    path: Path, metadata: Mapping[str, Any], *, recipe: str | None, pairs: list[str]
) -> tuple[RunConfig, list[str]]:
    """Return the configuration for weights, checked, and notices about where it comes from.

    It is that of the named recipe, else that in the metadata, else that of the recipe coco. The machine is not a
    property of weights, so the section `system` is always the default one.
    Files without metadata come from the reference, whose batch norms are frozen and know no epsilon; so are theirs.
    Errors: ConfigError for a recipe, key or value that cannot be used.
    """
    if recipe is None and "config" in metadata:
        try:
            config = from_json_text(metadata["config"])
        except ConfigError as error:
            text = f"{path}: the configuration stored in it cannot be used.\n{error}\nFix: name a recipe with --recipe."
            raise ConfigError(text) from error
        notices = [f"configuration: the one stored in {path} (recipe {config.recipe})"]
        notices += [f"configuration: {notice}" for notice in notices_of_age(metadata["config"])]
    else:
        config = resolve(recipe or "coco", [])
        notices = [f"configuration: the recipe {config.recipe}"]
    if not metadata and config.model.batch_norm != "frozen":
        config = replace(config, model=replace(config.model, batch_norm="frozen"))
        notices.append("model.batch_norm=frozen, because the file holds no metadata of a run")
    model = replace(config.model, backbone_weights="", initial_weights="")
    data = replace(config.data, generate=False, check_counts=False)
    config = with_overrides(replace(config, model=model, data=data, system=SystemConfig()), pairs)
    validate(config)
    return config, notices


def trained_categories(metadata: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of the categories that weights were trained for, by id; empty where they do not say."""
    return dict(zip(metadata.get("category_ids", []), metadata.get("category_names", []), strict=True))


def class_count_problems(file: str, found: Mapping[int, str], *, num_classes: int) -> list[Problem]:
    """Return what is wrong where the categories in `file` cannot be those of weights that do not name their own."""
    if len(found) == num_classes - 1:
        return []
    problem = f"The model has {num_classes - 1} (model.num_classes={num_classes}, with background)."
    fix = "Take the data set that the weights were trained for, or weights that were trained for this one."
    where, value = "the list of categories", f"{len(found)} entries"
    return [Problem(file=file, where=where, field="categories", value=value, message=problem, fix=fix)]
