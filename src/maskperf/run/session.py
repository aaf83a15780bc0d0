"""What surrounds a run: the process group, the seed, the run folder, the log and the screen."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from maskperf.config import DataConfig, RunConfig
from maskperf.data.coco.categories import CategoryMatch, categories_of, match_categories
from maskperf.data.coco.index import CocoIndex, DataPaths, locate, read_coco
from maskperf.data.coco.verify import check_benchmark_counts, count_notices
from maskperf.data.images.files import open_split
from maskperf.data.images.page_cache import forget_all_files, forget_files
from maskperf.demo.dataset import ensure_demo_dataset
from maskperf.engine.build import padded_size_hw
from maskperf.engine.distributed import Topology, share_from_first, wait_for_all
from maskperf.engine.forward import mask_slots
from maskperf.errors import ConfigError, DataError, Problem, joined_errors
from maskperf.evaluation.detection_limit import detection_notices
from maskperf.evaluation.scores import GroundTruth
from maskperf.files import pretty_json, replace_file, write_text
from maskperf.machine.threads import threads_of_process
from maskperf.mlperf.log import MlperfLog
from maskperf.model.layer_list import format_layers, list_layers
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import save_state
from maskperf.overrides import describe, to_json_text
from maskperf.pictures.fonts import font_notices
from maskperf.recipes import RECIPES
from maskperf.run.background_writer import BackgroundWriter
from maskperf.run.environment import describe_environment
from maskperf.run.metrics import MetricsWriter
from maskperf.run.progress import Progress
from maskperf.run.run_folder import create_run_folder
from maskperf.run.step_recorder import StepRecorder
from maskperf.run.time_account import TimeAccount
from maskperf.seeds import entropy_seed

WEIGHTS_FILE = "model.safetensors"  # of the last epoch
BEST_WEIGHTS_FILE = "model_best.safetensors"  # of the best evaluation
WEIGHT_FILES = {  # field of the section model: what to do where its file is missing
    "backbone_weights": "Set it to Detectron's R-50.pkl (ImageNetPretrained/MSRA of its model zoo, MD5 "
    "b19105fdd7baafb40480251377de18f2), or to nothing (model.backbone_weights=) to start from random weights.",
    "initial_weights": "Set it to a model.safetensors of a run or a .pth of the reference, or to nothing.",
}


@dataclass(frozen=True)
class Session:
    """One run's surroundings, left in order when its `with` block ends. `folder` is in the first process only."""

    config: RunConfig  # with the seed that is used
    topology: Topology
    folder: Path | None
    log: MlperfLog
    resources: ExitStack  # closed at the end, whatever happened
    account: TimeAccount = field(default_factory=TimeAccount)
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    notices: list[str] = field(default_factory=list)  # about data and settings; for results and report too

    @property
    def images_per_rank(self) -> int:
        """Images of one micro-batch of one process."""
        return self.config.optimizer.batch_size // (self.topology.world * self.config.optimizer.accumulation_steps)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.log.abort()
        self.resources.close()

    def start_clock(self) -> None:
        """End the initialisation, in all processes; from here on the time of the benchmark runs."""
        wait_for_all(self.topology)
        self.log.run_start()
        self.account.start()

    def stop_clock(self, *, success: bool) -> None:
        self.account.stop()
        self.log.run_stop(success=success)

    def say(self, text: str) -> None:
        if self.topology.is_first:
            print(text, flush=True)

    def notice(self, text: str) -> None:
        """Report what the user should know about the data or the settings, and keeps it for results and report."""
        self.notices.append(text)
        self.say(text)

    def write(self, name: str, text: str) -> None:
        if self.folder is not None:
            write_text(self.folder / name, text)


