import pytest
from synthetic_logs import START_MS, log_records

from maskperf.mlperf.clock import check_clock
from maskperf.mlperf.published import published_systems

WHOLE = log_records(tracked_every=400)
KEYS = [entry["key"] for entry in WHOLE]
RUN_START, EPOCH_START, EPOCH_STOP, TRACKED, RUN_STOP = (
    KEYS.index(key) + 1 for key in ("run_start", "epoch_start", "epoch_stop", "tracked_stats", "run_stop")
)


@pytest.fixture
def check(log_of):
    """Return a function that returns what is wrong with the times of records."""
    return lambda records, *, trains_coco=True: check_clock(log_of(records), trains_coco=trains_coco)


def _timed(change, records=WHOLE):
    return [{**entry, "time_ms": change(entry["time_ms"])} for entry in records]


def _from(line, change, last=None):
    """Return the log with other times from one line to another, by default that line alone."""
    lines = range(line, (last or line) + 1)
    return [{**entry, "time_ms": change(entry["time_ms"])} if n in lines else entry for n, entry in enumerate(WHOLE, 1)]


def _tracked(name, change):
    """Return the log with another value of tracked_stats, a function of its images per second."""
    return [
        {**entry, "value": {**entry["value"], name: change(entry["value"]["throughput"])}}
        if entry["key"] == "tracked_stats"
        else entry
        for entry in WHOLE
    ]


def _blocks(records, epochs):
    """Return the log with blocks in place of epochs, each said to hold so many of them."""
    names = {"epoch_start": "block_start", "epoch_stop": "block_stop"}
    return [
        {**entry, "key": names[entry["key"]], "metadata": {"first_epoch_num": number, "epoch_count": epochs}}
        if entry["key"] in names
        else entry
        for entry in records
        for number in [entry["metadata"].get("epoch_num")]
    ]


@pytest.mark.parametrize(
    "records",
    [
        WHOLE,
        log_records(status="aborted"),
        _timed(lambda ms: ms - START_MS),  # since the start of the program
        _timed(lambda ms: ms - START_MS + 5e9),  # since that of a machine, 58 days ago
        _timed(str),
        [entry for entry in WHOLE if entry["key"] not in ("run_start", "global_batch_size", "train_samples")],
        _from(40, lambda ms: ms - 900),
        _tracked("throughput", lambda rate: rate / 8),  # of one device
        _tracked("throughput", lambda rate: rate / 384),
        _tracked("throughput", lambda rate: None),
        _tracked("throughput", str),
        _tracked("time", lambda rate: 96 / rate),
        _blocks(WHOLE, 1),
        log_records(epochs=1, minutes=0.2),  # 11 s: nobody was as fast at this batch, but a larger machine could be
    ],
)
def test_times_that_can_be_are_not_named(check, records):
    assert check(records) == []


@pytest.mark.parametrize(
    ("unit", "change"),
    [
        ("seconds", lambda ms: ms // 1000),
        ("seconds", lambda ms: ms / 1000),
        ("seconds", lambda ms: f"{ms / 1000:.3f}"),
        ("microseconds", lambda ms: ms * 1000),
        ("microseconds", lambda ms: float(ms * 1000)),
        ("nanoseconds", lambda ms: ms * 10**6),
    ],
)
@pytest.mark.parametrize("first", [1, 21, 60])
def test_another_unit_of_time_is_the_only_thing_named(check, unit, change, first):
    (finding,) = check(_from(first, change, len(WHOLE)))
    assert finding.refuses and finding.text.startswith(f"line {first}: time_ms is ")
    assert f"{unit}, not milliseconds, and {len(WHOLE) - first} more lines" in finding.text
    assert "2023-11-14 22:" in finding.explanation and finding.fix


def test_one_line_in_seconds_is_named(check):
    (finding,) = check(_from(RUN_STOP, lambda ms: ms / 1000))
    assert finding.refuses and finding.text.startswith(f"line {RUN_STOP}: ") and "more lines" not in finding.text


def test_small_times_of_a_run_of_some_length_may_be_milliseconds_and_are_a_note(check):
    (finding,) = check(_timed(lambda ms: ms - START_MS + 1.6e9))  # seconds of 2020, or a machine of 18 days
    assert not finding.refuses and "seconds" in finding.text


def test_a_clock_that_goes_back_is_one_finding_with_all_of_its_lines(check):
    records = _timed(lambda ms: ms)
    for line in (50, 60, 70):
        records[line - 1]["time_ms"] -= 3_600_000
    (finding,) = check(records)
    assert finding.refuses and finding.text.startswith("line 50: ") and "before that of line 49" in finding.text
    assert "lines 60, 70 go back too" in finding.text


def test_many_lines_that_go_back_are_counted(check):
    records = [{**entry, "time_ms": entry["time_ms"] - (line % 2) * 5000} for line, entry in enumerate(WHOLE)]
    (finding,) = check(records)
    assert "more go back too" in finding.text and len(finding.text) < 150


def test_a_run_that_stops_before_it_starts_is_named_so(check):
    (finding,) = check(_from(RUN_STOP, lambda ms: ms - 3_600_000))
    assert finding.refuses and finding.text.startswith(f"line {RUN_STOP}: ")
    assert f"run_stop of line {RUN_STOP} is 2442 s before run_start of line {RUN_START}" in finding.explanation


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (_timed(lambda ms: (ms - START_MS) / 1000), "0.0736"),  # seconds since the start of the program
        (_timed(lambda ms: START_MS), "took 0 s"),
        (log_records(minutes=1.0), "took 3.8"),
        (log_records(minutes=0.3, train_samples=40000), "took 1.1"),
        (log_records(epochs=1, minutes=0.1), "took 5.3"),
        (_blocks(log_records(minutes=5.0), 7), "block 1 took 19."),
    ],
)
def test_an_epoch_faster_than_any_machine_is_a_note(check, records, words):
    (finding,) = check(records)
    assert not finding.refuses and words in finding.text and "187 images/s" in finding.explanation
    lines = [n for n, entry in enumerate(records, 1) if entry["key"] in ("epoch_start", "epoch_stop", "block_start")]
    assert finding.text.startswith(f"lines {lines[0]} to ")
    assert check(records, trains_coco=False) == []


def test_no_published_run_is_faster_than_what_is_called_too_fast(check):
    fastest: dict[int, float] = {}
    for system in published_systems():
        seconds = min(run.median_epoch_seconds for run in system.runs if run.reached)
        fastest[system.batch_size] = min(seconds, fastest.get(system.batch_size, seconds))
    for batch_size, seconds in fastest.items():
        assert check(log_records(batch_size=batch_size, minutes=14 * seconds / 0.9 / 0.99 / 60)) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("throughput", lambda rate: rate / 1000),
        ("throughput", lambda rate: rate * 1000),
        ("throughput", lambda rate: rate * 60),
        ("throughput", lambda rate: 0),
        ("throughput", lambda rate: -rate),
        ("time", lambda rate: 96_000 / rate),
        ("time", lambda rate: 96e6 / rate),
        ("time", lambda rate: 96 / rate / 1000),
    ],
)
def test_a_rate_in_another_unit_than_the_epochs_say_is_a_note(check, name, change):
    (finding,) = check(_tracked(name, change))
    assert not finding.refuses and f"tracked_stats has {name} " in finding.text
    line = int(finding.text.split(":")[0].removeprefix("line "))
    assert KEYS[line - 1] == "tracked_stats" and (line >= TRACKED) and name in finding.fix
