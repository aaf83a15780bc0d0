"""The errors a user can meet, each with its exit code, and the shape of their messages."""

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

    def __init__(self, faults: list[Fault]):
        self.faults = list(faults)
        super().__init__(describe_faults(self.faults))


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


def describe_faults(faults: list[Fault]) -> str:
    """Returns one line per fault, the first `MAX_FAULTS_SHOWN` of them, and the total."""
    lines = [fault.line() for fault in faults[:MAX_FAULTS_SHOWN]]
    hidden = len(faults) - len(lines)
    if hidden > 0:
        lines.append(f"... and {hidden} more")
    if len(faults) > 1:
        lines.append(f"{len(faults)} faults in all")
    return "\n".join(lines)
