"""`maskperf evaluate --weights FILE --data FOLDER`: finds the box AP and mask AP of trained weights."""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskperf.cli.weights_config import (
    class_count_problems,
    read_weights_metadata,
    resolve_for_weights,
    trained_categories,
)
from maskperf.cli.words import WordParser, asks_for_help, path_word, read_words, require_new_file
from maskperf.config import RunConfig
from maskperf.errors import EXIT_BUG, EXIT_DONE, ConfigError, DataError, StorageError, joined_errors

if TYPE_CHECKING:
    import numpy as np

    from maskperf.data.coco.categories import CategoryMatch
    from maskperf.data.coco.index import CocoIndex
    from maskperf.engine.distributed import Topology
    from maskperf.evaluation.results import BoxResults, MaskResults
    from maskperf.model.mask_rcnn import MaskRcnn

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
DATA_FIX = "Name the data set with --data, or with --val-json and --val-images."
DETECTION_FILES = ("detections_bbox.json", "detections_segm.json")
PROGRESS_SECONDS = 10.0


def evaluate(arguments: list[str]) -> int:
    """Return the exit code: 0, or 1 where the two engines do not find the same numbers."""
    parser = _make_parser()
    if not arguments or asks_for_help(arguments):
        print(parser.format_help(), end="")
        return EXIT_DONE
    choices = read_words(parser, arguments)
    if bool(choices.val_json) != bool(choices.val_images):
        raise ConfigError("--val-json and --val-images go together. Fix: give both.")
    if choices.data and choices.val_json:
        raise ConfigError("--data and --val-json name two data sets. Fix: give one of them.")
    _refuse_keys(choices.pairs)
    for path in _files_to_write(choices):
        require_new_file(path, choices.overwrite, fix="Choose another place, or add --overwrite.")
    return _evaluate(choices)


def _make_parser() -> WordParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = WordParser(
        "maskperf evaluate", usage=USAGE, epilog=EXAMPLES, formatter_class=formatter, add_help=False, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--weights",
        metavar="FILE",
        type=path_word,
        required=True,
        help="model.safetensors of a run, or a .pth of the reference",
    )
    add("--data", metavar="FOLDER", type=path_word, help="folder with annotations/instances_val2017.json and val2017/")
    add("--val-json", metavar="FILE", type=path_word, help="own data: the annotations")
    add("--val-images", metavar="FOLDER", type=path_word, help="own data: the pictures")
    add("--recipe", metavar="NAME", help="default: the configuration stored in the weights, or else coco")
    add("--engine", choices=("fast", "official", "both"), help="both: they must find the same numbers")
    add("--per-class", action="store_true", help="show the AP of each category")
    add(
        "--output",
        metavar="FILE",
        type=path_word,
        default="evaluation.json",
        help="where the numbers go (default: evaluation.json)",
    )
    add("--save-detections", metavar="FOLDER", type=path_word, help=f"write {' and '.join(DETECTION_FILES)} there")
    add("--overwrite", action="store_true", help="write over files that exist")
    add("pairs", metavar="key=value", nargs="*", default=[], help="change a value of the configuration")
    return parser


def _files_to_write(choices: argparse.Namespace) -> list[Path]:
    """Return the files that this command will write; the folder of the detections is made if need be."""
    paths = [Path(choices.output)]
    if choices.save_detections:
        folder = Path(choices.save_detections)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"{folder}: the folder cannot be made ({error.strerror}). Fix: choose another --save-detections."
            raise StorageError(text) from error
        paths += [folder / name for name in DETECTION_FILES]
    return paths


def _refuse_keys(pairs: list[str]) -> None:
    for pair in pairs:
        key = pair.partition("=")[0].strip()
        if key in OPTION_OF_KEY:
            raise ConfigError(f"{pair}: cannot be set here. Fix: give {OPTION_OF_KEY[key]} instead.")
        if key.startswith(NOT_FOR_EVALUATION):
            raise ConfigError(f"{pair}: has no effect on an evaluation. Fix: leave it out.")


