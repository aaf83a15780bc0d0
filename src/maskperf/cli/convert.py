"""`maskperf convert`: weight files from one form to another."""

import difflib
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskperf.cli.run import resolve
from maskperf.cli.weights_config import class_count_problems, read_weights_metadata, resolve_for_weights
from maskperf.cli.words import WordParser, asks_for_help, path_word, read_words, require_new_file
from maskperf.config import ModelConfig, RunConfig
from maskperf.errors import EXIT_DONE, ConfigError, DataError
from maskperf.overrides import to_json_text, validate, with_overrides

STORAGES = ("float32", "float16", "bfloat16", "int8")
USAGE = """usage:
  maskperf convert backbone IN.pkl OUT.safetensors [--storage {storages}] [model.key=value ...]
  maskperf convert model IN OUT [--recipe NAME] [--categories FILE] [model.key=value ...]

backbone: Detectron's R-50.pkl (or a .safetensors made from it) becomes a .safetensors, in fewer bits if --storage says
so; what that costs in precision is printed. model: model.safetensors of a run becomes a .pth as the reference reads
it, or the other way round. No file is written over.

examples, to copy and paste:
  maskperf convert backbone R-50.pkl R-50-int8.safetensors --storage int8
  # another depth than that of the benchmark
  maskperf convert backbone R-101.pkl R-101.safetensors model.stage_blocks=3,4,23,3
  maskperf convert model runs/demo-1/model.safetensors model.pth
  # --categories: a data set with the categories of the weights, so that the file tells what its labels mean
  maskperf convert model model_final.pth model.safetensors --categories /data/coco/annotations/instances_val2017.json"""
USAGE = USAGE.format(storages="|".join(STORAGES))
NEW_NAME = "Choose another name, or move the file away."


def convert(arguments: list[str]) -> int:
    """Return the exit code after a file was converted."""
    if not arguments or asks_for_help(arguments):
        print(USAGE)
        return EXIT_DONE
    kinds = {"backbone": _convert_backbone, "model": _convert_model}
    if arguments[0] not in kinds:
        nearest = difflib.get_close_matches(arguments[0], kinds, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(kinds)}"
        raise ConfigError(f"nothing to convert is named {arguments[0]!r}; {hint} (maskperf convert --help tells more)")
    kinds[arguments[0]](arguments[1:])
    return EXIT_DONE


def _convert_backbone(arguments: list[str]) -> None:
    parser = _make_parser("backbone")
    parser.add_argument("--storage", choices=STORAGES, default="float32")
    choices = read_words(parser, arguments)
    source, target = Path(choices.source), Path(choices.target)
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: a converted backbone is a .safetensors file. Fix: give it that ending.")
    require_new_file(target, False, fix=NEW_NAME)
    config = _model_config(resolve("coco", []), choices.pairs).model
    from maskperf.model.quantize import describe_loss, store_backbone  # torch is imported here

    tensors, metadata, notices = _read_backbone(source, config)
    loss = store_backbone(tensors, target, choices.storage, metadata=metadata)
    print("\n".join([*notices, *describe_loss(loss), f"written: {target} ({choices.storage})"]))


def _read_backbone(path: Path, config: ModelConfig) -> tuple[dict, dict[str, str], list[str]]:
    """Return the backbone's tensors by name, what a file made from them shall say of their origin, and notices.

    Nothing is kept beside the source, unlike when a run reads it.
    """
    import torch

    from maskperf.model.backbone_file import (
        DIGEST_FIELD,
        KNOWN_MD5,
        convert_names,
        load_backbone,
        read_detectron_pickle,
    )
    from maskperf.model.mask_rcnn import MaskRcnn
    from maskperf.model.weights import read_header

    with torch.device("meta"):  # only names and shapes are needed
        state = MaskRcnn(config).state_dict()
    if path.suffix == ".safetensors":
        loaded = load_backbone(path, state)
        header = read_header(path)
        # Only numbers that lost nothing may pass for those of the pickle with this digest.
        is_exact = header.get("storage") == "float32"
        origin = {name: text for name, text in header.items() if name.startswith("source")} if is_exact else {}
        return loaded.tensors, {"source": path.name, **origin}, loaded.notices
    tensors = convert_names(read_detectron_pickle(path), state, file=str(path))
    data = path.read_bytes()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    relation = "is that" if md5 == KNOWN_MD5 else f"is not that ({KNOWN_MD5})"
    metadata = {"source": path.name, "source_md5": md5, DIGEST_FIELD: hashlib.sha256(data).hexdigest()}
    return tensors, metadata, [f"{path}: MD5 {md5} {relation} of the file the benchmark names"]


