"""`maskperf check LOG...|FOLDER`: lets MLPerf's own checkers judge logs and packages, and explains their findings."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskperf.cli.check_groups import LogGroup, find_groups
from maskperf.cli.words import WordParser, asks_for_help, path_word, read_words
from maskperf.errors import EXIT_DONE, EXIT_RULE, ConfigError, DataError, Problem

USAGE = "maskperf check LOG... | RUN_FOLDER... | SERIES_FOLDER | PACKAGE_FOLDER"
EXAMPLES = """Judges are the official checkers of mlperf-logging, ruleset 3.1.0, and our own checks for what they miss.
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

ACCEPTED = "accepted"
IN_FORM = "accepted in form only: not all of this can be part of a submission, see above"
REFUSED = "refused: see the findings above"


def check(arguments: list[str]) -> int:
    """Return the exit code: 0 where every checker accepts, 4 where one refuses.

    Errors: DataError for logs that are missing or cannot be read, after the others were judged.
    """
    from maskperf.mlperf.checkers import check_package

    parser = _make_parser()
    if not arguments or asks_for_help(arguments):
        print(parser.format_help(), end="")
        return EXIT_DONE
    choices = read_words(parser, arguments)
    if not choices.paths:
        raise ConfigError("no log is named. Fix: give a log, or a folder with logs.")
    groups = find_groups(choices.paths)
    problems: list[Problem] = []
    words = {check_group(group, problems) for group in groups}
    packages = dict.fromkeys(group.package for group in groups if group.package is not None)
    words |= {ACCEPTED if show_package(package, check_package(package)) else REFUSED for package in packages}
    if problems:
        raise DataError(problems)
    print(next(word for word in (REFUSED, IN_FORM, ACCEPTED) if word in words))
    return EXIT_RULE if REFUSED in words else EXIT_DONE


def check_group(group: LogGroup, problems: list[Problem]) -> str:
    """Return the word for logs that belong together, after showing everything; problems are added to."""
    from maskperf.cli.check_view import log_details, log_table, meaning_lines, parts_table, set_lines
    from maskperf.mlperf.checkers import check_runs
    from maskperf.mlperf.run_set import is_closed_set, set_result
    from maskperf.mlperf.traps import is_submission

    logs = _check_logs(group, problems)
    if not logs:
        return REFUSED if group.logs else ACCEPTED
    print(f"{group.name}\n")
    print("\n".join(log_table(logs)))
    _show(meaning_lines(logs))
    for entry in logs:
        _show(log_details(entry))
    accepted = all(entry.compliance.accepted and entry.traps.accepted for entry in logs)
    lines: list[str] = []
    if group.package is not None or is_closed_set(logs):
        # One run of five that the official checker refuses is dropped; what only our own checks see is not.
        accepted = all(entry.traps.accepted for entry in logs)
    if group.package is None and is_closed_set(logs):
        whole = check_runs([entry.log.path for entry in logs], "closed")
        lines += parts_table(whole.verdicts)
        accepted = accepted and whole.accepted
    if len(logs) > 1 or group.package is not None:
        _show([f"the {len(logs)} runs together:", *lines, *set_lines(logs, set_result(logs), accepted=accepted)])
    print()
    if not accepted:
        return REFUSED
    return ACCEPTED if all(is_submission(entry.log) for entry in logs) else IN_FORM


def show_package(folder: Path, whole: Any) -> bool:
    """Return whether the package checker and the repository checker accept a submission, and shows what they say."""
    from maskperf.cli.check_view import parts_table
    from maskperf.mlperf.checkers import check_repository

    repository = check_repository(folder)
    print(f"the package {folder}:")
    print("\n".join(parts_table([*whole.verdicts, repository])))
    for system, factor in whole.scaling_factors.items():
        print(f"  {system}: the score is multiplied by {factor:.4f} (results/{system}/maskrcnn/scaling.json)")
    print()
    return whole.accepted and repository.accepted is True


def _check_logs(group: LogGroup, problems: list[Problem]) -> Sequence[Any]:
    from maskperf.mlperf.run_set import check_log

    problems += group.problems
    logs = []
    for path in group.logs:
        try:
            logs.append(check_log(path))
        except DataError as error:
            problems += error.problems
    return logs


def _show(lines: Sequence[str]) -> None:
    if lines:
        print("\n" + "\n".join(lines))


def _make_parser() -> WordParser:
    parser = WordParser(
        prog="maskperf check",
        usage=USAGE,
        description="Lets MLPerf's own checkers judge logs and submissions, and says what their findings mean.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", metavar="PATH", type=path_word, nargs="*", help="logs, run folders, a series or a package"
    )
    return parser
