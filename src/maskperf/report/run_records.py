"""The forms of the JSON files that a run leaves; what a file has beside these fields is passed over."""

import msgspec


class MetricLine(msgspec.Struct, kw_only=True, frozen=True):
    """One line of metrics.jsonl; a number is None where the line has none, or none that is finite."""

    kind: str
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
    memory_gib: float | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    minutes: float | None = None
    event: str = ""
    text: str = ""


class GuardEvent(msgspec.Struct, kw_only=True, frozen=True):
    """One event of the collapse guard."""

    event: str
    text: str
    step: int | None = None
    epoch: int | None = None


class GuardResults(msgspec.Struct, kw_only=True, frozen=True):
    """The record of the collapse guard."""

    steps_checked: int
    events: list[GuardEvent] = []


class EpochRow(msgspec.Struct, kw_only=True, frozen=True):
    """One epoch of the results."""

    epoch: int
    box_ap: float | None
    mask_ap: float | None
    seconds_since_start: float | None = None


class Results(msgspec.Struct, kw_only=True, frozen=True):
    """results.json; what an older run does not have is empty or None."""

    status: str
    seconds: float
    reason: str = ""
    epochs: int = 0
    box_ap: float | None = None
    mask_ap: float | None = None
    box_target: float | None = None
    mask_target: float | None = None
    engine: str = ""
    engine_differences: list[str] = []
    box_ap_per_category: dict[str, float | None] = {}
    mask_ap_per_category: dict[str, float | None] = {}
    epochs_table: list[EpochRow] = []
    time_account: dict[str, float] = {}
    peak_memory_gib: dict[str, float | None] = {}
    guard: GuardResults | None = None
    notices: list[str] = []
