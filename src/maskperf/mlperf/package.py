"""A submission package: the folder that is handed in, built from five logs.

Source: MLPerf submission rules, section on the folder layout.
"""

import json
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskperf.config import RunConfig
from maskperf.errors import ConfigError, RuleError, StorageError
from maskperf.mlperf import package_texts
from maskperf.mlperf.read import BenchmarkLog
from maskperf.mlperf.scoring import RUNS

LARGEST_FILE_BYTES = 50 * 2**20
BENCHMARK = "maskrcnn"
CODE_FOLDERS = ("src/maskperf", "docs", "launch")
CODE_FILES = (
    *("README.md", "CONTRIBUTING.md", "LICENSE", "constraints.txt", "pyproject.toml"),
    *("install.sh", "run_and_time.sh", "run_tests.sh", "download_dataset.sh", "install_cuda_docker.sh", "Dockerfile"),
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True, kw_only=True)
class PackageContents:
    """What goes into a package."""

    submitter: str
    system: str
    description: Mapping[str, str | dict[str, str]]
    logs: tuple[BenchmarkLog, ...]
    config: RunConfig | None  # of the first run, where its folder has one
    processes: int
    remarks: tuple[str, ...]  # what has to be said of the logs: a demo, for example
    source: Path  # the source tree of this program


def check_name(option: str, name: str) -> str:
    """Return the name of a submitter or system, which becomes the name of a folder.

    Errors: ConfigError for one with spaces, a dot in front or other signs that the repository checker refuses.
    """
    if not NAME.fullmatch(name) or name == package_texts.IMPLEMENTATION and option == "--system":
        taken = " It is the name of the implementation." if name == package_texts.IMPLEMENTATION else ""
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
    system, logs = contents.system, contents.logs
    results = folder / "results" / system / BENCHMARK
    results.mkdir(parents=True)
    for number, log in enumerate(logs):
        shutil.copyfile(log.path, results / f"result_{number}.txt")
    (folder / "systems").mkdir()
    text = json.dumps(contents.description, indent=2) + "\n"
    (folder / "systems" / f"{system}.json").write_text(text, encoding="utf-8")
    implementations = folder / "benchmarks" / BENCHMARK / "implementations"
    left_out = _copy_code(contents.source, implementations / package_texts.IMPLEMENTATION)
    _write_system_folder(implementations / system, contents)
    return left_out


def _write_system_folder(folder: Path, contents: PackageContents) -> None:
    words = package_texts.run_words(contents.logs[0], contents.config, contents.processes)
    description = package_texts.implementation_json(contents.system, contents.logs[0], words)
    scripts = {
        "setup.sh": package_texts.setup_script(),
        "init_datasets.sh": package_texts.data_script(words),
        "run_and_time.sh": package_texts.run_script(words),
    }
    others = {
        f"{contents.system}_{package_texts.IMPLEMENTATION}.json": description,
        "README.md": package_texts.readme(contents.system, contents.logs, words, contents.remarks),
    }
    folder.mkdir()
    for name, text in {**scripts, **others}.items():
        (folder / name).write_text(text, encoding="utf-8")
        if name in scripts:
            _make_executable(folder / name)


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
    """Return nothing; whoever may read the file, which the umask decides, may run it too."""
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode | (mode & 0o444) >> 2)


def _code_of(source: Path) -> Iterator[Path]:
    for name in CODE_FILES:
        if (source / name).is_file():
            yield source / name
    for name in CODE_FOLDERS:
        for path in sorted((source / name).rglob("*")):
            parts = path.relative_to(source).parts  # of caches and hidden folders nothing is wanted
            if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in parts):
                yield path
