"""A log of the benchmark, any MLLOG file of maskperf or published, as one value."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from maskperf.config import BOX_TARGET, MASK_TARGET, has_targets
from maskperf.files import printable
from maskperf.schema import file_error, read_bytes

TOKEN = ":::MLLOG "
RESUMED_KEY = "maskperf_resumed"  # its value is the last step that was trained before
LINE_BREAK = re.compile(r"\r\n?|\n")
SHOWN_CHARACTERS = 60
MS_PER_MINUTE = 60_000
Number = int | float
SETTINGS = (  # how the keys of hyperparameters begin
    *("opt_", "global_batch_size", "d_batch_size", "num_image_candidates", "gradient_accumulation_steps"),
    *("min_image_size", "max_image_size", "train_samples", "eval_samples"),
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of a log. `time_ms` is None where the line has no time that can be read."""

    line: int  # of the file, from 1
    time_ms: float | None
    key: str
    value: object
    metadata: dict

    @property
    def status(self) -> object:
        return self.metadata.get("status")

    @property
    def epoch(self) -> Number | None:
        """The number of the epoch that the record is about, for blocks that of their first epoch."""
        number = _finite(self.metadata.get("first_epoch_num" if self.key.startswith("block_") else "epoch_num"))
        if number is None or abs(number) >= 1e9:
            return None
        return int(number) if number.is_integer() else number  # 14 for 14.0, as people write it


@dataclass(frozen=True, kw_only=True)
class LoggedEvaluation:
    """One eval_accuracy line; minutes are from run_start, None without a run_start before it."""

    epoch: Number | None  # a whole number in every published log
    minutes: float | None
    box_ap: float | None
    mask_ap: float | None


@dataclass(frozen=True, kw_only=True)
class LoggedEpoch:
    """One epoch (or block of epochs), in minutes from run_start; stop is None where the log ends within it."""

    epoch: Number
    count: int  # the epochs of a block
    start: Record
    stop: Record | None
    start_minutes: float | None
    stop_minutes: float | None

    @property
    def seconds(self) -> float | None:
        if self.stop is None or self.stop.time_ms is None or self.start.time_ms is None:
            return None
        return (self.stop.time_ms - self.start.time_ms) / 1000


@dataclass(frozen=True, kw_only=True)
class TrackedStats:
    """One tracked_stats line: numbers by name; None for one that is not finite."""

    step: int | None
    minutes: float | None
    values: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class BenchmarkLog:
    """One log. Texts are empty and times None where the log does not say."""

    path: Path
    records: tuple[Record, ...]
    benchmark: str
    organization: str
    division: str
    platform: str
    recipe: str | None  # only in logs of maskperf
    targets: tuple[float, float]  # box AP, mask AP; those of the benchmark where the log has none of its own
    settings: dict[str, object]  # the hyperparameter keys
    seeds: tuple[int, ...]  # each once
    init_seconds: float | None  # from the first init_start to the last init_stop
    run_seconds: float | None  # from the first run_start to the last run_stop
    status: str  # "success", "done" (a success without targets), "aborted" or "unfinished"
    evaluations: tuple[LoggedEvaluation, ...]
    epochs: tuple[LoggedEpoch, ...]
    tracked: tuple[TrackedStats, ...]
    problems: tuple[str, ...]  # lines that are not in the official form

    @property
    def batch_size(self) -> int | None:
        """The images of one step over all devices; None where the log has no number that can be one."""
        size = self.settings.get("global_batch_size")
        return size if type(size) is int and 0 < size < 10**6 else None


