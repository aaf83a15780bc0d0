"""What a run left behind, read and checked: the files of a run folder, or a single log."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskperf.config import RunConfig
from maskperf.errors import ConfigError
from maskperf.mlperf.read import TOKEN, BenchmarkLog, read_log
from maskperf.mlperf.rules import as_given
from maskperf.overrides import from_json_text, notices_of_age
from maskperf.schema import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    LOG_FILE,
    METRICS_FILE,
    PICTURES_FILE,
    RESULTS_FILE,
    Environment,
    MetricsLine,
    PictureEntry,
    Results,
    read_bytes,
    read_json,
    read_metrics,
)

RUN_FILES = (CONFIG_FILE, LOG_FILE, METRICS_FILE, RESULTS_FILE)  # a folder with one of them is that of a run


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Everything known about one run; None or empty where the file is not there."""

    name: str
    path: Path
    is_folder: bool
    log: BenchmarkLog | None = None
    values: dict[str, Any]  # of config.json, by key such as optimizer.batch_size
    config: RunConfig | None = None  # None also where config.json is that of another version
    environment: Environment = Environment()
    system: dict[str, Any]  # the system description of a submission package
    results: Results | None = None
    lines: tuple[MetricsLine, ...] = ()
    pictures: tuple[PictureEntry, ...] = ()
    notes: tuple[str, ...] = ()
    counts: bool = True  # False: its series says that it failed, whatever its files say

    @property
    def recipe(self) -> str:
        """The name of the recipe; empty where it is not known, as for every published log."""
        return str(self.values.get("recipe") or (self.log.recipe if self.log is not None else "") or "")

    @property
    def targets(self) -> tuple[float | None, float | None]:
        """Box AP and mask AP that the run was to reach."""
        if "evaluation.box_target" in self.values:
            return _number(self.values["evaluation.box_target"]), _number(self.values.get("evaluation.mask_target"))
        if self.log is not None:
            return self.log.targets
        return (None, None) if self.results is None else (self.results.box_target, self.results.mask_target)

    @property
    def batch_size(self) -> int | None:
        """Images of one step over all devices."""
        settings = {} if self.log is None else self.log.settings
        value = self.values.get("optimizer.batch_size", settings.get("global_batch_size"))
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def processes(self) -> int | None:
        return self.environment.processes

    @property
    def accelerators(self) -> int | None:
        """How many GPUs the run used; None where it used none, or nothing says so."""
        if self.environment.gpus:
            return self.processes
        return _product(self.system.get("number_of_nodes"), self.system.get("accelerators_per_node"))

    @property
    def accelerator_name(self) -> str:
        if self.environment.gpus:
            return self.environment.gpus[0].name
        return str(self.system.get("accelerator_model_name", ""))


def read_log_file(path: Path) -> RunFiles:
    """Return what a log alone says, one of maskperf or a published one.

    In a submission package (results/SYSTEM/maskrcnn/result_0.txt) the description systems/SYSTEM.json is read as well.
    Errors: DataError for a file without a line of the benchmark's log, or a description that cannot be read.
    """
    log = read_log(path)
    folders = path.resolve().parents
    in_package = len(folders) > 3 and folders[2].name == "results"
    description = folders[3] / "systems" / f"{folders[1].name}.json" if in_package else None
    return RunFiles(
        name=path.name,
        path=path,
        is_folder=False,
        log=log,
        values={},
        system=(read_json(description, dict[str, Any]) or {}) if description is not None else {},
        notes=tuple(f"{path.name}: {problem}" for problem in log.problems),
    )


def read_run_folder(folder: Path) -> RunFiles:
    """Return what lies in a run folder, that of a run which is going on or was cut short included.

    Errors: DataError or ConfigError for a file that is there but cannot be read.
    """
    notes: list[str] = []
    values, config = _read_config(folder / CONFIG_FILE, notes)
    environment = read_json(folder / ENVIRONMENT_FILE, Environment) or Environment()
    log = _read_log(folder / LOG_FILE, notes)
    lines = _read_metrics(folder / METRICS_FILE, notes)
    return RunFiles(
        name=folder.resolve().name,
        path=folder,
        is_folder=True,
        log=log,
        values=values,
        config=None if config is None else as_given(config, environment.command_line),
        environment=environment,
        system={},
        results=read_json(folder / RESULTS_FILE, Results),
        lines=lines,
        pictures=read_json(folder / PICTURES_FILE, tuple[PictureEntry, ...]) or (),
        notes=tuple(notes),
    )


def _read_config(path: Path, notes: list[str]) -> tuple[dict[str, Any], RunConfig | None]:
    """Return the values of a config.json by their keys, and the configuration if it is one of this version."""
    nested = read_json(path, dict[str, Any])
    if nested is None:
        notes.append(f"{path.name} is missing: the settings come from the log, and no rule was checked.")
        return {}, None
    values: dict[str, Any] = {}
    for name, value in nested.items():
        values |= (
            {f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {name: value}
        )
    try:
        text = path.read_text(encoding="utf-8")
        config = from_json_text(text)
        notes += [f"{path.name}: {notice}." for notice in notices_of_age(text)]
        return values, config
    except ConfigError as error:
        first = str(error).splitlines()[0]
        notes.append(f"{path.name} is not of this version of maskperf, so no rule was checked ({first}).")
        return values, None


def _read_log(path: Path, notes: list[str]) -> BenchmarkLog | None:
    data = read_bytes(path)
    if data is None or TOKEN.encode() not in data:
        notes.append(f"{path.name} {'is missing' if data is None else 'has no line yet'}.")
        return None
    log = read_log(path)
    notes += [f"{path.name}: {problem}" for problem in log.problems]
    return log


def _read_metrics(path: Path, notes: list[str]) -> tuple[MetricsLine, ...]:
    data = read_bytes(path)
    if data is None:
        notes.append(f"{path.name} is missing: there are no losses of single steps.")
        return ()
    lines = tuple(read_metrics(path))
    if data and not data.endswith(b"\n"):
        notes.append(f"{path.name}: the last line is torn and left out; the run was cut short there.")
    return lines


def _product(nodes: Any, per_node: Any) -> int | None:
    """Return the accelerators of all nodes; descriptions have these numbers as numbers or as text."""
    try:
        count = int(nodes) * int(per_node)
    except (TypeError, ValueError):
        return None
    return count if count > 0 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
