"""The numbers behind the plots, as plain JSON for the script of the page."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from maskperf.report.contents import Band, BandPoint, ReportContents, RunPage
from maskperf.report.number_text import is_number

TERM_TITLES = {
    "objectness": "Objectness (RPN)",
    "rpn_box": "Box (RPN)",
    "classification": "Classification",
    "box": "Box",
    "mask": "Mask",
}
LONGEST_NAME = 32  # characters, in the labels inside a plot
DIGITS = 6
# In a script element these could end it, open a comment, or end a line of JavaScript.
ISLAND_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def json_island(value: Any) -> str:
    """Return JSON that can stand inside a script element of HTML without ending it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character, escape in ISLAND_ESCAPES.items():
        text = text.replace(character, escape)
    return text


def plot_text(text: str) -> str:
    """Return the text for a label in a plot: short, and without the markup that plotly would read in it."""
    if len(text) > LONGEST_NAME:
        half = LONGEST_NAME // 2
        text = f"{text[: half - 2]}...{text[len(text) - half + 1 :]}"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")


def loss_terms(runs: Iterable[RunPage]) -> list[str]:
    """Return the names of all loss terms that have a value in one of the runs, known ones first."""
    found = {
        name: None for run in runs for point in run.losses for name, value in point.terms.items() if is_number(value)
    }
    known = [name for name in TERM_TITLES if name in found]
    return known + [name for name in found if name not in TERM_TITLES]


def plot_data(contents: ReportContents) -> dict[str, Any]:
    """Return runs with their numbers by key, and the plots: each names the key it shows and the axes it can have.

    Numbers that are unknown or not finite are null, and make a gap in the line.
    """
    pages = [*contents.runs, *contents.compared]
    terms = loss_terms(pages)
    runs = [
        {"name": plot_text(page.name), "compared": index >= len(contents.runs), **_numbers_of_run(page, terms)}
        for index, page in enumerate(pages)
    ]
    plots = [plot for plot in _plots(terms, _targets(contents)) if any(_has_numbers(run, plot) for run in runs)]
    return {"runs": runs, "plots": plots, "band": _band_numbers(contents.band)}


def _numbers_of_run(page: RunPage, terms: Sequence[str]) -> dict[str, Any]:
    evaluations, losses = page.evaluations, page.losses
    return {
        "epochs": _rounded(point.epoch for point in evaluations),
        "minutes": _rounded(point.minutes for point in evaluations),
        "steps": _rounded(point.step for point in losses),
        "box_ap": _rounded(point.box_ap for point in evaluations),
        "mask_ap": _rounded(point.mask_ap for point in evaluations),
        "total": _rounded(point.total for point in losses),
        **{f"term_{index}": _rounded(point.terms.get(name) for point in losses) for index, name in enumerate(terms)},
        "learning_rate": _rounded(point.learning_rate for point in losses),
        "images_per_second": _rounded(point.images_per_second for point in losses),
        "memory_gib": _rounded(point.memory_gib for point in losses),
        "guard": [
            {"step": entry.step, "kind": plot_text(entry.kind)}
            for entry in page.guard
            if entry.kind != "summary" and entry.step is not None
        ],
    }


def _rounded(values: Iterable[float | int | None]) -> list[float | int | None]:
    return [_shortened(value) if is_number(value) else None for value in values]


def _shortened(value: float | int) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def _plots(terms: Sequence[str], targets: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    ap = {"axes": ["epochs", "minutes"], "format": ".4f"}
    steps = {"axes": ["steps"], "target": None}
    return [
        {"key": "box_ap", **ap, "target": targets[0]},
        {"key": "mask_ap", **ap, "target": targets[1]},
        {"key": "total", **steps, "format": ".4f"},
        *({"key": f"term_{index}", **steps, "format": ".4f"} for index in range(len(terms))),
        {"key": "learning_rate", **steps, "format": ".3~g"},
        {"key": "images_per_second", **steps, "format": ".4~g"},
        {"key": "memory_gib", **steps, "format": ".2f"},
    ]


def _targets(contents: ReportContents) -> tuple[float | None, float | None]:
    """Return the targets for box and mask where all runs that know theirs have the same ones."""
    verdicts = [run.verdict for run in contents.runs]
    boxes = {verdict.box_target for verdict in verdicts if is_number(verdict.box_target)}
    masks = {verdict.mask_target for verdict in verdicts if is_number(verdict.mask_target)}
    box_target, mask_target = (found.pop() if len(found) == 1 else None for found in (boxes, masks))
    return box_target or None, mask_target or None  # 0 is no target, and gets no line


def _has_numbers(run: dict[str, Any], plot: dict[str, Any]) -> bool:
    return any(value is not None for value in run[plot["key"]])


def _band_numbers(band: Band | None) -> dict[str, Any] | None:
    """Return mean lines and closed outlines of the band, by key and axis."""
    if band is None or not band.points:
        return None
    timed = [point for point in band.points if is_number(point.minutes_low) and is_number(point.minutes_high)]
    return {
        "batch_size": band.batch_size,
        **{
            f"{task}_ap": {
                "epochs": _outline(band.points, task, low="epoch", high="epoch"),
                "minutes": _outline(timed, task, low="minutes_low", high="minutes_high"),
            }
            for task in ("box", "mask")
        },
    }


def _outline(points: Sequence[BandPoint], task: str, *, low: str, high: str) -> dict[str, Any]:
    """Return the edge from the earliest and highest course around to the latest and lowest one, and the mean.

    Over minutes there is no mean: only the fastest and the slowest run are known.
    """
    upper = [(getattr(point, low), _mean(point, task) + _deviation(point, task)) for point in points]
    lower = [(getattr(point, high), _mean(point, task) - _deviation(point, task)) for point in points]
    edge = [*upper, *reversed(lower)]
    middle = points if low == high else ()
    return {
        "x": _rounded(x for x, _ in edge),
        "y": _rounded(y for _, y in edge),
        "middle_x": _rounded(getattr(point, low) for point in middle),
        "middle_y": _rounded(_mean(point, task) for point in middle),
    }


def _mean(point: BandPoint, task: str) -> float:
    return point.box_mean if task == "box" else point.mask_mean


def _deviation(point: BandPoint, task: str) -> float:
    return point.box_deviation if task == "box" else point.mask_deviation
