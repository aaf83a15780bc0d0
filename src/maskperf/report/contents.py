"""What a report shows, as plain values: filled by maskperf.report.gather, drawn by maskperf.report.page and summary."""

from dataclasses import dataclass

from maskperf.schema import PictureEntry


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The first thing a reader sees."""

    state: str  # "reached", "done" (it had no targets), "missed", "aborted" or "unfinished"
    sentence: str  # for example "Both targets met in epoch 14, after 19.2 minutes."
    minutes: float | None  # run_start to run_stop
    box_ap: float | None  # of the last evaluation
    mask_ap: float | None
    box_target: float | None
    mask_target: float | None


@dataclass(frozen=True, kw_only=True)
class EvaluationPoint:
    epoch: int
    minutes: float | None  # since run_start
    box_ap: float
    mask_ap: float


@dataclass(frozen=True, kw_only=True)
class LossPoint:
    """Losses around one step; None where they were not finite or not recorded."""

    step: int
    total: float | None
    terms: dict[str, float | None]  # by loss name; empty where only the total is known
    learning_rate: float | None
    images_per_second: float | None
    memory_gib: float | None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the time between run_start and run_stop; the parts of a run sum to the whole."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CategoryScore:
    name: str
    box_ap: float | None  # None: the split has no object of this category
    mask_ap: float | None


@dataclass(frozen=True, kw_only=True)
class GuardEntry:
    """Something the collapse guard noticed, or its closing line."""

    kind: str  # "non-finite", "collapse", "plateau" or "summary"
    step: int | None
    epoch: int | None
    text: str


@dataclass(frozen=True, kw_only=True)
class RuleRow:
    rule: str
    field: str
    value: str
    allowed: str
    kept: bool
    source: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """One line of the comparison with the published systems; the smaller number is the better one."""

    name: str  # "submitter: system"
    accelerators: int | None
    accelerator: str
    batch_size: int | None
    minutes: float  # score, or the time of the one run there is
    minutes_times_accelerators: float | None
    is_this: bool


@dataclass(frozen=True, kw_only=True)
class BandPoint:
    """What published runs of one batch size had after an epoch: mean and standard deviation."""

    epoch: int
    box_mean: float
    box_deviation: float
    mask_mean: float
    mask_deviation: float
    minutes_low: float | None  # fastest and slowest of these runs at the end of this epoch
    minutes_high: float | None
    runs: int


@dataclass(frozen=True, kw_only=True)
class Band:
    batch_size: int
    points: tuple[BandPoint, ...]
    note: str  # says which runs, and which batch size was the nearest one where there is none of this size


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """One run."""

    name: str  # folder or file name
    path: str
    recipe: str
    notes: tuple[str, ...]  # what a reader must know, e.g. "a demo is not a submission"
    notices: tuple[str, ...]  # what the run said about its data and settings when it started
    verdict: Verdict
    evaluations: tuple[EvaluationPoint, ...]
    losses: tuple[LossPoint, ...]
    phases: tuple[Phase, ...]
    categories: tuple[CategoryScore, ...]
    pictures: tuple[PictureEntry, ...]
    guard: tuple[GuardEntry, ...]
    rules: tuple[RuleRow, ...]
    settings: tuple[tuple[str, str], ...]  # batch size, learning rate, seed, ...
    system: tuple[tuple[str, str], ...]  # machine and software
    images_per_second: float | None  # of training, median
    peak_memory: tuple[tuple[str, float], ...]  # name and GiB


@dataclass(frozen=True, kw_only=True)
class SeriesScore:
    """The score of five runs by the benchmark's rules."""

    minutes: tuple[float | None, ...]  # in run order; None: the run did not reach the targets
    kept: tuple[bool, ...]  # which of them make the mean
    score_minutes: float | None
    scaling_factor: float | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class ReportContents:
    title: str
    sentence: str  # the verdict over all runs
    runs: tuple[RunPage, ...]
    compared: tuple[RunPage, ...]
    score: SeriesScore | None
    places: tuple[Place, ...]  # sorted by minutes; empty where a comparison makes no sense
    places_note: str
    band: Band | None
    written_at: str
