"""`maskperf package --submitter NAME --system NAME SERIES_FOLDER`: builds the folder of a submission from five runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskperf import errors
from maskperf.cli.check_groups import find_groups
from maskperf.cli.words import WordParser, asks_for_help, path_word, read_words
from maskperf.errors import EXIT_DONE, EXIT_RULE, ConfigError, DataError, Problem
from maskperf.schema import ENVIRONMENT_FILE, Environment, read_json

USAGE = "maskperf package --submitter NAME --system NAME [options] SERIES_FOLDER | LOG LOG LOG LOG LOG"
EXAMPLES = """examples, to copy and paste:
  # five runs of the closed division, then the package, in submission/example
  maskperf run coco_batch_96 runs=5 processes=8 mlperf.division=closed mlperf.organization=example run_dir=runs/five
  maskperf package --submitter example --system eight_gpus runs/five
  # what no program can know; --system-json takes all of it from an older description
  maskperf package --submitter example --system eight_gpus --fill cooling=air --fill "hw_notes=two nodes" runs/five

The package is checked at the end. Nothing is ever written over, and no log is changed.
exit codes: 0 the package is accepted, 4 a checker refuses it or the logs do not fit, 3 a log cannot be read"""


def package(arguments: list[str]) -> int:
    """Return the exit code: 0 where the official checkers accept the new package, 4 where one refuses it."""
    parser = _make_parser()
    if not arguments or asks_for_help(arguments):
        print(parser.format_help(), end="")
        return EXIT_DONE
    choices = read_words(parser, arguments)
    _require(choices)
    return _package(choices)


def _require(choices: argparse.Namespace) -> None:
    missing = [f"--{name}" for name in ("submitter", "system") if not getattr(choices, name)]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} missing. Fix: say who submits, and a name for the system.")
    if not choices.paths:
        raise ConfigError("no logs are named. Fix: give a series folder (maskperf run RECIPE runs=5), or five logs.")


def _package(choices: argparse.Namespace) -> int:
    from maskperf.cli.check import show_package
    from maskperf.mlperf.checkers import check_package
    from maskperf.mlperf.package import (
        PackageContents,
        check_name,
        check_set,
        find_source,
        refuse_existing,
        write_package,
        write_scaling,
    )
    from maskperf.mlperf.read import read_log
    from maskperf.mlperf.system_description import unknown_fields
    from maskperf.mlperf.traps import is_submission, meanings

    submitter, system = check_name("--submitter", choices.submitter), check_name("--system", choices.system)
    folder = Path(choices.output or f"submission/{submitter}")
    logs = tuple(read_log(path) for path in _logs(choices.paths))
    division = check_set(logs, choices.division)
    environment = read_json(logs[0].path.parent / ENVIRONMENT_FILE, Environment)
    description, notices = _describe(choices, logs[0], division, environment)
    remarks = tuple(dict.fromkeys(text for log in logs for text in meanings(log)))
    contents = PackageContents(
        submitter=submitter,
        system=system,
        description=description,
        logs=logs,
        config=_config(logs[0].path.parent),
        processes=_count(environment and environment.processes),
        remarks=remarks,
        source=find_source(Path(errors.__file__).resolve().parent),
    )
    unknown = unknown_fields(description)
    fill_file = folder.with_name(f"{folder.name}-to-fill.txt")
    for path in (folder, fill_file) if unknown else (folder,):
        refuse_existing(path)
    print("\n".join([*remarks, *notices]))
    left_out = write_package(folder, contents)
    print(f"written: {folder}")
    for name in left_out:
        print(f"left out, not fit for a repository: {name}")
    if unknown:
        _list_unknown(fill_file, system, unknown)
    whole = check_package(folder)
    for name, factor in whole.scaling_factors.items():
        write_scaling(folder, name, factor)
    accepted = show_package(folder, whole)
    fine = "accepted" if all(map(is_submission, logs)) else "accepted in form only: these runs are no submission"
    print(fine if accepted else f"refused: see above, or ask for the details: maskperf check {folder}")
    return EXIT_DONE if accepted else EXIT_RULE


def _logs(words: Sequence[str]) -> list[Path]:
    groups = find_groups(words)
    problems = [problem for group in groups for problem in group.problems]
    if problems:
        raise DataError(problems)
    return [path for group in groups for path in group.logs]


def _describe(
    choices: argparse.Namespace, log: Any, division: str, environment: Environment | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the system description, and what has to be said about where it comes from."""
    from maskperf.machine.probe import describe_machine
    from maskperf.mlperf.system_description import (
        describe_recorded,
        describe_system,
        is_machine_of,
        read_description,
        read_fills,
    )

    fills = read_fills(choices.fill)
    given = read_description(Path(choices.system_json)) if choices.system_json else {}
    facts = describe_machine()
    if environment and not is_machine_of(environment, facts):
        description = describe_recorded(environment)
        notices = ["The runs were made on another machine than this; the description has only what they recorded."]
    else:
        description = describe_system(facts)
        notices = [] if environment else ["The logs do not tell their machine; this one is described. Check it."]
    accelerators = max(1, _count(description["accelerators_per_node"]))
    if environment and _count(environment.processes) <= accelerators:
        description["number_of_nodes"] = "1"
    if environment and environment.git_commit:
        changed = ", with local changes" if environment.git_modified else ""
        description["sw_notes"] = f"maskperf at commit {environment.git_commit}{changed}"
    statuses = [str(record.value) for record in log.records if record.key == "submission_status"]
    description |= {"status": statuses[0] if statuses else "", "system_name": choices.system}
    description |= {**given, **fills, "submitter": choices.submitter, "division": division}
    if log.organization != choices.submitter:
        notices.append(f"The logs name the organization {log.organization!r}, the package {choices.submitter!r}.")
    return description, notices


def _list_unknown(path: Path, system: str, unknown: Sequence[str]) -> None:
    """List the empty fields on the screen and in a file beside the package."""
    from maskperf.files import write_text
    from maskperf.mlperf.package import fill_text

    write_text(path, fill_text(system, unknown))
    print(f"empty in systems/{system}.json, for you to fill in: {', '.join(unknown)}")
    print(f"written: {path}")


def _config(folder: Path) -> Any:
    from maskperf.overrides import from_json_text

    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        return from_json_text(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, ConfigError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> DataError:
    fix = "Take the run folder as the run left it, with the version of maskperf that made it."
    where = {"file": str(path), "where": "the file", "field": "content", "value": "(JSON)"}
    return DataError([Problem(**where, message=f"It cannot be read: {reason}", fix=fix)])


def _count(value: object) -> int:
    """Return the number that a count in JSON means; 1 where it does not say."""
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) else 1


def _make_parser() -> WordParser:
    parser = WordParser(
        prog="maskperf package",
        usage=USAGE,
        description="Builds the folder of a submission from five runs, and lets MLPerf's own checkers judge it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--submitter", metavar="NAME", default="", help="who submits")
    add("--system", metavar="NAME", default="", help="name of the system, of letters, digits and . _ - +")
    add("--division", choices=("closed", "open"), help="demand this division of the logs (default: that of the logs)")
    add(
        "--output",
        metavar="FOLDER",
        type=path_word,
        default="",
        help="where the package goes (default: submission/SUBMITTER)",
    )
    add("--system-json", metavar="FILE", type=path_word, default="", help="take what this system description says")
    add("--fill", metavar="FIELD=VALUE", action="append", default=[], help="a field of the description; any number")
    add("paths", metavar="PATH", type=path_word, nargs="*", help="a series folder, or five logs or run folders")
    return parser
