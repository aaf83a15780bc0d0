"""`maskperf package --submitter NAME --system NAME SERIES_FOLDER`: builds the folder of a submission from five runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskperf import errors
from maskperf.cli.arguments import CommandParser
from maskperf.cli.check import find_groups, show_package
from maskperf.config import RunConfig
from maskperf.errors import EXIT_DONE, EXIT_RULE, ConfigError, DataError
from maskperf.files import write_text
from maskperf.overrides import from_json_text
from maskperf.schema import CONFIG_FILE, ENVIRONMENT_FILE, Environment, file_error, read_bytes, read_json

USAGE = "--submitter NAME --system NAME [options] SERIES_FOLDER | LOG LOG LOG LOG LOG"
EXAMPLES = """examples, to copy and paste:
  # five runs of the closed division, then the package, in submission/example
  maskperf run coco_batch_96 runs=5 processes=8 mlperf.division=closed mlperf.organization=example run_dir=runs/five
  maskperf package --submitter example --system eight_gpus runs/five
  # what no program can know; --system-json takes all of it from an older description
  maskperf package --submitter example --system eight_gpus --fill cooling=air --fill "hw_notes=two nodes" runs/five

The package is checked at the end. Nothing is ever written over, and no log is changed.
exit codes: 0 the package is accepted, 4 a checker refuses it or the logs do not fit, 3 a log cannot be read"""


def add_options(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--submitter", metavar="NAME", required=True, help="who submits")
    add("--system", metavar="NAME", required=True, help="name of the system, of letters, digits and . _ - +")
    add("--division", choices=("closed", "open"), help="demand this division of the logs (default: that of the logs)")
    parser.add_path("--output", "FOLDER", "where the package goes (default: submission/SUBMITTER)")
    parser.add_path("--system-json", "FILE", "take all fields of this system description")
    add("--fill", metavar="FIELD=VALUE", action="append", default=[], help="a field of the description; any number")
    parser.add_path("paths", "PATH", "a series folder, or five logs or run folders", nargs="+")


def package(options: argparse.Namespace) -> int:
    """Return 0 where the official checkers accept the new package, 4 where one refuses it."""
    from maskperf.mlperf import package as packages
    from maskperf.mlperf.checkers import check_package
    from maskperf.mlperf.read import read_log
    from maskperf.mlperf.system_description import unknown_fields
    from maskperf.mlperf.traps import is_submission, meanings

    submitter = packages.check_name("--submitter", options.submitter)
    system = packages.check_name("--system", options.system)
    folder = options.output or Path("submission") / submitter
    logs = tuple(read_log(path) for path in _log_paths(options.paths))
    division = packages.check_set(logs, options.division)
    run_folder = logs[0].path.parent
    environment = read_json(run_folder / ENVIRONMENT_FILE, Environment)
    description, notices = _describe(options, logs[0], division, environment)
    remarks = tuple(dict.fromkeys(text for log in logs for text in meanings(log)))
    arguments = packages.run_arguments(
        logs[0], _config(run_folder / CONFIG_FILE), (environment and environment.processes) or 1
    )
    source = packages.find_source(Path(errors.__file__).resolve().parent)
    unknown = unknown_fields(description)
    fill_file = folder.with_name(f"{folder.name}-to-fill.txt")
    for path in (folder, fill_file) if unknown else (folder,):
        packages.refuse_existing(path)
    print("\n".join([*remarks, *notices]))
    left_out = packages.write_package(
        folder, system=system, description=description, logs=logs, arguments=arguments, remarks=remarks, source=source
    )
    print(f"written: {folder}")
    for name in left_out:
        print(f"left out, not fit for a repository: {name}")
    if unknown:
        write_text(fill_file, packages.fill_text(system, unknown))
        print(f"empty in systems/{system}.json, for you to fill in: {', '.join(unknown)}\nwritten: {fill_file}")
    whole = check_package(folder)
    for name, factor in whole.scaling_factors.items():
        packages.write_scaling(folder, name, factor)
    accepted = show_package(folder, whole)
    fine = "accepted" if all(map(is_submission, logs)) else "accepted in form only: these runs are no submission"
    print(fine if accepted else f"refused: see above, or ask for the details: maskperf check {folder}")
    return EXIT_DONE if accepted else EXIT_RULE


def _log_paths(paths: Sequence[Path]) -> list[Path]:
    groups = find_groups(paths)
    problems = [problem for group in groups for problem in group.problems]
    if problems:
        raise DataError(problems)
    return [path for group in groups for path in group.logs]


def _describe(
    options: argparse.Namespace, log: Any, division: str, environment: Environment | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the system description, and notices about where it comes from."""
    from maskperf.machine.probe import describe_machine
    from maskperf.mlperf import system_description as systems

    fills = systems.read_fills(options.fill)
    given = systems.read_description(options.system_json) if options.system_json else {}
    facts = describe_machine()
    if environment and not systems.is_machine_of(environment, facts):
        description = systems.describe_recorded(environment)
        notices = ["The runs were made on another machine than this; the description has only what they recorded."]
    else:
        description = systems.describe_system(facts)
        notices = [] if environment else ["The logs do not name their machine; this one is described. Check it."]
    accelerators = max(1, int(str(description["accelerators_per_node"]) or 1))
    if environment and (environment.processes or 1) <= accelerators:
        description["number_of_nodes"] = "1"
    if environment and environment.git_commit:
        changed = ", with local changes" if environment.git_modified else ""
        description["sw_notes"] = f"maskperf at commit {environment.git_commit}{changed}"
    statuses = [str(record.value) for record in log.records if record.key == "submission_status"]
    description |= {"status": statuses[0] if statuses else "", "system_name": options.system}
    description |= {**given, **fills, "submitter": options.submitter, "division": division}
    if log.organization != options.submitter:
        notices.append(f"The logs name the organization {log.organization!r}, the package {options.submitter!r}.")
    return description, notices


def _config(path: Path) -> RunConfig | None:
    data = read_bytes(path)
    try:
        return None if data is None else from_json_text(data.decode())
    except (UnicodeDecodeError, ConfigError) as error:
        raise file_error(path, f"It cannot be used: {error}.") from error
