"""What a check finds: a value, what it means for a run, and the fix."""

from dataclasses import dataclass

OK = "ok"
NOTE = "note"
PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor. A problem stops or spoils a run; a note costs speed, or should be known."""

    level: str
    name: str
    value: str
    meaning: str
    fix: str = ""  # empty where there is nothing to do


def ok(name: str, value: str, meaning: str) -> Finding:
    return Finding(level=OK, name=name, value=value, meaning=meaning)


def note(name: str, value: str, meaning: str, fix: str = "") -> Finding:
    return Finding(level=NOTE, name=name, value=value, meaning=meaning, fix=fix)


def problem(name: str, value: str, meaning: str, fix: str) -> Finding:
    return Finding(level=PROBLEM, name=name, value=value, meaning=meaning, fix=fix)
