"""What `maskperf evaluate` does once its arguments are checked: torch and the COCO engines are imported here."""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from maskperf.cli.convert import read_weights_metadata, resolve_for_weights
from maskperf.cli.evaluate import DATA_FIX
from maskperf.config import RunConfig
from maskperf.data.coco.categories import CategoryMatch, categories_of, match_categories, with_written_ids
from maskperf.data.coco.index import CocoIndex
from maskperf.data.coco.paths import existing_paths
from maskperf.data.images.files import open_split
from maskperf.data.images.loader import evaluation_batches, feeding_for
from maskperf.engine.build import build_model, keep_memory
from maskperf.engine.distributed import Topology, close_topology, init_topology
from maskperf.engine.precision import set_precision
from maskperf.errors import EXIT_BUG, EXIT_DONE, DataError, joined_errors
from maskperf.evaluation.detection_limit import detection_notices, most_counted
from maskperf.evaluation.predict import batch_size_for, predict
from maskperf.evaluation.scores import GroundTruth, agree, score, score_entries
from maskperf.evaluation.table import show_scores
from maskperf.files import pretty_json, replace_file, sha256_of_file
from maskperf.machine.threads import threads_of_process
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.report.evaluation import write_evaluation_report
from maskperf.run.console import Progress
from maskperf.run.data import class_count_problems
from maskperf.structures import EvaluationBatch
from maskperf.techniques import chosen_techniques, using

NONE = (0.0, 0)  # the data set is no part of another one


def evaluate_weights(options: argparse.Namespace, files: Sequence[Path]) -> int:
    """Load weights, evaluate all images, show the scores and write the files; return 1 where the engines differ."""
    metadata = read_weights_metadata(options.weights)
    config, notices = resolve_for_weights(options.weights, metadata, recipe=options.recipe, pairs=options.pairs)
    if options.data:
        config = replace(
            config, data=replace(config.data, root=str(options.data), val_json="", val_images="", holdout=NONE)
        )
    elif options.val_json:
        own = replace(config.data, val_json=str(options.val_json), val_images=str(options.val_images), holdout=NONE)
        config = replace(config, data=own)
    # With --save-detections ground truth is welcome, not demanded.
    val, match = _open_validation(config, metadata, is_test_set=bool(options.save_detections))
    topology = init_topology(config.system.device)
    threads = threads_of_process(config.system.threads)
    torch.set_num_threads(threads.count)
    has_truth = topology.is_first and (len(val.labels) > 0 or not options.save_detections)
    truth = GroundTruth(val.json_path, val, match) if has_truth else None
    num_classes = config.model.num_classes or len(match.names) + 1
    loading = replace(config.model, num_classes=num_classes, initial_weights=str(options.weights))
    model, loaded = build_model(loading, seed=0)
    data_notices = [f"{val.json_path}: {notice}" for notice in val.notices]
    data_notices += [*match.notices, *detection_notices(val, config.model.detections_per_image)]
    if topology.is_first:
        print("\n".join([*notices, threads.line(), *data_notices, *loaded]), flush=True)
    start = time.monotonic()
    results = _predict(model, val, config, topology, category_ids=np.array(list(match.names)))
    seconds, code = time.monotonic() - start, EXIT_DONE
    if topology.is_first:
        facts = {
            "weights": str(options.weights),
            "weights_sha256": sha256_of_file(options.weights),
            "recipe": config.recipe,
            "overrides": options.pairs,
            "val_json": str(val.json_path),
            "val_json_sha256": sha256_of_file(val.json_path),
            "val_images": str(val.image_folder),
            "images": len(val.image_ids),
            "images_per_second": len(val.image_ids) / seconds,
            "notices": data_notices,
        }
        written = (val.with_image_keys(with_written_ids(found, match)) for found in results)
        detections = [msgspec.json.encode(found) for found in written] if options.save_detections else []
        code = _report(options, files, detections, facts=facts, truth=truth, results=results, config=config)
        if options.report and truth is None:
            print("no ground truth, so no report")
        elif options.report and truth is not None:
            write_evaluation_report(options.report, options.output, val=val, match=match, truth=truth, results=results)
            print(f"written: {options.report}")
    close_topology()
    return code


def _open_validation(
    config: RunConfig, metadata: Mapping[str, Any], *, is_test_set: bool
) -> tuple[CocoIndex, CategoryMatch]:
    """Return the index of the validation split, and which of its categories are which of the weights.

    A test set may lack the lists of annotations and categories. Weights without names have the categories of the data.
    Errors: DataError with everything that is wrong with the files, or that does not fit the weights.
    """
    json_path, image_folder = existing_paths(config.data, ["val"], DATA_FIX)
    val, error = open_split(json_path, image_folder, config.data, training=False, is_test_set=is_test_set)
    if val is None:
        assert error is not None
        raise error
    trained = dict(zip(metadata.get("category_ids", []), metadata.get("category_names", []), strict=True))
    found, file = categories_of(val), str(val.json_path)
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


def _predict(
    model: MaskRcnn, val: CocoIndex, config: RunConfig, topology: Topology, *, category_ids: np.ndarray
) -> tuple[Sequence[dict], Sequence[dict]]:
    """Return box and mask results in the first process, which shows how far the evaluation is."""
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


def _with_progress(batches: Iterator[EvaluationBatch], num_images: int, world: int) -> Iterator[EvaluationBatch]:
    """Yield the batches, and show after each how many images of all processes are done."""
    done = 0
    with Progress("images") as progress:
        progress.advance("evaluation", done, num_images)
        for batch in batches:
            yield batch
            done = min(done + len(batch.image_ids) * world, num_images)
            progress.advance("evaluation", done, num_images)


def _report(
    options: argparse.Namespace,
    files: Sequence[Path],
    detections: Sequence[bytes],
    *,
    facts: dict[str, Any],
    truth: GroundTruth | None,
    results: tuple[Sequence[dict], Sequence[dict]],
    config: RunConfig,
) -> int:
    """Write every file, show the scores and return the exit code; there are no scores without truth."""
    engine, limit = options.engine or config.evaluation.engine, most_counted(config.model)
    scores, differences, entries = None, [], facts
    if truth is not None:
        scores = score(truth, *results, engine="fast" if engine == "fast" else "official", max_detections=limit)
        if engine == "both":
            differences = agree(score(truth, *results, engine="fast", max_detections=limit), scores)
        entries = {**facts, "engine": engine, "engine_differences": differences, **score_entries(scores)}
    for path, content in zip(files, [pretty_json(entries).encode(), *detections], strict=True):
        replace_file(path, partial(Path.write_bytes, data=content))  # before the table, which may fail on a terminal
    if scores is not None:
        show_scores(scores, per_category=options.per_class)
    by_engine = f"engine: {engine}" if scores is not None else "no ground truth, so no AP"
    print(f"{facts['images']} images, {facts['images_per_second']:.2f} images/s; {by_engine}")
    print("\n".join(f"written: {path}" for path in files))
    if differences:
        print("\n".join(["error: the two engines do not agree", *differences]), file=sys.stderr)
        return EXIT_BUG
    return EXIT_DONE
