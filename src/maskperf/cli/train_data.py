"""Training on own data in one call: what `maskperf train` and `maskperf.train` do."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskperf.cli.arguments import CommandParser, path_argument
from maskperf.cli.run import COUNTS, read_start, ready_to_run, start_processes
from maskperf.cli.train import MODELS
from maskperf.config import Positive, RunConfig
from maskperf.data.coco.layout import DataLayout, find_layout
from maskperf.errors import ConfigError, UserError
from maskperf.overrides import NAMES_ELSEWHERE, format_value, key_of, path_as_argument, to_json_text, with_overrides
from maskperf.recipe_files import recipe_config
from maskperf.recipes import OWN_DATA
from maskperf.run.resume import Resumption, resumption_of, run_to_resume
from maskperf.run.run_folder import create_run_folder, discard_run_folder, require_run_folder
from maskperf.run.start import check_start
from maskperf.schema import CONFIG_FILE, RESULTS_FILE, BestEpoch, Results, read_json

if TYPE_CHECKING:
    from maskperf.engine.distributed import Topology
    from maskperf.run.finish import FinishedRun
    from maskperf.run.own_data import Plan, Start

ALIASES = {name: NAMES_ELSEWHERE[name][0] for name in ("epochs", "batch", "lr")}
NOT_HERE = ("data.train_json", "data.train_images", "data.val_json", "data.val_images", "data.root")
PLANNED_SHARE = 0.9  # of the minutes that were asked for: start, report and slower steps want some, too
NEXT_TO_NOTHING = 0.05


@dataclass(frozen=True)
class Prepared:
    """A training that may begin."""

    config: RunConfig
    layout: DataLayout
    processes: int
    resumption: Resumption | None = None  # of an interrupted training

    def here(self) -> "FinishedRun":
        """Train in this process, then evaluate the best weights on the test part, if there is one."""
        from maskperf.run.loop import run_benchmark
        from maskperf.run.summary import show_outcome

        with ready_to_run(self.config, self.resumption) as ready:
            finished = run_benchmark(*ready)
            show_outcome(finished)
        if finished.folder is not None:
            _conclude(finished.results.best, finished.folder, self.layout)
        return finished

    def on_processes(self) -> int:
        """Train on several processes of this machine, then end as in one; return the exit code."""
        resumption, place = self.resumption, "resume" if self.resumption else "run_dir"
        folder = resumption.folder if resumption else create_run_folder(self.config.run_dir, self.config.recipe)
        try:
            with tempfile.TemporaryDirectory(prefix="maskperf-") as temporary:
                path = Path(temporary) / CONFIG_FILE
                path.write_text(to_json_text(self.config), encoding="utf-8")
                code = start_processes([str(path), f"{place}={path_as_argument(folder)}"], self.processes)
        finally:
            if not any(folder.iterdir()):
                discard_run_folder(folder)
        results = read_json(folder / RESULTS_FILE, Results)
        if results is not None:
            _conclude(results.best, folder, self.layout)
        return code


def train(
    data: str | Path,
    *settings: str,
    val: str | Path | None = None,
    test: str | Path | None = None,
    weights: str | Path | None = None,
    backbone: str | Path | None = None,
    model: str | None = None,
    **values: Any,
) -> "FinishedRun":
    """Train on own data as `maskperf train` does, in this process, and return results and run folder.

    Values of the configuration are `"section.key=value"`, or keywords for those without a dot: `epochs=20, seed=1`.
    Errors: UserError for what the user can fix.
    """
    given = {"val": val, "test": test, "weights": weights, "backbone": backbone}
    paths = {name: None if path is None else path_argument(str(path)) for name, path in given.items()}
    settings += tuple(f"{name}={format_value(value)}" for name, value in values.items())
    options = argparse.Namespace(data=path_argument(str(data)), settings=settings, model=model, **paths)
    prepared = prepare_training(options)
    if prepared.processes > 1:
        raise ConfigError(f"processes={prepared.processes}: maskperf.train works in one. Fix: use the command")
    return prepared.here()


def prepare_training(options: argparse.Namespace) -> Prepared:
    """Return the training that the options of the command ask for, after the plan was said.

    Errors: ConfigError and DataError before anything is made; torch is imported only when the arguments are right.
    """
    pairs, resume, minutes, is_auto, processes = _read_settings(options.settings)
    checked = with_overrides(RunConfig(recipe=OWN_DATA), pairs)
    _check_start_options(options)
    if not resume:
        require_run_folder(checked.run_dir)
    layout = find_layout(options.data, val=options.val, test=options.test)
    print("\n".join(layout.lines()), flush=True)
    resumption = _find_resumption(resume, checked, layout, pairs, processes) if resume else None
    if resumption is not None:
        check_start(resumption.config, processes)
        return Prepared(resumption.config, layout, processes, resumption)

    from maskperf.engine.distributed import init_topology
    from maskperf.run.own_data import plan_training

    start = _start(options)
    topology = init_topology(checked.system.device)

    def planned() -> "Plan":
        return plan_training(layout, start, pairs, topology.device.type)

    plan = planned()
    if is_auto:
        pairs.append(_fitting_batch(plan, topology, processes))
        plan = planned()
    print("\n".join(plan.lines), flush=True)
    check_start(plan.config, processes)
    if minutes:
        pairs += _length_for(plan, minutes, topology, processes)
        plan = planned()
    return Prepared(plan.config, layout, processes)


def _find_resumption(
    wanted: str, checked: RunConfig, layout: DataLayout, pairs: list[str], processes: int
) -> Resumption | None:
    """Return the training to go on with, for "auto" one on this data; None where a new one starts.

    Its plan stays: settings are compared with it, and minutes and batch=auto are not measured again.
    """
    folder = run_to_resume(wanted, checked, str(layout.train.json_path))
    if folder is None:
        print(f"resume={wanted}: no training on this data is unfinished; a new one starts", flush=True)
        require_run_folder(checked.run_dir)
        return None
    stored = recipe_config(path_as_argument(folder / CONFIG_FILE))
    return resumption_of(folder, wanted, with_overrides(stored, pairs), processes)


def _read_settings(settings: Sequence[str]) -> tuple[list[str], str, float, bool, int]:
    """Return the pairs of the configuration, what to resume, the minutes (0: not given), if batch=auto, processes."""
    if "WORLD_SIZE" in os.environ:
        raise ConfigError("WORLD_SIZE is set: train starts its processes itself. Fix: processes=N without torchrun")
    rest, resume, numbers = read_start(settings, {**COUNTS, "minutes": Positive})
    if numbers["runs"] > 1:
        raise ConfigError(
            "runs: train makes one run. Fix: maskperf run FOLDER/config.json runs=N seed=-1 run_dir= repeats it"
        )
    pairs, minutes, is_auto = [], numbers.get("minutes", 0.0), False
    for setting in rest:
        name, _, text = (part.strip() for part in setting.partition("="))
        if name in ("batch", "optimizer.batch_size") and text == "auto":
            is_auto = True
        elif name in NOT_HERE:
            raise ConfigError(f"{setting}: cannot be set here. Fix: give DATA and --val")
        else:
            pairs.append(f"{ALIASES[name]}={text}" if name in ALIASES else setting)
    limits = [pair for pair in pairs if key_of(pair) in ("optimizer.max_epochs", "optimizer.max_steps")]
    if minutes and limits:
        raise ConfigError(f"minutes={minutes:g} and {limits[0]} are two lengths of one run. Fix: give one of them")
    return pairs, resume, minutes, is_auto, numbers["processes"]


def _check_start_options(options: argparse.Namespace) -> None:
    weights, backbone, model = options.weights, options.backbone, options.model
    if model is not None and weights is not None:
        raise ConfigError("--model and --weights exclude each other: weights bring their model. Fix: leave one out")
    if weights is not None and backbone is not None:
        raise ConfigError("--weights and --backbone are two starts of one model. Fix: give one of them")
    if backbone is not None and model == "small":
        raise ConfigError("--backbone is that of --model r50. Fix: leave --model out")
    if model not in (None, *MODELS):
        raise ConfigError(f"model={model!r} is unknown. Fix: {' or '.join(MODELS)}")


def _start(options: argparse.Namespace) -> "Start":
    """Return what the training starts from. Reads the header of weights."""
    from maskperf.predict.stored import resolve_for_weights
    from maskperf.run.own_data import Start

    if options.weights is None:
        backbone = str(options.backbone or "")
        return Start(backbone=backbone, model=options.model or ("r50" if backbone else "small"))
    config, metadata, notices = resolve_for_weights(options.weights)
    print("\n".join(notices), flush=True)
    config = replace(config, model=replace(config.model, initial_weights=str(options.weights)))
    return Start(weights=config, category_names=tuple(metadata.get("category_names", ())))


def _fitting_batch(plan: "Plan", topology: "Topology", processes: int) -> str:
    """Return the batch that was measured to fit into memory, as a pair, after it was said."""
    from maskperf.run.measure import fitting_batch

    parts = plan.config.optimizer.accumulation_steps
    classes, images = len(plan.train.category_ids), len(plan.train.image_ids)
    batch_size, line = fitting_batch(plan.config, topology, classes, images // (processes * parts))
    print(line, flush=True)
    return f"optimizer.batch_size={batch_size * processes * parts}"


def _length_for(plan: "Plan", minutes: float, topology: "Topology", processes: int) -> list[str]:
    """Return as many epochs and steps as fit into the minutes, by a measurement made now."""
    from maskperf.data.images.sampler import steps_per_epoch
    from maskperf.run.measure import measure_speed
    from maskperf.run.own_data import EVALUATIONS

    optimizer = plan.config.optimizer
    own_batch = max(1, optimizer.batch_size // processes)
    step_seconds, evaluation = measure_speed(
        replace(plan.config, optimizer=replace(optimizer, batch_size=own_batch)), topology
    )
    per_epoch = steps_per_epoch(len(plan.train.image_ids), optimizer.batch_size)
    evaluation /= processes
    seconds = PLANNED_SHARE * 60 * minutes
    epochs = int((seconds - EVALUATIONS * evaluation) / (per_epoch * step_seconds))
    if epochs < EVALUATIONS:  # each epoch has its evaluation
        epochs = max(1, int(seconds / (per_epoch * step_seconds + evaluation)))
    steps = min(epochs * per_epoch, max(1, int((seconds - evaluation) / step_seconds)))
    print(
        f"minutes={minutes:g}: a step takes {step_seconds:.2f} s here, an evaluation about {evaluation:.0f} s, so the "
        f"plan is {epochs} epochs, {steps:,} steps; it is not changed afterwards",
        flush=True,
    )
    return [f"optimizer.max_epochs={epochs}", f"optimizer.max_steps={steps}"]


def _conclude(best: BestEpoch | None, folder: Path, layout: DataLayout) -> None:
    """Show and save what the best weights find on the test part; a problem of it does not undo the training."""
    if best is not None and best.box_ap < NEXT_TO_NOTHING:
        advice = "start from trained weights (--weights, --backbone), give more images, or more epochs"
        print(f"note: a box AP of {best.box_ap:.3f} is next to nothing. Fix: {advice}", flush=True)
    if best is None or layout.test is None:
        return
    print(f"test: the best weights on {layout.test.json_path}", flush=True)
    arguments = ["--weights", str(folder / best.weights), "--output", str(folder / "test.json")]
    arguments += ["--val-json", str(layout.test.json_path), "--val-images", str(layout.test.image_folder)]
    try:
        parser = CommandParser("evaluate")
        parser.run(parser.read(arguments))
    except UserError as error:
        print(f"the test part could not be evaluated: {error}", flush=True)
