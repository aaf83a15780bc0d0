"""The contents of a report as plain values: made by gather, drawn by page and summary."""

import time
from dataclasses import dataclass, field

from maskperf.mlperf.published import PublishedBand, RankedSystem
from maskperf.mlperf.rules import RuleResult
from maskperf.schema import Analysis, GuardEvent, PictureEntry, StepLine

TERM_TITLES = {  # of the parts of the loss
    "objectness": "Objectness (RPN)",
    "rpn_box": "Box (RPN)",
    "classification": "Classification",
    "box": "Box",
    "mask": "Mask",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of a run, in one state and one sentence."""

    state: str  # "reached", "done" (it had no targets), "missed", "aborted" or "unfinished"
    sentence: str  # for example "Both targets met in epoch 14, after 19.2 minutes."
    minutes: float | None = None  # run_start to run_stop
    box_ap: float | None  # of the last evaluation
    mask_ap: float | None
    box_target: float | None  # 0: none
    mask_target: float | None


@dataclass(frozen=True, kw_only=True)
class EvaluationPoint:
    epoch: int
    minutes: float | None  # since run_start
    box_ap: float
    mask_ap: float


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
    recipe: str
    notes: tuple[str, ...] = ()  # what a reader must know, e.g. "a demo is not a submission"
    notices: tuple[str, ...]  # the run's own remarks on its data and settings
    verdict: Verdict
    evaluations: tuple[EvaluationPoint, ...] = ()
    losses: tuple[StepLine, ...] = ()  # of single steps, or means around them; those of a log have no epoch
    phases: dict[str, float] = field(default_factory=dict)  # seconds; they sum to the time from run_start to run_stop
    categories: tuple[CategoryScore, ...]
    pictures: tuple[PictureEntry, ...]
    guard: tuple[GuardEvent, ...] = ()  # the last one may be a "summary"
    rules: tuple[RuleResult, ...] = ()
    settings: tuple[tuple[str, str], ...]  # batch size, learning rate, seed, ...
    system: tuple[tuple[str, str], ...] = ()  # machine and software
    images_per_second: float | None  # of training, median
    peak_memory: tuple[tuple[str, float], ...] = ()  # name and GiB
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
    compared: tuple[RunPage, ...] = ()
    score: SeriesScore | None = None
    places: tuple[RankedSystem, ...] = ()  # sorted by minutes; empty where a comparison makes no sense
    places_note: str = ""
    band: PublishedBand | None = None
    written_at: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S %z"))
    has_training: bool = True  # False: an evaluation of weights
