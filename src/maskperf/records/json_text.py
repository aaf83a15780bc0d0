"""JSON files that people read."""

from typing import Any

import msgspec


def pretty_json(value: Any) -> str:
    """Returns `value` as indented JSON that ends with a line break; numbers that are not finite become null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
