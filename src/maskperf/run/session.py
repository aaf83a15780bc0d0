"""The session of a run: process group, seed, run folder, log, clock, screen and weight files."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from textwrap import wrap

import torch

from maskperf.config import RunConfig
from maskperf.data.coco.index import CocoIndex
from maskperf.engine.build import padded_size_hw
from maskperf.engine.distributed import Topology
from maskperf.engine.forward import mask_slots
from maskperf.errors import UserError
from maskperf.files import link_or_copy, pretty_json, replace_file, write_text
from maskperf.machine.threads import ThreadChoice, threads_of_process
from maskperf.mlperf.log import MlperfLog
from maskperf.model.layer_list import format_layers, list_layers
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import save_state
from maskperf.overrides import differences, format_value, to_json_text
from maskperf.recipes import RECIPES
from maskperf.run.environment import describe_environment
from maskperf.run.resume import Resumption
from maskperf.run.run_folder import claim_run_folder, create_run_folder, discard_run_folder
from maskperf.schema import CONFIG_FILE, ENVIRONMENT_FILE, LAYERS_FILE, LOG_FILE, METRICS_FILE, CheckpointState

WEIGHTS_FILE = "model.safetensors"  # of the last epoch
BEST_WEIGHTS_FILE = "model_best.safetensors"  # of the best evaluation
CHANGES_COLUMNS, MOST_CHANGE_LINES = 78, 8
PHASES = (
    *("opening the data", "data wait", "forward", "backward"),
    "replay",  # forward and backward as one CUDA graph
    "exchange",  # of gradients between processes
    *("optimizer", "evaluation", "saving"),
)


class TimeAccount:
    """Seconds by phase between start and stop. Phases do not overlap, so their sum is at most the whole."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._start = self._stop = math.inf  # not yet

    def start(self) -> None:
        self._start = time.monotonic()

    def restore(self, seconds: float, phase_seconds: Mapping[str, float]) -> None:
        """Go on from the account of a checkpoint, after the start."""
        self._start -= seconds
        for phase, value in phase_seconds.items():
            self._seconds[phase] += value

    def stop(self) -> None:
        """Stop the clock; a second stop changes nothing."""
        self._stop = min(self._stop, time.monotonic())

    def total_seconds(self) -> float:
        """Return the time since the start, up to the stop if there was one; 0 before the start."""
        return max(0.0, min(self._stop, time.monotonic()) - self._start)

    def add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] += seconds

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the time inside the `with` block for this phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(phase, time.monotonic() - start)

    def named_phases(self) -> dict[str, float]:
        """Return every phase that took time, in the order of `PHASES`."""
        return {phase: seconds for phase, seconds in self._seconds.items() if seconds}

    def phases(self) -> dict[str, float]:
        """Return the same, and as "other" what no phase claims."""
        named = self.named_phases()
        return {**named, "other": max(0.0, self.total_seconds() - sum(named.values()))}


class BackgroundWriter:
    """Writes files in a thread, one after the other, so that training waits for no disk."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="maskperf-writer")  # which starts with its first task
        self._pending: deque[Future] = deque()

    def submit(self, write: Callable[[], object]) -> Future:
        """Have `write` called after all that was submitted before.

        Errors: that of an earlier one which has failed by now.
        """
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(write))
        return self._pending[-1]

    def wait(self) -> None:
        """Return when everything is written.

        Errors: that of the first one that failed.
        """
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Wait for the writes in silence, even where they fail: another error is on its way."""
        self._thread.shutdown(wait=True)


@dataclass(frozen=True)
class Session:
    """What a run works with, closed when its `with` block ends. `folder` is in the first process only."""

    config: RunConfig  # with the seed that is used
    topology: Topology
    folder: Path | None
    log: MlperfLog
    resources: ExitStack  # closed at the end, whatever happened
    account: TimeAccount = field(default_factory=TimeAccount)
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    notices: list[str] = field(default_factory=list)  # about data and settings, for results and report
    resumed_at_steps: tuple[int, ...] = ()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.log.abort()
        self.resources.close()
        if self.folder is None or self.resumed_at_steps:
            return
        metrics = self.folder / METRICS_FILE
        if isinstance(error, UserError) and not (metrics.exists() and metrics.stat().st_size):
            discard_run_folder(self.folder)  # a start that failed leaves nothing behind

    def say(self, text: str) -> None:
        if self.topology.is_first:
            print(text, flush=True)

    def notice(self, text: str) -> None:
        """Print what the user should know about the data or the settings, and save it for results and report."""
        self.notices.append(text)
        self.say(text)

    def write(self, name: str, text: str) -> None:
        if self.folder is not None:
            write_text(self.folder / name, text)