def open_session(config: RunConfig, topology: Topology) -> Session:
    """Return the surroundings of a run: batch size checked, threads set, seed shared, folder and its first files made.

    Errors: ConfigError for a batch that cannot be split, StorageError for a folder that exists.
    """
    parts = topology.world * config.optimizer.accumulation_steps
    if config.optimizer.batch_size % parts:
        raise ConfigError(
            f"optimizer.batch_size={config.optimizer.batch_size} cannot be split over {topology.world} processes "
            f"with optimizer.accumulation_steps={config.optimizer.accumulation_steps}. "
            f"Fix: make it a multiple of {parts}."
        )
    _demand_files(config)
    threads = threads_of_process(config.system.threads)
    torch.set_num_threads(threads.count)
    seed = share_from_first(entropy_seed() if config.seed < 0 else config.seed, topology)
    config = _with_class_count(replace(config, seed=seed), topology)
    folder = create_run_folder(config.run_dir, config.recipe) if topology.is_first else None
    log = MlperfLog(folder / "mlperf.log" if folder else None)
    resources = ExitStack()
    resources.callback(log.close)
    session = Session(config=config, topology=topology, folder=folder, log=log, resources=resources)
    resources.callback(session.writer.close)
    layers = describe_layers(config)
    session.say(layers)
    session.say(describe(config))
    session.say(threads.line())
    session.say(f"run folder: {folder}; seed {seed}; {topology.world} process(es)")
    session.write("layers.txt", layers + "\n")
    session.write("config.json", to_json_text(config))
    session.write("environment.json", pretty_json({**describe_environment(), "processes": topology.world}))
    return session


def _demand_files(config: RunConfig) -> None:
    """Refuse a run whose files are not there, before it has a folder. Nothing is opened.

    Errors: DataError with a problem for each missing file or folder.
    """
    problems = []
    if not config.data.generate:
        try:
            locate(config.data)
        except DataError as error:
            problems += error.problems
    for name, fix in WEIGHT_FILES.items():
        value = getattr(config.model, name)
        if value and not Path(value).is_file():
            problem = "The file does not exist."
            where, key = "the file of weights", f"model.{name}"
            problems.append(Problem(file=value, where=where, field=key, value=value, message=problem, fix=fix))
    if problems:
        raise DataError(problems)


def _with_class_count(config: RunConfig, topology: Topology) -> RunConfig:
    """Return the configuration with model.num_classes taken from the training categories where it is 0."""
    if config.model.num_classes:
        return config
    paths = locate(config.data)
    read = partial(read_coco, paths.train_json, paths.train_images, training=True, data=config.data)
    try:
        train = _first_before_others(topology, read)
    except DataError as error:  # told with all else that is wrong with the data
        raise joined_errors(_open_splits(paths, config.data)[2]) from error
    return replace(config, model=replace(config.model, num_classes=len(train.category_ids) + 1))


def describe_layers(config: RunConfig) -> str:
    """Return the list of layers for the largest padded picture of the configuration; computes nothing."""
    with torch.device("meta"):
        model = MaskRcnn(config.model)
    size_hw = padded_size_hw(config.data)
    rows = list_layers(model, size_hw, box_rois=config.model.roi_samples_per_image, mask_rois=mask_slots(config.model))
    return format_layers(rows)


def save_model(session: Session, model: MaskRcnn, categories: CocoIndex) -> None:
    """Write the weights as they are now, with the categories they were trained for, over those of the epoch before.

    They are copied at once, and written while training goes on.
    Errors: StorageError of an earlier file that could not be written.
    """
    if session.folder is not None:
        metadata = {
            "recipe": session.config.recipe,
            "category_ids": categories.category_ids.tolist(),
            "category_names": list(categories.category_names),
            "config": to_json_text(session.config),
        }
        state = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
        session.writer.submit(partial(save_state, state, session.folder / WEIGHTS_FILE, metadata))


def keep_best_model(session: Session) -> None:
    """Keep the weights that were saved last as those of the best evaluation."""
    if session.folder is not None:
        last, best = session.folder / WEIGHTS_FILE, session.folder / BEST_WEIGHTS_FILE
        session.writer.submit(partial(replace_file, best, partial(_link_or_copy, last)))


def _link_or_copy(source: Path, target: Path) -> None:
    # A link costs no time on the clock, and the next save gives `source` a new file.
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        copyfile(source, target)


def generate_data(session: Session) -> None:
    """Write the synthetic data set of the demo before the clock starts, if the recipe has one."""
    data = session.config.data
    if not data.generate:
        return
    if session.topology.is_first:
        written = ensure_demo_dataset(
            Path(data.root),
            train_images=data.generate_images[0],
            val_images=data.generate_images[1],
            seed=data.generate_seed,
        )
        session.say(
            f"demo data set of {sum(data.generate_images)} images {'written to' if written else 'found in'} {data.root}"
        )
    share_from_first(None, session.topology)  # the others wait until it is there


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


