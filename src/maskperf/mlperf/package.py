"""A submission package: the folder that is handed in, built from five logs.

Source: MLPerf submission rules, section on the folder layout.
"""

import json
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskperf.config import BENCHMARK, RunConfig
from maskperf.errors import ConfigError, RuleError, StorageError
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
KEY_OF_SETTING = {  # for logs without a config.json beside them
    "global_batch_size": "optimizer.batch_size",
    "gradient_accumulation_steps": "optimizer.accumulation_steps",
    "num_image_candidates": "model.proposals_train",
    "min_image_size": "data.short_side",
    "max_image_size": "data.long_side",
    "opt_base_learning_rate": "optimizer.learning_rate",
    "opt_learning_rate_decay_factor": "optimizer.decay_factor",
    "opt_learning_rate_decay_steps": "optimizer.decay_steps",
    "opt_learning_rate_warmup_steps": "optimizer.warmup_steps",
    "opt_learning_rate_warmup_factor": "optimizer.warmup_factor",
}
# The scripts of a system's folder. {arguments} are those of `maskperf run`.
HERE = 'here=$(CDPATH=\'\' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)'
DATA_PATHS = f"""root=${{DATA_ROOT:-$here/../{IMPLEMENTATION}/data/coco}}
backbone=${{BACKBONE:-$here/../{IMPLEMENTATION}/data/R-50.pkl}}"""
SETUP = f"""#!/usr/bin/env bash
# Installs the implementation into its own .venv.
set -euo pipefail

{HERE}
exec "$here/../{IMPLEMENTATION}/install.sh"
"""
NO_DATA = """#!/usr/bin/env bash
# The demo draws its images itself when it is run.
set -euo pipefail
"""
PREPARE_DATA = f"""#!/usr/bin/env bash
# Fetches and checks COCO 2017 (into DATA_ROOT) and Detectron's R-50.pkl (BACKBONE).
set -euo pipefail

{HERE}
{DATA_PATHS}
exec "$here/../{IMPLEMENTATION}/.venv/bin/maskperf" prepare coco --root "$root" --weights "$backbone"
"""


@dataclass(frozen=True, kw_only=True)
class PackageContents:
    """What goes into a package."""

    submitter: str
    system: str
    description: Mapping[str, str | dict[str, str]]
    logs: tuple[BenchmarkLog, ...]
    config: RunConfig | None  # of the first run, where its folder has one
    processes: int
    remarks: tuple[str, ...]  # on the nature of the logs: a demo, for example
    source: Path  # the source tree of this program


def check_name(option: str, name: str) -> str:
    """Return the name of a submitter or system, which becomes the name of a folder.

    Errors: ConfigError for one with spaces, a dot in front or other signs that the repository checker refuses.
    """
    taken = " It is the name of the implementation." if (option, name) == ("--system", IMPLEMENTATION) else ""
    if taken or not NAME.fullmatch(name):
        raise ConfigError(
            f"{option} {name!r}: cannot be the name of a folder in a submission.{taken} Fix: take letters, digits "
            "and . _ - + only, and a letter or digit first."
        )
    return name


def check_set(logs: Sequence[BenchmarkLog], division: str | None) -> str:
    """Return the division of five logs.

    Errors: ConfigError where there are not five; RuleError where their division is not one, or not `division`.
    """
    if len(logs) != RUNS:
        raise ConfigError(
            f"{len(logs)} logs are given, and a submission has exactly {RUNS}. Fix: give a series of {RUNS} runs "
            f"(maskperf run RECIPE runs={RUNS}), or {RUNS} logs."
        )
    found = sorted({log.division or "(none)" for log in logs})
    wanted = division or found[0]
    if found != [wanted]:
        raise RuleError(
            f"the logs are of the division {' and '.join(found)}, not all of {wanted}. Fix: make the runs with "
            f"mlperf.division={wanted}; the division of a run is chosen before it, and logs are never edited by hand."
        )
    return wanted


def find_source(package: Path) -> Path:
    """Return the folder that holds src/maskperf, the scripts and constraints.txt.

    Errors: ConfigError where this program was installed without them.
    """
    source = package.parents[1]
    missing = [name for name in ("install.sh", "run_and_time.sh", "constraints.txt") if not (source / name).is_file()]
    if package.parent.name != "src" or missing:
        raise ConfigError(
            f"{source}: is not the source tree of maskperf, whose code goes into a submission. Fix: install it with "
            "install.sh of the source tree, and use the maskperf in its .venv."
        )
    return source


def refuse_existing(path: Path) -> None:
    """Errors: StorageError where a file or folder would be written over."""
    if path.exists() or path.is_symlink():
        text = f"{path}: exists already, and nothing was changed. Fix: choose another --output, or move it away."
        raise StorageError(text)


def write_package(folder: Path, contents: PackageContents) -> list[str]:
    """Return the names of source files that were left out, after the package was written to `folder` as a whole.

    Errors: StorageError where the folder exists or cannot be made.
    """
    refuse_existing(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".maskperf-package-", dir=folder.parent) as scratch:
            building = Path(scratch) / "package"
            left_out = _fill(building, contents)
            building.rename(folder)
    except OSError as error:
        text = f"{folder}: cannot be written ({error.strerror or error}). Fix: choose another --output."
        raise StorageError(text) from error
    return left_out


def write_scaling(folder: Path, system: str, factor: float) -> None:
    """Write the factor that a score is multiplied by where the official tools look for it."""
    path = folder / "results" / system / BENCHMARK / "scaling.json"
    path.write_text(json.dumps({"scaling_factor": factor}), encoding="utf-8")


