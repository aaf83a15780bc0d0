"""Times of a log that cannot be: in another unit, going backwards, epochs faster than any, rates that do not fit."""

import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from maskperf.config import NUM_TRAIN_IMAGES
from maskperf.mlperf.attempts import CLOCK_TOLERANCE_MS
from maskperf.mlperf.findings import Finding, note, refusal
from maskperf.mlperf.published import published_systems
from maskperf.mlperf.read import BenchmarkLog

UNITS = {"seconds": 1, "microseconds": 10**6, "nanoseconds": 10**9}  # how many of them a second has
FIRST_SECOND, LAST_SECOND = 1.4e9, 2.2e9  # 2014 to 2039: a time within these years shows its unit
SHORTEST_RUN_MS = 60_000  # whoever writes seconds for milliseconds has a whole run within this
# Logged rates are means over a while, and perhaps those of one device of hundreds: a wrong unit is farther off.
TOO_HIGH, TOO_LOW = 50, 1 / 500
SHOWN_LINES = 5


class Moment(NamedTuple):
    """A record that has a time."""

    ms: float
    line: int
    key: str


def check_clock(log: BenchmarkLog, *, trains_coco: bool) -> list[Finding]:
    """Return what is wrong with the times of a log. Where their unit is wrong, the rest would only follow from it.

    trains_coco: the speed is that of the benchmark's model and data, so that it compares with the published one.
    """
    moments = [Moment(entry.time_ms, entry.line, entry.key) for entry in log.records if entry.time_ms is not None]
    findings = [*_units(moments)] or [*_backwards(moments), *_repeated(moments)]
    if not findings and trains_coco:
        findings = [*_too_fast(log)] or [*_rates(log)]
    return findings


def _units(moments: Sequence[Moment]) -> Iterator[Finding]:
    for unit, per_second in UNITS.items():
        found = [moment for moment in moments if FIRST_SECOND <= moment.ms / per_second <= LAST_SECOND]
        if not found:
            continue
        first = found[0]
        more = f", and {len(found) - 1} more lines are alike" if len(found) > 1 else ""
        is_small = per_second == 1
        counted = "a thousandth of every duration" if is_small else f"every duration {per_second // 1000:,} times"
        factor = "seconds times 1000" if is_small else f"{unit} divided by {per_second // 1000:,}"
        # Such small numbers may also be milliseconds since the start of a machine, if a run then is of some length.
        is_short = max(found).ms - min(found).ms < SHORTEST_RUN_MS
        yield (refusal if not is_small or is_short or len(found) < len(moments) else note)(
            f"line {first.line}: time_ms is {first.ms:.0f}: {unit}, not milliseconds{more}",
            f"In {unit} this is {datetime.fromtimestamp(first.ms / per_second, UTC):%Y-%m-%d %H:%M} UTC. The official "
            f"tools read milliseconds, and so count {counted}, also of the score.",
            f"Log whole milliseconds since 1970, {factor}, and run again.",
        )


def _backwards(moments: Sequence[Moment]) -> Iterator[Finding]:
    found = [(one, other) for one, other in pairwise(moments) if other.ms < one.ms - CLOCK_TOLERANCE_MS]
    if not found:
        return
    before, late = found[0]
    lines = [str(other.line) for _, other in found[1:]]
    rest = f" and {len(lines) - SHOWN_LINES} more" if len(lines) > SHOWN_LINES else ""
    more = f"; lines {', '.join(lines[:SHOWN_LINES])}{rest} go back too" if lines else ""
    starts, stops = ([moment for moment in moments if moment.key == key] for key in ("run_start", "run_stop"))
    below_zero = ""
    if starts and stops and stops[-1].ms < starts[0].ms:
        gap = f"{(starts[0].ms - stops[-1].ms) / 1000:g} s"
        below_zero = f" (run_stop of line {stops[-1].line} is {gap} before run_start of line {starts[0].line})"
    yield refusal(
        f"line {late.line}: the time of {late.key} is {(before.ms - late.ms) / 1000:g} s before that of line "
        f"{before.line}{more}",
        f"The clock went backwards{below_zero}, so no duration of this log can be trusted. The official tools miss it.",
        "Take times from a clock that only goes forward, and run again.",
    )


