"""What `maskperf evaluate` does once its arguments are checked: torch and the COCO engines are imported here."""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from maskperf.cli.score_table import show_scores
from maskperf.config import RunConfig
from maskperf.data.coco.categories import with_written_ids
from maskperf.engine.distributed import close_topology
from maskperf.errors import EXIT_BUG, EXIT_DONE
from maskperf.evaluation.detection_limit import most_counted
from maskperf.evaluation.scores import GroundTruth, agree, score, score_entries
from maskperf.files import pretty_json, replace_file, sha256_of_file
from maskperf.predict.stored import read_weights_metadata, resolve_for_weights
from maskperf.predict.validation import open_evaluation, predict_split, with_data
from maskperf.report.evaluation import write_evaluation_report


def evaluate_weights(options: argparse.Namespace, files: Sequence[Path]) -> int:
    """Load weights, evaluate all images, show the scores and write the files; return 1 where the engines differ."""
    metadata = read_weights_metadata(options.weights)
    config, notices = resolve_for_weights(options.weights, metadata, recipe=options.recipe, pairs=options.pairs)
    config = with_data(config, root=options.data, val_json=options.val_json, val_images=options.val_images)
    # With --save-detections ground truth is welcome, not demanded.
    opened = open_evaluation(options.weights, config, metadata, truth_is_optional=bool(options.save_detections))
    val, topology = opened.val, opened.topology
    if topology.is_first:
        print("\n".join([*notices, *opened.lines]), flush=True)
    start = time.monotonic()
    results = predict_split(opened, shows_progress=True)
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
            "notices": list(opened.data_notices),
        }
        written = (val.with_image_keys(with_written_ids(found, opened.match)) for found in results)
        detections = [msgspec.json.encode(found) for found in written] if options.save_detections else []
        truth, match = opened.truth, opened.match
        code = _report(options, files, detections, facts=facts, truth=truth, results=results, config=config)
        if options.report and truth is None:
            print("no ground truth, so no report")
        elif options.report and truth is not None:
            write_evaluation_report(options.report, options.output, val=val, match=match, truth=truth, results=results)
            print(f"written: {options.report}")
    close_topology()
    return code


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