def _fill(folder: Path, contents: PackageContents) -> list[str]:
    system = contents.system
    results = folder / "results" / system / BENCHMARK
    results.mkdir(parents=True)
    for number, log in enumerate(contents.logs):
        shutil.copyfile(log.path, results / f"result_{number}.txt")
    (folder / "systems").mkdir()
    text = json.dumps(contents.description, indent=2) + "\n"
    (folder / "systems" / f"{system}.json").write_text(text, encoding="utf-8")
    implementations = folder / "benchmarks" / BENCHMARK / "implementations"
    left_out = _copy_code(contents.source, implementations / IMPLEMENTATION)
    arguments = run_arguments(contents.logs[0], contents.config, contents.processes)
    texts = {
        "setup.sh": SETUP,
        "init_datasets.sh": NO_DATA if arguments[0] == "demo" else PREPARE_DATA,
        "run_and_time.sh": _run_script(arguments),
        f"{system}_{IMPLEMENTATION}.json": _implementation_json(system, contents.logs[0], arguments),
        "README.md": _readme(contents, arguments),
    }
    (implementations / system).mkdir()
    for name, text in texts.items():
        path = implementations / system / name
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".sh":
            _make_executable(path)
    return left_out


def run_arguments(log: BenchmarkLog, config: RunConfig | None, processes: int) -> list[str]:
    """Return the arguments of `maskperf run` that make such a run, without paths of one machine."""
    recipe = config.recipe if config is not None else log.recipe or "coco"
    if config is not None and recipe in RECIPES:
        changed = differences(config, RECIPES[recipe]())
        changed = {key: value for key, value in changed.items() if key not in LOCAL_KEYS}
    else:
        changed = {key: log.settings[name] for name, key in KEY_OF_SETTING.items() if name in log.settings}
        changed = {key: tuple(value) if isinstance(value, list) else value for key, value in changed.items()}
        changed["mlperf.division"] = log.division
    pairs = [f"{key}={format_value(value)}" for key, value in changed.items()]
    return [recipe, *([f"processes={processes}"] if processes > 1 else []), *pairs]


def _run_script(arguments: Sequence[str]) -> str:
    """Return a script that makes one run with these arguments; more may be given to it."""
    lines = ["#!/usr/bin/env bash", "# Makes one run as those of the results were made."]
    own_paths = []
    if arguments[0] != "demo":
        lines.append("# DATA_ROOT: the folder of COCO 2017; BACKBONE: Detectron's R-50.pkl.")
        own_paths = ['data.root="$root"', 'model.backbone_weights="$backbone"']
    lines += ["set -euo pipefail", "", HERE, *([DATA_PATHS] if own_paths else [])]
    parts = [shlex.quote(arguments[0]), *own_paths, *map(shlex.quote, arguments[1:]), '"$@"']
    lines.append(f'exec "$here/../{IMPLEMENTATION}/run_and_time.sh" ' + " \\\n    ".join(parts))
    return "\n".join(lines) + "\n"


def _readme(contents: PackageContents, arguments: Sequence[str]) -> str:
    lines = [f"# Mask R-CNN on {contents.system}", "", *contents.remarks, *([""] if contents.remarks else [])]
    lines += ["| step | script |", "|---|---|", "| install | `./setup.sh` |", "| data | `./init_datasets.sh` |"]
    lines += ["| one run | `./run_and_time.sh` |", "", f"Code: `../{IMPLEMENTATION}`. One run is"]
    lines += ["", "```", shlex.join(["maskperf", "run", *arguments]), "```", ""]
    lines += ["| log | seed | status | epochs | minutes |", "|---|---|---|---|---|"]
    for number, log in enumerate(contents.logs):
        minutes = "" if log.run_seconds is None else f"{log.run_seconds / 60:.2f}"
        epoch = log.evaluations[-1].epoch if log.evaluations else ""
        seeds = ", ".join(map(str, log.seeds))
        lines.append(f"| result_{number}.txt | {seeds} | {log.status} | {epoch} | {minutes} |")
    return "\n".join(lines) + "\n"


def _implementation_json(system: str, log: BenchmarkLog, arguments: Sequence[str]) -> str:
    content = {
        "benchmark": log.benchmark,
        "system": system,
        "implementation": IMPLEMENTATION,
        "recipe": arguments[0],
        "command": shlex.join(["maskperf", "run", *arguments]),
        "targets": {"BBOX": log.targets[0], "SEGM": log.targets[1]},
        "hyperparameters": log.settings,
    }
    return json.dumps(content, indent=2) + "\n"


def fill_text(system: str, unknown: Sequence[str]) -> str:
    """Return the list of empty fields of a system description, for the user to fill in."""
    names = "\n".join(f"  {name}" for name in unknown)
    return f"""Empty fields of systems/{system}.json, which only people can know.

{names}

Write them into that file, or build the package again in another folder, with

  --fill {unknown[0]}="..." for each of them, or --system-json FILE for all
"""


def _copy_code(source: Path, target: Path) -> list[str]:
    """Return what was left out; everything a submission may hold is copied, programs as programs."""
    left_out = []
    for path in _code_of(source):
        relative = path.relative_to(source)
        if path.is_symlink() or path.stat().st_size > LARGEST_FILE_BYTES or " " in str(relative):
            left_out.append(relative.as_posix())
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / relative)
        if path.stat().st_mode & stat.S_IXUSR:
            _make_executable(target / relative)
    return left_out


def _make_executable(path: Path) -> None:
    """Let whoever may read the file, which the umask decides, run it too."""
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode | (mode & 0o444) >> 2)


def _code_of(source: Path) -> Iterator[Path]:
    for name in CODE_FILES:
        if (source / name).is_file():
            yield source / name
    for name in CODE_FOLDERS:
        for path in sorted((source / name).rglob("*")):
            parts = path.relative_to(source).parts
            if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in parts):
                yield path
