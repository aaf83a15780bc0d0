"""The JSON files of a run: each form once, for the run that writes them and for all that read them."""

from pathlib import Path
from typing import Any

import msgspec

from maskperf.errors import DataError, Problem

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
LAYERS_FILE = "layers.txt"
LOG_FILE = "mlperf.log"
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
PICTURES_FILE = "pictures.json"
ANALYSIS_FILE = "analysis.json"
SERIES_FILE = "series.json"
WINDOW_STEPS = 50
FIX = "Put the file back as the run wrote it, or move it away: the command then does without it."
SHOWN_BYTES = 60


class StepLine(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, tag_field="kind", tag="step"):
    """One training step in metrics.jsonl; a number that is not finite or not known is None."""

    step: int
    epoch: int
    objectness: float | None = None
    rpn_box: float | None = None
    classification: float | None = None
    box: float | None = None
    mask: float | None = None
    total: float | None = None
    learning_rate: float | None = None
    images_per_second: float | None = None
    data_wait_seconds: float | None = None
    step_seconds: float | None = None  # from the end of the step before, the wait for data included
    memory_gib: float | None = None
    forward_seconds: float | None = None
    backward_seconds: float | None = None
    replay_seconds: float | None = None  # forward and backward as one CUDA graph
    exchange_seconds: float | None = None
    optimizer_seconds: float | None = None


class EvaluationLine(msgspec.Struct, kw_only=True, frozen=True, tag_field="kind", tag="evaluation"):
    """One evaluation in metrics.jsonl."""

    step: int
    epoch: int
    box_ap: float | None = None
    mask_ap: float | None = None
    evaluation_seconds: float | None = None
    minutes: float | None = None  # since run_start


class GuardLine(msgspec.Struct, kw_only=True, frozen=True, tag_field="kind", tag="guard"):
    """One event of the collapse guard in metrics.jsonl."""

    step: int
    epoch: int
    event: str  # "non-finite", "collapse" or "plateau"
    text: str


MetricsLine = StepLine | EvaluationLine | GuardLine


class GuardEvent(msgspec.Struct, kw_only=True, frozen=True):
    """One event of the collapse guard in results.json."""

    event: str  # "non-finite", "collapse" or "plateau"
    step: int | None = None
    epoch: int | None = None
    text: str


class GuardResults(msgspec.Struct, kw_only=True, frozen=True):
    """The record of the collapse guard."""

    steps_checked: int
    events: tuple[GuardEvent, ...] = ()


class EpochRow(msgspec.Struct, kw_only=True, frozen=True):
    """An evaluated epoch; times in seconds."""

    epoch: int
    step: int  # the last of the epoch
    mean_loss: float
    box_ap: float
    mask_ap: float
    images_per_second: float
    seconds_since_start: float  # run_start to the end of this evaluation
    evaluation_seconds: float


class BestEpoch(EpochRow, kw_only=True, frozen=True):
    """The evaluated epoch with the highest sum of box AP and mask AP."""

    weights: str = ""


class TrainedEpoch(msgspec.Struct, kw_only=True, frozen=True):
    """An epoch whose weights are evaluated."""

    epoch: int
    step: int  # the last one of the epoch
    mean_loss: float
    images_per_second: float
    is_last: bool  # the recipe has no steps or epochs left


class StepSums(msgspec.Struct, kw_only=True):
    """Some steps of all processes."""

    losses: list[list[float]] = []  # the five terms of each step
    images: int = 0
    seconds: float = 0.0

    def add(self, losses: list[float], images: int, seconds: float) -> None:
        self.losses.append(losses)
        self.images += images
        self.seconds += seconds

    @property
    def images_per_second(self) -> float:
        return self.images / max(self.seconds, 1e-9)


class Window(msgspec.Struct, kw_only=True, frozen=True, array_like=True):
    """The mean loss of the steps from `first_step` to `last_step`, both included."""

    first_step: int
    last_step: int
    loss: float | None  # None: not finite
    ending: float | None = None  # median of its last ten steps, where the losses of steps are known
    frozen: bool = False  # the cumulative mean it comes from did not move