def _with_data(config: RunConfig, choices: argparse.Namespace) -> RunConfig:
    if choices.data:
        return replace(config, data=replace(config.data, root=choices.data, val_json="", val_images=""))
    if choices.val_json:
        data = replace(config.data, val_json=choices.val_json, val_images=choices.val_images)
        return replace(config, data=data)
    return config


def _evaluate(choices: argparse.Namespace) -> int:
    """Return the exit code, after weights were loaded, pictures judged and numbers shown and written."""
    import numpy as np
    import torch

    from maskperf.data.coco.index import locate_validation
    from maskperf.engine.build import build_model
    from maskperf.engine.distributed import close_topology, init_topology
    from maskperf.evaluation.scores import GroundTruth
    from maskperf.machine.threads import threads_of_process

    weights = Path(choices.weights)
    metadata = read_weights_metadata(weights)
    config, notices = resolve_for_weights(weights, metadata, recipe=choices.recipe, pairs=choices.pairs)
    config = _with_data(config, choices)
    val_json, val_images = locate_validation(config.data, DATA_FIX)
    # With --save-detections ground truth is welcome, not demanded.
    val, match = _open_validation(val_json, val_images, config, metadata, is_test_set=bool(choices.save_detections))
    topology = init_topology(config.system.device)
    threads = threads_of_process(config.system.threads)
    torch.set_num_threads(threads.count)
    has_truth = topology.is_first and (len(val.labels) > 0 or not choices.save_detections)
    truth = GroundTruth(val_json, val, match) if has_truth else None
    num_classes = config.model.num_classes or len(match.names) + 1
    loading = replace(config.model, num_classes=num_classes, initial_weights=str(weights))
    model, loaded = build_model(loading, seed=0)
    if topology.is_first:
        data_notices = _data_notices(val, match, config)
        print("\n".join([*notices, threads.line(), *data_notices, *loaded]), flush=True)
    start = time.monotonic()
    results = _predict(model, val, config, topology, category_ids=np.array(list(match.names)))
    seconds, code = time.monotonic() - start, EXIT_DONE
    if topology.is_first:
        texts = _detection_texts(results, match, val) if choices.save_detections else []
        about = {
            **_sources(weights, config, choices.pairs, val_json=val_json, val_images=val_images),
            "images": len(val.image_ids),
            "images_per_second": len(val.image_ids) / seconds,
            "notices": data_notices,
        }
        code = _report(choices, truth, results, config=config, about=about, detections=texts)
    close_topology()
    return code


def _predict(
    model: "MaskRcnn", val: "CocoIndex", config: RunConfig, topology: "Topology", *, category_ids: "np.ndarray"
) -> "tuple[BoxResults, MaskResults]":
    """Return box and mask results in the first process; it shows how far the evaluation is."""
    from maskperf.data.images.loader import evaluation_batches, feeding_for
    from maskperf.engine.build import keep_memory
    from maskperf.engine.precision import set_precision
    from maskperf.evaluation.predict import batch_size_for, predict
    from maskperf.techniques import chosen_techniques, using

    device = topology.device
    with using(chosen_techniques(config.speed)):
        batches = evaluation_batches(
            val,
            config.data,
            batch_size=batch_size_for(config.evaluation, device),
            rank=topology.rank,
            world=topology.world,
            pin_memory=device.type == "cuda",
            feeding=feeding_for(device),
        )
        if topology.is_first:
            batches = _with_progress(batches, len(val.image_ids), topology.world)
        keep_memory(device)
        model.to(device)
        set_precision(model, config.speed.precision, device, print if topology.is_first else lambda text: None)
        return predict(model, batches, category_ids, topology)