@dataclass(frozen=True)
class OpenedData:
    """The two splits of a data set and the ground truth of the second; the truth is in the first process only."""

    paths: DataPaths
    train: CocoIndex
    val: CocoIndex
    categories: CategoryMatch
    truth: GroundTruth | None  # in the categories of the training


def open_data(session: Session) -> OpenedData:
    """Return the data set, checked. The clock of the benchmark runs while this reads.

    Errors: DataError with everything that is wrong with the files, or that does not fit the model.
    """
    config = session.config
    paths = locate(config.data)
    train, val, errors = _first_before_others(session.topology, partial(_open_splits, paths, config.data))
    if train is not None and val is not None:
        categories = match_categories(
            categories_of(train),
            categories_of(val),
            source=str(train.json_path),
            file=str(val.json_path),
            by_name=config.data.categories_by_name,
        )
        problems = [*_class_problems(train, config.model.num_classes), *categories.problems]
        errors += [DataError(problems)] if problems else []
    if errors:
        raise joined_errors(errors)
    for index in (train, val):
        for notice in index.notices:
            session.notice(f"{index.json_path}: {notice}")
    limits = {
        "max_detections": config.evaluation.max_detections,
        "detections_per_image": config.model.detections_per_image,
    }
    for notice in (
        *_own_data_notices(config, train, val),
        *categories.notices,
        *detection_notices(val, **limits),
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
    return OpenedData(paths=paths, train=train, val=val, categories=categories, truth=truth)


def _first_before_others(topology: Topology, read: Callable[[], Any]) -> Any:
    """Return what `read` returns. The first of several processes reads before the others.

    These then find what it remembered of large files, and of the images of large sets.
    """
    if topology.is_first and topology.world > 1:
        with suppress(DataError):  # every process, this one too, finds the same errors below
            read()
    share_from_first(None, topology)
    return read()


def _open_splits(paths: DataPaths, data: DataConfig) -> tuple[CocoIndex | None, CocoIndex | None, list[DataError]]:
    train, train_error = open_split(paths.train_json, paths.train_images, data, training=True)
    val, val_error = open_split(paths.val_json, paths.val_images, data, training=False)
    return train, val, [error for error in (train_error, val_error) if error is not None]


def _own_data_notices(config: RunConfig, train: CocoIndex, val: CocoIndex) -> list[str]:
    """Return what is to be said where data.root holds other data than the recipe is made for."""
    recipe = RECIPES[config.recipe]().data
    if config.data.train_json:  # other data on purpose
        return []
    if recipe.generate and not config.data.generate:
        return [
            f"{config.data.root}: holds a data set that this program did not write; it is trained on, with its "
            f"{len(train.category_ids)} categories, and nothing is generated"
        ]
    return count_notices(train, val) if recipe.check_counts and not config.data.check_counts else []


def _class_problems(train: CocoIndex, num_classes: int) -> list[Problem]:
    found = len(train.category_ids) + 1
    if found == num_classes:
        return []
    return [
        Problem(
            file=str(train.json_path),
            where="the list of categories",
            field="categories",
            value=f"{found - 1} entries",
            message=f"model.num_classes={num_classes} wants {num_classes - 1} of them (background is class 0).",
            fix=f"Set model.num_classes={found}, or 0 to follow the file.",
        )
    ]


def open_recorder(session: Session, steps_per_epoch: int) -> StepRecorder:
    """Return the writer of metrics.jsonl (first process only) and of the live line."""
    config = session.config
    progress = Progress(
        config.optimizer.max_epochs,
        steps_per_epoch,
        sys.stdout,
        enabled=session.topology.is_first,
        every_steps=config.system.log_every_steps,
    )
    recorder = StepRecorder(
        MetricsWriter(session.folder / "metrics.jsonl" if session.folder else None),
        progress,
        session.account,
        every_steps=config.system.log_every_steps,
        world=session.topology.world,
        stop_on_collapse=config.system.on_collapse == "stop",
    )
    session.resources.callback(recorder.close)
    return recorder