def read_log(path: Path | str) -> BenchmarkLog:
    """Read a log.

    Errors: DataError for a file that cannot be opened or has no MLLOG line.
    """
    path = Path(path)
    records, problems = parse_records(_read_text(path))
    if not records:
        message = problems[0] if problems else f"No line has the token {TOKEN.strip()!r}."
        raise file_error(path, message, fix="Give the mlperf.log of a run, or a published result_*.txt.")
    by_key: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_key[record.key].append(record)
    seeds = [(record, whole_number(record.value)) for record in by_key["seed"]]
    problems += [
        f"line {entry.line}: the seed is not a whole number: {entry.value!r}" for entry, n in seeds if n is None
    ]
    first = {key: str(found[0].value or "") for key, found in by_key.items() if found}
    times = {key: [record.time_ms for record in found if record.time_ms is not None] for key, found in by_key.items()}
    start_ms = next(iter(times.get("run_start", ())), None)
    targets = _targets(by_key["maskperf_targets"])
    return BenchmarkLog(
        path=path,
        records=tuple(records),
        benchmark=first.get("submission_benchmark", ""),
        organization=first.get("submission_org", ""),
        division=first.get("submission_division", ""),
        platform=first.get("submission_platform", ""),
        recipe=first.get("maskperf_recipe") or None,
        targets=targets,
        settings={record.key: record.value for record in records if record.key.startswith(SETTINGS)},
        seeds=tuple(dict.fromkeys(seed for _, seed in seeds if seed is not None)),
        init_seconds=_seconds(times, "init_start", "init_stop"),
        run_seconds=_seconds(times, "run_start", "run_stop"),
        status=_status(by_key["run_stop"], targets),
        evaluations=_evaluations(by_key["eval_accuracy"], start_ms),
        epochs=_epochs(by_key, start_ms),
        tracked=_tracked(by_key["tracked_stats"], start_ms),
        problems=tuple(problems),
    )


def parse_records(text: str) -> tuple[list[Record], list[str]]:
    """Return the records of a text in its order, and a sentence for every record that is not in the official form.

    Text before the token is ignored. Two records on one line, text behind a record and records of several lines are
    read as they were meant, and named: the official tools lose or refuse them.
    """
    head, *pieces = text.split(TOKEN)
    records: list[Record] = []
    problems: list[str] = []
    line, found, on_line = 1 + head.count("\n"), list[str](), 0
    for left, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
        on_line += 1
        record = _parse_piece(line, piece, found, is_last=left == 0)
        if record is not None:
            records.append(record)
        if LINE_BREAK.search(piece) or left == 0:
            if on_line > 1:
                found.insert(0, f"{on_line} records on one line; the official tools read the last")
            problems += [f"line {line}: {text}" for text in found]
            line, found, on_line = line + piece.count("\n"), [], 0
    return records, problems


def _parse_piece(line: int, piece: str, problems: list[str], *, is_last: bool) -> Record | None:
    """Return the record at the start of what stands between two tokens; what is wrong with it adds to `problems`."""
    try:
        entry, end = json.JSONDecoder().raw_decode(piece, len(piece) - len(piece.lstrip()))
    except (ValueError, RecursionError):  # RecursionError: brackets within brackets, thousands deep
        entry, end = None, 0
    if not isinstance(entry, dict):
        own_line = LINE_BREAK.split(piece, maxsplit=1)[0]
        is_torn = is_last and not piece[len(own_line) :].strip()
        kind = "the last line is torn" if is_torn else "no JSON object can be read behind the token"
        problems.append(f"{kind}: {_shorten(own_line)}")
        return None
    lines = 1 + len(LINE_BREAK.findall(piece[:end]))
    if lines > 1:
        problems.append(f"the record goes over {lines} lines; the official tools want one")
    rest = LINE_BREAK.split(piece[end:], maxsplit=1)[0]
    if rest.strip():
        problems.append(f"text stands behind the record: {_shorten(rest)}")
    missing = [name for name in ("time_ms", "key", "value", "metadata") if name not in entry]
    if missing:
        problems.append(f"the record has no {' and no '.join(missing)}; the official tools stop here")
    key, metadata, time_ms = entry.get("key"), entry.get("metadata", {}), None
    if not isinstance(key, str):
        return None
    if not isinstance(metadata, dict):
        problems.append(f"the metadata of {key} is not an object: {_shorten(str(metadata))}")
        metadata = {}
    if "time_ms" in entry:
        with suppress(TypeError, ValueError, OverflowError):
            time_ms = _finite(float(entry["time_ms"]))  # the official tools take text such as "12" as well
        if time_ms is None:
            problems.append(f"the time of {key} is not a number: {_shorten(str(entry['time_ms']))}")
    return Record(line=line, time_ms=time_ms, key=key, value=entry.get("value"), metadata=metadata)


