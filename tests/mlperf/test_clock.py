import pytest
from synthetic_logs import START_MS, blocks, log_records

from maskperf.mlperf.clock import check_clock
from maskperf.mlperf.published import published_systems

WHOLE = log_records(tracked_every=400)
KEYS = [entry["key"] for entry in WHOLE]


@pytest.fixture
def check(log_of):
    """Return a function that returns what is wrong with the times of records."""
    return lambda records, *, trains_coco=True: check_clock(log_of(records), trains_coco=trains_coco)


def _timed(change, first=1, last=None):
    """Return the log with other times from one line to another, by default to its end."""
    lines = range(first, (last or len(WHOLE)) + 1)
    return [{**entry, "time_ms": change(entry["time_ms"])} if n in lines else entry for n, entry in enumerate(WHOLE, 1)]


def _tracked(name, change):
    """Return the log with another value of tracked_stats, a function of its images per second."""
    tracked = [entry for entry in WHOLE if entry["key"] == "tracked_stats"]
    changed = [{**entry["value"], name: change(entry["value"]["throughput"])} for entry in tracked]
    values = iter(changed)
    return [{**entry, "value": next(values)} if entry["key"] == "tracked_stats" else entry for entry in WHOLE]


@pytest.mark.parametrize(
    "records",
    [
        WHOLE,
        log_records(status="aborted"),
        _timed(lambda ms: ms - START_MS),  # since the start of the program
        _timed(lambda ms: ms - START_MS + 5e9),  # since that of a machine, 58 days ago
        _timed(str),
        [entry for entry in WHOLE if entry["key"] not in ("run_start", "global_batch_size", "train_samples")],
        _timed(lambda ms: ms - 900, 40, 40),
        *(_tracked("throughput", change) for change in (lambda rate: rate / 384, lambda rate: None, str)),
        _tracked("time", lambda rate: 96 / rate),
        blocks(WHOLE),
        log_records(epochs=1, minutes=0.2),  # 11 s: nobody was as fast at this batch, but a larger machine could be
    ],
)
def test_times_that_can_be_are_not_named(check, records):
    assert check(records) == []


@pytest.mark.parametrize(
    ("unit", "change"),
    [
        ("seconds", lambda ms: ms // 1000),
        ("seconds", lambda ms: f"{ms / 1000:.3f}"),
        ("microseconds", lambda ms: float(ms * 1000)),
        ("nanoseconds", lambda ms: ms * 10**6),
    ],
)
@pytest.mark.parametrize("first", [1, 21, len(WHOLE)])
def test_another_unit_of_time_is_the_only_thing_named(check, unit, change, first):
    (finding,) = check(_timed(change, first))
    assert finding.refuses and finding.text.startswith(f"line {first}: time_ms is ")
    assert f"{unit}, not milliseconds" in finding.text
    assert (f"and {len(WHOLE) - first} more lines" in finding.text) == (first < len(WHOLE))
    assert "2023-11-14 22:" in finding.explanation and finding.fix


def test_small_times_of_a_run_of_some_length_may_be_milliseconds_and_are_a_note(check):
    (finding,) = check(_timed(lambda ms: ms - START_MS + 1.6e9))  # seconds of 2020, or a machine of 18 days
    assert not finding.refuses and "seconds" in finding.text


def test_a_clock_that_goes_back_is_one_finding_with_its_lines(check):
    back = (50, 60, 70)
    (finding,) = check([{**e, "time_ms": e["time_ms"] - 3_600_000 * (n in back)} for n, e in enumerate(WHOLE, 1)])
    assert finding.refuses and finding.text.startswith("line 50: ") and "before that of line 49" in finding.text
    assert "lines 60, 70 go back too" in finding.text
    (finding,) = check([{**entry, "time_ms": entry["time_ms"] - (n % 2) * 5000} for n, entry in enumerate(WHOLE)])
    assert "more go back too" in finding.text and len(finding.text) < 150


def test_a_run_that_stops_before_it_starts_is_named_so(check):
    stop, start = KEYS.index("run_stop") + 1, KEYS.index("run_start") + 1
    (finding,) = check(_timed(lambda ms: ms - 3_600_000, stop))
    assert finding.refuses and finding.text.startswith(f"line {stop}: ")
    assert f"run_stop of line {stop} is 2442 s before run_start of line {start}" in finding.explanation


@pytest.mark.parametrize(
    ("records", "text"),
    [
        (_timed(lambda ms: (ms - START_MS) / 1000), "0.0736"),  # seconds since the start of the program
        (_timed(lambda ms: START_MS), "took 0 s"),
        (log_records(minutes=1.0), "took 3.8"),
        (log_records(minutes=0.3, train_samples=40000), "took 1.1"),
        (log_records(epochs=1, minutes=0.1), "took 5.3"),
        (blocks(log_records(minutes=5.0), epoch_count=7), "block 1 took 19."),
    ],
)
def test_an_epoch_faster_than_any_machine_is_a_note(check, records, text):
    (finding,) = check(records)
    assert not finding.refuses and text in finding.text and "187 images/s" in finding.explanation
    line = next(n for n, entry in enumerate(records, 1) if entry["key"] in ("epoch_start", "block_start"))
    assert finding.text.startswith(f"lines {line} to ")
    assert check(records, trains_coco=False) == []


def test_no_published_run_is_faster_than_what_is_called_too_fast(check):
    for batch_size in {system.batch_size for system in published_systems()}:
        runs = [run for system in published_systems() if system.batch_size == batch_size for run in system.runs]
        seconds = min(run.median_epoch_seconds for run in runs if run.reached)
        assert check(log_records(batch_size=batch_size, minutes=14 * seconds / 0.9 / 0.99 / 60)) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *(("throughput", lambda rate, factor=factor: rate * factor) for factor in (1e-3, 1e3, 60, 0, -1)),
        *(("time", lambda rate, factor=factor: factor * 96 / rate) for factor in (1e3, 1e6, 1e-3)),
    ],
)
def test_a_rate_in_another_unit_than_the_epochs_say_is_a_note(check, name, change):
    (finding,) = check(_tracked(name, change))
    assert not finding.refuses and f"tracked_stats has {name} " in finding.text and name in finding.fix
    assert KEYS[int(finding.text.split(":")[0].removeprefix("line ")) - 1] == "tracked_stats"
