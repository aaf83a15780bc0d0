"""The numbers behind the plots, as plain JSON for the script of the page."""

import html
from collections.abc import Iterable, Sequence
from statistics import median_low, quantiles
from typing import Any

from maskperf.files import printable
from maskperf.mlperf.published import BandEpoch, PublishedBand
from maskperf.report.contents import TERM_TITLES, ReportContents, RunPage
from maskperf.report.course import NUMBERS
from maskperf.report.text import count_text, is_number
from maskperf.schema import Analysis

LONGEST_NAME = 32  # characters, in the labels inside a plot
DIGITS = 6
CURVES = {  # key: kind, field, title
    "precision_box_50": ("boxes", "precision_50", "Boxes at IoU 0.50"),
    "precision_box_75": ("boxes", "precision_75", "Boxes at IoU 0.75"),
    "precision_mask_50": ("masks", "precision_50", "Masks at IoU 0.50"),
    "precision_mask_75": ("masks", "precision_75", "Masks at IoU 0.75"),
}
CALIBRATIONS = {"accuracy_box": ("boxes", "score_box"), "accuracy_mask": ("masks", "score_mask")}  # kind, axis
# Values beyond the fence of a run, and fences far above those of the other runs, do not set the range of an axis.
FENCE, LARGEST_RATIO = 3.0, 1.5
WORTH_CLIPPING = 4.0  # times the top of the axis: below it the lines can be read as they are


def plot_text(text: str) -> str:
    """Return the text for a label in a plot: printable, short, and without the markup that plotly would read in it."""
    text = printable(text)
    if len(text) > LONGEST_NAME:
        half = LONGEST_NAME // 2
        text = f"{text[: half - 2]}...{text[len(text) - half + 1 :]}"
    return html.escape(text, quote=False).replace("$", "&#36;")


def plot_data(contents: ReportContents) -> dict[str, Any]:
    """Return runs with their numbers by key, and the plots: each names the key it shows and the axes it can have.

    Numbers that are unknown or not finite are null, and make a gap in the line.
    """
    pages = [*contents.runs, *contents.compared]
    runs = [
        {"name": plot_text(page.name), "compared": index >= len(contents.runs), **_numbers_of_run(page)}
        for index, page in enumerate(pages)
    ]
    plots = [
        {**plot, **_clipped([run[plot["key"]] for run in runs])} if plot.get("may_clip") else plot
        for plot in _plots(contents)
        if any(value is not None for run in runs for value in run[plot["key"]])
    ]
    return {"runs": runs, "plots": plots, "band": _band_numbers(contents.band)}


def _numbers_of_run(page: RunPage) -> dict[str, Any]:
    fields = (("epochs", "epoch"), ("minutes", "minutes"), ("box_ap", "box_ap"), ("mask_ap", "mask_ap"))
    return {
        **{key: _rounded(getattr(point, field) for point in page.evaluations) for key, field in fields},
        "steps": _rounded(point.step for point in page.losses),
        **{key: _rounded(getattr(point, key) for point in page.losses) for key in NUMBERS},
        "guard": [
            {"step": entry.step, "kind": plot_text(entry.event)}
            for entry in page.guard
            if entry.event != "summary" and entry.step is not None
        ],
        **_numbers_of_analysis(page.analysis),
    }


def _numbers_of_analysis(analysis: Analysis | None) -> dict[str, Any]:
    """Return the curves of precision at 101 recalls, and accuracy by score."""
    numbers: dict[str, Any] = dict.fromkeys((*CURVES, "recall", *CALIBRATIONS, "score_box", "score_mask"), [])
    if analysis is None:
        return numbers
    for key, (kind, field, _) in CURVES.items():
        numbers[key] = _rounded(getattr(getattr(analysis, kind), field))
        numbers["recall"] = [index / 100 for index in range(len(numbers[key]))]
    for key, (kind, axis) in CALIBRATIONS.items():
        bins = getattr(analysis, kind).calibration
        numbers[key], numbers[axis] = _rounded(b.accuracy for b in bins), _rounded(b.confidence for b in bins)
    return numbers


