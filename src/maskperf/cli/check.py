"""`maskperf check LOG...|FOLDER`: runs MLPerf's own checkers on logs and packages, and explains their findings."""

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maskperf.cli.arguments import CommandParser
from maskperf.errors import EXIT_DONE, EXIT_RULE, DataError, Problem
from maskperf.files import printable
from maskperf.schema import LOG_FILE, SERIES_FILE, Series, read_json

if TYPE_CHECKING:
    from maskperf.mlperf.checkers import PackageVerdict
    from maskperf.mlperf.findings import Finding, Verdict
    from maskperf.mlperf.run_set import CheckedLog

USAGE = "LOG... | RUN_FOLDER... | SERIES_FOLDER | PACKAGE_FOLDER"
EXAMPLES = """The checkers are those of mlperf-logging, ruleset 3.1.0, and checks of maskperf for what they miss.
  a log or run folder    its form, values, order of lines, targets
  five closed logs       the seeds and the epochs of the reference as well, and the score
  a package              the description of the system and the number of files as well

examples, to copy and paste:
  # the log of one run
  maskperf check runs/coco_batch_96-20260101-120000
  # a series of five runs, made with runs=5
  maskperf check runs/coco_batch_96-20260101-120000-series
  # logs of others, one by one
  maskperf check result_0.txt result_1.txt result_2.txt result_3.txt result_4.txt
  # a submission made with `maskperf package`
  maskperf check submission/NAME

exit codes: 0 everything accepted, 4 a checker refuses, 3 something is no log or cannot be read"""
RUN_NAME = re.compile(r"run_[0-9]+")
FIX = "Give logs, a run folder (with mlperf.log), a series (with run_0 ...), or a package (with results and systems)."
LOST_FIX = "Look for its reason in what it left, and make a new series; to check the others alone, name their folders."
ACCEPTED = "accepted"
IN_FORM = "accepted in form only: not all of this can be part of a submission, see above"
REFUSED = "refused: see the findings above"
HEADINGS = ("log", "compliance", "own checks", "status", "minutes", "epochs", "box AP", "mask AP", "seed")
SHOWN_CHARACTERS = 160
CHECKER_VARIABLES = "current context"  # from here on the checker prints its own variables


@dataclass(frozen=True, kw_only=True)
class LogGroup:
    """Logs that belong together, the problems of those that are missing, and the package they are in."""

    name: str
    logs: tuple[Path, ...]
    problems: tuple[Problem, ...] = ()
    package: Path | None = None


def add_options(parser: CommandParser) -> None:
    parser.add_path("paths", "PATH", "logs, run folders, a series or a package", nargs="+")


def check(options: argparse.Namespace) -> int:
    """Return 0 where every checker accepts, 4 where one refuses.

    Errors: DataError for logs that are missing or cannot be read, after the others were checked.
    """
    from maskperf.mlperf.checkers import check_package

    groups = find_groups(options.paths)
    problems = [problem for group in groups for problem in group.problems]
    outcomes = {_check_group(group, problems) for group in groups}
    for package in dict.fromkeys(group.package for group in groups if group.package is not None):
        outcomes.add(ACCEPTED if show_package(package, check_package(package)) else REFUSED)
    if problems:
        raise DataError(problems)
    print(next(outcome for outcome in (REFUSED, IN_FORM, ACCEPTED) if outcome in outcomes))
    return EXIT_RULE if REFUSED in outcomes else EXIT_DONE


def find_groups(paths: Sequence[Path]) -> list[LogGroup]:
    """Return the logs of the paths; single logs and run folders together are one group.

    Errors: DataError for every path that is no log and no folder with logs.
    """
    single: list[Path] = []
    groups: list[LogGroup] = []
    problems: list[Problem] = []
    for path in paths:
        if path.is_file() or (path / LOG_FILE).is_file():
            single.append(path if path.is_file() else path / LOG_FILE)
            continue
        found = _groups_of_folder(path)
        groups += found
        if not found:
            message = "There are no logs in this folder." if path.is_dir() else "There is no such file or folder."
            problems.append(_problem(path, message))
    if problems:
        raise DataError(problems)
    if single:
        more = f" and {len(single) - 1} more" if len(single) > 1 else ""
        groups.insert(0, LogGroup(name=f"{single[0]}{more}", logs=tuple(single)))
    return groups


