"""Makes text that came from files and names harmless to show: no control characters, one line."""

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

LINE_BREAKS = re.compile("[\t\n\x0b\x0c\r\x85\u2028\u2029]+")
# Control characters, halves of surrogate pairs (from file names that are not UTF-8), marks that turn the direction of
# writing around (a name could pose as another one), and two that are no characters at all.
UNWANTED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
IN_PLACE_OF_UNWANTED = "\ufffd"


def clean_text(text: str) -> str:
    """Returns the text on one line, with a replacement character for each character that cannot be shown."""
    if text.isascii() and text.isprintable():
        return text
    return UNWANTED.sub(IN_PLACE_OF_UNWANTED, LINE_BREAKS.sub(" ", text))


def cleaned(value: Any) -> Any:
    """Returns `value` (text, tuple, dict or dataclass of such) with every text in it cleaned."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, tuple):
        return tuple(cleaned(entry) for entry in value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(entry) for key, entry in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: cleaned(getattr(value, field.name)) for field in fields(value)})
    return value
