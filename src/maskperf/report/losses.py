"""The course of the losses, from the metrics of a run or from a log, in few enough points to draw."""

from collections.abc import Sequence
from statistics import fmean

from maskperf.mlperf.read import BenchmarkLog, TrackedStats
from maskperf.report.contents import LossPoint
from maskperf.report.run_files import RunFiles
from maskperf.run.collapse import Window, windows_from_cumulative
from maskperf.schema import StepLine

TERMS = ("objectness", "rpn_box", "classification", "box", "mask")
TERM_OF_KEY = {  # the names of published logs
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "classification",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    **{f"loss_{name}": name for name in ("rpn_box", "classification", "box")},
}
MOST_POINTS = 400


def loss_points(files: RunFiles) -> tuple[LossPoint, ...]:
    """Return at most about 400 points: from metrics.jsonl, or else from the tracked_stats of the log."""
    steps = [line for line in files.lines if isinstance(line, StepLine)]
    if steps:
        return thin([_point_of_line(line) for line in steps])
    return () if files.log is None else thin(points_of_log(files.log))


def thin(points: Sequence[LossPoint], most: int = MOST_POINTS) -> tuple[LossPoint, ...]:
    """Return means over windows of as many neighbouring points as it takes to have about `most` of them.

    A stretch without a finite total is never averaged away: its first and its last point stay.
    """
    width = max(1, -(-sum(point.total is not None for point in points) // most))
    kept: list[LossPoint] = []
    window: list[LossPoint] = []
    for place, point in enumerate(points):
        if point.total is None:
            kept += [_mean(window)] if window else []
            window = []
            neighbours = (points[place - 1] if place else None, points[place + 1] if place + 1 < len(points) else None)
            if any(other is None or other.total is not None for other in neighbours):
                kept.append(point)
            continue
        window.append(point)
        if len(window) == width:
            kept.append(_mean(window))
            window = []
    return (*kept, *([_mean(window)] if window else []))


def rising(tracked: Sequence[TrackedStats]) -> list[TrackedStats]:
    """Return the entries whose step is higher than that of the one before; several ranks may have logged the same."""
    kept: list[TrackedStats] = []
    for entry in tracked:
        if entry.step is not None and entry.step > (kept[-1].step if kept else 0):
            kept.append(entry)
    return kept


def loss_windows(log: BenchmarkLog, key: str = "loss") -> list[Window]:
    """Return the means of one loss between the logged steps.

    Logs of maskperf, known by their own key maskperf_recipe, hold these means; published ones hold means over all steps
    so far. None for a mean that is not finite, or that no longer moves: those trainers leave out what is not finite.
    """
    entries = rising(log.tracked)
    steps = [entry.step for entry in entries]
    means = [entry.values.get(key) for entry in entries]
    if log.recipe is None:
        return windows_from_cumulative(steps, means)
    firsts = [1, *(step + 1 for step in steps[:-1])]
    return [
        Window(first_step=first, last_step=last, loss=mean)
        for first, last, mean in zip(firsts, steps, means, strict=True)
    ]


def points_of_log(log: BenchmarkLog) -> list[LossPoint]:
    """Return a point for each window of the tracked_stats; its step is the middle of the window."""
    entries = {entry.step: entry.values for entry in rising(log.tracked)}
    names = {key for values in entries.values() for key in values}
    by_term = {
        TERM_OF_KEY[key]: {window.last_step: _finite_loss(window) for window in loss_windows(log, key)}
        for key in sorted(names & TERM_OF_KEY.keys())
    }
    points = []
    for window in loss_windows(log) if "loss" in names else []:
        values = entries[window.last_step]
        points.append(
            LossPoint(
                step=(window.first_step + window.last_step) // 2,
                total=_finite_loss(window),
                terms={name: by_term[name].get(window.last_step) for name in TERMS if name in by_term},
                learning_rate=values.get("learning_rate"),
                images_per_second=values.get("throughput"),
                memory_gib=None,
            )
        )
    return points


def _finite_loss(window: Window) -> float | None:
    return None if window.frozen else window.loss


def _point_of_line(line: StepLine) -> LossPoint:
    return LossPoint(
        step=line.step,
        total=line.total,
        terms={name: getattr(line, name) for name in TERMS},
        learning_rate=line.learning_rate,
        images_per_second=line.images_per_second,
        memory_gib=line.memory_gib,
    )


def _mean(points: Sequence[LossPoint]) -> LossPoint:
    if len(points) == 1:
        return points[0]
    return LossPoint(
        step=round(fmean(point.step for point in points)),
        total=_mean_of([point.total for point in points]),
        terms={name: _mean_of([point.terms.get(name) for point in points]) for name in points[0].terms},
        learning_rate=_mean_of([point.learning_rate for point in points]),
        images_per_second=_mean_of([point.images_per_second for point in points]),
        memory_gib=_mean_of([point.memory_gib for point in points]),
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
