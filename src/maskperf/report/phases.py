"""Where the time between run_start and run_stop went."""

from collections.abc import Sequence

from maskperf.mlperf.read import BenchmarkLog
from maskperf.report.contents import Phase
from maskperf.report.run_files import RunFiles

TRAINING = "training"
EVALUATION = "evaluation"
OTHER = "other"
LARGEST_DIFFERENCE = 0.005  # of the whole, between it and the sum of its parts

Interval = tuple[float, float]


def phases_of(files: RunFiles, notes: list[str]) -> tuple[Phase, ...]:
    """Return the time account of a run: its own, or else one made from the epochs and evaluations of the log.

    An account that does not sum up to the time of the run gets a note.
    """
    if files.results is not None and files.results.time_account:
        account, whole = files.results.time_account, files.results.seconds
        difference = sum(account.values()) - whole
        if abs(difference) > LARGEST_DIFFERENCE * whole:
            notes.append(
                f"The parts of the time account differ from the {whole:.1f} s of the run by {difference:+.1f} s."
            )
        return tuple(Phase(name=name, seconds=seconds) for name, seconds in account.items())
    return () if files.log is None else phases_of_log(files.log)


def phases_of_log(log: BenchmarkLog) -> tuple[Phase, ...]:
    """Return training, evaluation and the rest; they sum to the time from run_start to run_stop.

    Time in which an evaluation goes on counts for the evaluation, whatever else goes on, and counts once. Without a
    run_stop the account ends with the last line. Empty where the log has no run_start, or its clock went back.
    """
    start, stop = _run_interval(log)
    if start is None or stop is None or stop <= start:
        return ()
    evaluation = merge(clip(_evaluation_intervals(log, stop), start, stop))
    if all(entry.start_minutes is None for entry in log.epochs) and not evaluation:
        return (Phase(name=OTHER, seconds=stop - start),)
    epochs = [
        (start + 60 * entry.start_minutes, stop if entry.stop_minutes is None else start + 60 * entry.stop_minutes)
        for entry in log.epochs
        if entry.start_minutes is not None
    ]
    busy = total(merge([*clip(epochs, start, stop), *evaluation]))
    evaluating = total(evaluation)
    return (
        Phase(name=TRAINING, seconds=busy - evaluating),
        Phase(name=EVALUATION, seconds=evaluating),
        Phase(name=OTHER, seconds=stop - start - busy),
    )


def last_minutes(log: BenchmarkLog) -> float | None:
    """Return how long after run_start the last line of the log is, in minutes."""
    start, stop = _run_interval(log)
    return None if start is None or stop is None else (stop - start) / 60


def clip(intervals: Sequence[Interval], low: float, high: float) -> list[Interval]:
    """Return what of each interval lies between `low` and `high`."""
    inside = [(max(start, low), min(stop, high)) for start, stop in intervals]
    return [(start, stop) for start, stop in inside if stop > start]


def merge(intervals: Sequence[Interval]) -> list[Interval]:
    """Return intervals that cover the same, none of them touching another."""
    merged: list[Interval] = []
    for start, stop in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def total(intervals: Sequence[Interval]) -> float:
    return sum((stop - start for start, stop in intervals), 0.0)


def _run_interval(log: BenchmarkLog) -> tuple[float | None, float | None]:
    """Return the times of run_start and of the end of the log, in seconds; None without a run_start."""
    starts = [r.time_ms for r in log.records if r.key == "run_start" and r.time_ms is not None]
    if not starts:
        return None, None
    start = starts[0] / 1000
    if log.run_seconds is not None:
        return start, start + log.run_seconds
    return start, max(r.time_ms for r in log.records if r.time_ms is not None) / 1000


def _evaluation_intervals(log: BenchmarkLog, stop: float) -> list[Interval]:
    """Return the evaluations: each eval_start with the next eval_stop of its epoch, or with the end of the log."""
    intervals: list[Interval] = []
    open_starts: dict[object, float] = {}
    for record in log.records:
        if record.time_ms is None or record.key not in ("eval_start", "eval_stop"):
            continue
        epoch = str(record.metadata.get("epoch_num", record.metadata.get("step_num")))
        seconds = record.time_ms / 1000
        if record.key == "eval_start":
            open_starts.setdefault(epoch, seconds)
        elif epoch in open_starts:
            intervals.append((open_starts.pop(epoch), seconds))
    return intervals + [(seconds, stop) for seconds in open_starts.values()]
