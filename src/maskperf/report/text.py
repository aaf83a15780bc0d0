"""Numbers and text of a report for its readers; what is unknown is a dash."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_eval_context, select_autoescape
from jinja2.nodes import EvalContext

from maskperf.files import printable

TEMPLATES = Path(__file__).parent / "templates"
UNKNOWN = "\u2013"
STATE_TITLES = {  # from the worst
    "aborted": "Aborted",
    "unfinished": "Unfinished",
    "missed": "Targets missed",
    "done": "Done",
    "reached": "Targets reached",
}

Number = float | int | None


def is_number(value: Number) -> TypeGuard[float | int]:
    """Return whether the value is known and finite."""
    return value is not None and math.isfinite(value)


def minutes_text(minutes: Number) -> str:
    """Return minutes with two decimals; three below 1, one from 1000 on."""
    if not is_number(minutes):
        return UNKNOWN
    if abs(minutes) < 1:
        return f"{minutes:.3f}"
    return f"{minutes:,.1f}" if abs(minutes) >= 1000 else f"{minutes:.2f}"


def seconds_text(seconds: Number) -> str:
    """Return seconds as "1 h 02 min", "3 min 07 s" or "8.25 s"."""
    if not is_number(seconds):
        return UNKNOWN
    if abs(seconds) < 60:
        return f"{seconds:.2f} s" if abs(seconds) < 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    if abs(whole) < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ap_text(value: Number, target: Number = None) -> str:
    """Return an average precision with four decimals; more where four would make a missed target look met."""
    if not is_number(value):
        return UNKNOWN
    if target is None or value >= target:
        return f"{value:.4f}"
    texts = (f"{value:.{decimals}f}" for decimals in (4, 5, 6, 8, 10))
    return next((text for text in texts if float(text) < target), repr(value))


def target_text(value: Number) -> str:
    """Return a target without needless zeros; 0 is none."""
    if value == 0:
        return "none"
    return f"{value:.6g}" if is_number(value) else UNKNOWN


def percent_text(part: float | int, whole: float | int) -> str:
    return f"{100 * part / whole:.1f} %" if is_number(part) and is_number(whole) and whole > 0 else UNKNOWN


def count_text(value: Number) -> str:
    """Return a number with as many decimals as help: none from 100 on, two below 10."""
    if not is_number(value):
        return UNKNOWN
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@pass_eval_context
def _shown(context: EvalContext, value: Any) -> Any:
    """Return what a template shows of a value: in a page, text that is no markup of the template's own is printable."""
    return printable(value) if context.autoescape and type(value) is str else value


@cache
def templates(**filters: Callable) -> Environment:
    """Return the environment of the templates, with the functions of this file and `filters` as filters."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = (minutes_text, seconds_text, ap_text, target_text, percent_text, count_text, is_number)
    environment.filters.update({function.__name__: function for function in numbers}, **filters)
    return environment
