"""The contents of a report as plain values: made by gather, drawn by page and summary."""

from dataclasses import dataclass

from maskperf.mlperf.published import PublishedBand, RankedSystem
from maskperf.mlperf.rules import RuleResult
from maskperf.schema import Analysis, GuardEvent, PictureEntry


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of a run, in one state and one sentence."""

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
    objects: int | None = None  # these four by the analysis; None: there is none
    missed: int | None = None
    confused: int | None = None  # objects that were found as another category
    false: int | None = None  # detections without an object


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """One run."""

    name: str  # folder or file name
    path: str
    recipe: str
    notes: tuple[str, ...]  # what a reader must know, e.g. "a demo is not a submission"
    notices: tuple[str, ...]  # the run's own remarks on its data and settings
    verdict: Verdict
    evaluations: tuple[EvaluationPoint, ...]
    losses: tuple[LossPoint, ...]
    phases: tuple[Phase, ...]
    categories: tuple[CategoryScore, ...]
    pictures: tuple[PictureEntry, ...]
    guard: tuple[GuardEvent, ...]  # the last one may be a "summary"
    rules: tuple[RuleResult, ...]
    settings: tuple[tuple[str, str], ...]  # batch size, learning rate, seed, ...
    system: tuple[tuple[str, str], ...]  # machine and software
    images_per_second: float | None  # of training, median
    peak_memory: tuple[tuple[str, float], ...]  # name and GiB
    stats: tuple[tuple[str, float | None, float | None], ...] = ()  # COCO's twelve numbers: name, for boxes, for masks
    analysis: Analysis | None = None
    is_closed: bool = True  # of the closed division, whose rules are shown unasked


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
    places: tuple[RankedSystem, ...]  # sorted by minutes; empty where a comparison makes no sense
    places_note: str
    band: PublishedBand | None
    written_at: str
    has_training: bool = True  # False: an evaluation of weights
