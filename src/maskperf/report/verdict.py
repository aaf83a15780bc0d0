"""The outcome of a run in one state and one sentence, and notes for readers who compare it."""

from collections.abc import Sequence
from itertools import dropwhile, pairwise

from maskperf.config import BOX_TARGET, MASK_TARGET, has_targets, meets_targets
from maskperf.mlperf.read import BenchmarkLog
from maskperf.mlperf.rules import RuleResult
from maskperf.recipes import OWN_DATA
from maskperf.report.contents import EvaluationPoint, Verdict
from maskperf.report.course import LARGEST_DIFFERENCE, run_interval
from maskperf.report.sources import RunFiles
from maskperf.report.text import target_text
from maskperf.schema import GuardEvent

LARGEST_CLOCK_STEP_SECONDS = 1.0
CLOCK_KEY = "maskperf_wall_clock_moved_seconds"
STOP_KEY = "maskperf_stop"
DEMO_NOTE = (
    "A demo is not a submission: it trains a small network{}, and its time and AP say nothing about the benchmark."
)
OPEN_NOTE = (
    "Open division: model, data, method and targets were free, so the result is no closed-division result and cannot "
    "be compared with one."
)

Points = Sequence[EvaluationPoint]


def evaluation_points(files: RunFiles, notes: list[str]) -> tuple[EvaluationPoint, ...]:
    """Return the evaluations, from the log, or else from the metrics or the results; unusable ones get a note."""
    if files.log is not None and files.log.evaluations:
        found = [(entry.epoch, entry.minutes, entry.box_ap, entry.mask_ap) for entry in files.log.evaluations]
    elif files.evaluations:
        found = [(line.epoch, line.minutes, line.box_ap, line.mask_ap) for line in files.evaluations]
    else:
        rows = files.results.epochs_table
        found = [(row.epoch, row.seconds_since_start / 60, row.box_ap, row.mask_ap) for row in rows]
    points = []
    for epoch, took, box_ap, mask_ap in found:
        if epoch is None or box_ap is None or mask_ap is None:
            notes.append(f"An evaluation is left out: epoch {epoch}, box AP {box_ap}, mask AP {mask_ap}.")
            continue
        points.append(EvaluationPoint(epoch=int(epoch), minutes=took, box_ap=float(box_ap), mask_ap=float(mask_ap)))
    return tuple(points)


def make_verdict(files: RunFiles, evaluations: Points) -> Verdict:
    """Return the outcome of the run.

    "done": trained to its end without targets; "missed": trained to its end without meeting its targets; "aborted":
    stopped before its end, by the guard, by an error or by hand; "unfinished": no end is recorded.
    """
    state = _state(files, evaluations)
    minutes = _minutes(files)
    sentences = {"reached": _reached, "done": _done, "missed": _missed, "aborted": _aborted, "unfinished": _unfinished}
    return Verdict(
        state=state,
        sentence=sentences[state](files, evaluations, minutes) + _resumed(files),
        minutes=minutes,
        box_ap=evaluations[-1].box_ap if evaluations else None,
        mask_ap=evaluations[-1].mask_ap if evaluations else None,
        box_target=files.targets[0],
        mask_target=files.targets[1],
    )


def _resumed(files: RunFiles) -> str:
    """Return a sentence about a run that was interrupted and taken up again, empty for others."""
    steps = ", ".join(map(str, files.results.resumed_at_steps))
    return f" Resumed at step {steps}: not a benchmark result." if steps else ""


def cause_of(guard: Sequence[GuardEvent]) -> str:
    """Return a sentence about the first collapse or plateau, empty where there is none."""
    found = next((entry for entry in guard if entry.event in ("collapse", "plateau")), None)
    if found is None:
        return ""
    if found.event == "plateau":
        return " The AP stood still." if found.epoch is None else f" The AP stood still, as of epoch {found.epoch}."
    where = f"step {found.step}" if found.step is not None else f"epoch {found.epoch}"
    return f" The training collapsed at {where}."


def run_notes(files: RunFiles, verdict: Verdict, rules: Sequence[RuleResult]) -> list[str]:
    """Return notes for readers who compare this run with others."""
    notes, is_own_data = [], files.recipe == OWN_DATA  # which nobody compares with the benchmark
    if files.recipe == "demo":
        notes.append(DEMO_NOTE.format(" on synthetic images" if files.is_generated else ""))
    elif not (is_own_data or has_targets(*files.targets)):
        notes.append(f"The run had no targets; the benchmark's are {BOX_TARGET} and {MASK_TARGET}.")
    elif not (is_own_data or None in files.targets or files.has_coco_targets):
        targets = " and ".join(target_text(target) for target in files.targets)
        notes.append(f"The targets {targets} are not the benchmark's {BOX_TARGET} and {MASK_TARGET}.")
    if files.division == "open" and files.recipe != "demo" and files.has_coco_targets:
        notes.append(OPEN_NOTE)
    if files.division == "closed" and (broken := sum(not row.kept for row in rules)):
        notes.append(
            f"{broken} of {len(rules)} rules of the closed division are not kept; the table of rules says which."
        )
    notes += _clock_notes(files)
    notes += [f"The fast and the official engine differ: {text}." for text in files.results.engine_differences]
    if files.status == "success" and verdict.state == "missed":
        notes.append("The run calls itself a success, but no evaluation met its targets.")
    return notes


def _state(files: RunFiles, evaluations: Points) -> str:
    status = files.status
    if status == "unfinished":
        return "unfinished"
    if not has_targets(*files.targets):
        return "done" if status in ("success", "done") else "aborted"
    if status == "success":
        return "reached" if any(_meets(files, point) for point in evaluations) else "missed"
    return "aborted" if _stop_reason(files) or not _is_whole(files, evaluations) else "missed"