def _convert_model(arguments: list[str]) -> None:
    parser = _make_parser("model")
    parser.add_argument("--recipe", metavar="NAME")
    parser.add_argument("--categories", metavar="FILE", type=path_word)
    choices = read_words(parser, arguments)
    source, target = Path(choices.source), Path(choices.target)
    suffixes = [path.suffix for path in (source, target)]
    if suffixes.count(".safetensors") != 1 or suffixes[1] not in (".safetensors", ".pth"):
        raise ConfigError(f"{source} to {target}: one of the two must be a .safetensors file, the other one a .pth.")
    if choices.categories and suffixes[1] == ".pth":
        raise ConfigError(f"--categories {choices.categories}: a .pth has no place for them. Fix: leave it out.")
    require_new_file(target, False, fix=NEW_NAME)
    from maskperf.engine.build import build_model  # torch is imported here
    from maskperf.model.weights import save_reference_state

    metadata = read_weights_metadata(source)
    config, notices = resolve_for_weights(source, metadata, recipe=choices.recipe, pairs=[])
    config = _model_config(config, choices.pairs)
    model, loaded = build_model(replace(config.model, initial_weights=str(source)), seed=0)
    notices += loaded
    if suffixes[1] == ".pth":
        save_reference_state(model, target)
        if config.model.batch_norm != "frozen":
            notices.append("the epsilon of the batch norms went into their variances, as the reference adds none")
    else:
        notices += _save_with_categories(model, target, config, choices.categories)
    print("\n".join([*notices, f"written: {target}"]))


def _save_with_categories(model: Any, target: Path, config: RunConfig, categories: str | None) -> list[str]:
    """Return notices, after the model was written with the names of its labels, if there is a file that has them."""
    from maskperf.data.coco.categories import categories_of
    from maskperf.data.coco.index import read_coco
    from maskperf.model.weights import save_model_weights, write_tensor_file

    if categories is None:
        write_tensor_file(model.state_dict(), target, {})
        return [f"{target}: does not tell what its labels mean; --categories FILE would add that"]
    index = read_coco(Path(categories), Path(), training=False)
    found = categories_of(index)
    problems = class_count_problems(categories, found, num_classes=config.model.num_classes)
    if problems:
        raise DataError(problems)
    metadata = {
        "recipe": config.recipe,
        "category_ids": list(found),
        "category_names": list(found.values()),
        "config": to_json_text(config),
    }
    save_model_weights(model, target, metadata)
    return []


def _make_parser(kind: str) -> WordParser:
    parser = WordParser(f"maskperf convert {kind}", add_help=False, allow_abbrev=False)
    parser.add_argument("source", metavar="IN", type=path_word)
    parser.add_argument("target", metavar="OUT", type=path_word)
    parser.add_argument("pairs", metavar="model.key=value", nargs="*", default=[])
    return parser


def _model_config(config: RunConfig, pairs: list[str]) -> RunConfig:
    """Return the configuration with the user's values of the section `model`, the only one that matters here.

    Errors: ConfigError for other keys, and for values that cannot be used.
    """
    for pair in pairs:
        if not pair.startswith("model.") or pair.startswith(("model.initial_weights", "model.backbone_weights")):
            raise ConfigError(f"{pair!r}: only sizes of the model can be set here, such as model.num_classes=9.")
    config = with_overrides(config, pairs)
    validate(config)
    if config.model.num_classes == 0:
        raise ConfigError("model.num_classes=0: there is no data set to follow here. Fix: give the number.")
    return config
