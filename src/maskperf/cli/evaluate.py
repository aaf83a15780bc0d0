"""`maskperf evaluate --weights FILE --data FOLDER`: finds the box AP and mask AP of trained weights."""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from maskperf.cli.arguments import CommandParser, make_folder, require_existing, require_new_file
from maskperf.config import DataConfig
from maskperf.data.coco.paths import VALIDATION_FIX, existing_paths
from maskperf.errors import EXIT_BUG, EXIT_DONE, ConfigError
from maskperf.files import pretty_json, replace_file, sha256_of_file
from maskperf.overrides import key_of

if TYPE_CHECKING:
    from maskperf.predict.validation import Opened

USAGE = "--weights FILE [--data FOLDER | --val-json FILE --val-images FOLDER] [key=value ...]"
EXAMPLES = """examples, to copy and paste:
  # the weights of a run, on the data set of that run
  maskperf evaluate --weights runs/demo-1/model.safetensors
  # a file of the reference implementation on COCO 2017, each category's AP as well
  maskperf evaluate --weights model_final.pth --data /data/coco --per-class
  # own data; both COCO engines must find the same numbers
  maskperf evaluate --weights model.safetensors --val-json /my/val.json --val-images /my/val --engine both
  # where it errs: a page with curves, kinds of errors, confusions, and images with the errors marked
  maskperf evaluate --weights runs/demo-1/model.safetensors --report errors.html
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
DETECTION_FILES = ("detections_bbox.json", "detections_segm.json")


def add_options(parser: CommandParser) -> None:
    add, add_path = parser.add_argument, parser.add_path
    add_path("--weights", "FILE", "model.safetensors of a run, or weights of another program", required=True)
    add_path("--data", "FOLDER", "folder with annotations/instances_val2017.json and val2017/")
    add_path("--val-json", "FILE", "own data: the annotations")
    add_path("--val-images", "FOLDER", "own data: the images")
    add("--recipe", metavar="NAME", help="default: the configuration stored in the weights, or else coco")
    add("--engine", choices=("fast", "official", "both"), help="both: they must find the same numbers")
    add("--per-class", action="store_true", help="show the AP of each category")
    add_path("--report", "FILE.html", "write a page: curves, kinds of errors, confusions, images with errors marked")
    add_path("--output", "FILE", "where the numbers go (default: evaluation.json, -2 and so on where it is taken)")
    add_path("--save-detections", "FOLDER", f"write {' and '.join(DETECTION_FILES)} there")
    add("--overwrite", action="store_true", help="write over files that exist")
    add("pairs", metavar="key=value", nargs="*", default=[], help="change a value of the configuration")


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
    if options.report and options.report.suffix != ".html":
        raise ConfigError(f"--report {options.report}: the page is an HTML file. Fix: give a name ending in .html.")
    options.output = options.output or _default_output(overwrite=options.overwrite)
    require_new_file(options.output, overwrite=options.overwrite)
    require_existing("--weights", [options.weights])
    if options.data or options.val_json:  # a wrong path is found before torch is imported
        own = DataConfig(val_json=str(options.val_json), val_images=str(options.val_images))
        existing_paths(DataConfig(root=str(options.data)) if options.data else own, ["val"], VALIDATION_FIX)
    if options.save_detections:
        make_folder(options.save_detections, option="--save-detections")
    detections = [options.save_detections / name for name in DETECTION_FILES if options.save_detections]
    for path in (*detections, *([options.report] if options.report else [])):
        require_new_file(path, overwrite=options.overwrite)
    return _evaluate_weights(options, [options.output, *detections])


def _default_output(*, overwrite: bool) -> Path:
    """Return evaluation.json in this folder, or the first numbered one that is not taken."""
    names = (Path(f"evaluation{f'-{number}' if number > 1 else ''}.json") for number in count(1))
    return next(path for path in names if overwrite or not path.exists())


def _evaluate_weights(options: argparse.Namespace, files: Sequence[Path]) -> int:
    """Load weights, evaluate all images, show the scores and write the files; return 1 where the engines differ."""
    from maskperf.engine.distributed import close_topology
    from maskperf.predict.stored import resolve_for_weights
    from maskperf.predict.validation import open_evaluation, predict_split, with_data

    config, metadata, notices = resolve_for_weights(options.weights, recipe=options.recipe, pairs=options.pairs)
    config = with_data(config, root=options.data, val_json=options.val_json, val_images=options.val_images)
    # With --save-detections ground truth is welcome, not demanded.
    opened = open_evaluation(options.weights, config, metadata, truth_is_optional=bool(options.save_detections))
    is_first = opened.topology.is_first
    if is_first:
        print("\n".join([*notices, *opened.lines]), flush=True)
    start = time.monotonic()
    results = predict_split(opened, shows_progress=True)
    code = _report(options, files, opened, results, time.monotonic() - start) if is_first else EXIT_DONE
    close_topology()
    return code


def _report(
    options: argparse.Namespace,
    files: Sequence[Path],
    opened: "Opened",
    results: tuple[Sequence[dict], Sequence[dict]],
    seconds: float,
) -> int:
    """Write every file, show the scores and return the exit code; there are no scores without ground truth."""
    from maskperf.cli.score_table import show_scores
    from maskperf.data.coco.categories import with_written_ids
    from maskperf.evaluation.detection_limit import most_counted
    from maskperf.evaluation.scores import agree, score, score_entries
    from maskperf.report.evaluation import write_evaluation_report

    val, match, truth, images = opened.val, opened.match, opened.truth, len(opened.val.image_ids)
    engine, limit = options.engine or opened.config.evaluation.engine, most_counted(opened.config.model)
    entries = {
        "weights": str(options.weights),
        "weights_sha256": sha256_of_file(options.weights),
        "recipe": opened.config.recipe,
        "overrides": options.pairs,
        "val_json": str(val.json_path),
        "val_json_sha256": sha256_of_file(val.json_path),
        "val_images": str(val.image_folder),
        "images": images,
        "images_per_second": images / seconds,
        "notices": opened.data_notices,
    }
    scores, differences = None, list[str]()
    if truth is not None:
        scores = score(truth, *results, engine="fast" if engine == "fast" else "official", max_detections=limit)
        if engine == "both":
            differences = agree(score(truth, *results, engine="fast", max_detections=limit), scores)
        entries |= {"engine": engine, "engine_differences": differences, **score_entries(scores)}
    contents = [pretty_json(entries).encode()]
    if options.save_detections:
        contents += [msgspec.json.encode(val.with_image_keys(with_written_ids(found, match))) for found in results]
    for path, content in zip(files, contents, strict=True):
        replace_file(path, partial(Path.write_bytes, data=content))  # before the table, which may fail on a terminal
    if scores is not None:
        show_scores(scores, per_category=options.per_class)
    by_engine = f"engine: {engine}" if scores is not None else "no ground truth, so no AP"
    print(f"{images} images, {images / seconds:.2f} images/s; {by_engine}")
    print("\n".join(f"written: {path}" for path in files))
    if options.report and truth is None:
        print("no ground truth, so no report")
    elif options.report and truth is not None:
        write_evaluation_report(options.report, options.output, val=val, match=match, truth=truth, results=results)
        print(f"written: {options.report}")
    if differences:
        print("\n".join(["error: the two engines do not agree", *differences]), file=sys.stderr)
    return EXIT_BUG if differences else EXIT_DONE
