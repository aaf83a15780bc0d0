"""The data of a run: the generated or given files, opened and checked, and the batches of a process."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from maskperf.config import DataConfig, RunConfig
from maskperf.data.coco.categories import CategoryMatch, categories_of, match_categories
from maskperf.data.coco.index import CocoIndex, read_coco
from maskperf.data.coco.paths import DataPaths, locate
from maskperf.data.coco.verify import check_benchmark_counts, count_notices
from maskperf.data.images.files import open_split
from maskperf.data.images.loader import TrainingLoader, evaluation_batches, feeding_for
from maskperf.data.images.page_cache import forget_all_files, forget_files
from maskperf.data.images.raw_images import prepare_images
from maskperf.engine.distributed import Topology, share_from_first
from maskperf.engine.precision import resolve_precision
from maskperf.errors import ConfigError, DataError, Problem, joined_errors
from maskperf.evaluation.detection_limit import detection_notices
from maskperf.evaluation.predict import batch_size_for
from maskperf.evaluation.scores import GroundTruth
from maskperf.pictures.fonts import font_notices
from maskperf.recipes import RECIPES
from maskperf.run.session import Session, images_per_rank
from maskperf.seeds import entropy_seed
from maskperf.structures import Batch, EvaluationBatch

OTHER_DATA_FIX = "Take the data set that the weights were trained for, or weights that were trained for this one."


@dataclass(frozen=True)
class OpenedData:
    """The two splits of a data set, and the ground truth of the second in the first process."""

    train: CocoIndex
    val: CocoIndex
    categories: CategoryMatch
    truth: GroundTruth | None  # in the categories of the training


def complete_config(config: RunConfig, topology: Topology) -> RunConfig:
    """Return the configuration with its seed and the number of classes of the data, the same in all processes.

    Errors: DataError for unusable categories.
    """
    seed = share_from_first(entropy_seed() if config.seed < 0 else config.seed, topology)
    config = replace(config, seed=seed)
    if config.model.num_classes:
        return config
    train = _first_before_others(topology, partial(read_training_split, config.data))
    return replace(config, model=replace(config.model, num_classes=len(train.category_ids) + 1))


def read_training_split(data: DataConfig) -> CocoIndex:
    """Return the training split, whose images are not opened.

    Errors: DataError with everything that is wrong with both splits.
    """
    paths = locate(data)
    try:
        return read_coco(paths.train_json, paths.train_images, training=True, data=data)
    except DataError as error:
        raise joined_errors(open_splits(paths, data)[2]) from error


def clear_caches(session: Session) -> None:
    """Drop the data set's files from the operating system's cache, as the benchmark asks for before each run.

    A run of the closed division drops all files of the machine, where its user may.
    """
    if not session.topology.is_first:
        return
    everything = session.config.mlperf.division == "closed" and forget_all_files()
    if everything or forget_files(vars(locate(session.config.data)).values()):
        session.log.cache_clear()
    else:
        session.say("this system has no way to drop files from its cache; the log says nothing of a cleared cache")


def open_data(session: Session) -> OpenedData:
    """Return the data set, checked. The clock of the benchmark runs while this reads.

    Errors: DataError with everything that is wrong with the files, or that does not fit the model.
    """
    config = session.config
    paths = locate(config.data)
    train, val, errors = _first_before_others(session.topology, partial(open_splits, paths, config.data))
    if train is not None and val is not None:
        found, source, file = categories_of(train), str(train.json_path), str(val.json_path)
        by_name = config.data.categories_by_name
        categories = match_categories(found, categories_of(val), source=source, file=file, by_name=by_name)
        fix = f"Set model.num_classes={len(found) + 1}, or 0 to follow the file."
        problems = class_count_problems(source, found, num_classes=config.model.num_classes, fix=fix)
        problems += categories.problems
        errors += [DataError(problems)] if problems else []
    if errors:
        raise joined_errors(errors)
    for notice in (
        *(f"{index.json_path}: {notice}" for index in (train, val) for notice in index.notices),
        *_own_data_notices(config, train, val),
        *categories.notices,
        *detection_notices(val, config.model.detections_per_image),
        *(font_notices(train.category_names) if session.topology.is_first else ()),
    ):
        session.notice(notice)
    if config.data.check_counts:
        mismatches = check_benchmark_counts(train, val)
        if mismatches:
            raise ConfigError(
                "\n".join([*mismatches, "Fix: get the files of COCO 2017, or set data.check_counts=false"])
            )
    truth = GroundTruth(paths.val_json, val, categories) if session.topology.is_first else None
    return OpenedData(train=train, val=val, categories=categories, truth=truth)


def _first_before_others(topology: Topology, read: Callable[[], Any]) -> Any:
    """Return what `read` returns. The first of several processes reads before the others, which then find its cache."""
    if topology.is_first and topology.world > 1:
        with suppress(DataError):  # every process, this one too, finds the same errors below
            read()
    share_from_first(None, topology)
    return read()


def open_splits(paths: DataPaths, data: DataConfig) -> tuple[CocoIndex | None, CocoIndex | None, list[DataError]]:
    """Return both splits, None where the annotations cannot be read, and the errors that stop a run."""
    train, train_error = open_split(paths.train_json, paths.train_images, data, training=True)
    val, val_error = open_split(paths.val_json, paths.val_images, data, training=False)
    errors = [error for error in (train_error, val_error) if error is not None]
    if data.holdout[0] and len(errors) == 2:  # of one file and one folder, most of them found twice
        both = joined_errors(errors)
        errors = [DataError(list(dict.fromkeys(both.problems)), list(dict.fromkeys(both.notices)))]
    return train, val, errors


def _own_data_notices(config: RunConfig, train: CocoIndex, val: CocoIndex) -> list[str]:
    """Return notices for a data.root with other data than the recipe is made for."""
    if config.data.train_json or config.recipe not in RECIPES:  # other data on purpose
        return []
    recipe = RECIPES[config.recipe]().data
    if recipe.is_generated and not config.data.is_generated:
        return [
            f"{config.data.root}: holds a data set that this program did not write; it is trained on, with its "
            f"{len(train.category_ids)} categories, and nothing is generated"
        ]
    return count_notices(train, val) if recipe.check_counts and not config.data.check_counts else []


def class_count_problems(
    file: str, found: Mapping[int, str], *, num_classes: int, fix: str = OTHER_DATA_FIX
) -> list[Problem]:
    """Return the problem where the categories in a file are too many or too few for a model."""
    if len(found) == num_classes - 1:
        return []
    message = f"The model has {num_classes - 1} (model.num_classes={num_classes}, with background)."
    where, value = "the list of categories", f"{len(found)} entries"
    return [Problem(file=file, where=where, field="categories", value=value, message=message, fix=fix)]


def micro_batches(
    config: RunConfig, topology: Topology, train: CocoIndex, updates_done: int, num_steps: int
) -> Generator[list[Batch], None, None]:
    """Return the micro-batches of each of the next steps, on the device."""
    per_step = config.optimizer.accumulation_steps
    loader = TrainingLoader(
        train,
        config.data,
        seed=config.seed,
        rank=topology.rank,
        world=topology.world,
        images_per_rank=images_per_rank(config, topology),
        pin_memory=topology.device.type == "cuda",
        feeding=feeding_for(topology.device),
    )
    prepare = partial(
        prepare_images,
        device=topology.device,
        dtype=resolve_precision(config.speed.precision, topology.device),
    )
    batches = iter(loader.batches(updates_done * per_step, num_steps * per_step))
    while of_one_step := list(islice(batches, per_step)):
        yield [prepare(batch) for batch in of_one_step]


def split_batches(index: CocoIndex, config: RunConfig, topology: Topology) -> Iterator[EvaluationBatch]:
    """Yield the batches of this process in an evaluation of a whole split."""
    return evaluation_batches(
        index,
        config.data,
        batch_size=batch_size_for(config.evaluation, topology.device),
        rank=topology.rank,
        world=topology.world,
        pin_memory=topology.device.type == "cuda",
        feeding=feeding_for(topology.device),
    )
