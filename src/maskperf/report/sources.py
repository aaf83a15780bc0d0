"""The files of runs: of a run folder, a series, or a single log, read and checked."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maskperf.config import BOX_TARGET, MASK_TARGET, RunConfig
from maskperf.errors import ConfigError
from maskperf.mlperf.read import TOKEN, BenchmarkLog, read_log
from maskperf.mlperf.rules import as_given
from maskperf.overrides import from_json_text, notices_of_age
from maskperf.schema import (
    ANALYSIS_FILE,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    LOG_FILE,
    METRICS_FILE,
    PICTURES_FILE,
    RESULTS_FILE,
    SERIES_FILE,
    Analysis,
    Environment,
    EvaluationLine,
    GuardLine,
    PictureEntry,
    Results,
    Series,
    StepLine,
    file_error,
    read_bytes,
    read_json,
    read_metrics,
)

RUN_FILES = (CONFIG_FILE, LOG_FILE, METRICS_FILE, RESULTS_FILE)  # a folder with one of them is that of a run
RESULT_PATTERN = "result_*.txt"
FIX_PATH = (
    "Give a run folder, the folder of a series (with series.json), a log of the benchmark, or a folder of result_*.txt."
)


def _target(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


NO_RESULTS = Results(status="", seconds=0.0)


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Everything known about one run; None or empty where the file is not there."""

    path: Path
    is_folder: bool = True
    log: BenchmarkLog | None = None
    values: dict[str, Any] = field(default_factory=dict)  # of config.json, by key such as optimizer.batch_size
    config: RunConfig | None = None  # None also where config.json is that of another version
    environment: Environment = Environment()
    system: dict[str, Any] = field(default_factory=dict)  # the system description of a submission package
    results: Results = NO_RESULTS
    steps: tuple[StepLine, ...] = ()
    evaluations: tuple[EvaluationLine, ...] = ()
    guard: tuple[GuardLine, ...] = ()
    pictures: tuple[PictureEntry, ...] = ()
    analysis: Analysis | None = None
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
            return _target(self.values["evaluation.box_target"]), _target(self.values.get("evaluation.mask_target"))
        if self.log is not None:
            return self.log.targets
        return self.results.box_target, self.results.mask_target

    @property
    def status(self) -> str:
        return self.results.status or ("unfinished" if self.log is None else self.log.status)

    @property
    def has_coco_targets(self) -> bool:
        return self.targets == (BOX_TARGET, MASK_TARGET)

    @property
    def division(self) -> str:
        return str(self.values.get("mlperf.division", "" if self.log is None else self.log.division))

    @property
    def is_generated(self) -> bool:
        """Whether the images are those that the program writes for a demo."""
        counts = self.values.get("data.generate_images", ())
        return any(counts[:2]) if isinstance(counts, list | tuple) else self.recipe == "demo"

    @property
    def batch_size(self) -> int | None:
        """Images of one step over all devices."""
        settings = {} if self.log is None else self.log.settings
        value = self.values.get("optimizer.batch_size", settings.get("global_batch_size"))
        return value if type(value) is int else None

    @property
    def accelerators(self) -> int | None:
        """Number of GPUs the run used; None where it used none or it is not known."""
        if self.environment.gpus:
            return self.environment.processes
        try:  # descriptions have these numbers as numbers or as text
            count = int(self.system["number_of_nodes"]) * int(self.system["accelerators_per_node"])
        except (KeyError, TypeError, ValueError):
            return None
        return count if count > 0 else None

    @property
    def accelerator_name(self) -> str:
        gpus = self.environment.gpus
        return gpus[0].name if gpus else str(self.system.get("accelerator_model_name", ""))

    @property
    def submitter(self) -> str:
        """Organization and platform; empty where no log says so."""
        return ": ".join(filter(None, (self.log.organization, self.log.platform))) if self.log is not None else ""


