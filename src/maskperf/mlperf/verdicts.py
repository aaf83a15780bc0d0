"""What a checker says about a log or a package."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing a checker says. Explanation and fix are empty where this program does not know the finding."""

    text: str  # the checker's own words
    refuses: bool  # False: a warning or a note
    explanation: str = ""
    fix: str = ""


def note(text: str, explanation: str, fix: str) -> Finding:
    return Finding(text=text, refuses=False, explanation=explanation, fix=fix)


def refusal(text: str, explanation: str, fix: str) -> Finding:
    return Finding(text=text, refuses=True, explanation=explanation, fix=fix)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One checker's verdict. `accepted` is None where the checker did not come to this point."""

    checker: str
    accepted: bool | None
    findings: tuple[Finding, ...] = ()
    num_not_shown: int = 0  # further findings, left out because they follow from several runs in one file

    @property
    def word(self) -> str:
        return {True: "accepted", False: "refused", None: "not judged"}[self.accepted]