def _groups_of_folder(folder: Path) -> list[LogGroup]:
    if (folder / "results").is_dir() or (folder / "systems").is_dir():
        found = [path for path in sorted(folder.glob("results/*/maskrcnn")) if path.is_dir()]
        return [_results(path, folder) for path in found] or [LogGroup(name=str(folder), logs=(), package=folder)]
    series = read_json(folder / SERIES_FILE, Series)  # with runs that left no folder
    names = {path.name for path in folder.glob("run_*") if path.is_dir()}
    names |= {run.folder for run in series.runs} if series is not None else set()
    runs = sorted(filter(RUN_NAME.fullmatch, names), key=lambda name: int(name.removeprefix("run_")))
    if runs:
        logs = [folder / name / LOG_FILE for name in runs]
        missing = tuple(_problem(log, "This run left no log.", LOST_FIX) for log in logs if not log.is_file())
        return [LogGroup(name=str(folder), logs=tuple(filter(Path.is_file, logs)), problems=missing)]
    return [_results(folder, None)] if next(folder.glob("result_*.txt"), None) else []


def _results(folder: Path, package: Path | None) -> LogGroup:
    return LogGroup(name=str(folder), logs=tuple(sorted(folder.glob("result_*.txt"))), package=package)


def _problem(path: Path, message: str, fix: str = FIX) -> Problem:
    return Problem(file=str(path), where="the path", field="log", value="(missing)", message=message, fix=fix)


def _check_group(group: LogGroup, problems: list[Problem]) -> str:
    """Show everything about logs that belong together and return the outcome; unreadable ones add to `problems`."""
    from maskperf.mlperf.checkers import check_runs
    from maskperf.mlperf.run_set import check_log, is_closed_set
    from maskperf.mlperf.traps import is_submission

    logs = []
    for path in group.logs:
        try:
            logs.append(check_log(path))
        except DataError as error:
            problems += error.problems
    if not logs:
        return REFUSED if group.logs else ACCEPTED
    _show([group.name])
    _show(_log_table(logs))
    _show(_meaning_lines(logs))
    for entry in logs:
        _show(_log_details(entry))
    is_set = group.package is not None or is_closed_set(logs)
    # One run of five that the official checker refuses is dropped; what only maskperf's checks see is not.
    accepted = all(entry.traps.accepted and (is_set or entry.compliance.accepted) for entry in logs)
    lines: list[str] = []
    if group.package is None and is_set:
        whole = check_runs([entry.log.path for entry in logs], "closed")
        lines = _parts_table(whole.verdicts)
        accepted = accepted and whole.accepted
    if len(logs) > 1 or group.package is not None:
        _show([f"the {len(logs)} runs together:", *lines, *_set_lines(logs, accepted=accepted)])
    if not accepted:
        return REFUSED
    return ACCEPTED if all(is_submission(entry.log) for entry in logs) else IN_FORM


def show_package(folder: Path, whole: "PackageVerdict") -> bool:
    """Show the verdicts on a submission, and return whether package checker and repository checker accept it."""
    from maskperf.mlperf.checkers import check_repository

    repository = check_repository(folder)
    lines = [f"the package {folder}:", *_parts_table([*whole.verdicts, repository])]
    for system, factor in whole.scaling_factors.items():
        lines.append(f"  {system}: the score is multiplied by {factor:.4f} (results/{system}/maskrcnn/scaling.json)")
    _show(lines)
    return whole.accepted and repository.accepted is True


def _show(lines: Sequence[str]) -> None:
    if lines:
        print("\n".join(map(printable, lines)) + "\n")


def _log_table(logs: Sequence["CheckedLog"]) -> list[str]:
    """Return one row for each log; a file of several runs has no outcome of its own."""
    from maskperf.run.console import columns

    rows = [HEADINGS]
    for entry in logs:
        log = entry.log
        outcome = ("several runs", "-", "-", "-", "-")
        if not entry.holds_several_runs:
            last = log.evaluations[-1] if log.evaluations else None
            outcome = (
                log.status,
                _number(None if log.run_seconds is None else log.run_seconds / 60, 3),
                _number(entry.last_epoch, 0),
                _number(last.box_ap if last else None, 4),
                _number(last.mask_ap if last else None, 4),
            )
        seeds = ", ".join(map(str, log.seeds)) or "-"
        rows.append((str(log.path), entry.compliance.label, entry.traps.label, *outcome, seeds))
    return columns([tuple(map(printable, row)) for row in rows])