def read_source(path: Path) -> tuple[list[RunFiles], bool]:
    """Return the runs behind a path, in the order of their series, and whether they are one.

    Errors: DataError or ConfigError for a path that is no run, and for files that cannot be read.
    """
    if path.is_dir():
        if (path / SERIES_FILE).exists():
            return _read_series(path), True
        if any((path / name).exists() for name in RUN_FILES):
            return [_read_run_folder(path)], False
        logs = sorted(path.glob(RESULT_PATTERN))
        if logs:
            return [*map(_read_log_file, logs)], True
        message = "It holds no run: neither config.json, mlperf.log nor results.json, no series.json, no result_*.txt."
        raise file_error(path, message, where="the folder", value="no known file", fix=FIX_PATH)
    if not path.exists():
        raise file_error(path, "There is no such file.", where="the path", value="missing", fix=FIX_PATH)
    return [_read_log_file(path)], False


def _read_series(folder: Path) -> list[RunFiles]:
    record = read_json(folder / SERIES_FILE, Series)
    if not record.runs:
        raise file_error(folder / SERIES_FILE, "The series has no run.", where="runs", value="[]", fix=FIX_PATH)
    runs = []
    for entry in record.runs:
        path = folder / entry.folder
        if path.is_dir():
            files = _read_run_folder(path)
        else:
            note = f"The folder {entry.folder} is not there; nothing is known of this run but its entry in series.json."
            files = RunFiles(path=path, notes=(note,))
        if entry.status == "failed":
            note = f"Its series counts this run as failed: its command ended with exit code {entry.exit_code}."
            files = replace(files, counts=False, notes=(*files.notes, note))
        runs.append(files)
    return runs


def _read_log_file(path: Path) -> RunFiles:
    """Return what a log alone says, one of maskperf or a published one.

    In a submission package (results/SYSTEM/maskrcnn/result_0.txt) the description systems/SYSTEM.json is read as well.
    """
    log = read_log(path)
    folders = path.resolve().parents
    in_package = len(folders) > 3 and folders[2].name == "results"
    description = folders[3] / "systems" / f"{folders[1].name}.json" if in_package else None
    system = read_json(description, dict[str, Any]) if description is not None else None
    notes = tuple(f"{path.name}: {problem}" for problem in log.problems)
    return RunFiles(path=path, is_folder=False, log=log, system=system or {}, notes=notes)


def _read_run_folder(folder: Path) -> RunFiles:
    """Return the files of a run, including one that is still running or was cut short."""
    notes: list[str] = []
    values, config = _read_config(folder / CONFIG_FILE, notes)
    environment = read_json(folder / ENVIRONMENT_FILE, Environment) or Environment()
    log = _read_run_log(folder / LOG_FILE, notes)
    data = read_bytes(folder / METRICS_FILE)
    if data is None:
        notes.append(f"{METRICS_FILE} is missing: there are no losses of single steps.")
    elif not data.endswith(b"\n") and data:
        notes.append(f"{METRICS_FILE}: the last line is torn and left out; the run was cut short there.")
    lines = read_metrics(folder / METRICS_FILE)
    return RunFiles(
        path=folder,
        log=log,
        values=values,
        config=None if config is None else as_given(config, environment.command_line),
        environment=environment,
        results=read_json(folder / RESULTS_FILE, Results) or NO_RESULTS,
        steps=tuple(line for line in lines if isinstance(line, StepLine)),
        evaluations=tuple(line for line in lines if isinstance(line, EvaluationLine)),
        guard=tuple(line for line in lines if isinstance(line, GuardLine)),
        pictures=read_json(folder / PICTURES_FILE, tuple[PictureEntry, ...]) or (),
        analysis=read_json(folder / ANALYSIS_FILE, Analysis),
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
        is_section = isinstance(value, dict)
        values |= {f"{name}.{inner}": item for inner, item in value.items()} if is_section else {name: value}
    try:
        text = path.read_text(encoding="utf-8")
        config = from_json_text(text)
        notes += [f"{path.name}: {notice}." for notice in notices_of_age(text)]
        return values, config
    except ConfigError as error:
        first = str(error).splitlines()[0]
        notes.append(f"{path.name} is not of this version of maskperf, so no rule was checked ({first}).")
        return values, None


def _read_run_log(path: Path, notes: list[str]) -> BenchmarkLog | None:
    data = read_bytes(path)
    if data is None or TOKEN.encode() not in data:
        notes.append(f"{path.name} {'is missing' if data is None else 'has no line yet'}.")
        return None
    log = read_log(path)
    notes += [f"{path.name}: {problem}" for problem in log.problems]
    return log
