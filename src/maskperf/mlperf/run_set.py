"""Logs with the verdicts on them, and what five of them are worth together."""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskperf.mlperf.attempts import Attempts, find_attempts
from maskperf.mlperf.checkers import check_compliance
from maskperf.mlperf.log_lines import TOKEN
from maskperf.mlperf.read import BenchmarkLog, read_log
from maskperf.mlperf.scoring import RUNS, ReferenceCheck, reference_check, score_minutes
from maskperf.mlperf.traps import check_traps, is_submission, several_runs
from maskperf.mlperf.verdicts import Finding, Verdict

# Where the lines of two runs are mixed, these only follow from it: nobody can judge one of them alone.
FROM_MIXING = re.compile(
    r"Required EXACTLY_ONE occurrence|CHECK for '(init_start|init_stop|run_start|run_stop)' failed"
    r"|(run_start|run_stop) is logged \d+ times|the time of \w+ is .* before|eval_accuracy stands behind run_stop"
)


@dataclass(frozen=True, kw_only=True)
class RunAlone:
    """The verdicts on one of several runs of a file, as if the others were not there."""

    lines: str
    compliance: Verdict
    traps: Verdict


@dataclass(frozen=True, kw_only=True)
class CheckedLog:
    """A log, the verdict of the compliance checker and that of maskperf's own checks."""

    log: BenchmarkLog
    compliance: Verdict
    traps: Verdict
    holds_several_runs: bool = False  # then nothing that is counted over the whole file means anything
    alone: tuple[RunAlone, ...] = ()  # each whole run of such a file

    @property
    def minutes(self) -> float | None:
        """The time of the run, None for one that does not count: refused, ended without success, or not one run."""
        counts = self.compliance.accepted and self.log.status == "success" and self.log.run_seconds is not None
        counts = counts and not self.holds_several_runs
        return self.log.run_seconds / 60 if counts else None

    @property
    def epochs(self) -> int | float | None:
        """The epochs to the targets, None for a run that ended without success, and for several in one file."""
        return self.last_epoch if self.log.status == "success" and not self.holds_several_runs else None

    @property
    def last_epoch(self) -> int | float | None:
        epochs = [evaluation.epoch for evaluation in self.log.evaluations if evaluation.epoch is not None]
        return epochs[-1] if epochs else None


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What five runs are worth. `score` is in minutes, with the scaling factor in it; None where there is none."""

    score: float | None
    scaling_factor: float
    reference: ReferenceCheck | None  # only of closed runs of one batch size
    reference_v3_1: ReferenceCheck | None  # the same as the tool of round v3.1 judged


def check_log(path: Path) -> CheckedLog:
    """Return a log with its verdicts.

    Errors: DataError for a file that is no log.
    """
    log = read_log(path)
    attempts = find_attempts(log.records)
    checked = CheckedLog(
        log=log,
        compliance=check_compliance(path),
        traps=check_traps(log),
        holds_several_runs=attempts.are_several,
    )
    if attempts.mixed is not None:
        return _without(checked, lambda finding: FROM_MIXING.search(finding.text) is not None)
    if len(attempts.runs) == 1:
        return checked
    own = tuple(several_runs(log, attempts))
    return replace(_without(checked, lambda finding: finding not in own), alone=_judge_alone(path, attempts))


def _without(checked: CheckedLog, is_left_out: Callable[[Finding], bool]) -> CheckedLog:
    """Return a log without some of its findings; they are counted, and no verdict changes."""
    verdicts = []
    for verdict in (checked.compliance, checked.traps):
        shown = tuple(finding for finding in verdict.findings if not is_left_out(finding))
        verdicts.append(replace(verdict, findings=shown, num_not_shown=len(verdict.findings) - len(shown)))
    return replace(checked, compliance=verdicts[0], traps=verdicts[1])


def _judge_alone(path: Path, attempts: Attempts) -> tuple[RunAlone, ...]:
    """Return the verdicts on each whole run of a file; none where two of its runs share a line."""
    found = []
    for run, (first, last) in zip(attempts.runs, attempts.line_ranges, strict=True):
        if run.is_whole and not attempts.shared_lines:
            with tempfile.TemporaryDirectory(prefix="maskperf-check-") as scratch:
                part = Path(scratch) / "run.txt"
                part.write_bytes(_only_lines(path.read_bytes(), first, last))
                lines = f"lines {first} to {last or 'the end'}"
                found.append(
                    RunAlone(lines=lines, compliance=check_compliance(part), traps=check_traps(read_log(part)))
                )
    return tuple(found)


def _only_lines(content: bytes, first: int, last: int | None) -> bytes:
    """Return a file with all but some of its lines emptied, so that the rest keep their numbers.

    A record that was torn when its program died, and now stands in front of the first one on its line, goes as well.
    """
    lines = content.split(b"\n")
    kept = lines[first - 1 : last]
    token = TOKEN.encode()
    kept[0] = token + kept[0].rpartition(token)[2]
    return b"\n" * (first - 1) + b"\n".join(kept)


def is_closed_set(logs: Sequence[CheckedLog]) -> bool:
    """Return whether these are five logs that can be a result of the closed division."""
    return len(logs) == RUNS and all(entry.log.division == "closed" and is_submission(entry.log) for entry in logs)


def judge_set(logs: Sequence[CheckedLog]) -> SetResult:
    """Return what logs are worth together: nothing unless there are five."""
    sizes = {entry.log.settings.get("global_batch_size") for entry in logs if _is_size(entry)}
    reference = reference_v3_1 = None
    if is_closed_set(logs) and len(sizes) == 1 and all(_is_size(entry) for entry in logs):
        epochs = [entry.epochs for entry in logs]
        size = sizes.pop()
        reference = reference_check(size, epochs)
        reference_v3_1 = reference_check(size, epochs, tool="v3.1")
    minutes = score_minutes([entry.minutes for entry in logs])
    factor = reference.scaling_factor if reference is not None and reference.passed else 1.0
    return SetResult(
        score=None if minutes is None else minutes * factor,
        scaling_factor=factor,
        reference=reference,
        reference_v3_1=reference_v3_1,
    )


def _is_size(entry: CheckedLog) -> bool:
    size = entry.log.settings.get("global_batch_size")
    return type(size) is int and size > 0