def _stop_reason(files: RunFiles) -> str:
    """Return why a run was stopped before its end; empty where no log says so."""
    records = () if files.log is None else files.log.records
    return next((str(record.value) for record in reversed(records) if record.key == STOP_KEY), "")


def _is_whole(files: RunFiles, evaluations: Points) -> bool:
    """Return whether the last epoch that began was evaluated: then the run stopped where a run may stop."""
    started = [] if files.log is None else [entry.epoch for entry in files.log.epochs]
    return bool(evaluations) and (not started or evaluations[-1].epoch >= max(started))


def _meets(files: RunFiles, point: EvaluationPoint) -> bool:
    box_target, mask_target = files.targets
    return meets_targets(point.box_ap, point.mask_ap, box_target=box_target, mask_target=mask_target)


def _minutes(files: RunFiles) -> float | None:
    if files.results.status:
        return files.results.seconds / 60
    seconds = None if files.log is None else files.log.run_seconds
    return None if seconds is None or seconds < 0 else seconds / 60


def _reached(files: RunFiles, evaluations: Points, minutes: float | None) -> str:
    met = next(point for point in evaluations if _meets(files, point))
    both = "Target" if 0 in files.targets else "Both targets"
    return f"{both} met in epoch {met.epoch}{_after(minutes)}."


def _done(files: RunFiles, evaluations: Points, minutes: float | None) -> str:
    if not evaluations:
        return f"Trained to its end, without targets{_after(minutes)}; never evaluated."
    best = max(evaluations, key=lambda point: point.box_ap + point.mask_ap)
    found = f"best in epoch {best.epoch}: box AP {best.box_ap:.4f}, mask AP {best.mask_ap:.4f}"
    return f"Trained to its end, without targets: {_epochs(evaluations)}{_after(minutes)}; {found}."


def _missed(files: RunFiles, evaluations: Points, minutes: float | None) -> str:
    if any(_meets(files, point) for point in evaluations):
        reason = files.results.reason or "its log says that it was aborted"
        return f"{_reached(files, evaluations, minutes)} The run is no success all the same: {reason}."
    took = "" if minutes is None else f" ({_time_text(minutes)})"
    if not evaluations:
        return f"The run{took} was never evaluated."
    nearest = max(evaluations, key=lambda point: min(_margins(files, point).values(), default=0.0))
    short = [f"{name} {-margin:.4f}" for name, margin in _margins(files, nearest).items() if margin < 0]
    where = f"{_epochs(evaluations)}{took}; nearest in epoch {nearest.epoch}"
    return f"Targets not met in {where}: {' and '.join(short)} short."


def _margins(files: RunFiles, point: EvaluationPoint) -> dict[str, float]:
    """Return by how much each AP is above its target, by name."""
    pairs = {"box AP": (point.box_ap, files.targets[0]), "mask AP": (point.mask_ap, files.targets[1])}
    return {name: ap - target for name, (ap, target) in pairs.items() if target}


def _aborted(files: RunFiles, evaluations: Points, minutes: float | None) -> str:
    reason = _stop_reason(files) or files.results.reason
    first = reason.splitlines()[0].partition(". ")[0] if reason else "an error or Ctrl-C, the log does not say which"
    return f"Stopped before its end{_after(minutes)}, {_evaluated(evaluations)}: {first.rstrip('.')}."


def _unfinished(files: RunFiles, evaluations: Points, minutes: float | None) -> str:
    interval = None if files.log is None else run_interval(files.log)
    done = [f"{files.steps[-1].step} steps"] if files.steps else []
    done += [f"{(interval[1] - interval[0]) / 60:.1f} minutes"] if interval is not None else []
    return f"No end on record: still running, or killed ({', '.join([*done, _evaluated(evaluations)])})."


def _epochs(evaluations: Points) -> str:
    return f"{evaluations[-1].epoch} epoch{'s' if evaluations[-1].epoch > 1 else ''}"


def _evaluated(evaluations: Points) -> str:
    return f"last evaluation in epoch {evaluations[-1].epoch}" if evaluations else "no evaluation"


def _after(minutes: float | None) -> str:
    return "" if minutes is None else f" after {_time_text(minutes)}"


def _time_text(minutes: float) -> str:
    return f"{minutes:.1f} minutes" if minutes >= 2 else f"{60 * minutes:.1f} seconds"


def _clock_notes(files: RunFiles) -> list[str]:
    log = files.log
    if log is None:
        return []
    notes = [
        f"The wall clock moved by {record.value} s during the run; the times of maskperf ignore it."
        for record in log.records
        if record.key == CLOCK_KEY
    ]
    notes += _backward_notes(log)
    if files.results.status and log.run_seconds is not None:
        difference = log.run_seconds - files.results.seconds
        if abs(difference) > max(LARGEST_CLOCK_STEP_SECONDS, LARGEST_DIFFERENCE * files.results.seconds):
            notes.append(f"The log and the results differ by {difference:+.1f} s over the time of the run.")
    return notes


def _backward_notes(log: BenchmarkLog) -> list[str]:
    """Return a note for the first time in the log that lies before the one above it, after run_start."""
    running = dropwhile(lambda record: record.key != "run_start", log.records)
    times_ms = [(record.line, record.time_ms) for record in running if record.time_ms is not None]
    for (_, before), (line, time_ms) in pairwise(times_ms):
        if (back := (before - time_ms) / 1000) > LARGEST_CLOCK_STEP_SECONDS:
            what = "The wall clock moved, or lines are out of order"
            return [f"{what}: line {line} of the log is {back:.1f} s before the line above it."]
    return []
