"""The box AP and mask AP of weights: for `maskperf.evaluate` and for the command, on one process or several."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskperf.config import RunConfig
from maskperf.data.coco.categories import CategoryMatch, categories_of, match_categories
from maskperf.data.coco.index import CocoIndex
from maskperf.data.coco.paths import VALIDATION_FIX, existing_paths
from maskperf.data.images.files import open_split
from maskperf.engine.build import build_model, keep_memory
from maskperf.engine.distributed import Topology, init_topology
from maskperf.engine.precision import set_precision
from maskperf.errors import ConfigError, DataError, joined_errors
from maskperf.evaluation.detection_limit import detection_notices, most_counted
from maskperf.evaluation.predict import predict
from maskperf.evaluation.scores import GroundTruth, Scores, score
from maskperf.machine.threads import threads_of_process
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.predict.stored import resolve_for_weights
from maskperf.run.console import Progress
from maskperf.run.data import class_count_problems, split_batches
from maskperf.structures import EvaluationBatch
from maskperf.techniques import chosen_techniques, using

NONE = (0.0, 0)  # the data set is no part of another one


@dataclass(frozen=True, eq=False)
class Opened:
    """Weights and a validation split that fit each other, ready to be evaluated."""

    config: RunConfig
    model: MaskRcnn
    val: CocoIndex
    match: CategoryMatch
    truth: GroundTruth | None  # in the first process alone, and only where there is something to find
    topology: Topology
    lines: list[str]  # what is to be said before the evaluation
    data_notices: list[str]


@dataclass(frozen=True)
class Evaluation:
    """What `maskperf.evaluate` found."""

    scores: Scores
    images: int
    images_per_second: float
    notices: tuple[str, ...]

    @property
    def box_ap(self) -> float:
        return self.scores.box_ap

    @property
    def mask_ap(self) -> float:
        return self.scores.mask_ap


def evaluate(
    weights: str | Path,
    data: str | Path | None = None,
    *,
    val_json: str | Path | None = None,
    val_images: str | Path | None = None,
    recipe: str | RunConfig | None = None,
    settings: Sequence[str] = (),
    engine: str | None = None,
) -> Evaluation:
    """Return what `maskperf evaluate` shows: COCO's numbers of these weights on a validation split.

    Without a data set it is that of the run which made the weights. `settings` are pairs such as
    "evaluation.batch_size=4". Runs on one process.
    Errors: ConfigError, DataError as the command.
    """
    if bool(val_json) != bool(val_images) or (data and val_json):
        raise ConfigError("give either data, or val_json and val_images together, or none of them")
    path = Path(weights)
    config, metadata, notices = resolve_for_weights(path, recipe=recipe, pairs=settings)
    config = with_data(config, root=data, val_json=val_json, val_images=val_images)
    opened = open_evaluation(path, config, metadata)
    assert opened.truth is not None  # one process, which is the first
    start = time.monotonic()
    results = predict_split(opened)
    seconds = time.monotonic() - start
    engine, limit = engine or config.evaluation.engine, most_counted(config.model)
    scores = score(opened.truth, *results, engine=engine, max_detections=limit)
    images = len(opened.val.image_ids)
    return Evaluation(scores, images, images_per_second=images / seconds, notices=(*notices, *opened.lines))


def with_data(
    config: RunConfig, *, root: str | Path | None, val_json: str | Path | None, val_images: str | Path | None
) -> RunConfig:
    """Return the configuration with another validation split, where one is named."""
    if root:
        return replace(config, data=replace(config.data, root=str(root), val_json="", val_images="", holdout=NONE))
    if val_json:
        own = replace(config.data, val_json=str(val_json), val_images=str(val_images), holdout=NONE)
        return replace(config, data=own)
    return config


def open_evaluation(
    weights: Path, config: RunConfig, metadata: Mapping[str, Any], *, truth_is_optional: bool = False
) -> Opened:
    """Return everything an evaluation needs, checked. Sets the number of threads of this process.

    Errors: as `open_validation`; DataError for weights that cannot be loaded.
    """
    val, match = open_validation(config, metadata, is_test_set=truth_is_optional)
    topology = init_topology(config.system.device)
    threads = threads_of_process(config.system.threads)
    torch.set_num_threads(threads.count)
    has_truth = topology.is_first and (len(val.labels) > 0 or not truth_is_optional)
    truth = GroundTruth(val.json_path, val, match) if has_truth else None
    num_classes = config.model.num_classes or len(match.names) + 1
    loading = replace(config.model, num_classes=num_classes, initial_weights=str(weights))
    model, loaded = build_model(loading, seed=0)
    data_notices = [f"{val.json_path}: {notice}" for notice in val.notices]
    data_notices += [*match.notices, *detection_notices(val, config.model.detections_per_image)]
    lines = [threads.line(), *data_notices, *loaded]
    return Opened(config, model, val, match, truth, topology, lines, data_notices)


def open_validation(
    config: RunConfig, metadata: Mapping[str, Any], *, is_test_set: bool
) -> tuple[CocoIndex, CategoryMatch]:
    """Return the index of the validation split, and which of its categories are which of the weights.

    A test set may lack the lists of annotations and categories. Weights without names have the categories of the data.
    Errors: DataError with everything that is wrong with the files, or that does not fit the weights.
    """
    json_path, image_folder = existing_paths(config.data, ["val"], VALIDATION_FIX)
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


def predict_split(opened: Opened, *, shows_progress: bool = False) -> tuple[Sequence[dict], Sequence[dict]]:
    """Return box and mask results in the first process, which may show how far the evaluation is."""
    config, topology, val, device = opened.config, opened.topology, opened.val, opened.topology.device
    shows_progress = shows_progress and topology.is_first
    with using(chosen_techniques(config.speed)):
        batches = split_batches(val, config, topology)
        if shows_progress:
            batches = _with_progress(batches, len(val.image_ids), topology.world)
        keep_memory(device)
        opened.model.to(device)
        say = print if shows_progress else lambda text: None
        set_precision(opened.model, config.speed.precision, device, say)
        return predict(opened.model, batches, np.array(list(opened.match.names)), topology)


def _with_progress(batches: Iterator[EvaluationBatch], num_images: int, world: int) -> Iterator[EvaluationBatch]:
    """Yield the batches, and show after each how many images of all processes are done."""
    done = 0
    with Progress("images") as progress:
        progress.advance("evaluation", done, num_images)
        for batch in batches:
            yield batch
            done = min(done + len(batch.image_ids) * world, num_images)
            progress.advance("evaluation", done, num_images)
