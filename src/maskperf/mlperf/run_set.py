"""Logs with the verdicts on them, and what five of them are worth together."""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskperf.mlperf.attempts import Attempts, find_attempts
from maskperf.mlperf.checkers import check_compliance
from maskperf.mlperf.findings import Finding, Verdict
from maskperf.mlperf.read import TOKEN, BenchmarkLog, read_log
from maskperf.mlperf.rules import RUNS
from maskperf.mlperf.scoring import ReferenceCheck, reference_check, score_minutes
from maskperf.mlperf.traps import check_traps, is_submission, several_runs

# Where the lines of two runs are mixed, these only follow from it: nobody can check one of them alone.
FROM_MIXING = re.compile(
    r"Required EXACTLY_ONE occurrence|CHECK for '(init_start|init_stop|run_start|run_stop)' failed"
    r"|(run_start|run_stop) is logged \d+ times|the time of \w+ is .* before|eval_accuracy stands behind run_stop"
)


@dataclass(frozen=True, kw_only=True)
class CheckedLog:
    """A log, the verdict of the compliance checker and that of maskperf's own checks."""

    log: BenchmarkLog
    compliance: Verdict
    traps: Verdict
    holds_several_runs: bool = False  # then nothing that is counted over the whole file means anything
    alone: tuple[tuple[str, "CheckedLog"], ...] = ()  # each whole run of such a file, by its lines

    @property
    def minutes(self) -> float | None:
        """The time of the run, None for one that does not count: refused, ended without success, or not one run."""
        if not self.compliance.accepted or self.epochs is None or self.log.run_seconds is None:
            return None
        return self.log.run_seconds / 60

    @property
    def epochs(self) -> int | float | None:
        """The epochs to the targets, None for a run that ended without success, and for several in one file."""
        return self.last_epoch if self.log.status == "success" and not self.holds_several_runs else None

    @property
    def last_epoch(self) -> int | float | None:
        epochs = [evaluation.epoch for evaluation in self.log.evaluations if evaluation.epoch is not None]
        return epochs[-1] if epochs else None


@dataclass(frozen=True)
class SetResult:
    """What five runs are worth. `score` is in minutes, with the scaling factor in it; None where there is none."""

    score: float | None
    scaling_factor: float
    reference: ReferenceCheck | None  # only of closed runs of one batch size
    reference_v3_1: ReferenceCheck | None  # the same by the tool of round v3.1


def check_log(path: Path) -> CheckedLog:
    """Return a log with its verdicts.

    Errors: DataError for a file that is no log.
    """
    log = read_log(path)
    attempts = find_attempts(log.records)
    compliance, traps = check_compliance(path), check_traps(log)
    checked = CheckedLog(log=log, compliance=compliance, traps=traps, holds_several_runs=attempts.are_several)
    if attempts.mixed is not None:
        return _without(checked, lambda finding: FROM_MIXING.search(finding.text) is not None)
    if len(attempts.runs) == 1:
        return checked
    own = tuple(several_runs(log, attempts))
    return replace(_without(checked, lambda finding: finding not in own), alone=_check_alone(path, attempts))


def _without(checked: CheckedLog, is_left_out: Callable[[Finding], bool]) -> CheckedLog:
    """Return a log without some of its findings; they are counted, and no verdict changes."""

    def shorten(verdict: Verdict) -> Verdict:
        shown = tuple(finding for finding in verdict.findings if not is_left_out(finding))
        return replace(verdict, findings=shown, num_not_shown=len(verdict.findings) - len(shown))

    return replace(checked, compliance=shorten(checked.compliance), traps=shorten(checked.traps))


def _check_alone(path: Path, attempts: Attempts) -> tuple[tuple[str, CheckedLog], ...]:
    """Return each whole run of a file, checked as if the others were not there; none where two runs share a line.

    The other lines are emptied, so that the run's own ones keep their numbers. A record that was torn when its program
    died, and now stands in front of the first one on its line, goes as well.
    """
    found = []
    token = TOKEN.encode()
    for run, (first, last) in zip(attempts.runs, attempts.line_ranges, strict=True):
        if run.is_whole and not attempts.shared_lines:
            lines = path.read_bytes().split(b"\n")[first - 1 : last]
            lines[0] = token + lines[0].rpartition(token)[2]
            with tempfile.TemporaryDirectory(prefix="maskperf-check-") as scratch:
                part = Path(scratch) / "run.txt"
                part.write_bytes(b"\n" * (first - 1) + b"\n".join(lines))
                found.append((f"lines {first} to {last or 'the end'}", check_log(part)))
    return tuple(found)


def is_closed_set(logs: Sequence[CheckedLog]) -> bool:
    """Return whether these are five logs that can be a result of the closed division."""
    return len(logs) == RUNS and all(entry.log.division == "closed" and is_submission(entry.log) for entry in logs)


def set_result(logs: Sequence[CheckedLog]) -> SetResult:
    """Return what logs are worth together: nothing unless there are five."""
    size, epochs = logs[0].log.batch_size, [entry.epochs for entry in logs]
    reference = reference_v3_1 = None
    if is_closed_set(logs) and size is not None and all(entry.log.batch_size == size for entry in logs):
        reference, reference_v3_1 = reference_check(size, epochs), reference_check(size, epochs, as_in_v3_1=True)
    score = score_minutes([entry.minutes for entry in logs])
    factor = reference.scaling_factor if reference is not None and reference.passed else 1.0
    return SetResult(None if score is None else score * factor, factor, reference, reference_v3_1)
