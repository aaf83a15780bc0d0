"""Logs with the verdicts on them, and what five of them are worth together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskperf.mlperf.checkers import check_compliance
from maskperf.mlperf.read import BenchmarkLog, read_log
from maskperf.mlperf.scoring import RUNS, ReferenceCheck, reference_check, score_minutes
from maskperf.mlperf.traps import check_traps, is_submission
from maskperf.mlperf.verdicts import Verdict


@dataclass(frozen=True, kw_only=True)
class CheckedLog:
    """A log, the verdict of the compliance checker and that of maskperf's own checks."""

    log: BenchmarkLog
    compliance: Verdict
    traps: Verdict

    @property
    def minutes(self) -> float | None:
        """The time of the run, None for one that does not count: refused, or ended without success."""
        counts = self.compliance.accepted and self.log.status == "success" and self.log.run_seconds is not None
        return self.log.run_seconds / 60 if counts else None

    @property
    def epochs(self) -> int | float | None:
        """The epochs to the targets, None for a run that ended without success."""
        return self.last_epoch if self.log.status == "success" else None

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
    """Returns a log with its verdicts.

    Errors: DataError for a file that is no log.
    """
    log = read_log(path)
    return CheckedLog(log=log, compliance=check_compliance(path), traps=check_traps(log))


def is_closed_set(logs: Sequence[CheckedLog]) -> bool:
    """Returns whether these are five logs that can be a result of the closed division."""
    return len(logs) == RUNS and all(entry.log.division == "closed" and is_submission(entry.log) for entry in logs)


def judge_set(logs: Sequence[CheckedLog]) -> SetResult:
    """Returns what logs are worth together: nothing unless there are five."""
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
