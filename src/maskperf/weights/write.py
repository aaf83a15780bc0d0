"""Weights written as maskperf's, torchvision's or detectron2's, and what the other program must be told about them."""

from dataclasses import fields
from pathlib import Path

import torch

from maskperf.errors import ConfigError
from maskperf.files import replace_file
from maskperf.model.conventions import CONVENTIONS
from maskperf.model.families import FAMILY, Family, from_maskperf
from maskperf.model.weights import save_state
from maskperf.weights.categories import model_metadata
from maskperf.weights.open import OpenedWeights

ENDINGS = {"maskperf": ".safetensors", "torchvision": ".pth", "detectron2": ".pth"}
NOT_OF_A_MODEL = ("is_rgb", "background", "resize")  # only of files and images; the writer brings the first two along


def write_weights(opened: OpenedWeights, form: str, path: Path) -> list[str]:
    """Write the weights in one of the forms of `ENDINGS`, and return notices.

    Errors: ConfigError for another ending, and for a network that the other program cannot build.
    """
    if path.suffix != ENDINGS[form]:
        raise ConfigError(f"{path}: weights of {form} are a {ENDINGS[form]} file. Fix: give it that ending.")
    if form == "maskperf":
        save_state(opened.state, path, model_metadata(opened.config, opened.categories))
        return [] if opened.categories else [f"{path}: does not say what its labels mean; --names FILE would add that"]
    family = FAMILY[form]
    own, theirs = CONVENTIONS[opened.config.model.conventions], family.rules
    shape = [name for name in ("rpn_convs", "box_head_convs") if getattr(own, name) != getattr(theirs, name)]
    if form == "torchvision" and own.strided_kernel != theirs.strided_kernel:
        shape.append("strided_kernel")
    if shape:
        text = f"a model of the conventions {opened.config.model.conventions} is another network ({', '.join(shape)})"
        raise ConfigError(f"{path}: {form} cannot build it: {text}. Fix: --to maskperf.")
    plain = {name: tensor.detach().cpu().clone() for name, tensor in from_maskperf(opened.state, family).items()}
    content = plain if form == "torchvision" else {"model": plain, "__author__": "maskperf"}
    replace_file(path, lambda temporary: torch.save(content, temporary))
    return _differences(opened, family)


def _differences(opened: OpenedWeights, family: Family) -> list[str]:
    """Return what the weights mean otherwise than the other program does unless it is told."""
    own = CONVENTIONS[opened.config.model.conventions]
    names = [entry.name for entry in fields(own) if entry.name not in NOT_OF_A_MODEL]
    other = [name for name in names if getattr(own, name) != getattr(family.rules, name)]
    if not other:
        return []
    listed = ", ".join(f"{name} {getattr(own, name)} (there {getattr(family.rules, name)})" for name in other)
    return [f"the weights mean some things otherwise than {family.title}, which will find other numbers: {listed}"]
