"""The table and the verdict at the end of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import TextIOBase
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskperf.records.progress import duration_text

COLUMNS = ("epoch", "steps", "loss", "box AP", "mask AP", "targets", "images/s", "minutes")
PLAIN_WIDTH_COLUMNS = 120


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """What came out of one epoch and its evaluation; `step` is the last of the epoch, times are in seconds."""

    epoch: int
    step: int
    mean_loss: float
    box_ap: float
    mask_ap: float
    images_per_second: float
    seconds_since_start: float  # run_start to the end of this evaluation
    evaluation_seconds: float


def final_table(
    records: Sequence[EpochRecord],
    *,
    box_target: float,
    mask_target: float,
    reached: bool,
    total_seconds: float,
    run_folder: Path,
    stream: TextIOBase,
) -> None:
    """Returns nothing; writes one row an epoch, the verdict, and where to look.

    `reached` is the decision of the run; `total_seconds` goes from run_start to run_stop. Colours and lines are left
    out where the stream is not a terminal.
    """
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH_COLUMNS
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD if console.is_terminal else None)
    for column in table.columns:
        column.justify = "right"
    for record in records:
        met_both = met_targets(record, box_target, mask_target) == "both"
        table.add_row(*_cells(record, box_target, mask_target), style="green" if met_both else None)
    console.print(table)
    lines = verdict_lines(
        records, box_target=box_target, mask_target=mask_target, reached=reached, total_seconds=total_seconds
    )
    for line in lines:
        console.print(Text(line, style="bold"), soft_wrap=True)
    for line in where_to_look(run_folder):
        console.print(Text(line), soft_wrap=True)
    stream.flush()


def met_targets(record: EpochRecord, box_target: float, mask_target: float) -> str:
    """Returns "both", "box", "mask" or "-"; a target is met by an AP that is not below it, unrounded."""
    box_met, mask_met = record.box_ap >= box_target, record.mask_ap >= mask_target
    return {(True, True): "both", (True, False): "box", (False, True): "mask", (False, False): "-"}[box_met, mask_met]


def verdict_lines(
    records: Sequence[EpochRecord], *, box_target: float, mask_target: float, reached: bool, total_seconds: float
) -> list[str]:
    """Returns the verdict in words: targets, time and speed."""
    if not records:
        lines = ["target missed: no epoch was evaluated"]
    else:
        best = max(records, key=lambda record: min(record.box_ap - box_target, record.mask_ap - mask_target))
        decisive = records[-1] if reached else best
        lines = [
            f"target {'reached' if reached else 'missed, nearest'} in epoch {decisive.epoch}: "
            f"box AP {decisive.box_ap:.4f} (target {box_target:.4f}), "
            f"mask AP {decisive.mask_ap:.4f} (target {mask_target:.4f})"
        ]
    lines.append(f"{'time to target' if reached else 'time spent'}: {duration_text(total_seconds)}")
    if records:
        speed = sum(record.images_per_second for record in records) / len(records)
        evaluation_seconds = sum(record.evaluation_seconds for record in records) / len(records)
        lines.append(f"training speed: {speed:.1f} images/s; an evaluation took {evaluation_seconds:.1f} s")
    return lines


def where_to_look(run_folder: Path) -> list[str]:
    """Returns the run folder and, in the order of their names, what lies in it."""
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in run_folder.iterdir())
    visible = [name for name in names if not name.startswith(".")]
    return [f"where to look: {run_folder}", *(f"  {name}" for name in visible)]


def _cells(record: EpochRecord, box_target: float, mask_target: float) -> list[str]:
    return [
        str(record.epoch),
        str(record.step),
        f"{record.mean_loss:.4f}",
        f"{record.box_ap:.4f}",
        f"{record.mask_ap:.4f}",
        met_targets(record, box_target, mask_target),
        f"{record.images_per_second:.1f}",
        f"{record.seconds_since_start / 60:.2f}",
    ]