def _shorten(text: str) -> str:
    text = printable(text).strip()
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _read_text(path: Path) -> str:
    data = read_bytes(path)
    if data is None:
        raise file_error(path, "There is no such file.", fix="Check the name.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # what the official tools take every log for


def _seconds(times: dict[str, list[float]], start: str, stop: str) -> float | None:
    """Return the time from the first start to the last stop."""
    if not times.get(start) or not times.get(stop):
        return None
    return (times[stop][-1] - times[start][0]) / 1000


def _minutes(record: Record | None, start_ms: float | None) -> float | None:
    if start_ms is None or record is None or record.time_ms is None:
        return None
    return (record.time_ms - start_ms) / MS_PER_MINUTE


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return None
    return float(value)


def whole_number(value: object) -> int | None:
    """Return the whole number that a value is, also where it stands in quotes."""
    if type(value) is int:
        return value
    try:
        return int(value) if isinstance(value, str) or (isinstance(value, float) and value.is_integer()) else None
    except ValueError:
        return None


def _targets(records: Sequence[Record]) -> tuple[float, float]:
    box, mask = BOX_TARGET, MASK_TARGET
    for own_box, own_mask in map(_both_aps, records):
        box, mask = box if own_box is None else own_box, mask if own_mask is None else own_mask
    return box, mask


def _both_aps(record: Record) -> tuple[float | None, float | None]:
    values = record.value if isinstance(record.value, dict) else {}
    by_name = {name.upper(): _finite(value) for name, value in values.items()}
    return by_name.get("BBOX"), by_name.get("SEGM")


def _status(stops: Sequence[Record], targets: tuple[float, float]) -> str:
    if not stops:
        return "unfinished"
    if stops[-1].status != "success":
        return "aborted"
    return "success" if has_targets(*targets) else "done"


def _evaluations(records: Sequence[Record], start_ms: float | None) -> tuple[LoggedEvaluation, ...]:
    """Return the evaluations in the order of the log; one that several ranks logged comes once."""
    found: dict[tuple, LoggedEvaluation] = {}
    for record in records:
        epoch, (box_ap, mask_ap), minutes = record.epoch, _both_aps(record), _minutes(record, start_ms)
        evaluation = LoggedEvaluation(epoch=epoch, minutes=minutes, box_ap=box_ap, mask_ap=mask_ap)
        found.setdefault((epoch, box_ap, mask_ap), evaluation)
    return tuple(found.values())


def _epochs(by_key: dict[str, list[Record]], start_ms: float | None) -> tuple[LoggedEpoch, ...]:
    """Return the epochs in the order of the log, blocks where it has no epochs; one that is logged twice comes once."""
    unit = "epoch" if by_key["epoch_start"] else "block"
    stops = {stop.epoch: stop for stop in reversed(by_key[f"{unit}_stop"])}  # the first of each
    epochs: dict[Number, LoggedEpoch] = {}
    for start in by_key[f"{unit}_start"]:
        number = start.epoch
        if number is None or number in epochs:
            continue
        stop, count = stops.get(number), start.metadata.get("epoch_count") if unit == "block" else 1
        epochs[number] = LoggedEpoch(
            epoch=number,
            count=count if type(count) is int and count > 0 else 1,
            start=start,
            stop=stop,
            start_minutes=_minutes(start, start_ms),
            stop_minutes=_minutes(stop, start_ms),
        )
    return tuple(epochs.values())


def _tracked(records: Sequence[Record], start_ms: float | None) -> tuple[TrackedStats, ...]:
    found = []
    for record in records:
        if isinstance(record.value, dict):
            step = whole_number(record.metadata.get("step", record.metadata.get("step_num")))
            values = {name: _finite(value) for name, value in record.value.items() if not isinstance(value, str | list)}
            found.append(TrackedStats(step=step, minutes=_minutes(record, start_ms), values=values))
    return tuple(found)