def images_per_rank(config: RunConfig, topology: Topology) -> int:
    """Return the images of one micro-batch of one process."""
    return config.optimizer.batch_size // (topology.world * config.optimizer.accumulation_steps)


def open_session(config: RunConfig, topology: Topology, resumption: Resumption | None = None) -> Session:
    """Return the session of a run, with the first files in its folder, or that of one that goes on.

    Errors: StorageError for a folder that exists, or where another process is at the run.
    """
    state = resumption.state if resumption is not None else None
    threads = _threads(config, state)
    torch.set_num_threads(threads.count)
    resources, resumed_at = ExitStack(), tuple[int, ...]()
    folder: Path | None = None
    if topology.is_first:
        if resumption is None:
            folder = create_run_folder(config.run_dir, config.recipe)
            write_text(folder / CONFIG_FILE, to_json_text(config))  # first: with it a killed run can be taken up again
        else:
            folder = resumption.folder
        resources.callback(os.close, claim_run_folder(folder))
    if resumption is not None:
        resumed_at = (*(state.resumed_at_steps if state else ()), resumption.step)
        if folder is not None:
            _cut(folder / METRICS_FILE, state.recorder.metrics_bytes if state else 0)
            _cut(folder / LOG_FILE)  # which goes on behind all that was logged, for all to see
    log = MlperfLog(folder / LOG_FILE if folder else None)
    resources.callback(log.close)
    session = Session(
        config=config, topology=topology, folder=folder, log=log, resources=resources, resumed_at_steps=resumed_at
    )
    resources.callback(session.writer.close)
    if resumption is None:
        layers = describe_layers(config)
        session.say("\n".join([*changes_of(config), *layers.splitlines()[-2:]]))
        session.write(LAYERS_FILE, layers + "\n")
    session.say(threads.line())
    session.say(f"run folder: {folder}; seed {config.seed}; {topology.world} process(es)")
    session.write(ENVIRONMENT_FILE, pretty_json(describe_environment(topology.world)))
    return session


def _threads(config: RunConfig, state: CheckpointState | None) -> ThreadChoice:
    """Return the threads of the process; of a run that goes on those it had, which decide how sums are rounded."""
    if state is not None and not config.system.threads and "threads" in state.rounding:
        return ThreadChoice(count=int(state.rounding["threads"]), reason="as before the run was resumed")
    return threads_of_process(config.system.threads)


def changes_of(config: RunConfig) -> list[str]:
    """Return what differs from the recipe in a few lines; the whole configuration is in the run folder."""
    recipe = RECIPES.get(config.recipe)
    changed = differences(config, recipe()) if recipe else {}
    changed = {key: value for key, value in changed.items() if key not in ("run_dir", "seed")}
    if not changed:
        return [f"configuration: that of the recipe {config.recipe} (all of it in {CONFIG_FILE})"]
    pairs = "  ".join(f"{key}={format_value(value)}" for key, value in changed.items())
    lines = wrap(pairs, CHANGES_COLUMNS, break_long_words=False, break_on_hyphens=False)
    more = [f"... ({len(changed)} values in all)"] if len(lines) > MOST_CHANGE_LINES else []
    shown = [*lines[:MOST_CHANGE_LINES], *more]
    heading = f"configuration: the recipe {config.recipe} but for (all of it in {CONFIG_FILE}):"
    return [heading, *(f"  {line}" for line in shown)]


def _cut(path: Path, most_bytes: int | None = None) -> None:
    """Shorten a file of lines to the whole ones within its first bytes, all of them by default."""
    if path.exists():
        os.truncate(path, path.read_bytes()[:most_bytes].rfind(b"\n") + 1)


def describe_layers(config: RunConfig) -> str:
    """Return the list of layers for the largest padded size of the configuration; computes nothing."""
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
        # What is saved has predictors of its own, whatever those of the start were.
        config = replace(session.config, model=replace(session.config.model, reset_predictors=False))
        metadata = {
            "recipe": config.recipe,
            "category_ids": categories.category_ids.tolist(),
            "category_names": list(categories.category_names),
            "config": to_json_text(config),
        }
        state = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
        session.writer.submit(partial(save_state, state, session.folder / WEIGHTS_FILE, metadata))


def save_best_model(session: Session) -> None:
    """Save the weights that were saved last as those of the best evaluation, too."""
    if session.folder is not None:
        last, best = session.folder / WEIGHTS_FILE, session.folder / BEST_WEIGHTS_FILE
        session.writer.submit(partial(replace_file, best, partial(link_or_copy, last)))