class SeriesState(msgspec.Struct, kw_only=True):
    """What the collapse guard keeps of one series of windows."""

    windows: list[Window] = []  # the newest that are finite and not frozen
    frozen: list[Window] = []
    lowest_median: float | None = None


class GuardState(msgspec.Struct, kw_only=True):
    """What the collapse guard keeps, all of which a checkpoint has."""

    series: list[SeriesState]
    stride_losses: list[float] = []
    stride_means: list[float] = []
    turn: int = 0
    named: bool = False


class RecorderState(msgspec.Struct, kw_only=True):
    """What is counted while a run trains, all of which a checkpoint has."""

    rows: list[EpochRow] = []
    events: list[GuardEvent] = []
    steps_checked: int = 0
    epoch: StepSums = msgspec.field(default_factory=StepSums)
    window: StepSums = msgspec.field(default_factory=StepSums)
    guard: GuardState
    metrics_bytes: int = 0  # length of metrics.jsonl


class CheckpointState(msgspec.Struct, kw_only=True, frozen=True):
    """state.json of a checkpoint: all of a run that is no tensor."""

    step: int  # the last one trained
    epoch: int  # under way, or about to begin
    steps_per_epoch: int
    train_images: int
    val_images: int
    processes: int
    rounding: dict[str, str]  # what sums depend on besides the configuration: threads, torch, device
    seconds: float  # on the clock
    phase_seconds: dict[str, float]
    pending: TrainedEpoch | None  # its evaluation was not over
    recorder: RecorderState
    resumed_at_steps: tuple[int, ...] = ()
    extra: dict[str, Any] = {}  # of `WeightAverage`


class Manifest(msgspec.Struct, kw_only=True, frozen=True):
    """manifest.json of a checkpoint, which is written last: without it the checkpoint is not complete."""

    sha256: dict[str, str]  # of each other file


class Results(msgspec.Struct, kw_only=True, frozen=True):
    """results.json; what an older run does not have is empty or None."""

    status: str  # "success", "done" (without targets, trained to its end) or "aborted"
    reason: str = ""  # why it was aborted
    epochs: int = 0
    seconds: float  # run_start to run_stop
    box_ap: float | None = None  # of the last evaluation
    mask_ap: float | None = None
    engine_differences: tuple[str, ...] = ()  # numbers in which the fast COCO engine and the official one differ
    box_target: float | None = None
    mask_target: float | None = None
    engine: str = ""
    max_detections: int | None = None
    box_stats: dict[str, float | None] = {}
    mask_stats: dict[str, float | None] = {}
    box_ap_per_category: dict[str, float | None] = {}
    mask_ap_per_category: dict[str, float | None] = {}
    epochs_table: tuple[EpochRow, ...] = ()
    best: BestEpoch | None = None
    notices: tuple[str, ...] = ()
    resumed_at_steps: tuple[int, ...] = ()  # where the run was taken up again: it is no result of the benchmark then
    time_account: dict[str, float] = {}
    peak_memory_gib: dict[str, float | None] = {}
    guard: GuardResults | None = None


class SeriesRun(msgspec.Struct, kw_only=True, frozen=True):
    """One run of a series; None where a failed run left nothing to know it from."""

    folder: str  # inside the folder of the series
    exit_code: int
    status: str  # "success", "done" (it had no targets), "aborted" (with results; targets missed), or "failed"
    minutes: float | None = None  # run_start to run_stop
    epochs: int | None = None
    seed: int | None = None


class Series(msgspec.Struct, kw_only=True, frozen=True):
    """series.json."""

    recipe: str = ""
    runs: tuple[SeriesRun, ...]
    score_minutes: float | None = None
    sentence: str = ""


class Gpu(msgspec.Struct, kw_only=True, frozen=True):
    """One GPU of the machine."""

    name: str = ""
    memory_gib: float | None = None


