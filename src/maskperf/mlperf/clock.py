"""Times of a log that cannot be: in another unit, going backwards, epochs faster than any, rates that do not fit."""

import functools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from maskperf.data.coco.verify import NUM_TRAIN_IMAGES
from maskperf.mlperf.attempts import CLOCK_TOLERANCE_MS, STARTS, epoch_of
from maskperf.mlperf.log_lines import Record
from maskperf.mlperf.overheads import training_rate_of
from maskperf.mlperf.published import published_systems
from maskperf.mlperf.read import BenchmarkLog
from maskperf.mlperf.verdicts import Finding, note, refusal

FORWARD = "Take times from a clock that only goes forward, and run again."
UNITS = {"seconds": 1, "microseconds": 10**6, "nanoseconds": 10**9}  # how many of them a second has
FIRST_SECOND, LAST_SECOND = 1.4e9, 2.2e9  # 2014 to 2039: a time of these years says by itself what its unit is
SHORTEST_RUN_MS = 60_000  # whoever writes seconds for milliseconds has a whole run within this
# Logged rates are means over a while, and perhaps those of one device of hundreds: a wrong unit is farther off.
TOO_HIGH, TOO_LOW = 50, 1 / 500
SHOWN_LINES = 5


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    """An epoch, or a block of some, from its first line to its last."""

    name: str
    start: Record
    stop: Record
    count: int

    @property
    def seconds(self) -> float:
        return (self.stop.time_ms - self.start.time_ms) / 1000


def check_clock(log: BenchmarkLog, *, trains_coco: bool) -> list[Finding]:
    """Return what is wrong with the times of a log. Where their unit is wrong, the rest would only follow from it.

    trains_coco: the speed is that of the benchmark's model and data, so that it compares with the published one.
    """
    findings = [*_units(log.records)] or [*_backwards(log.records), *_repeated(log.records)]
    if not findings and trains_coco:
        findings = [*_too_fast(log)] or [*_rates(log)]
    return findings


def _units(records: Sequence[Record]) -> Iterator[Finding]:
    timed = [record for record in records if record.time_ms is not None]
    for unit, per_second in UNITS.items():
        found = [record for record in timed if FIRST_SECOND <= record.time_ms / per_second <= LAST_SECOND]
        if not found:
            continue
        more = f", and {len(found) - 1} more lines are alike" if len(found) > 1 else ""
        date = datetime.fromtimestamp(found[0].time_ms / per_second, UTC)
        small = per_second == 1
        counted = "a thousandth of every duration" if small else f"every duration {per_second // 1000:,} times"
        factor = "seconds times 1000" if small else f"{unit} divided by {per_second // 1000:,}"
        # Such small numbers may also be milliseconds since the start of a machine, if a run then is of some length.
        span_ms = max(record.time_ms for record in found) - min(record.time_ms for record in found)
        yield Finding(
            text=f"line {found[0].line}: time_ms is {found[0].time_ms:.0f}: {unit}, not milliseconds{more}",
            refuses=not small or len(found) < len(timed) or span_ms < SHORTEST_RUN_MS,
            explanation=f"In {unit} this is {date:%Y-%m-%d %H:%M} UTC. The official tools read milliseconds, and so "
            f"count {counted}: of init, of the run, and so of the score.",
            fix=f"Log whole milliseconds since 1970, {factor}, and run again.",
        )


def _backwards(records: Sequence[Record]) -> Iterator[Finding]:
    timed = [record for record in records if record.time_ms is not None]
    found = [(one, other) for one, other in pairwise(timed) if other.time_ms < one.time_ms - CLOCK_TOLERANCE_MS]
    if found:
        one, other = found[0]
        more = f"; lines {_lines([late for _, late in found[1:]])} go back too" if len(found) > 1 else ""
        yield refusal(
            f"line {other.line}: the time of {other.key} is {_gap(one, other)} s before that of line {one.line}{more}",
            f"The clock went backwards{_below_zero(timed)}, so no duration of this log can be trusted. The official "
            "tools miss it.",
            FORWARD,
        )


def _gap(one: Record, other: Record) -> str:
    return f"{(one.time_ms - other.time_ms) / 1000:g}"


def _lines(records: Sequence[Record]) -> str:
    shown = ", ".join(str(record.line) for record in records[:SHOWN_LINES])
    return shown + (f" and {len(records) - SHOWN_LINES} more" if len(records) > SHOWN_LINES else "")


def _below_zero(timed: Sequence[Record]) -> str:
    """Return words about the run, where it stops before it starts."""
    starts = [record for record in timed if record.key == "run_start"]
    stops = [record for record in timed if record.key == "run_stop"]
    if not starts or not stops or stops[-1].time_ms >= starts[0].time_ms:
        return ""
    start, stop = starts[0], stops[-1]
    return f" (run_stop of line {stop.line} is {_gap(start, stop)} s before run_start of line {start.line})"


