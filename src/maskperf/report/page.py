"""The report as one HTML file that works offline: style, script and data are inside, and nothing is fetched."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from maskperf.report.contents import TERM_TITLES, ReportContents, RunPage
from maskperf.report.mistakes import (
    folded_confusions,
    most_confused,
    pictures_side_by_side,
    readable_jpegs,
    tide_rows,
)
from maskperf.report.placement import headline_minutes, overall_state, placement_sentence, runs_of_notes, state_title
from maskperf.report.plots import CURVES, plot_data
from maskperf.report.text import STATE_TITLES, TEMPLATES, is_number, templates

STYLES = ("page.css", "phone_and_print.css")
PARTS = ["evaluations", "phases", "categories", "pictures", "guard", "rules", "settings", "system", "stats", "analysis"]
RUN_COLOURS = 7  # as many as page.css has
PHASE_COLOURS = 10


@dataclass(frozen=True, kw_only=True)
class ShownRun:
    """A run and its marks on the page."""

    index: int
    colour: int
    is_compared: bool
    page: RunPage


def page_text(contents: ReportContents) -> str:
    """Return the HTML of the report."""
    filters = (readable_jpegs, tide_rows, folded_confusions, most_confused)
    environment = templates(**{function.__name__: function for function in filters})
    return environment.get_template("page.html").render(_values(contents))


def _values(contents: ReportContents) -> dict[str, Any]:
    """Return the values of the templates."""
    pages = [*contents.runs, *contents.compared]
    runs = [
        ShownRun(index=index, colour=index % RUN_COLOURS, is_compared=index >= len(contents.runs), page=page)
        for index, page in enumerate(pages)
    ]
    own_script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    plotly_script = get_plotlyjs()
    numbers = plot_data(contents)
    plot_keys = [plot["key"] for plot in numbers["plots"]]
    minutes, minutes_label = headline_minutes(contents)
    return {
        "contents": contents,
        "runs": runs,
        "state": overall_state(contents),
        "state_titles": STATE_TITLES,
        "state_title": state_title(contents),
        "curves": [(key, title) for key, (_, _, title) in CURVES.items()],
        "clip_notes": {plot["key"]: plot["note"] for plot in numbers["plots"] if "note" in plot},
        "side_by_side": pictures_side_by_side([page.pictures for page in pages]),
        "headline": {"minutes": minutes, "label": minutes_label},
        "placement": placement_sentence(contents.places),
        "notes": runs_of_notes(pages, "notes"),
        "notices": runs_of_notes(pages, "notices"),
        "largest": {
            "minutes": _largest(place.minutes for place in contents.places),
            "product": _largest(place.minutes_times_accelerators for place in contents.places),
        },
        "phase_colours": _phase_colours(pages),
        "longest_seconds": _largest(sum(page.phases.values()) for page in pages),
        "plot_keys": plot_keys,
        "has_minutes": any(value is not None for run in numbers["runs"] for value in run["minutes"]),
        "terms": [(key, title) for key, title in TERM_TITLES.items() if key in plot_keys],
        "has": {part: any(getattr(page, part) for page in pages) for part in PARTS},
        "policy": content_policy([own_script, plotly_script]),
        "style": Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in STYLES)),
        "own_script": Markup(own_script),
        "plotly_script": Markup(plotly_script),
        "numbers": htmlsafe_json_dumps(numbers, allow_nan=False, separators=(",", ":")),
    }


def _largest(values: Iterable[float | int | None]) -> float | int:
    return max(filter(is_number, values), default=0.0)


def _phase_colours(pages: Sequence[RunPage]) -> dict[str, int]:
    """Return a colour for each name of a phase; the same one in all runs."""
    names = dict.fromkeys(name for page in pages for name in page.phases)
    return {name: index % PHASE_COLOURS for index, name in enumerate(names)}


def content_policy(scripts: Sequence[str]) -> str:
    """Return a Content-Security-Policy by which only these scripts run and nothing is fetched."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {sources}; "
        "base-uri 'none'; form-action 'none'"
    )