class Environment(msgspec.Struct, kw_only=True, frozen=True):
    """environment.json: the machine and the software of a run; None where unknown."""

    python: str | None = None
    packages: dict[str, str | None] = {}
    operating_system: str | None = None
    cpu_model: str | None = None
    cpu_logical_cores: int | None = None
    cpu_physical_cores: int | None = None
    memory_gib: float | None = None
    gpus: tuple[Gpu, ...] = ()
    cuda: str | None = None
    torch_threads: int | None = None
    git_commit: str | None = None
    git_modified: bool | None = None
    command_line: str | None = None
    processes: int | None = None


class ErrorKind(msgspec.Struct, kw_only=True, frozen=True):
    """One of TIDE's kinds of errors."""

    kind: str  # TIDE's short name: "Cls", "Loc", "Both", "Dupe", "Bkg" or "Miss"
    count: int
    ap_lost: float | None  # AP at IoU 0.50 that would be won if there were none


class CalibrationBin(msgspec.Struct, kw_only=True, frozen=True):
    """Detections of about one score."""

    confidence: float | None  # mean score
    accuracy: float | None  # share that matches an object at IoU 0.50
    count: int


class KindAnalysis(msgspec.Struct, kw_only=True, frozen=True):
    """How the boxes, or the masks, of one evaluation match the objects."""

    precision_50: tuple[float | None, ...]  # at IoU 0.50 and recalls 0, 0.01 ... 1; mean over categories
    precision_75: tuple[float | None, ...]
    errors: tuple[ErrorKind, ...]
    calibration: tuple[CalibrationBin, ...]  # by rising score
    calibration_error: float | None  # mean difference of score and accuracy, weighted by detections


class Analysis(msgspec.Struct, kw_only=True, frozen=True):
    """analysis.json: what the last evaluation of a run got right and wrong.

    Entries of `confusions` are a true category, the category that was found, and how often, as indices into
    `categories`; the index after the last one stands for none: an object missed, or a detection without an object.
    """

    boxes: KindAnalysis
    masks: KindAnalysis
    categories: tuple[str, ...]
    confusions: tuple[tuple[int, int, int], ...]
    least_score: float  # of the detections in `confusions`
    least_iou: float  # of their boxes and those of objects


class PictureEntry(msgspec.Struct, kw_only=True, frozen=True):
    """One image in pictures.json: of the validation split, ground truth beside detections, or of a training batch."""

    kind: str  # "best", "worst", "sample" (the same images in every run on a data set) or "batch"
    title: str  # file name
    caption: str  # what was right or wrong, with its score
    jpeg_base64: str


def read_json(path: Path, form: Any, *, fix: str = FIX) -> Any:
    """Return the content of a file of a run as a value of type `form`, None where there is no such file.

    Errors: DataError for a file that cannot be read or is not of this form.
    """
    data = read_bytes(path)
    return None if data is None else _decode(data, msgspec.json.Decoder(form), path, "the file", fix)


def read_metrics(path: Path) -> list[MetricsLine]:
    """Return the lines of a metrics.jsonl, none where there is no such file.

    A last line without its end, cut off by a crash, is left out.
    Errors: DataError for a file that cannot be read, or a line that is none of the three kinds.
    """
    lines = (read_bytes(path) or b"").split(b"\n")[:-1]
    decoder = msgspec.json.Decoder(MetricsLine)
    return [_decode(line, decoder, path, f"line {number}") for number, line in enumerate(lines, start=1)]


def file_error(path: Path, message: str, *, where: str = "the file", value: str = "-", fix: str = FIX) -> DataError:
    """Return an error about the content of a file of a run."""
    return DataError([Problem(file=str(path), where=where, field="content", value=value, message=message, fix=fix)])


def read_bytes(path: Path) -> bytes | None:
    """Return the content of a file, None where there is no such file; otherwise as `read_json`."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise file_error(path, f"The file cannot be read ({error.strerror or error}).") from error


def _decode(data: bytes, decoder: msgspec.json.Decoder, path: Path, where: str, fix: str = FIX) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = data[:SHOWN_BYTES].decode("utf-8", errors="replace")
        value = repr(text + "..." if len(data) > SHOWN_BYTES else text)
        raise file_error(path, f"It cannot be used: {error}.", where=where, value=value, fix=fix) from error
