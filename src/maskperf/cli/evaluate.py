"""`maskperf evaluate --weights FILE --data FOLDER`: finds the box AP and mask AP of trained weights."""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskperf.cli.weights_config import category_faults, read_weights_metadata, resolve_for_weights
from maskperf.cli.words import WordParser, asks_for_help, read_words, require_new_file
from maskperf.config import RunConfig
from maskperf.errors import EXIT_BUG, EXIT_DONE, ConfigError, DataError, StorageError, joined_errors

USAGE = "maskperf evaluate --weights FILE [--data FOLDER | --val-json FILE --val-images FOLDER] [key=value ...]"
EXAMPLES = """examples, to copy and paste:
  # the weights of a run, on the data set of that run
  maskperf evaluate --weights runs/demo-1/model.safetensors
  # a file of the reference implementation on COCO 2017, each category's AP as well
  maskperf evaluate --weights model_final.pth --data /data/coco --per-class
  # own data; both COCO engines must find the same numbers
  maskperf evaluate --weights model.safetensors --val-json /my/val.json --val-images /my/val --engine both
  # the same on the eight GPUs of one machine, four images at a time on each
  torchrun --nproc-per-node 8 -m maskperf evaluate --weights model_final.pth --data /data/coco evaluation.batch_size=4

Any value of the sections data, model, evaluation, speed and system can be given as section.key=value."""
# One way to say one thing: these keys are refused, and what does it is named.
OPTION_OF_KEY = {
    "recipe": "--recipe",
    "data.root": "--data",
    "data.val_json": "--val-json",
    "data.val_images": "--val-images",
    "model.initial_weights": "--weights",
    "model.backbone_weights": "--weights",
    "evaluation.engine": "--engine",
}
NOT_FOR_EVALUATION = ("optimizer.", "mlperf.", "seed", "run_dir", "data.train_", "data.generate", "data.check_counts")
DATA_MEND = "Name the data set with --data, or with --val-json and --val-images."
DETECTION_FILES = ("detections_bbox.json", "detections_segm.json")
PROGRESS_SECONDS = 10.0