def _clipped(series: Sequence[Sequence[float | int | None]]) -> dict[str, Any]:
    """Return the top of an axis on which a run that diverged does not flatten the others, and a note on what is beyond.

    Nothing where all values can be read together.
    """
    known = [sorted(value for value in values if value is not None) for values in series]
    fences = []
    for values in known:
        if len(values) > 1:
            low, _, high = quantiles(values, n=4)
            fences.append(min(values[-1], high + FENCE * (high - low)))
    top = min(max(fences), LARGEST_RATIO * median_low(fences)) if fences else 0.0
    largest = max((values[-1] for values in known if values), default=0.0)
    if top <= 0 or largest <= WORTH_CLIPPING * top:
        return {}
    beyond = sum(value > top for values in known for value in values)
    note = (
        f"The axis ends at {count_text(float(top))}, by the quartiles of the runs; {beyond:,} points lie above it, "
        f"up to {largest:.3g}. A double click shows all."
    )
    return {"top": top, "note": note}


def _rounded(values: Iterable[float | int | None]) -> list[float | int | None]:
    return [
        None if not is_number(value) else value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")
        for value in values
    ]


def _plots(contents: ReportContents) -> list[dict[str, Any]]:
    ap = {"axes": ["epochs", "minutes"], "format": ".4f"}
    steps = {"axes": ["steps"], "target": None}
    return [
        {"key": "box_ap", **ap, "target": _target(contents, "box_target")},
        {"key": "mask_ap", **ap, "target": _target(contents, "mask_target")},
        *({"key": key, **steps, "format": ".4f", "may_clip": True} for key in ("total", *TERM_TITLES)),
        {"key": "learning_rate", **steps, "format": ".3~g"},
        {"key": "images_per_second", **steps, "format": ".4~g"},
        {"key": "memory_gib", **steps, "format": ".2f"},
        *({"key": key, "axes": ["recall"], "target": None, "format": ".3f", "unit": True} for key in CURVES),
        *(
            {"key": key, "axes": [axis], "target": None, "format": ".3f", "unit": True, "diagonal": True}
            for key, (_, axis) in CALIBRATIONS.items()
        ),
    ]


def _target(contents: ReportContents, name: str) -> float | None:
    """Return a target where all runs that know theirs have the same one; 0 is none, and gets no line."""
    targets = {value for run in contents.runs if is_number(value := getattr(run.verdict, name))}
    return targets.pop() or None if len(targets) == 1 else None


def _band_numbers(band: PublishedBand | None) -> dict[str, Any] | None:
    """Return mean lines and closed outlines of the band, by key and axis."""
    if band is None or not band.epochs:
        return None
    numbers = {
        f"{task}_ap": {
            "epochs": _outline(band.epochs, task, low="epoch", high="epoch"),
            "minutes": _outline(band.epochs, task, low="minutes_low", high="minutes_high"),
        }
        for task in ("box", "mask")
    }
    return {"batch_size": band.batch_size, **numbers}


def _outline(epochs: Sequence[BandEpoch], task: str, *, low: str, high: str) -> dict[str, Any]:
    """Return the edge from the earliest and highest course around to the latest and lowest one, and the mean.

    Over minutes there is no mean: only the fastest and the slowest run are known.
    """
    means = [getattr(epoch, f"{task}_mean") for epoch in epochs]
    deviations = [getattr(epoch, f"{task}_deviation") for epoch in epochs]
    upper = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
    lower = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
    early, late = [getattr(epoch, low) for epoch in epochs], [getattr(epoch, high) for epoch in epochs]
    has_mean = low == high
    return {
        "x": _rounded([*early, *reversed(late)]),
        "y": _rounded([*upper, *reversed(lower)]),
        "middle_x": _rounded(early if has_mean else []),
        "middle_y": _rounded(means if has_mean else []),
    }
