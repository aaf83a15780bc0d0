"""A submission package: the folder that is handed in, built from five logs.

Source: MLPerf submission rules, section on the folder layout.
"""

import json
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from maskperf.config import BENCHMARK, RunConfig
from maskperf.errors import ConfigError, RuleError, StorageError
from maskperf.mlperf.checkers import write_results
from maskperf.mlperf.log import HYPERPARAMETERS
from maskperf.mlperf.read import BenchmarkLog
from maskperf.mlperf.rules import RUNS
from maskperf.overrides import differences, format_value
from maskperf.recipes import RECIPES

IMPLEMENTATION = "maskperf"
LARGEST_FILE_BYTES = 50 * 2**20
CODE_FOLDERS = ("src/maskperf", "docs", "launch")
CODE_FILES = (
    *("README.md", "CONTRIBUTING.md", "LICENSE", "constraints.txt", "pyproject.toml"),
    *("install.sh", "run_and_time.sh", "run_tests.sh", "download_dataset.sh", "install_cuda_docker.sh", "Dockerfile"),
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
# Paths of one machine, and what differs from run to run: not part of how a result is made.
LOCAL_KEYS = (
    *("run_dir", "seed", "recipe", "system.threads", "model.backbone_weights", "model.initial_weights"),
    *("data.root", "data.train_json", "data.train_images", "data.val_json", "data.val_images"),
)
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["quoted"] = shlex.quote


def check_name(option: str, name: str) -> str:
    """Return the name of a submitter or system, which becomes the name of a folder.

    Errors: ConfigError for one with spaces, a dot in front or other signs that the repository checker refuses.
    """
    taken = " It is the name of the implementation." if (option, name) == ("--system", IMPLEMENTATION) else ""
    if taken or not NAME.fullmatch(name):
        fix = "take letters, digits and . _ - + only, and a letter or digit first."
        raise ConfigError(f"{option} {name!r}: cannot be the name of a folder in a submission.{taken} Fix: {fix}")
    return name


def check_set(logs: Sequence[BenchmarkLog], division: str | None) -> str:
    """Return the division of five logs.

    Errors: ConfigError where there are not five; RuleError where their division is not one, or not `division`.
    """
    if len(logs) != RUNS:
        fix = f"give a series of {RUNS} runs (maskperf run RECIPE runs={RUNS}), or {RUNS} logs."
        raise ConfigError(f"{len(logs)} logs are given, and a submission has exactly {RUNS}. Fix: {fix}")
    found = sorted({log.division or "(none)" for log in logs})
    wanted = division or found[0]
    if found != [wanted]:
        fix = f"make the runs with mlperf.division={wanted}; it is chosen before a run, never edited into a log."
        raise RuleError(f"the logs are of the division {' and '.join(found)}, not all of {wanted}. Fix: {fix}")
    return wanted


def find_source(package: Path) -> Path:
    """Return the folder that holds src/maskperf, the scripts and constraints.txt.

    Errors: ConfigError where this program was installed without them.
    """
    source = package.parents[1]
    missing = [name for name in ("install.sh", "run_and_time.sh", "constraints.txt") if not (source / name).is_file()]
    if package.parent.name != "src" or missing:
        fix = "install it with install.sh of the source tree, and use the maskperf in its .venv."
        raise ConfigError(f"{source}: is not the source tree of maskperf, which goes into a submission. Fix: {fix}")
    return source


def refuse_existing(path: Path) -> None:
    """Errors: StorageError where a file or folder would be written over."""
    if path.exists() or path.is_symlink():
        raise StorageError(f"{path}: exists already; nothing was changed. Fix: choose another --output, or move it.")


def write_package(
    folder: Path,
    *,
    system: str,
    description: Mapping[str, str | dict[str, str]],
    logs: Sequence[BenchmarkLog],
    arguments: Sequence[str],
    remarks: Sequence[str],
    source: Path,
) -> list[str]:
    """Return the names of source files that were left out, after the package was written to `folder` as a whole.

    arguments: those of `maskperf run`; remarks: on the nature of the logs; source: the source tree of this program.

    Errors: StorageError where the folder cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".maskperf-package-", dir=folder.parent) as scratch:
            building = Path(scratch) / "package"
            write_results(building, system, description, [log.path for log in logs])
            implementations = building / "benchmarks" / BENCHMARK / "implementations"
            left_out = _copy_code(source, implementations / IMPLEMENTATION)
            (implementations / system).mkdir()
            for name, text in _texts(system, logs, arguments, remarks).items():
                path = implementations / system / name
                path.write_text(text, encoding="utf-8")
                _set_executable(path, path.suffix == ".sh")
            building.rename(folder)
    except OSError as error:
        text = f"{folder}: cannot be written ({error.strerror or error}). Fix: choose another --output."
        raise StorageError(text) from error
    return left_out


def write_scaling(folder: Path, system: str, factor: float) -> None:
    """Write the factor that a score is multiplied by where the official tools look for it."""
    path = folder / "results" / system / BENCHMARK / "scaling.json"
    path.write_text(json.dumps({"scaling_factor": factor}), encoding="utf-8")


def run_arguments(log: BenchmarkLog, config: RunConfig | None, processes: int) -> list[str]:
    """Return the arguments of `maskperf run` that make such a run, without paths of one machine."""
    recipe = config.recipe if config is not None else log.recipe or "coco"
    if config is not None and recipe in RECIPES:
        changed = differences(config, RECIPES[recipe]())
    else:
        changed = {key: log.settings[name] for name, key in HYPERPARAMETERS.items() if name in log.settings}
        changed = {key: tuple(value) if isinstance(value, list) else value for key, value in changed.items()}
        changed["mlperf.division"] = log.division
    pairs = [f"{key}={format_value(value)}" for key, value in changed.items() if key not in LOCAL_KEYS]
    return [recipe, *([f"processes={processes}"] if processes > 1 else []), *pairs]


def _texts(
    system: str, logs: Sequence[BenchmarkLog], arguments: Sequence[str], remarks: Sequence[str]
) -> dict[str, str]:
    """Return the files of a system's folder: its scripts, a README and the JSON file with the hyperparameters."""
    recipe, *others = arguments
    values: dict[str, Any] = {"system": system, "implementation": IMPLEMENTATION, "recipe": recipe}
    values |= {"command": shlex.join(["maskperf", "run", *arguments])}
    texts = {
        name: TEMPLATES.get_template(name).render(**values, arguments=others, remarks=remarks, logs=logs)
        for name in TEMPLATES.list_templates()
    }
    content = {
        "benchmark": logs[0].benchmark,
        **values,
        "targets": {"BBOX": logs[0].targets[0], "SEGM": logs[0].targets[1]},
        "hyperparameters": logs[0].settings,
    }
    return {**texts, f"{system}_{IMPLEMENTATION}.json": json.dumps(content, indent=2) + "\n"}


def _copy_code(source: Path, target: Path) -> list[str]:
    """Copy everything a submission may hold, programs as programs, and return what was left out."""
    left_out = []
    paths = [source / name for name in CODE_FILES]
    paths += [path for name in CODE_FOLDERS for path in sorted((source / name).rglob("*"))]
    for path in filter(Path.is_file, paths):
        relative = path.relative_to(source)
        if any(part == "__pycache__" or part.startswith(".") for part in relative.parts):
            continue
        if path.is_symlink() or path.stat().st_size > LARGEST_FILE_BYTES or " " in str(relative):
            left_out.append(relative.as_posix())
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / relative)
        _set_executable(target / relative, path.stat().st_mode & stat.S_IXUSR)
    return left_out


def _set_executable(path: Path, is_program: bool | int) -> None:
    """Let whoever may read the file, which the umask decides, run it too where it is a program."""
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode | (mode & 0o444) >> 2 if is_program else mode)


def fill_text(system: str, unknown: Sequence[str]) -> str:
    """Return the list of empty fields of a system description, for the user to fill in."""
    names = "\n".join(f"  {name}" for name in unknown)
    return f"""Empty fields of systems/{system}.json, which only people can know.

{names}

Write them into that file, or build the package again in another folder, with

  --fill {unknown[0]}="..." for each of them, or --system-json FILE for all
"""
