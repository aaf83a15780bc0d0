"""What the words of `maskperf check` and `maskperf package` name: single logs, a series, a package."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskperf.errors import DataError, Problem
from maskperf.schema import SERIES_FILE, Series, read_json

LOG_NAME = "mlperf.log"
RUN_NAME = re.compile(r"run_[0-9]+")
FIX = "Give logs, a run folder (with mlperf.log), a series (with run_0 ...), or a package (with results and systems)."

LOST_FIX = "Look for its reason in what it left, and make a new series; to judge the others alone, name their folders."


@dataclass(frozen=True, kw_only=True)
class LogGroup:
    """Logs that belong together, the problems of those that are missing, and the package they are in."""

    name: str
    logs: tuple[Path, ...]
    problems: tuple[Problem, ...] = ()
    package: Path | None = None


def find_groups(words: Sequence[str]) -> list[LogGroup]:
    """Return the groups of logs that words name; single logs and run folders together are one group.

    Errors: DataError for every word that is no log and no folder with logs.
    """
    loose: list[Path] = []
    groups: list[LogGroup] = []
    problems: list[Problem] = []
    for word in words:
        path = Path(word)
        if path.is_file() or (path / LOG_NAME).is_file():
            loose.append(path if path.is_file() else path / LOG_NAME)
            continue
        found = _groups_of_folder(path)
        groups += found
        if not found:
            problem = "There are no logs in this folder." if path.is_dir() else "There is no such file or folder."
            problems.append(_problem(path, problem))
    if problems:
        raise DataError(problems)
    names = ", ".join(str(path) for path in loose[:1])
    more = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
    return ([LogGroup(name=names + more, logs=tuple(loose))] if loose else []) + groups


def _groups_of_folder(folder: Path) -> list[LogGroup]:
    if (folder / "results").is_dir() or (folder / "systems").is_dir():
        found = [path for path in sorted(folder.glob("results/*/maskrcnn")) if path.is_dir()]
        return [_results(path, folder) for path in found] or [LogGroup(name=str(folder), logs=(), package=folder)]
    names = {path.name for path in folder.glob("run_*") if path.is_dir()} | _names_of_series(folder)
    runs = [name for name in names if RUN_NAME.fullmatch(name)]
    if runs:
        logs = [folder / name / LOG_NAME for name in sorted(runs, key=lambda name: int(name.removeprefix("run_")))]
        missing = [_problem(log, "This run left no log.", LOST_FIX) for log in logs if not log.is_file()]
        there = tuple(log for log in logs if log.is_file())
        return [LogGroup(name=str(folder), logs=there, problems=tuple(missing))]
    return [_results(folder, None)] if next(folder.glob("result_*.txt"), None) else []


def _names_of_series(folder: Path) -> set[str]:
    """Return the runs that series.json lists, with those that left no folder; none where there is no such file."""
    series = read_json(folder / SERIES_FILE, Series)
    return set() if series is None else {run.folder for run in series.runs}


def _results(folder: Path, package: Path | None) -> LogGroup:
    return LogGroup(name=str(folder), logs=tuple(sorted(folder.glob("result_*.txt"))), package=package)


def _problem(path: Path, problem: str, fix: str = FIX) -> Problem:
    return Problem(file=str(path), where="the path", field="log", value="(missing)", message=problem, fix=fix)