def evaluate(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 1 where the two engines do not find the same numbers."""
    parser = _make_parser()
    if not arguments or asks_for_help(arguments):
        print(parser.format_help(), end="")
        return EXIT_DONE
    choices = read_words(parser, arguments)
    if bool(choices.val_json) != bool(choices.val_images):
        raise ConfigError("--val-json and --val-images go together. Mend: give both.")
    if choices.data and choices.val_json:
        raise ConfigError("--data and --val-json name two data sets. Mend: give one of them.")
    _refuse_keys(choices.pairs)
    for path in _files_to_write(choices):
        require_new_file(path, choices.overwrite, mend="Choose another place, or add --overwrite.")
    return _evaluate(choices)


def _make_parser() -> WordParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = WordParser(
        "maskperf evaluate", usage=USAGE, epilog=EXAMPLES, formatter_class=formatter, add_help=False, allow_abbrev=False
    )
    add = parser.add_argument
    add("--weights", metavar="FILE", required=True, help="model.safetensors of a run, or a .pth of the reference")
    add("--data", metavar="FOLDER", help="folder with annotations/instances_val2017.json and val2017/")
    add("--val-json", metavar="FILE", help="own data: the annotations")
    add("--val-images", metavar="FOLDER", help="own data: the pictures")
    add("--recipe", metavar="NAME", help="default: the configuration stored in the weights, or else coco")
    add("--engine", choices=("fast", "official", "both"), help="both: they must find the same numbers")
    add("--per-class", action="store_true", help="show the AP of each category")
    add("--output", metavar="FILE", default="evaluation.json", help="where the numbers go (default: evaluation.json)")
    add("--save-detections", metavar="FOLDER", help=f"write {' and '.join(DETECTION_FILES)} there")
    add("--overwrite", action="store_true", help="write over files that exist")
    add("pairs", metavar="key=value", nargs="*", default=[], help="change a value of the configuration")
    return parser


def _files_to_write(choices: argparse.Namespace) -> list[Path]:
    """Returns the files that this command will write; the folder of the detections is made if need be."""
    paths = [Path(choices.output)]
    if choices.save_detections:
        folder = Path(choices.save_detections)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"{folder}: the folder cannot be made ({error.strerror}). Mend: choose another --save-detections."
            raise StorageError(text) from error
        paths += [folder / name for name in DETECTION_FILES]
    return paths


def _refuse_keys(pairs: list[str]) -> None:
    for pair in pairs:
        key = pair.partition("=")[0].strip()
        if key in OPTION_OF_KEY:
            raise ConfigError(f"{pair}: cannot be set here. Mend: give {OPTION_OF_KEY[key]} instead.")
        if key.startswith(NOT_FOR_EVALUATION):
            raise ConfigError(f"{pair}: has no effect on an evaluation. Mend: leave it out.")


def _with_data(config: RunConfig, choices: argparse.Namespace) -> RunConfig:
    if choices.data:
        return replace(config, data=replace(config.data, root=choices.data, val_json="", val_images=""))
    if choices.val_json:
        data = replace(config.data, val_json=choices.val_json, val_images=choices.val_images)
        return replace(config, data=data)
    return config


def _evaluate(choices: argparse.Namespace) -> int:
    """Returns the exit code, after weights were loaded, pictures judged and numbers shown and written."""
    import torch

    from maskperf.data.coco import locate_validation
    from maskperf.data.loader import evaluation_batches, feeding_for
    from maskperf.engine.build import build_model, keep_memory
    from maskperf.engine.distributed import close_topology, init_topology
    from maskperf.engine.precision import set_precision
    from maskperf.evaluation.predict import predict
    from maskperf.evaluation.scores import GroundTruth
    from maskperf.records.environment import thread_count

    weights = Path(choices.weights)
    metadata = read_weights_metadata(weights)
    config, notices = resolve_for_weights(weights, metadata, recipe=choices.recipe, pairs=choices.pairs)
    config = _with_data(config, choices)
    val_json, val_images = locate_validation(config.data, DATA_MEND)
    val, num_classes = _open_validation(val_json, val_images, config, metadata)
    topology = init_topology(config.system.device)
    torch.set_num_threads(thread_count(config.system.threads))
    truth = GroundTruth(val_json, val) if topology.is_first else None
    loading = replace(config.model, num_classes=num_classes, initial_weights=str(weights))
    model, loaded = build_model(loading, seed=0, speed=config.speed)
    if topology.is_first:
        print("\n".join([*notices, *(f"{val_json}: {notice}" for notice in val.notices), *loaded]), flush=True)
    batches = evaluation_batches(
        val,
        config.data,
        batch_size=config.evaluation.batch_size,
        rank=topology.rank,
        world=topology.world,
        pin_memory=topology.device.type == "cuda",
        feeding=feeding_for(config.speed, topology.device),
    )
    if topology.is_first:
        batches = _with_progress(batches, len(val.image_ids), topology.world)
    start = time.monotonic()
    keep_memory(config.speed, topology.device)
    model.to(topology.device)
    set_precision(model, topology.device, print if topology.is_first else lambda text: None)
    results = predict(model, batches, val.category_ids, topology)
    seconds = time.monotonic() - start
    code = EXIT_DONE
    if truth is not None:
        about = {
            **_sources(weights, config, choices.pairs, val_json=val_json, val_images=val_images),
            "images": len(val.image_ids),
            "images_per_second": len(val.image_ids) / seconds,
        }
        code = _report(choices, truth, results, engine=choices.engine or config.evaluation.engine, about=about)
    close_topology()
    return code


def _open_validation(val_json: Path, val_images: Path, config: RunConfig, metadata: dict) -> tuple[Any, int]:
    """Returns the index of the validation split, and the number of classes.

    Errors: DataError with everything that is wrong with its files, or that does not fit the weights.
    """
    from maskperf.data.images import open_split

    val, error = open_split(val_json, val_images, config.data, training=False)
    errors = [error] if error is not None else []
    num_classes = config.model.num_classes
    if val is not None:
        found = dict(zip(val.category_ids.tolist(), val.category_names, strict=True))
        num_classes = num_classes or len(found) + 1
        faults = category_faults(str(val_json), found, num_classes=num_classes, metadata=metadata)
        errors += [DataError(faults)] if faults else []
    if errors:
        raise joined_errors(errors)
    return val, num_classes


def _sources(weights: Path, config: RunConfig, pairs: list[str], *, val_json: Path, val_images: Path) -> dict:
    """Returns what was judged, and on what."""
    return {
        "weights": str(weights),
        "weights_sha256": _file_sha256(weights),
        "recipe": config.recipe,
        "overrides": pairs,
        "val_json": str(val_json),
        "val_json_sha256": _file_sha256(val_json),
        "val_images": str(val_images),
    }


def _report(
    choices: argparse.Namespace, truth: Any, results: tuple[Sequence[dict], Sequence[dict]], *, engine: str, about: dict
) -> int:
    """Returns the exit code, after the numbers were shown and every file was written."""
    import msgspec

    from maskperf.evaluation.scores import agree, score
    from maskperf.evaluation.table import score_entries, show_scores
    from maskperf.model.weights import replace_file
    from maskperf.records.json_text import pretty_json

    scores = score(truth, *results, engine="fast" if engine == "fast" else "official")
    differences = agree(score(truth, *results, engine="fast"), scores) if engine == "both" else []
    show_scores(scores, sys.stdout, per_category=choices.per_class)
    print(f"{about['images']} images, {about['images_per_second']:.2f} images/s; engine: {engine}")
    entries = {**about, "engine": engine, "engine_differences": differences, **score_entries(scores)}
    texts = [pretty_json(entries).encode()]
    texts += [msgspec.json.encode(list(result)) for result in results] if choices.save_detections else []
    for path, text in zip(_files_to_write(choices), texts, strict=True):
        replace_file(path, lambda temporary, text=text: temporary.write_bytes(text))
        print(f"written: {path}")
    if differences:
        print("\n".join(["error: the two engines do not agree", *differences]), file=sys.stderr)
        return EXIT_BUG
    return EXIT_DONE


def _with_progress(batches: Iterable, num_images: int, world: int) -> Iterator:
    """Returns the batches one by one; a line every few seconds tells how far this is."""
    start = last = time.monotonic()
    done = 0
    for batch in batches:
        yield batch
        done = min(done + len(batch.image_ids) * world, num_images)
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS:
            last = now
            print(f"{done} of {num_images} images, {done / (now - start):.2f} images/s", flush=True)


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
