"""Which runs a log holds: one as it should be, several one after the other, one taken up again, or two mixed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile

from maskperf.mlperf.read import Number, Record

CLOCK_TOLERANCE_MS = 1000  # several writers of one log may be out of order by milliseconds
HEAD = (  # what a run logs before its first epoch and not again
    *("submission_benchmark", "submission_org", "submission_division", "submission_status", "submission_platform"),
    *("cache_clear", "init_start", "init_stop", "run_start"),
)
STARTS = ("epoch_start", "block_start")
BODY = (*STARTS, "epoch_stop", "block_stop", "eval_start", "eval_stop", "eval_accuracy", "run_stop")
OF_AN_EPOCH = ("epoch_stop", "eval_start", "eval_stop", "eval_accuracy")


@dataclass(frozen=True)
class Attempt:
    """One run of a file, from the first of its records to the last."""

    records: tuple[Record, ...]

    @cached_property
    def keys(self) -> frozenset[str]:
        return frozenset(record.key for record in self.records)

    @cached_property
    def starts(self) -> tuple[tuple[Number, int], ...]:
        """The number of each epoch that it starts, and the index of that record; of blocks where it logs only those."""
        key = STARTS["epoch_start" not in self.keys]
        found = [(record.epoch, index) for index, record in enumerate(self.records) if record.key == key]
        return tuple((number, index) for number, index in found if number is not None)

    @property
    def epochs(self) -> tuple[Number, ...]:
        return tuple(number for number, _ in self.starts)

    @property
    def first_line(self) -> int:
        return self.records[0].line

    @property
    def has_begun(self) -> bool:
        return bool(self.starts) or "run_start" in self.keys

    @property
    def is_whole(self) -> bool:
        return self.keys >= {"init_start", "run_start", "run_stop"}


@dataclass(frozen=True)
class Mixture:
    """Two lines that one run cannot have both, and why not."""

    first_line: int
    second_line: int
    sign: str


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """What a file holds. Lines are those of the file, from 1."""

    runs: tuple[Attempt, ...]  # one after the other
    mixed: Mixture | None = None  # where two programs wrote at the same time, and runs holds all records as one
    resumed: tuple[int, ...] = ()  # where a run was taken up again and counts its epochs on

    @property
    def are_several(self) -> bool:
        """Whether more than one run began, so that what is counted over the whole file means nothing."""
        return self.mixed is not None or sum(run.has_begun for run in self.runs) > 1

    @property
    def line_ranges(self) -> tuple[tuple[int, int | None], ...]:
        """The first and the last line of each run, None for the end of the file."""
        edges = [1, *(run.first_line for run in self.runs[1:])]
        return tuple(zip(edges, [*(edge - 1 for edge in edges[1:]), None], strict=True))

    @property
    def shared_lines(self) -> tuple[int, ...]:
        """The lines that hold the last record of a run and the first of the next one."""
        return tuple(other.first_line for run, other in pairwise(self.runs) if run.records[-1].line == other.first_line)


def find_attempts(records: Sequence[Record]) -> Attempts:
    """Return the runs that a file holds."""
    runs: list[Attempt] = []
    resumed, mixed = [], _late_init_stop(records)
    for part in _parts(records):
        if runs:
            mixed = mixed or _left_over(runs[-1], part)
        if runs and _goes_on(runs[-1], part):
            resumed.append(part.first_line)
            runs[-1] = Attempt(runs[-1].records + part.records)
        else:
            runs.append(part)
    for run in runs:
        mixed = mixed or _jump(run) or (None if resumed else _two_results(run))
    if mixed is not None:
        return Attempts(runs=(Attempt(tuple(records)),), mixed=mixed)
    return Attempts(runs=tuple(runs), resumed=tuple(resumed))


def _parts(records: Sequence[Record]) -> list[Attempt]:
    """Return the records cut wherever a head begins again, or the epochs do without one."""
    parts: list[list[Record]] = [[]]
    for record in records:
        if _begins_again(parts[-1], record):
            end = len(parts[-1]) - _head_in_front(parts[-1])
            parts[-1:] = [parts[-1][:end], parts[-1][end:]]
        parts[-1].append(record)
    joined: list[list[Record]] = []
    for part in parts:
        # Of two processes that logged one run, the head without init_stop goes on in the next part.
        stops = sum(record.key == "init_stop" for record in part)
        if joined and stops > 1 and not any(record.key in ("init_stop", *BODY) for record in joined[-1]):
            joined[-1] += part
        else:
            joined.append(part)
    return [piece for part in joined for piece in _cut_where_epochs_restart(Attempt(tuple(part)))]


def _begins_again(part: Sequence[Record], record: Record) -> bool:
    """Return whether a record cannot belong to the run of the records before it.

    Several processes may log the same head within moments, so before the first epoch only the first key of a head,
    seen again behind init_start, and init_start, seen again behind init_stop, are signs of another run.
    """
    if record.key not in HEAD:
        return False
    seen = {other.key for other in part}
    is_repeated, body = record.key in seen, seen.intersection(BODY)
    if not body:
        if record.key == "submission_benchmark":
            return is_repeated and "init_start" in seen and not _is_at_once(part, record)
        return is_repeated and record.key == "init_start" and "init_stop" in seen
    if is_repeated and body.issubset(STARTS):
        return not _is_at_once(part, record)
    # A first run may have lost its head; a run_stop alone that stands in front is a misplaced line.
    has_lost_head = "run_start" not in seen and body != {"run_stop"}
    return is_repeated or (record.key == "init_start" and has_lost_head)


def _is_at_once(part: Sequence[Record], record: Record) -> bool:
    before = next(other for other in reversed(part) if other.key == record.key)
    if before.time_ms is None or record.time_ms is None:
        return False
    return abs(record.time_ms - before.time_ms) <= CLOCK_TOLERANCE_MS


def _head_in_front(part: Sequence[Record]) -> int:
    """Return how many of the last records already are of the head that was noticed only now.

    Behind a first run without a head they are all that is of a head. Otherwise they are of kinds that also came first
    in the head before: some programs log init_start before the submission.
    """
    keys = [record.key for record in part]
    first = set(HEAD)
    if set(keys).isdisjoint(BODY):
        first &= set(keys[: keys.index("submission_benchmark")] if "submission_benchmark" in keys else [])
    count = len(list(takewhile(first.__contains__, reversed(keys))))
    return count if count < len(keys) else 0


def _cut_where_epochs_restart(run: Attempt) -> Iterable[Attempt]:
    """Return a run cut where its epochs begin anew; whole where they go up and down, as those of two runs do."""
    if _jump(run) is not None:
        return [run]
    cuts = [index for (before, _), (number, index) in pairwise(run.starts) if number < before]
    cuts = [index - (run.records[index - 1].key == "block_start") for index in cuts]  # the block of this epoch
    return [Attempt(run.records[first:last]) for first, last in pairwise([0, *cuts, len(run.records)])]


def _jump(run: Attempt) -> Mixture | None:
    """Return two lines whose epochs are those of two runs: in one run epochs follow each other, or begin anew."""
    steps = [(number - before, first, second) for (before, first), (number, second) in pairwise(run.starts)]
    if any(step < 0 for step, _, _ in steps) and any(step > 1 for step, _, _ in steps):
        first, second = next((first, second) for step, first, second in steps if step < 0 or step > 1)
        sign = "from there on, the numbers of the epochs go back and forth"
        return Mixture(run.records[first].line, run.records[second].line, sign)
    return None


def _late_init_stop(records: Sequence[Record]) -> Mixture | None:
    """Return the lines of two init_stop without an init_start between them, the second one behind run_start."""
    first: Record | None = None
    has_run_start = False
    for record in records:
        if record.key == "init_start":
            first = None
        elif record.key == "run_start":
            has_run_start = first is not None
        elif record.key == "init_stop":
            if first is None:
                first, has_run_start = record, False
            elif has_run_start and not _is_at_once([first], record):
                return Mixture(first.line, record.line, "both log init_stop, with no init_start between them")
    return None


def _goes_on(before: Attempt, part: Attempt) -> bool:
    """Return whether a part is the same run, taken up again: its epochs go on, or it has none but ends the run."""
    if part.starts:
        return bool(before.starts) and part.epochs[0] > 1
    ends_it = "run_stop" not in before.keys and not part.keys.isdisjoint(BODY)
    return ends_it and part.keys.isdisjoint(("submission_benchmark", "init_start"))


def _left_over(before: Attempt, part: Attempt) -> Mixture | None:
    """Return the first line of a part, and that of a record in it that the run before it must have written."""
    if not before.starts or not part.starts or min(part.epochs) > 1:
        return None
    new: set[Number | None] = set()
    for record in part.records:
        if record.key in STARTS:
            new.add(record.epoch)
        number = record.epoch
        is_of_before = record.key in OF_AN_EPOCH and number in before.epochs and number not in new
        if is_of_before or (record.key == "run_stop" and not new and "run_stop" not in before.keys):
            first = part.first_line
            return Mixture(first, record.line, f"a run begins at line {first}, and the one before it goes on")
    return None


def _two_results(run: Attempt) -> Mixture | None:
    """Return two lines with different results of an epoch that is started twice."""
    results: dict[Number, Record] = {}
    for record in run.records:
        number = record.epoch
        if record.key == "eval_accuracy" and number is not None and run.epochs.count(number) > 1:
            first = results.setdefault(number, record)
            if first.value != record.value:
                return Mixture(first.line, record.line, f"they are two results of epoch {number:g}")
    return None
