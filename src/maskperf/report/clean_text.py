"""Makes text that came from files and names harmless to show: no control characters, one line."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from maskperf.files import printable


def cleaned(value: Any) -> Any:
    """Return `value` (text, tuple, dict or dataclass of such) with every text in it cleaned."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, tuple):
        return tuple(cleaned(entry) for entry in value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(entry) for key, entry in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: cleaned(getattr(value, field.name)) for field in fields(value)})
    return value
