"""Small files of the system, the output of its programs, and what is installed."""

import os
import re
import resource
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMMAND_SECONDS = 5.0


def read_text(path: Path) -> str | None:
    """Return the text of a small file without white space at its ends; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def first_number(text: str | None) -> float | None:
    """Return the number that a text starts with, such as 64 for "64 GB"; None where there is none."""
    match = re.match(r"\s*(-?[0-9]+(?:\.[0-9]+)?)(?!\S)", text or "")
    return float(match[1]) if match else None


def whole_number(text: str | None) -> int | None:
    """Return the whole number that a text starts with; None where there is none."""
    number = first_number(text)
    return int(number) if number is not None and number.is_integer() else None


def read_number(path: Path) -> int | None:
    """Return the whole number in a small file; None where there is none."""
    return whole_number(read_text(path))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The output of a program, or why there is none; both are None where the program is missing."""

    output: str | None = None
    complaint: str | None = None


def run_program(arguments: list[str], timeout_seconds: float = COMMAND_SECONDS) -> Answer:
    """Run a program in English; where it fails or takes too long, return its last message."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        finished = subprocess.run(arguments, capture_output=True, timeout=timeout_seconds, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return Answer(complaint=f"{arguments[0]} gave no answer within {timeout_seconds:g} s")
    except FileNotFoundError:
        return Answer()
    except OSError as error:
        return Answer(complaint=f"{arguments[0]}: {error.strerror}")
    output, errors = (part.decode(errors="replace") for part in (finished.stdout, finished.stderr))
    if finished.returncode == 0:
        return Answer(output=output)
    lines = (errors.strip() or output.strip()).splitlines()
    return Answer(complaint=lines[-1].strip() if lines else f"{arguments[0]} ended with {finished.returncode}")


def installed_version(package: str) -> str | None:
    """Return the version of an installed package; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def checkout_folder() -> Path | None:
    """Return the checkout that this package runs from; None for an installed copy."""
    package = Path(__file__).resolve().parents[1]
    return package.parents[1] if package.parent.name == "src" else None


def system_memory_gib() -> float:
    """Return the memory that the operating system counts."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def peak_memory_bytes() -> int:
    """Return the peak of this process's memory; that of getrusage begins with the memory of the parent process."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", read_text(Path("/proc/self/status")) or "", re.MULTILINE)
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) << 10