def _repeated(records: Sequence[Record]) -> Iterator[Finding]:
    for key, which in (("run_start", "later"), ("run_stop", "first")):
        found = [record for record in records if record.key == key and record.time_ms is not None]
        if found and found[-1].time_ms - found[0].time_ms > CLOCK_TOLERANCE_MS:
            lines = ", ".join(str(record.line) for record in found)
            yield refusal(
                f"lines {lines}: {key} is logged {len(found)} times, at different times",
                f"The official tools only warn, and then measure the time with the {which} one: the score is wrong. "
                "The clock of a run may not be set back, also not when it is taken up again.",
                "Log it once and count the whole time, and run again.",
            )


def _too_fast(log: BenchmarkLog) -> Iterator[Finding]:
    """Return a note where a device for each image of a batch, each as fast as the fastest published, is too slow."""
    batch_size = _batch_size(log) or max(system.batch_size for system in published_systems())
    epochs = _epochs(log.records)
    # A run may end within its last epoch, so that one counts only where there is no other.
    for epoch in [epoch for epoch in epochs[: max(1, len(epochs) - 1)] if epoch.seconds >= 0]:
        images = epoch.count * _fewest_images(log)
        bound = images / (batch_size * _fastest_device())
        if epoch.seconds < bound:
            yield note(
                f"lines {epoch.start.line} to {epoch.stop.line}: {epoch.name} took {epoch.seconds:g} s",
                f"{images:,} images take at least {bound:.3g} s even where each of the {batch_size} images of a batch "
                f"has a device as fast as the fastest published one ({_fastest_device():.0f} images/s).",
                "Look whether time_ms is in milliseconds, not in seconds, and whether epochs cover all images.",
            )
            return


@functools.cache
def _fastest_device() -> float:
    """Return the images per second of one device in the published system that trains the most on each."""
    return max(training_rate_of(system) for system in published_systems())


def _batch_size(log: BenchmarkLog) -> int | None:
    logged = log.settings.get("global_batch_size")
    return logged if type(logged) is int and 0 < logged < NUM_TRAIN_IMAGES else None


def _fewest_images(log: BenchmarkLog) -> int:
    """Return the images of an epoch, or fewer: published logs have a number of steps as train_samples."""
    logged = log.settings.get("train_samples")
    return min(logged, NUM_TRAIN_IMAGES) if type(logged) is int and logged > 0 else NUM_TRAIN_IMAGES


def _epochs(records: Sequence[Record]) -> list[_Epoch]:
    """Return the epochs that were ended, blocks where no epoch is logged; one that is logged twice comes once."""
    name = "epoch" if any(record.key == "epoch_start" for record in records) else "block"
    field = STARTS[f"{name}_start"]
    starts: dict[float, Record] = {}
    epochs: dict[float, _Epoch] = {}
    for record in records:
        number = epoch_of(record, field)
        if number is None or record.time_ms is None:
            continue
        if record.key == f"{name}_start":
            starts.setdefault(number, record)
        elif record.key == f"{name}_stop" and number in starts and number not in epochs:
            count = starts[number].metadata.get("epoch_count") if name == "block" else 1
            count = count if type(count) is int and count > 0 else 1
            epochs[number] = _Epoch(name=f"{name} {number:g}", start=starts[number], stop=record, count=count)
    return list(epochs.values())


def _rates(log: BenchmarkLog) -> Iterator[Finding]:
    """Return a note for each rate of tracked_stats that is of another unit than the times of the epochs say."""
    seconds = [epoch.seconds / epoch.count for epoch in _epochs(log.records) if epoch.seconds > 0]
    if not seconds:
        return
    batch_size = _batch_size(log)
    rate = NUM_TRAIN_IMAGES / statistics.median(seconds)
    expected = {"throughput": (rate, "images per second")}
    if batch_size is not None:
        expected["time"] = (batch_size / rate, "seconds per step")
    tracked = [record for record in log.records if record.key == "tracked_stats" and isinstance(record.value, dict)]
    for name, (wanted, unit) in expected.items():
        found = [(record.value[name], record) for record in tracked if type(record.value.get(name)) in (int, float)]
        if not found:
            continue
        middle, record = sorted(found, key=lambda entry: entry[0])[len(found) // 2]
        if not TOO_LOW * wanted <= middle <= TOO_HIGH * wanted:
            yield note(
                f"line {record.line}: tracked_stats has {name} {middle:g}, the middle of its {len(found)} values",
                f"By the times of its epochs this run had {_shown(wanted)} {unit}. The official tools do not look at "
                f"{name}; people and reports do.",
                f"Log {name} in {unit}, of all devices together.",
            )


def _shown(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