def _repeated(moments: Sequence[Moment]) -> Iterator[Finding]:
    for key, which in (("run_start", "later"), ("run_stop", "first")):
        found = [moment for moment in moments if moment.key == key]
        if found and found[-1].ms - found[0].ms > CLOCK_TOLERANCE_MS:
            lines = ", ".join(str(moment.line) for moment in found)
            yield refusal(
                f"lines {lines}: {key} is logged {len(found)} times, at different times",
                f"The official tools only warn, and then measure the time with the {which} one: the score is wrong. "
                "The clock of a run may not be set back, also not when it is taken up again.",
                "Log it once and count the whole time, and run again.",
            )


def _too_fast(log: BenchmarkLog) -> Iterator[Finding]:
    """Yield a note where a device for each image of a batch, each as fast as the fastest published, is too slow."""
    fastest = max(system.images_per_second for system in published_systems())  # of a device
    batch_size = log.batch_size or max(system.batch_size for system in published_systems())
    logged = log.settings.get("train_samples")  # in published logs a number of steps
    images = min(logged, NUM_TRAIN_IMAGES) if type(logged) is int and logged > 0 else NUM_TRAIN_IMAGES
    epochs = [epoch for epoch in log.epochs if epoch.seconds is not None]
    # A run may end within its last epoch, so that one counts only where there is no other.
    for epoch in epochs[: max(1, len(epochs) - 1)]:
        bound = epoch.count * images / (batch_size * fastest)
        if epoch.seconds is not None and epoch.stop is not None and 0 <= epoch.seconds < bound:
            yield note(
                f"lines {epoch.start.line} to {epoch.stop.line}: {epoch.start.key.removesuffix('_start')} "
                f"{epoch.epoch:g} took {epoch.seconds:g} s",
                f"{epoch.count * images:,} images take at least {bound:.3g} s even where each of the {batch_size} "
                f"images of a batch has a device as fast as the fastest published one ({fastest:.0f} images/s).",
                "Look whether time_ms is in milliseconds, not in seconds, and whether epochs cover all images.",
            )
            return


def _rates(log: BenchmarkLog) -> Iterator[Finding]:
    """Yield a note for each rate of tracked_stats that is of another unit than the times of the epochs say."""
    seconds = [epoch.seconds / epoch.count for epoch in log.epochs if epoch.seconds is not None and epoch.seconds > 0]
    if not seconds:
        return
    batch_size = log.batch_size
    rate = NUM_TRAIN_IMAGES / statistics.median(seconds)
    expected = {"throughput": (rate, "images per second")}
    if batch_size is not None:
        expected["time"] = (batch_size / rate, "seconds per step")
    tracked = [record for record in log.records if record.key == "tracked_stats"]
    stats = [(record.line, record.value) for record in tracked if isinstance(record.value, dict)]
    for name, (wanted, unit) in expected.items():
        found = [(values[name], line) for line, values in stats if type(values.get(name)) in (int, float)]
        middle, line = sorted(found, key=lambda entry: entry[0])[len(found) // 2] if found else (wanted, 0)
        if not TOO_LOW * wanted <= middle <= TOO_HIGH * wanted:
            shown = f"{wanted:,.0f}" if wanted >= 100 else f"{wanted:.3g}"
            yield note(
                f"line {line}: tracked_stats has {name} {middle:g}, the middle of its {len(found)} values",
                f"By the times of its epochs this run had {shown} {unit}. The official tools do not look at {name}; "
                "people and reports do.",
                f"Log {name} in {unit}, of all devices together.",
            )
