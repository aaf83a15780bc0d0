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
EXIT_INTERRUPTED = 130

MAX_FAULTS_SHOWN = 20


class UserError(Exception):
    """An error the user can mend: shown without a traceback, ends the command with `exit_code`."""

    exit_code = EXIT_USAGE


class ConfigError(UserError):
    """A key, value or argument that cannot be used."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong in a file: where, what was found, and what to do about it."""

    file: str
    where: str  # for example "annotation id 918" or "image id 42"
    field: str  # for example "bbox[3]"
    value: str
    problem: str
    mend: str

    def line(self) -> str:
        return f"{self.file}: {self.where}, field {self.field}, value {self.value}: {self.problem} Mend: {self.mend}"


class DataError(UserError):
    """One or more faults in annotations, images or weights, all of them found in one pass."""

    exit_code = EXIT_DATA

    def __init__(self, faults: Sequence[Fault], notices: Sequence[str] = ()):
        self.faults = list(faults)
        self.notices = list(notices)  # what else was found, which alone would not have stopped anything
        super().__init__("\n".join([describe_faults(self.faults), *(f"note: {notice}" for notice in self.notices)]))

    def all_lines(self) -> str:
        """Returns a line for every fault, and every notice, for a file; empty where the message shows all of it."""
        if len(self.faults) <= 1:
            return ""
        lines = [fault.line() for fault in self.faults] + [f"note: {notice}" for notice in self.notices]
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
    """Returns one error with the faults and notices of all."""
    return DataError(
        [fault for error in errors for fault in error.faults], [notice for error in errors for notice in error.notices]
    )


def faults_by_kind(faults: Sequence[Fault]) -> list[list[Fault]]:
    """Returns the faults with those of one kind together, in the order of the first of each kind."""
    kinds: dict[tuple[str, str, str], list[Fault]] = {}
    for fault in faults:
        # "bbox[3]" and "bbox[2]", two different sums, or two images of a folder, are one kind
        kind = (
            fault.file if _is_json(fault) else os.path.dirname(fault.file),
            fault.field.partition("[")[0],
            re.sub(r"[0-9]+", "", fault.problem),
        )
        kinds.setdefault(kind, []).append(fault)
    return list(kinds.values())


def describe_faults(faults: list[Fault]) -> str:
    """Returns the faults by kind: the first of each kind in full, and where up to `MAX_FAULTS_SHOWN` others are."""
    lines = []
    for alike in faults_by_kind(faults):
        lines.append(alike[0].line())
        others = [
            fault.where if _is_json(fault) else os.path.basename(fault.file)
            for fault in alike[1 : MAX_FAULTS_SHOWN + 1]
        ]
        if others:
            end = ", ..." if len(alike) > len(others) + 1 else ""
            lines.append(f"  and {len(alike) - 1} more of this kind: {', '.join(others)}{end}")
    if len(faults) > 1:
        lines.append(f"{len(faults)} faults in all")
    return "\n".join(lines)


def _is_json(fault: Fault) -> bool:
    return fault.file.endswith(".json")