def _open_validation(
    val_json: Path, val_images: Path, config: RunConfig, metadata: Mapping[str, Any], *, is_test_set: bool
) -> "tuple[CocoIndex, CategoryMatch]":
    """Returns the index of the validation split, and which of its categories are which of the weights.

    A test set may lack the lists of annotations and categories. Weights without names have the categories of the data.
    Errors: DataError with everything that is wrong with the files, or that does not fit the weights.
    """
    from maskperf.data.coco.categories import categories_of, match_categories
    from maskperf.data.images.files import open_split

    val, error = open_split(val_json, val_images, config.data, training=False, is_test_set=is_test_set)
    if val is None:
        raise error
    errors = [error] if error is not None else []
    found, trained, file = categories_of(val), trained_categories(metadata), str(val_json)
    if is_test_set and not found:
        found = trained
    is_unnamed = not trained and config.model.num_classes
    problems = class_count_problems(file, found, num_classes=config.model.num_classes) if is_unnamed else []
    by_name = config.data.categories_by_name
    match = match_categories(trained or found, found, source="the weights", file=file, by_name=by_name)
    problems += match.problems
    errors += [DataError(problems)] if problems else []
    if errors:
        raise joined_errors(errors)
    return val, match


def _detection_texts(results: Iterable[Sequence[dict]], match: "CategoryMatch", val: "CocoIndex") -> list[bytes]:
    """Return the results of boxes and of masks as JSON, with the ids of the data set."""
    import msgspec

    from maskperf.data.coco.categories import with_written_ids

    return [msgspec.json.encode(val.with_image_keys(with_written_ids(result, match))) for result in results]


def _data_notices(val: "CocoIndex", match: "CategoryMatch", config: RunConfig) -> list[str]:
    from maskperf.evaluation.detection_limit import detection_notices

    limits = {
        "max_detections": config.evaluation.max_detections,
        "detections_per_image": config.model.detections_per_image,
    }
    read = [f"{val.json_path}: {notice}" for notice in val.notices]
    return [*read, *match.notices, *detection_notices(val, **limits)]


def _sources(weights: Path, config: RunConfig, pairs: list[str], *, val_json: Path, val_images: Path) -> dict:
    """Return what was judged, and on what."""
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
    choices: argparse.Namespace,
    truth: Any,
    results: tuple[Sequence[dict], Sequence[dict]],
    *,
    config: RunConfig,
    about: dict,
    detections: list[bytes],
) -> int:
    """Return the exit code, after every file was written and the numbers were shown; there are none without truth."""
    from maskperf.evaluation.scores import agree, score
    from maskperf.evaluation.table import score_entries, show_scores
    from maskperf.files import pretty_json, replace_file

    engine, limit = choices.engine or config.evaluation.engine, config.evaluation.max_detections
    scores, differences, entries = None, [], about
    if truth is not None:
        scores = score(truth, *results, engine="fast" if engine == "fast" else "official", max_detections=limit)
        if engine == "both":
            differences = agree(score(truth, *results, engine="fast", max_detections=limit), scores)
        entries = {**about, "engine": engine, "engine_differences": differences, **score_entries(scores)}
    paths = _files_to_write(choices)
    for path, text in zip(
        paths, [pretty_json(entries).encode(), *detections], strict=True
    ):  # before the table: no terminal can take the numbers away
        replace_file(path, lambda temporary, text=text: temporary.write_bytes(text))
    if scores is not None:
        show_scores(scores, sys.stdout, per_category=choices.per_class)
    judged = f"engine: {engine}" if scores is not None else "no ground truth, so no AP"
    print(f"{about['images']} images, {about['images_per_second']:.2f} images/s; {judged}")
    print("\n".join(f"written: {path}" for path in paths))
    if differences:
        print("\n".join(["error: the two engines do not agree", *differences]), file=sys.stderr)
        return EXIT_BUG
    return EXIT_DONE


def _with_progress(batches: Iterable, num_images: int, world: int) -> Iterator:
    """Return the batches one by one; a line every few seconds tells how far this is."""
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
