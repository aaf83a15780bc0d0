"""What weights say about themselves, and the configuration to use them with."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskperf.config import RunConfig, SystemConfig
from maskperf.errors import ConfigError
from maskperf.model.weights import MODEL_FORMAT, read_header, read_metadata
from maskperf.overrides import from_json_text, notices_of_age, validate, with_overrides
from maskperf.recipe_files import recipe_config
from maskperf.weights.open import foreign_metadata


def read_weights_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a run's weights, or what would be those of another family's; empty for other files.

    Errors: DataError where the file is missing or damaged.
    """
    if path.suffix == ".safetensors":
        return read_metadata(path) if MODEL_FORMAT in read_header(path).get("format", "") else {}
    return foreign_metadata(path)


def resolve_for_weights(
    path: Path, *, recipe: str | RunConfig | None = None, pairs: Sequence[str] = ()
) -> tuple[RunConfig, dict[str, Any], list[str]]:
    """Return the configuration for weights, checked, their metadata, and notices about where the first comes from.

    It is that of the recipe (a name or a file), else that in the metadata, else that of the recipe coco. The machine is
    not a property of weights, so the section `system` is always the default one.
    Files without metadata come from the reference, whose batch norms are frozen and know no epsilon; so are theirs.
    Errors: ConfigError for a recipe, key or value that cannot be used; DataError as `read_weights_metadata`.
    """
    metadata = read_weights_metadata(path)
    if recipe is None and "config" in metadata:
        try:
            config = from_json_text(metadata["config"])
        except ConfigError as error:
            text = f"{path}: the configuration stored in it cannot be used.\n{error}\nFix: name a recipe with --recipe."
            raise ConfigError(text) from error
        notices = [f"configuration: the one stored in {path} (recipe {config.recipe})"]
        notices += [f"configuration: {notice}" for notice in notices_of_age(metadata["config"])]
    else:
        config = recipe if isinstance(recipe, RunConfig) else recipe_config(recipe or "coco")
        notices = [f"configuration: the recipe {config.recipe}"]
    if not metadata and config.model.batch_norm != "frozen":
        config = replace(config, model=replace(config.model, batch_norm="frozen"))
        notices.append("model.batch_norm=frozen, because the file holds no metadata of a run")
    model = replace(config.model, backbone_weights="", initial_weights="")
    data = replace(config.data, generate_images=(0, 0), check_counts=False)
    config = validate(with_overrides(replace(config, model=model, data=data, system=SystemConfig()), pairs))
    return config, metadata, notices
