"""The lines of an MLLOG file: which records a text holds, and what is wrong with its form."""

import json
from dataclasses import dataclass

TOKEN = ":::MLLOG "
MAX_LINES_OF_A_RECORD = 200  # a record cut into more lines than this is taken for a torn one
SHOWN_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of a log. `time_ms` is None where the line has no time that can be read."""

    line: int  # of the file, from 1
    time_ms: float | None
    event_type: str
    key: str
    value: object
    metadata: dict


def parse_records(text: str) -> tuple[list[Record], list[str]]:
    """Return the records of a text in its order, and a sentence for every record that is not in the official form.

    Text before the token is ignored. Two records on one line, text behind a record and records of several lines are
    read as they were meant, and named: the official tools lose or refuse them.
    """
    pieces = [(number, piece) for number, line in enumerate(text.split("\n"), start=1) for piece in line.split("\r")]
    records: list[Record] = []
    problems: list[str] = []
    place = 0
    while place < len(pieces):
        number, piece = pieces[place]
        parts = piece.split(TOKEN)
        place += 1
        if len(parts) > 2:
            problems.append(f"line {number}: {len(parts) - 1} records on one line; the official tools read the last")
        for part in parts[1:-1]:
            _take(number, part, records, problems)
        if len(parts) > 1:
            place += _take_last(pieces, place, parts[-1], records, problems)
    return records, problems


def _take_last(pieces: list[tuple[int, str]], place: int, part: str, records: list[Record], problems: list[str]) -> int:
    """Return how many of the pieces that follow belong to the record that begins with `part`, and takes it."""
    number = pieces[place - 1][0]
    if _decode(part) is not None:
        _take(number, part, records, problems)
        return 0
    joined = part
    for count, (_, piece) in enumerate(pieces[place : place + MAX_LINES_OF_A_RECORD], start=1):
        if TOKEN in piece:
            break
        joined += "\n" + piece
        if _decode(joined) is not None:
            problems.append(f"line {number}: the record goes over {count + 1} lines; the official tools want one")
            _take(number, joined, records, problems)
            return count
    is_end = not any(piece.strip() for _, piece in pieces[place:])
    kind = "the last line is torn" if is_end else "no JSON object can be read behind the token"
    problems.append(f"line {number}: {kind}: {_shorten(part)}")
    return 0


def _take(number: int, part: str, records: list[Record], problems: list[str]) -> None:
    decoded = _decode(part)
    if decoded is None:
        problems.append(f"line {number}: no JSON object can be read behind the token: {_shorten(part)}")
        return
    entry, rest = decoded
    if rest.strip():
        problems.append(f"line {number}: text stands behind the record: {_shorten(rest)}")
    missing = [name for name in ("time_ms", "key", "value", "metadata") if name not in entry]
    if missing:
        problems.append(f"line {number}: the record has no {' and no '.join(missing)}; the official tools stop here")
    if not isinstance(entry.get("key"), str):
        return
    metadata = entry.get("metadata")
    if "metadata" in entry and not isinstance(metadata, dict):
        problems.append(f"line {number}: the metadata of {entry['key']} is not an object: {_shorten(str(metadata))}")
    time_ms = _number(entry.get("time_ms"))
    if time_ms is None and "time_ms" in entry:
        problems.append(f"line {number}: the time of {entry['key']} is not a number: {_shorten(str(entry['time_ms']))}")
    records.append(
        Record(
            line=number,
            time_ms=time_ms,
            event_type=str(entry.get("event_type", "")),
            key=entry["key"],
            value=entry.get("value"),
            metadata=metadata if isinstance(metadata, dict) else {},
        )
    )


def _decode(part: str) -> tuple[dict, str] | None:
    """Return the JSON object at the start of a text and what stands behind it; None where there is none."""
    text = part.lstrip()
    try:
        entry, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):  # RecursionError: brackets within brackets, thousands deep
        return None
    return (entry, text[end:]) if isinstance(entry, dict) else None


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # the official tools take text such as "12" as well
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _shorten(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return printable if len(printable) <= SHOWN_CHARACTERS else printable[:SHOWN_CHARACTERS] + "..."
