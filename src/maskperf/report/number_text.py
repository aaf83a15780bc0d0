"""Numbers as a reader of a report sees them; what is unknown is a dash."""

import math

UNKNOWN = "\u2013"


def is_number(value: float | int | None) -> bool:
    """Return whether the value is known and finite."""
    return value is not None and math.isfinite(value)


def minutes_text(minutes: float | int | None) -> str:
    """Return minutes with two decimals; three below 1, one from 1000 on."""
    if minutes is None or not is_number(minutes):
        return UNKNOWN
    if abs(minutes) < 1:
        return f"{minutes:.3f}"
    return f"{minutes:,.1f}" if abs(minutes) >= 1000 else f"{minutes:.2f}"


def seconds_text(seconds: float | int | None) -> str:
    """Return seconds as h, min and s, as far as they are needed: "1 h 02 min", "3 min 07 s", "8.25 s"."""
    if seconds is None or not is_number(seconds):
        return UNKNOWN
    if abs(seconds) < 60:
        return f"{seconds:.2f} s" if abs(seconds) < 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    if abs(whole) < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ap_text(value: float | int | None, target: float | int | None = None) -> str:
    """Return an average precision with four decimals; more where four would make a missed target look met."""
    if value is None or not is_number(value):
        return UNKNOWN
    if target is not None and value < target:
        for decimals in (4, 5, 6, 8, 10):
            text = f"{value:.{decimals}f}"
            if float(text) < target:
                return text
        return f"{value!r}"
    return f"{value:.4f}"


def target_text(value: float | int | None) -> str:
    """Return a target without needless zeros; 0 is none."""
    if value == 0:
        return "none"
    return f"{value:.6g}" if value is not None and is_number(value) else UNKNOWN


def percent_text(part: float | int, whole: float | int) -> str:
    """Return the part of the whole in percent."""
    return f"{100 * part / whole:.1f} %" if is_number(part) and is_number(whole) and whole > 0 else UNKNOWN


def count_text(value: float | int | None) -> str:
    """Return a number with as many decimals as help: none from 100 on, two below 10."""
    if value is None or not is_number(value):
        return UNKNOWN
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
