"""Where facts about a machine come from: small files of the system, and the output of its programs."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

COMMAND_SECONDS = 5.0


def read_text(path: Path) -> str | None:
    """Return the text of a small file without white space at its ends; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """Return the whole number in a small file; None where there is none."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a program wrote, or why there is nothing of it; a program that is not there leaves neither."""

    output: str | None = None
    complaint: str | None = None


def run_program(arguments: list[str], timeout_seconds: float = COMMAND_SECONDS) -> Answer:
    """Return what a program writes, in English; where it fails or takes too long, what it said last."""
    surroundings = {**os.environ, "LC_ALL": "C"}
    try:
        finished = subprocess.run(
            arguments, capture_output=True, timeout=timeout_seconds, check=False, env=surroundings
        )
    except subprocess.TimeoutExpired:
        return Answer(complaint=f"{arguments[0]} gave no answer within {timeout_seconds:g} s")
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        return Answer(complaint=None if is_missing else f"{arguments[0]}: {error.strerror}")
    output, said = (part.decode(errors="replace") for part in (finished.stdout, finished.stderr))
    if finished.returncode == 0:
        return Answer(output=output)
    lines = (said.strip() or output.strip()).splitlines()
    return Answer(complaint=lines[-1].strip() if lines else f"{arguments[0]} ended with {finished.returncode}")


def first_number(text: str | None) -> float | None:
    """Return the number that the first word of a text is, such as 64 for "64 GB"; None where it is none."""
    words = (text or "").split()
    try:
        return float(words[0]) if words else None
    except ValueError:
        return None
