"""The course of a run: losses in few enough points to draw, phases of its time, and events of the collapse guard."""

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

import msgspec

from maskperf.config import NUM_TRAIN_IMAGES
from maskperf.mlperf.read import BenchmarkLog, TrackedStats
from maskperf.report.contents import TERM_TITLES, EvaluationPoint
from maskperf.report.sources import RunFiles
from maskperf.run.collapse import evaluation_collapse, find_collapse, windows_from_cumulative
from maskperf.run.plateau import find_plateau
from maskperf.schema import GuardEvent, StepLine, Window

TERM_OF_KEY = {  # of logs; the last three are names of published ones
    **{f"loss_{name}": name for name in TERM_TITLES},
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "classification",
    "loss_box_reg": "box",
}
NUMBERS = (*TERM_TITLES, "total", "learning_rate", "images_per_second", "memory_gib")
MOST_POINTS = 400
LARGEST_DIFFERENCE = 0.005  # of the whole, between it and the sum of its parts

Interval = tuple[float, float]


def loss_points(files: RunFiles) -> tuple[StepLine, ...]:
    """Return at most about 400 points: from metrics.jsonl, or else from the tracked_stats of the log."""
    return thin(files.steps or (() if files.log is None else _points_of_log(files.log)))


def thin(points: Sequence[StepLine], most: int = MOST_POINTS) -> tuple[StepLine, ...]:
    """Return means over windows of neighbouring points, so that there are about `most` of them.

    A stretch without a finite total is never averaged away: its first and its last point stay.
    """
    width = max(1, -(-sum(point.total is not None for point in points) // most))
    thinned: list[StepLine] = []
    for is_lost, group in groupby(points, key=lambda point: point.total is None):
        stretch = list(group)
        if is_lost:
            thinned += stretch if len(stretch) == 1 else (stretch[0], stretch[-1])
        else:
            thinned += (_mean(stretch[first : first + width]) for first in range(0, len(stretch), width))
    return tuple(thinned)


def _mean(points: Sequence[StepLine]) -> StepLine:
    numbers = {name: _mean_of([getattr(point, name) for point in points]) for name in NUMBERS}
    return StepLine(step=round(fmean(point.step for point in points)), epoch=points[0].epoch, **numbers)


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _rising(tracked: Sequence[TrackedStats]) -> dict[int, dict[str, float | None]]:
    """Return the values by step, without steps that do not rise: several ranks may have logged the same."""
    values: dict[int, dict[str, float | None]] = {}
    for entry in tracked:
        if entry.step is not None and entry.step > max(values, default=0):
            values[entry.step] = entry.values
    return values


def _loss_windows(log: BenchmarkLog, key: str = "loss") -> list[Window]:
    """Return the means of one loss between the logged steps.

    Logs of maskperf, known by their own key maskperf_recipe, hold these means; published ones hold means over all steps
    so far. None for a mean that is not finite, or that no longer moves: those trainers leave out what is not finite.
    """
    entries = _rising(log.tracked)
    steps, means = list(entries), [values.get(key) for values in entries.values()]
    if log.recipe is None:
        return windows_from_cumulative(steps, means)
    firsts = [1, *(step + 1 for step in steps[:-1])]
    rows = zip(firsts, steps, means, strict=True)
    return [Window(first_step=first, last_step=last, loss=mean) for first, last, mean in rows]


def _points_of_log(log: BenchmarkLog) -> list[StepLine]:
    """Return a point for each window of the tracked_stats; its step is the middle of the window."""
    entries = _rising(log.tracked)
    names = {key for values in entries.values() for key in values}
    by_term = {
        TERM_OF_KEY[key]: {window.last_step: _finite_loss(window) for window in _loss_windows(log, key)}
        for key in sorted(names & TERM_OF_KEY.keys())
    }
    return [
        StepLine(
            step=(window.first_step + window.last_step) // 2,
            epoch=0,
            **{name: losses.get(window.last_step) for name, losses in by_term.items()},
            total=_finite_loss(window),
            learning_rate=entries[window.last_step].get("learning_rate"),
            images_per_second=entries[window.last_step].get("throughput"),
        )
        for window in (_loss_windows(log) if "loss" in names else [])
    ]


def _finite_loss(window: Window) -> float | None:
    return None if window.frozen else window.loss


def phases_of(files: RunFiles, notes: list[str]) -> dict[str, float]:
    """Return the time account of a run: its own, or else one made from the epochs and evaluations of the log.

    An account that does not sum up to the time of the run gets a note.
    """
    account, whole = files.results.time_account, files.results.seconds
    if not account:
        return {} if files.log is None else phases_of_log(files.log)
    difference = sum(account.values()) - whole
    if abs(difference) > LARGEST_DIFFERENCE * whole:
        notes.append(f"The parts of the time account differ from the {whole:.1f} s of the run by {difference:+.1f} s.")
    return account


def phases_of_log(log: BenchmarkLog) -> dict[str, float]:
    """Return training, evaluation and the rest; they sum to the time from run_start to run_stop.

    Time during an evaluation counts once and for the evaluation, whatever else happens then. Without a run_stop the
    account ends with the last line. Empty where the log has no run_start, or its clock went back.
    """
    interval = run_interval(log)
    if interval is None or interval[1] <= interval[0]:
        return {}
    start, stop = interval
    epochs = [
        (start + 60 * entry.start_minutes, stop if entry.stop_minutes is None else start + 60 * entry.stop_minutes)
        for entry in log.epochs
        if entry.start_minutes is not None
    ]
    evaluations = _evaluation_intervals(log, stop)
    evaluating = _covered_seconds(evaluations, start, stop)
    busy = _covered_seconds([*epochs, *evaluations], start, stop)
    if not epochs and not evaluating:
        return {"other": stop - start}
    return {"training": busy - evaluating, "evaluation": evaluating, "other": stop - start - busy}


def run_interval(log: BenchmarkLog) -> Interval | None:
    """Return the times of run_start and of the end of the log, in seconds; None without a run_start."""
    times = [(record.key, record.time_ms / 1000) for record in log.records if record.time_ms is not None]
    start = next((seconds for key, seconds in times if key == "run_start"), None)
    if start is None:
        return None
    return start, max(seconds for _, seconds in times) if log.run_seconds is None else start + log.run_seconds


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


def _covered_seconds(intervals: Sequence[Interval], low: float, high: float) -> float:
    """Return how much of the time between `low` and `high` the intervals cover; where they overlap it counts once."""
    covered, end = 0.0, low
    for start, stop in sorted(intervals):
        start, stop = max(start, end), min(stop, high)
        if stop > start:
            covered, end = covered + stop - start, stop
    return covered


def guard_events(files: RunFiles, evaluations: Sequence[EvaluationPoint], *, reached: bool) -> tuple[GuardEvent, ...]:
    """Return the guard's record of a run folder, or what it finds in a log; the last event is a summary."""
    if not files.is_folder:
        return () if files.log is None else _events_of_log(files.log, evaluations, reached=reached)
    guard = files.results.guard
    if guard is None:
        return msgspec.convert(files.guard, tuple[GuardEvent, ...], from_attributes=True)
    found = f"{len(guard.events)} event{'s' * (len(guard.events) > 1)}" if guard.events else "nothing noticed"
    return (*guard.events, GuardEvent(event="summary", text=f"{guard.steps_checked} steps checked: {found}."))


def _events_of_log(
    log: BenchmarkLog, evaluations: Sequence[EvaluationPoint], *, reached: bool
) -> tuple[GuardEvent, ...]:
    """Return the first collapse and the plateau that the guard finds in a log, and a summary."""
    has_losses = any("loss" in entry.values for entry in log.tracked)
    windows = _loss_windows(log) if has_losses else []
    triples = [(point.epoch, point.box_ap, point.mask_ap) for point in evaluations]
    events = [event for event in (find_collapse(windows), evaluation_collapse(triples)) if event is not None]
    plateau = None if reached or events else _first_plateau(log, triples)
    if plateau is not None:
        events.append(plateau)
    seen = f"{len(windows)} windows of losses and {len(evaluations)} evaluations checked after the run"
    found = "" if events else ": no collapse and no plateau" if not reached else ": no collapse"
    return (*events, GuardEvent(event="summary", text=f"{seen}{found}."))


def _first_plateau(log: BenchmarkLog, triples: Sequence[tuple[int, float, float]]) -> GuardEvent | None:
    """Return the plateau as of the first evaluation that shows it; triples: (epoch, box AP, mask AP)."""
    settings = log.settings
    batch_size, decay_steps = settings.get("global_batch_size"), settings.get("opt_learning_rate_decay_steps")
    if not isinstance(batch_size, int) or batch_size < 1 or not isinstance(decay_steps, list) or not decay_steps:
        return None
    # Published logs write something else as train_samples.
    train_samples = settings.get("train_samples")
    images = train_samples if log.recipe is not None and isinstance(train_samples, int) else NUM_TRAIN_IMAGES
    found = (
        find_plateau(
            triples[:count],
            box_target=log.targets[0],
            mask_target=log.targets[1],
            steps_per_epoch=float(images // batch_size + 1),
            last_decay_step=int(decay_steps[-1]),
        )
        for count in range(1, len(triples) + 1)
    )
    return next((plateau for plateau in found if plateau is not None), None)
