"""What a log of the benchmark says: any MLLOG file, of maskperf or published, as one value."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskperf.config import has_targets
from maskperf.errors import DataError, Problem
from maskperf.mlperf.log_lines import TOKEN, Record, parse_records

BOX_TARGET = 0.377
MASK_TARGET = 0.339
MS_PER_MINUTE = 60_000
SETTING_PREFIX = "opt_"
SETTING_KEYS = (
    *("global_batch_size", "d_batch_size", "num_image_candidates", "gradient_accumulation_steps"),
    *("min_image_size", "max_image_size", "train_samples", "eval_samples"),
)


@dataclass(frozen=True, kw_only=True)
class LoggedEvaluation:
    """One eval_accuracy line; minutes are from run_start, None without a run_start before it."""

    epoch: int | float | None  # a whole number in every published log
    minutes: float | None
    box_ap: float | None
    mask_ap: float | None


@dataclass(frozen=True, kw_only=True)
class LoggedEpoch:
    """One epoch (or block of epochs), in minutes from run_start; stop is None where the log ends within it."""

    epoch: int | float
    start_minutes: float | None
    stop_minutes: float | None


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
    seeds: tuple[int, ...]
    init_seconds: float | None  # from the first init_start to the last init_stop
    run_seconds: float | None  # from the first run_start to the last run_stop
    status: str  # "success", "done" (a success without targets), "aborted" or "unfinished"
    evaluations: tuple[LoggedEvaluation, ...]
    epochs: tuple[LoggedEpoch, ...]
    tracked: tuple[TrackedStats, ...]
    problems: tuple[str, ...]  # lines that are not in the official form


def read_log(path: Path | str) -> BenchmarkLog:
    """Return what a log says.

    Errors: DataError for a file that cannot be opened or has no MLLOG line.
    """
    path = Path(path)
    text = _read_text(path)
    records, problems = parse_records(text)
    if not records:
        message = problems[0] if problems else f"No line has the token {TOKEN.strip()!r}."
        raise _unreadable(path, message, "Give the mlperf.log of a run, or a published result_*.txt.")
    problems += [
        f"line {record.line}: the seed is not a whole number: {record.value!r}"
        for record in records
        if record.key == "seed" and whole_number(record.value) is None
    ]
    start_ms = _time(records, "run_start", last=False)
    stop_ms = _time(records, "run_stop", last=True)
    targets = _targets(records)
    return BenchmarkLog(
        path=path,
        records=tuple(records),
        benchmark=_text(records, "submission_benchmark"),
        organization=_text(records, "submission_org"),
        division=_text(records, "submission_division"),
        platform=_text(records, "submission_platform"),
        recipe=_text(records, "maskperf_recipe") or None,
        targets=targets,
        settings={record.key: record.value for record in records if _is_setting(record.key)},
        seeds=tuple(_seeds(records)),
        init_seconds=_seconds(_time(records, "init_start", last=False), _time(records, "init_stop", last=True)),
        run_seconds=_seconds(start_ms, stop_ms),
        status=_status(records, targets),
        evaluations=_evaluations(records, start_ms),
        epochs=_epochs(records, start_ms),
        tracked=_tracked(records, start_ms),
        problems=tuple(problems),
    )


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = f"The file cannot be read ({error.strerror or error})."
        raise _unreadable(path, reason, "Check the name.") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # what the official tools take every log for


def _unreadable(path: Path, message: str, fix: str) -> DataError:
    problem = Problem(file=str(path), where="the file", field="content", value="(a log)", message=message, fix=fix)
    return DataError([problem])


def _is_setting(key: str) -> bool:
    return key in SETTING_KEYS or key.startswith(SETTING_PREFIX)


def _text(records: Sequence[Record], key: str) -> str:
    values = [record.value for record in records if record.key == key]
    return str(values[0]) if values else ""


def _time(records: Sequence[Record], key: str, *, last: bool) -> float | None:
    times = [record.time_ms for record in records if record.key == key and record.time_ms is not None]
    if not times:
        return None
    return times[-1] if last else times[0]


def _seconds(start_ms: float | None, stop_ms: float | None) -> float | None:
    return None if start_ms is None or stop_ms is None else (stop_ms - start_ms) / 1000


def _minutes(record: Record, start_ms: float | None) -> float | None:
    return None if start_ms is None or record.time_ms is None else (record.time_ms - start_ms) / MS_PER_MINUTE


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def whole_number(value: object) -> int | None:
    """Return the whole number that a value is, also where it stands in quotes."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    try:
        return int(value) if isinstance(value, str) or (isinstance(value, float) and value.is_integer()) else None
    except ValueError:
        return None


