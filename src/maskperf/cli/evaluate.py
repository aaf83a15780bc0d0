"""`maskperf evaluate --weights FILE --data FOLDER`: finds the box AP and mask AP of trained weights."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskperf.cli.arguments import CommandParser, make_folder, require_new_file
from maskperf.cli.convert import class_count_problems, read_weights_metadata, resolve_for_weights
from maskperf.config import RunConfig
from maskperf.errors import EXIT_BUG, EXIT_DONE, ConfigError, DataError, joined_errors
from maskperf.files import pretty_json, replace_file, sha256_of_file
from maskperf.overrides import key_of

if TYPE_CHECKING:
    import numpy as np

    from maskperf.data.coco.categories import CategoryMatch
    from maskperf.data.coco.index import CocoIndex
    from maskperf.engine.distributed import Topology
    from maskperf.evaluation.results import Results
    from maskperf.model.mask_rcnn import MaskRcnn

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
# There is one way to say one thing: these keys are refused, and the option for it is named.
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


def make_parser() -> CommandParser:
    usage = "--weights FILE [--data FOLDER | --val-json FILE --val-images FOLDER] [key=value ...]"
    parser = CommandParser("evaluate", usage=usage, epilog=EXAMPLES)
    add, add_path = parser.add_argument, parser.add_path
    add_path("--weights", "FILE", "model.safetensors of a run, or a .pth of the reference", required=True)
    add_path("--data", "FOLDER", "folder with annotations/instances_val2017.json and val2017/")
    add_path("--val-json", "FILE", "own data: the annotations")
    add_path("--val-images", "FOLDER", "own data: the images")
    add("--recipe", metavar="NAME", help="default: the configuration stored in the weights, or else coco")
    add("--engine", choices=("fast", "official", "both"), help="both: they must find the same numbers")
    add("--per-class", action="store_true", help="show the AP of each category")
    output = Path("evaluation.json")
    add_path("--output", "FILE", f"where the numbers go (default: {output})", default=output)
    add_path("--save-detections", "FOLDER", f"write {' and '.join(DETECTION_FILES)} there")
    add("--overwrite", action="store_true", help="write over files that exist")
    add("pairs", metavar="key=value", nargs="*", default=[], help="change a value of the configuration")
    return parser


def evaluate(options: argparse.Namespace) -> int:
    """Return 0, or 1 where the two engines do not find the same numbers."""
    if bool(options.val_json) != bool(options.val_images):
        raise ConfigError("--val-json and --val-images go together. Fix: give both.")
    if options.data and options.val_json:
        raise ConfigError("--data and --val-json name two data sets. Fix: give one of them.")
    for pair in options.pairs:
        key = key_of(pair)
        if key in OPTION_OF_KEY:
            raise ConfigError(f"{pair}: cannot be set here. Fix: give {OPTION_OF_KEY[key]} instead.")
        if key.startswith(NOT_FOR_EVALUATION):
            raise ConfigError(f"{pair}: has no effect on an evaluation. Fix: leave it out.")
    if options.save_detections:
        make_folder(options.save_detections, option="--save-detections")
    for path in _files_to_write(options):
        require_new_file(path, overwrite=options.overwrite)
    return _evaluate(options)


def _files_to_write(options: argparse.Namespace) -> list[Path]:
    folder = options.save_detections
    return [options.output, *(folder / name for name in DETECTION_FILES if folder)]


def _with_data(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    data = config.data
    if options.data:
        data = replace(data, root=str(options.data), val_json="", val_images="")
    elif options.val_json:
        data = replace(data, val_json=str(options.val_json), val_images=str(options.val_images))
    return replace(config, data=data)


def _evaluate(options: argparse.Namespace) -> int:
    """Load weights, evaluate all images, show and write the scores."""
    import numpy as np
    import torch

    from maskperf.data.coco.index import locate_validation
    from maskperf.engine.build import build_model
    from maskperf.engine.distributed import close_topology, init_topology
    from maskperf.evaluation.scores import GroundTruth
    from maskperf.machine.threads import threads_of_process

    metadata = read_weights_metadata(options.weights)
    config, notices = resolve_for_weights(options.weights, metadata, recipe=options.recipe, pairs=options.pairs)
    config = _with_data(config, options)
    val_json, val_images = locate_validation(config.data, DATA_FIX)
    # With --save-detections ground truth is welcome, not demanded.
    val, match = _open_validation(val_json, val_images, config, metadata, is_test_set=bool(options.save_detections))
    topology = init_topology(config.system.device)
    threads = threads_of_process(config.system.threads)
    torch.set_num_threads(threads.count)
    has_truth = topology.is_first and (len(val.labels) > 0 or not options.save_detections)
    truth = GroundTruth(val_json, val, match) if has_truth else None
    num_classes = config.model.num_classes or len(match.names) + 1
    loading = replace(config.model, num_classes=num_classes, initial_weights=str(options.weights))
    model, loaded = build_model(loading, seed=0)
    data_notices = _data_notices(val, match, config)
    if topology.is_first:
        print("\n".join([*notices, threads.line(), *data_notices, *loaded]), flush=True)
    start = time.monotonic()
    results = _predict(model, val, config, topology, category_ids=np.array(list(match.names)))
    seconds, code = time.monotonic() - start, EXIT_DONE
    if topology.is_first:
        facts = {
            **_sources(options, config, val_json=val_json, val_images=val_images),
            "images": len(val.image_ids),
            "images_per_second": len(val.image_ids) / seconds,
            "notices": data_notices,
        }
        detections = _detection_texts(results, match, val) if options.save_detections else []
        code = _report(options, truth, results, config=config, facts=facts, detections=detections)
    close_topology()
    return code


def _predict(
    model: "MaskRcnn", val: "CocoIndex", config: RunConfig, topology: "Topology", *, category_ids: "np.ndarray"
) -> "tuple[Results, Results]":
    """Return box and mask results in the first process, which shows how far the evaluation is."""
    from maskperf.data.images.loader import evaluation_batches, feeding_for
    from maskperf.engine.build import keep_memory
    from maskperf.engine.precision import set_precision
    from maskperf.evaluation.predict import batch_size_for, predict
    from maskperf.techniques import chosen_techniques, using

    device = topology.device
    with using(chosen_techniques(config.speed)):
        batches: Iterable = evaluation_batches(
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
    """Return the index of the validation split, and which of its categories are which of the weights.

    A test set may lack the lists of annotations and categories. Weights without names have the categories of the data.
    Errors: DataError with everything that is wrong with the files, or that does not fit the weights.
    """
    from maskperf.data.coco.categories import categories_of, match_categories
    from maskperf.data.images.files import open_split

    val, error = open_split(val_json, val_images, config.data, training=False, is_test_set=is_test_set)
    if val is None:
        assert error is not None
        raise error
    trained = dict(zip(metadata.get("category_ids", []), metadata.get("category_names", []), strict=True))
    found, file = categories_of(val), str(val_json)
    if is_test_set and not found:
        found = trained
    is_unnamed = not trained and config.model.num_classes
    problems = class_count_problems(file, found, num_classes=config.model.num_classes) if is_unnamed else []
    by_name = config.data.categories_by_name
    match = match_categories(trained or found, found, source="the weights", file=file, by_name=by_name)
    problems += match.problems
    errors = ([error] if error is not None else []) + ([DataError(problems)] if problems else [])
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

    read = [f"{val.json_path}: {notice}" for notice in val.notices]
    return [*read, *match.notices, *detection_notices(val, config.model.detections_per_image)]


def _sources(options: argparse.Namespace, config: RunConfig, *, val_json: Path, val_images: Path) -> dict:
    """Return what was evaluated, and on what."""
    return {
        "weights": str(options.weights),
        "weights_sha256": sha256_of_file(options.weights),
        "recipe": config.recipe,
        "overrides": options.pairs,
        "val_json": str(val_json),
        "val_json_sha256": sha256_of_file(val_json),
        "val_images": str(val_images),
    }


def _report(
    options: argparse.Namespace,
    truth: Any,
    results: tuple[Sequence[dict], Sequence[dict]],
    *,
    config: RunConfig,
    facts: dict,
    detections: list[bytes],
) -> int:
    """Write every file, show the scores and return the exit code; there are no scores without truth."""
    from maskperf.evaluation.detection_limit import most_counted
    from maskperf.evaluation.scores import agree, score, score_entries
    from maskperf.evaluation.table import show_scores

    engine, limit = options.engine or config.evaluation.engine, most_counted(config.model)
    scores, differences, entries = None, [], facts
    if truth is not None:
        scores = score(truth, *results, engine="fast" if engine == "fast" else "official", max_detections=limit)
        if engine == "both":
            differences = agree(score(truth, *results, engine="fast", max_detections=limit), scores)
        entries = {**facts, "engine": engine, "engine_differences": differences, **score_entries(scores)}
    files = dict(zip(_files_to_write(options), [pretty_json(entries).encode(), *detections], strict=True))
    for path, content in files.items():  # before the table: no terminal can take the numbers away
        replace_file(path, partial(Path.write_bytes, data=content))
    if scores is not None:
        show_scores(scores, per_category=options.per_class)
    by_engine = f"engine: {engine}" if scores is not None else "no ground truth, so no AP"
    print(f"{facts['images']} images, {facts['images_per_second']:.2f} images/s; {by_engine}")
    print("\n".join(f"written: {path}" for path in files))
    if differences:
        print("\n".join(["error: the two engines do not agree", *differences]), file=sys.stderr)
        return EXIT_BUG
    return EXIT_DONE


def _with_progress(batches: Iterable, num_images: int, world: int) -> Iterator:
    """Yield the batches, and show after each how many images of all processes are done."""
    from maskperf.run.console import Progress

    done = 0
    with Progress("images") as progress:
        progress.advance("evaluation", done, num_images)
        for batch in batches:
            yield batch
            done = min(done + len(batch.image_ids) * world, num_images)
            progress.advance("evaluation", done, num_images)
