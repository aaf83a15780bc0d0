"""The table and the verdict at the end of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import TextIOBase
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskperf.config import has_targets, meets_targets
from maskperf.run.progress import duration_text

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
    box_target: float | int,
    mask_target: float | int,
    status: str,
    total_seconds: float,
    run_folder: Path,
    stream: TextIOBase,
) -> None:
    """Write one row an evaluation, the verdict, and where to look.

    `status` is the decision of the run ("success", "done" or "aborted"); `total_seconds` goes from run_start to
    run_stop. Colours and lines are left out where the stream is not a terminal.
    """
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH_COLUMNS
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD if console.is_terminal else None)
    for column in table.columns:
        column.justify = "right"
    for record in records:
        met = meets_targets(record.box_ap, record.mask_ap, box_target=box_target, mask_target=mask_target)
        table.add_row(*_cells(record, box_target, mask_target), style="green" if met else None)
    console.print(table)
    lines = verdict_lines(
        records, box_target=box_target, mask_target=mask_target, status=status, total_seconds=total_seconds
    )
    for line in lines:
        console.print(Text(line, style="bold"), soft_wrap=True)
    for line in where_to_look(run_folder):
        console.print(Text(line), soft_wrap=True)
    stream.flush()


def met_targets(record: EpochRecord, box_target: float | int, mask_target: float | int) -> str:
    """Return "both", "box", "mask" or "-"; a target is met by an AP that is not below it, unrounded; 0 is none."""
    box_met = meets_targets(record.box_ap, record.mask_ap, box_target=box_target, mask_target=0)
    mask_met = meets_targets(record.box_ap, record.mask_ap, box_target=0, mask_target=mask_target)
    return {(True, True): "both", (True, False): "box", (False, True): "mask", (False, False): "-"}[box_met, mask_met]


def verdict_lines(
    records: Sequence[EpochRecord],
    *,
    box_target: float | int,
    mask_target: float | int,
    status: str,
    total_seconds: float,
) -> list[str]:
    """Return the verdict in words: targets, time, the best epoch and speed."""
    reached = status == "success"
    aims = [f"(target {target:.4f})" if target else "(no target)" for target in (box_target, mask_target)]
    if not records:
        lines = ["target missed: no epoch was evaluated"]
    elif not has_targets(box_target, mask_target):
        last = records[-1]
        outcome = "done, without targets" if status == "done" else "not done"
        lines = [f"{outcome}: epoch {last.epoch}, box AP {last.box_ap:.4f}, mask AP {last.mask_ap:.4f}"]
    else:
        nearest = max(records, key=lambda record: _smallest_margin(record, box_target, mask_target))
        decisive = records[-1] if reached else nearest
        lines = [
            f"target {'reached' if reached else 'missed, nearest'} in epoch {decisive.epoch}: "
            f"box AP {decisive.box_ap:.4f} {aims[0]}, mask AP {decisive.mask_ap:.4f} {aims[1]}"
        ]
    lines.append(f"{'time to target' if reached else 'time spent'}: {duration_text(total_seconds)}")
    best = best_record(records)
    if best is not None:
        lines.append(f"best weights: epoch {best.epoch}, box AP {best.box_ap:.4f}, mask AP {best.mask_ap:.4f}")
        speed = sum(record.images_per_second for record in records) / len(records)
        evaluation_seconds = sum(record.evaluation_seconds for record in records) / len(records)
        lines.append(f"training speed: {speed:.1f} images/s; an evaluation took {evaluation_seconds:.1f} s")
    return lines


def best_record(records: Sequence[EpochRecord]) -> EpochRecord | None:
    """Return the evaluation with the highest sum of box AP and mask AP, of equal ones the first; None without any."""
    return max(records, key=lambda record: record.box_ap + record.mask_ap, default=None)


def _smallest_margin(record: EpochRecord, box_target: float | int, mask_target: float | int) -> float:
    """Return by how much the AP that is furthest from its target is above it; a target of 0 does not count."""
    pairs = ((record.box_ap, box_target), (record.mask_ap, mask_target))
    return min(ap - target for ap, target in pairs if target != 0)


def where_to_look(run_folder: Path) -> list[str]:
    """Return the run folder and, in the order of their names, what lies in it."""
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in run_folder.iterdir())
    visible = [name for name in names if not name.startswith(".")]
    return [f"where to look: {run_folder}", *(f"  {name}" for name in visible)]


def _cells(record: EpochRecord, box_target: float | int, mask_target: float | int) -> list[str]:
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
