"""The errors a user can meet, each with its exit code, and the shape of their messages."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_RULE = 4
EXIT_NOT_FINITE = 5
EXIT_TARGET_MISSED = 6
EXIT_STORAGE = 7
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the same command with resume=auto goes on
EXIT_INTERRUPTED = 130

MAX_PROBLEMS_SHOWN = 20


class UserError(Exception):
    """An error the user can fix: shown without a traceback, ends the command with `exit_code`."""

    exit_code = EXIT_USAGE


class ConfigError(UserError):
    """A key, value or argument that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong in a file: where, what was found, and what to do about it."""

    file: str
    where: str  # for example "annotation id 918" or "image id 42"
    field: str  # for example "bbox[3]"
    value: str
    message: str
    fix: str

    def line(self) -> str:
        return f"{self.file}: {self.where}, field {self.field}, value {self.value}: {self.message} Fix: {self.fix}"


class DataError(UserError):
    """One or more problems in annotations, images or weights, all of them found in one pass."""

    exit_code = EXIT_DATA

    def __init__(self, problems: Sequence[Problem], notices: Sequence[str] = ()):
        self.problems = list(problems)
        self.notices = list(notices)  # what else was found, which alone would not have stopped anything
        super().__init__("\n".join([describe_problems(self.problems), *(f"note: {notice}" for notice in self.notices)]))

    def all_lines(self) -> str:
        """Return a line for every problem, and every notice, for a file; empty where the message shows all of it."""
        if len(problems_by_kind(self.problems)) == len(self.problems):
            return ""
        lines = [problem.line() for problem in self.problems] + [f"note: {notice}" for notice in self.notices]
        return "\n".join(lines) + "\n"


class RuleError(UserError):
    """A rule of the benchmark that the configuration breaks."""

    exit_code = EXIT_RULE


class LostRunError(UserError):
    """A run that cannot reach its targets any more; `step` is where it was lost."""

    exit_code = EXIT_NOT_FINITE
    event = "collapse"

    def __init__(self, text: str, *, step: int):
        self.step = step
        super().__init__(text)


class NonFiniteError(LostRunError):
    """A loss, gradient or weight that is not a finite number."""

    event = "non-finite"


class StorageError(UserError):
    """A folder or file that cannot be written, or that exists and would be overwritten."""

    exit_code = EXIT_STORAGE


def joined_errors(errors: Sequence[DataError]) -> DataError:
    """Return one error with the problems and notices of all."""
    return DataError(
        [problem for error in errors for problem in error.problems],
        [notice for error in errors for notice in error.notices],
    )


def problems_by_kind(problems: Sequence[Problem]) -> list[list[Problem]]:
    """Return the problems with those of one kind together, in the order of the first of each kind."""
    kinds: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        # "bbox[3]" and "bbox[2]", two different sums, or two images of a folder, are one kind
        kind = (
            problem.file if _is_json(problem) else os.path.dirname(problem.file),
            problem.field.partition("[")[0],
            re.sub(r"[0-9]+", "", problem.message),
        )
        kinds.setdefault(kind, []).append(problem)
    return list(kinds.values())


def describe_problems(problems: Sequence[Problem]) -> str:
    """Return the first problem of each kind in full, and where up to `MAX_PROBLEMS_SHOWN` others are."""
    lines = []
    for alike in problems_by_kind(problems):
        lines.append(alike[0].line())
        if len(alike) > 1:
            lines.append(f"  {others_of_kind(alike)}")
    if len(problems) > 1:
        lines.append(f"{len(problems)} problems in all")
    return "\n".join(lines)


def others_of_kind(alike: Sequence[Problem]) -> str:
    """Return "and 2 more of this kind: image id 4, image id 7", empty for a single problem."""
    others = alike[1 : MAX_PROBLEMS_SHOWN + 1]
    names = [problem.where if _is_json(problem) else os.path.basename(problem.file) for problem in others]
    end = ", ..." if len(alike) > len(others) + 1 else ""
    return f"and {len(alike) - 1} more of this kind: {', '.join(names)}{end}" if others else ""


def _is_json(problem: Problem) -> bool:
    return problem.file.endswith(".json")
