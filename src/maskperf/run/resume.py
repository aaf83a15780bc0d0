"""What a run goes on from: the unfinished run that was asked for, its newest whole checkpoint, or a refusal."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from maskperf.config import RunConfig
from maskperf.errors import ConfigError, DataError, Problem, UserError
from maskperf.files import sha256_of_file
from maskperf.overrides import expand_home, flatten, format_value, from_json_text, with_overrides
from maskperf.schema import CONFIG_FILE, RESULTS_FILE, CheckpointState, Manifest, file_error, read_bytes, read_json

AUTO = "auto"
CHECKPOINTS = "checkpoint"  # the folder of both generations inside a run folder
MANIFEST_FILE, STATE_FILE, TENSORS_FILE = "manifest.json", "state.json", "tensors.safetensors"
# Keys that change no number of a run; run_dir is that of the run.
FREE = (
    *("system.log_every_steps", "system.threads", "data.loader_threads", "checkpoint.minutes"),
    *("log.tensorboard", "log.trackers"),
)
FOLLOW_STORED = {"seed": -1, "model.num_classes": 0}  # values that stand for one that the run then found


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """A run to go on with. Without `state` it was ended before its first checkpoint and begins again."""

    folder: Path
    config: RunConfig  # as the run had it
    checkpoint: Path | None = None
    state: CheckpointState | None = None
    notices: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The last step that is not trained again."""
        return self.state.step if self.state is not None else 0


def run_to_resume(wanted: str, config: RunConfig, train_json: str | None = None) -> Path | None:
    """Return the folder `wanted`, or for "auto" run_dir or the newest unfinished run of the recipe, None without one.

    `train_json`: only a run that trains on this file is the newest.
    Errors: ConfigError for a folder that holds no run.
    """
    if wanted != AUTO:
        folder = Path(expand_home(wanted))
        if not (folder / CONFIG_FILE).is_file():
            raise ConfigError(f"resume={wanted}: holds no {CONFIG_FILE}, so it is no run. Fix: name a run folder")
        return folder
    if config.run_dir:
        folder = Path(config.run_dir)
        if (folder / CONFIG_FILE).is_file():
            return folder
        _clear_left_over(folder)
        return None
    found = _unfinished(config.recipe, train_json)
    return max(found, key=lambda run: (run / CHECKPOINTS).stat().st_mtime_ns, default=None)


def resumption_of(folder: Path, wanted: str, config: RunConfig, processes: int) -> Resumption:
    """Return the run of a folder, which "resume=`wanted`" named, with its newest whole checkpoint.

    Errors: ConfigError for a run that has ended, another configuration or another number of processes; DataError where
    checkpoints are there and none is whole.
    """
    if (folder / RESULTS_FILE).exists():
        raise ConfigError(f"resume={wanted}: the run in {folder} has come to its end. Fix: start a new run")
    stored = _same_config(folder, config)
    resumption = newest_checkpoint(Resumption(folder=folder, config=stored))
    if resumption.state is not None and resumption.state.processes != processes:
        text = f"{resumption.checkpoint} is of {resumption.state.processes} processes, and these are {processes}"
        raise ConfigError(f"resume={wanted}: {text}. Fix: processes={resumption.state.processes}")
    return resumption


def newest_checkpoint(run: Resumption) -> Resumption:
    """Return the run with its newest checkpoint that is whole, and a notice about each newer one that is damaged.

    Errors: DataError where there are checkpoints and none is whole.
    """
    notices, problems = list[str](), list[Problem]()
    for folder in sorted((run.folder / CHECKPOINTS).glob("step_*"), reverse=True):
        try:
            return replace(run, checkpoint=folder, state=read_state(folder), notices=tuple(notices))
        except DataError as error:
            problems += error.problems
            notices.append(f"damaged checkpoint, passed over: {problems[-1].file}: {problems[-1].message}")
    if problems:
        raise DataError(problems)
    return run


def read_state(folder: Path) -> CheckpointState:
    """Return the state of a checkpoint, after every file was compared with the manifest.

    Errors: DataError for the first file that is missing or damaged.
    """
    manifest = read_json(folder / MANIFEST_FILE, Manifest)
    if manifest is None:
        raise _damaged(folder / MANIFEST_FILE, "is missing, so the checkpoint is not complete")
    for name, digest in manifest.sha256.items():
        path = folder / name
        try:
            found = sha256_of_file(path)
        except OSError as error:
            raise _damaged(path, f"cannot be read ({error.strerror or error})") from error
        if found != digest:
            raise _damaged(path, f"SHA-256 is {found[:12]}..., and the manifest has {digest[:12]}...")
    state = read_json(folder / STATE_FILE, CheckpointState)
    if state is None or TENSORS_FILE not in manifest.sha256:
        raise _damaged(folder / MANIFEST_FILE, f"names no {STATE_FILE} or no {TENSORS_FILE}")
    return state


def _unfinished(recipe: str, train_json: str | None) -> Iterator[Path]:
    """Yield the runs of a recipe in runs/ that have a checkpoint and no results."""
    for config in Path("runs").glob(f"*/{CONFIG_FILE}"):
        folder = config.parent
        if (folder / RESULTS_FILE).exists() or not any((folder / CHECKPOINTS).glob("step_*")):
            continue
        try:
            stored = msgspec.json.decode(config.read_bytes())
            if stored["recipe"] == recipe and train_json in (None, stored["data"]["train_json"]):
                yield folder
        except (OSError, msgspec.DecodeError, KeyError, TypeError):
            continue  # whatever this is, it is none of the recipe


def _clear_left_over(folder: Path) -> None:
    """Empty the folder of a run that was killed while it wrote its first file, its configuration."""
    left_over = list(folder.glob(f".{CONFIG_FILE}.*.tmp"))
    if left_over and len(left_over) == len(list(folder.iterdir())):
        for path in left_over:
            path.unlink()


def _same_config(folder: Path, config: RunConfig) -> RunConfig:
    """Return the stored configuration with the free keys of this one.

    Errors: ConfigError that names every key in which they differ otherwise.
    """
    path = folder / CONFIG_FILE
    try:
        stored = from_json_text((read_bytes(path) or b"").decode())
    except (UserError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be used: {error}. Fix: put it back as the run wrote it") from error
    before, now = flatten(stored), flatten(config)
    differing = [
        key
        for key, value in now.items()
        if value != before[key] and key not in (*FREE, "run_dir") and value != FOLLOW_STORED.get(key)
    ]
    if differing:
        lines = [f"  {key}={format_value(now[key])}, and the run has {format_value(before[key])}" for key in differing]
        fix = " ".join(f"{key}={format_value(before[key])}" for key in differing)
        lines = [f"resume: the configuration is not that of the run in {folder}:", *lines, f"Fix: {fix}"]
        raise ConfigError("\n".join(lines))
    return with_overrides(stored, [f"{key}={format_value(now[key])}" for key in FREE])


def _damaged(path: Path, message: str) -> DataError:
    fix = f"Remove {path.parent}, then resume from what is left, or copy the run folder again from its backup."
    return file_error(path, message, fix=fix)