def _meaning_lines(logs: Sequence["CheckedLog"]) -> list[str]:
    """Return what has to be said about the nature of logs, each once, with the logs where it is not all."""
    from maskperf.mlperf.traps import meanings

    logs_of: dict[str, list[str]] = {}
    for entry in logs:
        for text in meanings(entry.log):
            logs_of.setdefault(text, []).append(str(entry.log.path))
    return [text if len(paths) == len(logs) else f"{', '.join(paths)}: {text}" for text, paths in logs_of.items()]


def _log_details(entry: "CheckedLog") -> list[str]:
    """Return every finding about one log; nothing where there is none."""
    lines = [line for verdict in (entry.compliance, entry.traps) for line in _verdict_lines(verdict)]
    for name, run in entry.alone:
        verdicts = (run.compliance, run.traps)
        texts = ", ".join(f"{verdict.checker} {verdict.label}" for verdict in verdicts)
        lines.append(f"  {name} alone: {texts}")
        lines += [line for verdict in verdicts for finding in verdict.findings for line in _finding_lines(finding)]
    return [f"{entry.log.path}:", *lines] if lines else []


def _verdict_lines(verdict: "Verdict") -> list[str]:
    lines = [line for finding in verdict.findings for line in _finding_lines(finding)]
    if verdict.num_not_shown:
        count = f"{verdict.num_not_shown} finding{'s' if verdict.num_not_shown > 1 else ''}"
        lines.append(f"    {count} about the whole file not shown: it holds more than one run")
    return [f"  {verdict.checker}: {verdict.label}", *lines] if lines else []


def _finding_lines(finding: "Finding") -> list[str]:
    """Return a finding as the checker prints it, then its explanation; an unknown one is shown whole."""
    text, end = finding.text, ["means: not known to maskperf; these are the checker's own words"]
    if finding.explanation:
        text = text.partition(CHECKER_VARIABLES)[0].rstrip()
        end = [f"means: {finding.explanation}", f"fix:  {finding.fix}"]
    lines = text.splitlines() or [""]
    if finding.explanation:
        lines = [line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 3]}..." for line in lines]
    return [f"    {'-' if finding.refuses else 'note:'} {lines[0]}", *(f"      {line}" for line in lines[1:] + end)]


def _parts_table(verdicts: Iterable["Verdict"]) -> list[str]:
    """Return one line for each part of the package checker, with its findings below."""
    from maskperf.run.console import columns

    verdicts = list(verdicts)
    rows = columns([(verdict.checker, verdict.label) for verdict in verdicts])
    return [
        line for verdict, row in zip(verdicts, rows, strict=True) for line in (f"  {row}", *_verdict_lines(verdict)[1:])
    ]


def _set_lines(logs: Sequence["CheckedLog"], *, accepted: bool) -> list[str]:
    """Return what logs are worth together: the comparison with the reference, and the score."""
    from maskperf.mlperf.rules import RUNS
    from maskperf.mlperf.run_set import set_result

    if len(logs) != RUNS:
        return [f"  {len(logs)} logs: {RUNS} are needed for a score and for the comparison with the reference."]
    result = set_result(logs)
    lines = [
        "  no comparison with the reference: it is for closed runs with one batch size and the targets of COCO."
        if result.reference is None
        else f"  epochs of the reference: {result.reference.sentence}"
    ]
    reference, older = result.reference, result.reference_v3_1
    if reference is not None and older is not None and older.passed != reference.passed:
        lines.append(f"  by the tool of round v3.1: {older.sentence}")
    lost = [entry for entry in logs if entry.minutes is None]
    if lost:
        lines.append(f"  without a time that counts: {', '.join(str(entry.log.path) for entry in lost)}")
    if result.score is None:
        return [*lines, "  score: none; more than one of the five runs does not count"]
    times = ", ".join(_number(entry.minutes, 3) for entry in logs)
    name = "score" if accepted else "score, if nothing had been refused"
    factor = f", times {result.scaling_factor:.4f}" if result.scaling_factor != 1 else ""
    return [*lines, f"  {name}: {result.score:.3f} minutes (mean of the middle three of {times}{factor})"]


def _number(value: int | float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
