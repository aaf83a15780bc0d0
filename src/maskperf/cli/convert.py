"""`maskperf convert`: weight files from one form to another."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskperf.cli.arguments import CommandParser, name_from, require_new_file
from maskperf.cli.run import resolve
from maskperf.config import ModelConfig, RunConfig
from maskperf.errors import EXIT_DONE, ConfigError, DataError
from maskperf.overrides import validate, with_overrides

STORAGES = ("float32", "float16", "bfloat16", "int8")
USAGE = "backbone|model IN OUT [options] [model.key=value ...]"
EXAMPLES = """backbone: Detectron's R-50.pkl (or a .safetensors made from it) becomes a .safetensors, in fewer
bits with --storage; what that costs in precision is printed.
model: model.safetensors of a run becomes a .pth as the reference reads it, or the other way round.
No file is written over.

examples, to copy and paste:
  maskperf convert backbone R-50.pkl R-50-int8.safetensors --storage int8
  # another depth than that of the benchmark
  maskperf convert backbone R-101.pkl R-101.safetensors model.stage_blocks=3,4,23,3
  maskperf convert model runs/demo-1/model.safetensors model.pth
  # with --categories, a data set with the categories of the weights, the file says what its labels mean
  maskperf convert model model_final.pth model.safetensors --categories /data/coco/annotations/instances_val2017.json"""
OPTIONS_OF_KIND = {"backbone": ("storage",), "model": ("recipe", "categories")}


def add_options(parser: CommandParser) -> None:
    add = parser.add_argument
    add("kind", metavar="backbone|model", type=name_from(OPTIONS_OF_KIND), help="what the file holds")
    parser.add_path("source", "IN", "the file to read")
    parser.add_path("target", "OUT", "the file to write")
    add("pairs", metavar="model.key=value", nargs="*", default=[], help="another size of the model")
    add("--storage", choices=STORAGES, help="backbone: number format of the tensors (default: float32)")
    add("--recipe", metavar="NAME", help="model: the configuration (default: the one in the weights, or else coco)")
    parser.add_path("--categories", "FILE", "model: annotations that name its categories")


def convert(options: argparse.Namespace) -> int:
    """Convert one file; nothing is overwritten."""
    for kind, names in OPTIONS_OF_KIND.items():
        for name in names:
            if kind != options.kind and getattr(options, name):
                raise ConfigError(f"--{name} belongs to maskperf convert {kind}. Fix: leave it out.")
    convert_kind = _convert_backbone if options.kind == "backbone" else _convert_model
    print("\n".join(convert_kind(options, options.source, options.target)))
    return EXIT_DONE


def _convert_backbone(options: argparse.Namespace, source: Path, target: Path) -> list[str]:
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: a converted backbone is a .safetensors file. Fix: give it that ending.")
    require_new_file(target, overwrite=None)
    config = _with_model_keys(resolve("coco", []), options.pairs).model
    from maskperf.model.quantize import describe_loss, store_backbone  # torch is imported here

    storage = options.storage or "float32"
    tensors, metadata, notices = _read_backbone(source, config)
    loss = store_backbone(tensors, target, storage, metadata=metadata)
    return [*notices, *describe_loss(loss), f"written: {target} ({storage})"]


def _read_backbone(path: Path, config: ModelConfig) -> tuple[dict, dict[str, str], list[str]]:
    """Return the backbone's tensors by name, the metadata of a file made from them, and notices.

    No file is cached beside the source, unlike when a run reads it.
    """
    from maskperf.model import backbone_file
    from maskperf.model.weights import read_header
    from maskperf.weights.open import empty_state

    state = empty_state(config)
    if path.suffix == ".safetensors":
        tensors, notices = backbone_file.load_backbone(path, state)
        header = read_header(path)
        # Only numbers that lost nothing may pass for those of the pickle with this digest.
        is_exact = header.get("storage") == "float32"
        origin = {name: text for name, text in header.items() if name.startswith("source")} if is_exact else {}
        return tensors, {"source": path.name, **origin}, notices
    metadata, notice = backbone_file.pickle_origin(path)
    return backbone_file.convert_pickle(path, state), metadata, [notice]


def _convert_model(options: argparse.Namespace, source: Path, target: Path) -> list[str]:
    suffixes = [source.suffix, target.suffix]
    if suffixes.count(".safetensors") != 1 or target.suffix not in (".safetensors", ".pth"):
        raise ConfigError(f"{source} to {target}: one of the two must be a .safetensors file, the other one a .pth.")
    if options.categories and target.suffix == ".pth":
        raise ConfigError(f"--categories {options.categories}: a .pth cannot hold them. Fix: leave it out.")
    require_new_file(target, overwrite=None)
    from maskperf.engine.build import build_model  # torch is imported here
    from maskperf.model.weights import save_reference_state
    from maskperf.predict.stored import resolve_for_weights

    config, _, notices = resolve_for_weights(source, recipe=options.recipe)
    config = _with_model_keys(config, options.pairs)
    if config.model.conventions != "reference":
        text = f"{source}: has the conventions {config.model.conventions}, which a .pth of the reference cannot say."
        raise ConfigError(f"{text} Fix: write it with maskperf weights {source} --to FORM OUT.")
    model, loaded = build_model(replace(config.model, initial_weights=str(source)), seed=0)
    notices += loaded
    if target.suffix == ".pth":
        save_reference_state(model, target)
        if config.model.batch_norm != "frozen":
            notices.append("the epsilon of the batch norms went into their variances, as the reference adds none")
    else:
        notices += _save_with_categories(model, target, config, options.categories)
    return [*notices, f"written: {target}"]


def _save_with_categories(model: Any, target: Path, config: RunConfig, categories: Path | None) -> list[str]:
    """Write the model with the names of its labels, if there is a file that has them, and return notices."""
    from maskperf.data.coco.categories import categories_of
    from maskperf.data.coco.index import read_coco
    from maskperf.model.weights import write_tensor_file
    from maskperf.run.data import class_count_problems
    from maskperf.weights.open import OpenedWeights
    from maskperf.weights.write import write_weights

    if categories is None:
        write_tensor_file(model.state_dict(), target, {})
        return [f"{target}: does not say what its labels mean; --categories FILE would add that"]
    found = categories_of(read_coco(categories, Path(), training=False))
    problems = class_count_problems(str(categories), found, num_classes=config.model.num_classes)
    if problems:
        raise DataError(problems)
    return write_weights(OpenedWeights(config, model.state_dict(), found, []), "maskperf", target)


def _with_model_keys(config: RunConfig, pairs: list[str]) -> RunConfig:
    """Return the configuration with the user's sizes of the model, checked; other keys are refused."""
    for pair in pairs:
        if not pair.startswith("model.") or pair.startswith(("model.initial_weights", "model.backbone_weights")):
            raise ConfigError(f"{pair!r}: only sizes of the model can be set here, such as model.num_classes=9.")
    config = validate(with_overrides(config, pairs))
    if config.model.num_classes == 0:
        raise ConfigError("model.num_classes=0: there is no data set to follow here. Fix: give the number.")
    return config
