"""Findings and verdicts about a log or a package, and explanations of what MLPerf's checkers find."""

import re
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import resources

import msgspec

from maskperf.mlperf.log import HYPERPARAMETERS

RUN_AGAIN = "and run again: a log is never edited by hand."
CUT = "Run again with `maskperf run`, which logs it; where it did, the log was cut: take the whole file."
FIELDS_OF_KEYS = {  # what sets the value of a key
    "submission_benchmark": "the benchmark that the program logs",
    "submission_org": "mlperf.organization",
    "submission_platform": "mlperf.platform",
    "submission_division": "mlperf.division",
    "submission_status": "mlperf.status",
    **HYPERPARAMETERS,
}


@dataclass(frozen=True)
class Finding:
    """One remark of a checker. Explanation and fix are empty where this program does not know the finding."""

    text: str  # as the checker wrote it
    explanation: str = ""
    fix: str = ""
    refuses: bool = field(kw_only=True)  # False: a warning or a note


note, refusal = partial(Finding, refuses=False), partial(Finding, refuses=True)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One checker's verdict. `accepted` is None where the checker did not come to this point."""

    checker: str
    accepted: bool | None
    findings: tuple[Finding, ...] = ()
    num_not_shown: int = 0  # further findings, left out because they follow from several runs in one file

    @property
    def label(self) -> str:
        return {True: "accepted", False: "refused", None: "not checked"}[self.accepted]


class Explanation(msgspec.Struct, frozen=True):
    """What a finding with this pattern means; names in braces stand for groups of the pattern, a rule and its fix."""

    pattern: str
    means: str
    fix: str


class Explanations(msgspec.Struct, frozen=True):
    """The file explanations.toml."""

    values: dict[str, str]  # key of the log: what its value must be
    findings: tuple[Explanation, ...]


@cache
def explanations() -> Explanations:
    content = resources.files("maskperf.mlperf").joinpath("explanations.toml").read_bytes()
    return msgspec.toml.decode(content, type=Explanations)


def explained(text: str, *, refuses: bool) -> Finding:
    """Return a finding with its explanation and fix; both are empty for a finding that is not known."""
    known = explanations()
    for entry in known.findings:
        match = re.search(entry.pattern, text)
        if match:
            groups = match.groupdict()
            key = groups.get("key", "")
            fix = f"Set {FIELDS_OF_KEYS[key]} to such a value {RUN_AGAIN}" if key in FIELDS_OF_KEYS else CUT
            values = {**groups, "rule": known.values.get(key, "see the failed test"), "fix": fix}
            return Finding(text, entry.means.format(**values), entry.fix.format(**values), refuses=refuses)
    return Finding(text, refuses=refuses)