def _seeds(records: Iterable[Record]) -> list[int]:
    """Return each seed once, in the order of the log."""
    found = [whole_number(record.value) for record in records if record.key == "seed"]
    return list(dict.fromkeys(seed for seed in found if seed is not None))


def _targets(records: Iterable[Record]) -> tuple[float, float]:
    box, mask = BOX_TARGET, MASK_TARGET
    for record in records:
        if record.key == "maskperf_targets":
            own_box, own_mask = _both_aps(record)
            box = box if own_box is None else own_box
            mask = mask if own_mask is None else own_mask
    return box, mask


def _both_aps(record: Record) -> tuple[float | None, float | None]:
    values = record.value if isinstance(record.value, dict) else {}
    by_name = {name.upper(): _finite(value) for name, value in values.items()}
    return by_name.get("BBOX"), by_name.get("SEGM")


def _status(records: Iterable[Record], targets: tuple[float, float]) -> str:
    stops = [record.metadata.get("status") for record in records if record.key == "run_stop"]
    if not stops:
        return "unfinished"
    if stops[-1] != "success":
        return "aborted"
    return "success" if has_targets(*targets) else "done"


def _evaluations(records: Iterable[Record], start_ms: float | None) -> tuple[LoggedEvaluation, ...]:
    """Return the evaluations in the order of the log; one that several ranks logged comes once."""
    found: dict[tuple, LoggedEvaluation] = {}
    for record in records:
        if record.key == "eval_accuracy":
            box_ap, mask_ap = _both_aps(record)
            epoch = _finite(record.metadata.get("epoch_num"))
            evaluation = LoggedEvaluation(
                epoch=_plain(epoch), minutes=_minutes(record, start_ms), box_ap=box_ap, mask_ap=mask_ap
            )
            found.setdefault((epoch, box_ap, mask_ap), evaluation)
    return tuple(found.values())


def _plain(number: float | None) -> int | float | None:
    """Return 14 for 14.0, so that it is shown as people write it."""
    return int(number) if number is not None and number.is_integer() else number


def _epochs(records: Sequence[Record], start_ms: float | None) -> tuple[LoggedEpoch, ...]:
    """Return the epochs by number; blocks of epochs by the number of their first, where the log has only those."""
    name, number = "epoch", "epoch_num"
    if not any(record.key == "epoch_start" for record in records):
        name, number = "block", "first_epoch_num"
    starts: dict[float, Record] = {}
    stops: dict[float, Record] = {}
    for record in records:
        epoch = _finite(record.metadata.get(number))
        if epoch is not None and record.key == f"{name}_start":
            starts.setdefault(epoch, record)
        elif epoch is not None and record.key == f"{name}_stop":
            stops.setdefault(epoch, record)
    return tuple(
        LoggedEpoch(
            epoch=_plain(epoch),
            start_minutes=_minutes(start, start_ms),
            stop_minutes=_minutes(stops[epoch], start_ms) if epoch in stops else None,
        )
        for epoch, start in starts.items()
    )


def _tracked(records: Iterable[Record], start_ms: float | None) -> tuple[TrackedStats, ...]:
    found = []
    for record in records:
        if record.key == "tracked_stats" and isinstance(record.value, dict):
            step = whole_number(record.metadata.get("step", record.metadata.get("step_num")))
            values = {name: _finite(value) for name, value in record.value.items() if not isinstance(value, str | list)}
            found.append(TrackedStats(step=step, minutes=_minutes(record, start_ms), values=values))
    return tuple(found)
