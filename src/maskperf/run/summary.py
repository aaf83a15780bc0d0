"""What a person gets of a finished run: pictures, the table of its evaluations, the verdict, and where to look."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from maskperf.config import has_targets, meets_targets
from maskperf.evaluation.analysis import analyze
from maskperf.files import pretty_json, printable
from maskperf.pictures.choice import predictions_of_split
from maskperf.pictures.training_batch import batch_entries
from maskperf.run.console import duration_text, make_console, make_table
from maskperf.run.data import micro_batches
from maskperf.run.evaluations import best_row
from maskperf.run.finish import FinishedRun
from maskperf.schema import ANALYSIS_FILE, PICTURES_FILE, EpochRow, PictureEntry, Results
from maskperf.structures import to_device

COLUMNS = ("epoch", "steps", "loss", "box AP", "mask AP", "targets", "images/s", "minutes")


def show_outcome(run: FinishedRun) -> None:
    """Draw the pictures of a run, analyze its errors and print its table, in the first process."""
    data, session, folder = run.data, run.session, run.session.folder
    if folder is None or run.found is None or run.scored is None or data.truth is None:
        return
    predictions = predictions_of_split(data.val, data.categories, *run.found)
    predictions.write_grid(folder / "predictions.png")
    pictures = [*predictions.best_and_worst(), *predictions.samples(), *_first_batch(run)]
    session.write(PICTURES_FILE, pretty_json(pictures))
    analysis = analyze(data.truth, *run.scored.found, max_detections=run.scored.scores.max_detections)
    session.write(ANALYSIS_FILE, msgspec.json.encode(analysis).decode())
    final_table(run.results, folder)


def _first_batch(run: FinishedRun) -> Iterator[PictureEntry]:
    """Yield the images of the first batch of this process, made once more from the seed."""
    index, config = run.data.train, run.session.config
    (batch, *_), *_ = micro_batches(config, run.session.topology, index, 0, 1)
    batch = to_device(batch, torch.device("cpu"))
    positions = np.searchsorted(index.image_ids, batch.image_ids.tolist()).tolist()
    titles = [printable(index.file_names[position]) for position in positions]
    yield from batch_entries(batch, index.category_names, titles, config.data.pixel_means_bgr)


def final_table(results: Results, run_folder: Path) -> None:
    """Print one row an evaluation, the verdict, and where to look; plain text where standard output is no terminal."""
    console = make_console()
    table = make_table(console, COLUMNS)
    for column in table.columns:
        column.justify = "right"
    for row in results.epochs_table:
        met = met_targets(row, results.box_target, results.mask_target)
        all_met = meets_targets(row.box_ap, row.mask_ap, box_target=results.box_target, mask_target=results.mask_target)
        table.add_row(
            str(row.epoch),
            str(row.step),
            f"{row.mean_loss:.4f}",
            f"{row.box_ap:.4f}",
            f"{row.mask_ap:.4f}",
            met,
            f"{row.images_per_second:.1f}",
            f"{row.seconds_since_start / 60:.2f}",
            style="green" if all_met else None,
        )
    console.print(table)
    for line in verdict_lines(results):
        console.print(line, style="bold", soft_wrap=True)
    console.print("\n".join(where_to_look(run_folder)), soft_wrap=True)


def met_targets(row: EpochRow, box_target: float | int | None, mask_target: float | int | None) -> str:
    """Return "both", "box", "mask" or "-"; a target is met by an AP that is not below it, unrounded; 0 is none."""
    box_met = meets_targets(row.box_ap, row.mask_ap, box_target=box_target, mask_target=0)
    mask_met = meets_targets(row.box_ap, row.mask_ap, box_target=0, mask_target=mask_target)
    return {(True, True): "both", (True, False): "box", (False, True): "mask", (False, False): "-"}[box_met, mask_met]


def verdict_lines(results: Results) -> list[str]:
    """Return the verdict: targets, time, the best epoch and speed."""
    rows, targets = results.epochs_table, (results.box_target, results.mask_target)
    reached = results.status == "success"
    if not rows:
        lines = ["target missed: no epoch was evaluated"]
    elif not has_targets(*targets):
        outcome = "done, without targets" if results.status == "done" else "not done"
        lines = [f"{outcome}: {_aps(rows[-1])}"]
    else:
        shown = rows[-1] if reached else max(rows, key=lambda row: _smallest_margin(row, targets))
        aims = [f"(target {target:.4f})" if target else "(no target)" for target in targets]
        lines = [
            f"{'target reached' if reached else 'steps used up, target missed; nearest'} in epoch {shown.epoch}: "
            f"box AP {shown.box_ap:.4f} {aims[0]}, mask AP {shown.mask_ap:.4f} {aims[1]}"
        ]
    lines.append(f"{'time to target' if reached else 'time spent'}: {duration_text(results.seconds)}")
    if rows:
        speed = sum(row.images_per_second for row in rows) / len(rows)
        evaluation_seconds = sum(row.evaluation_seconds for row in rows) / len(rows)
        lines.append(f"best weights: {_aps(best_row(rows))}")
        lines.append(f"training speed: {speed:.1f} images/s; an evaluation took {evaluation_seconds:.1f} s")
    return lines


def where_to_look(run_folder: Path) -> list[str]:
    """Return the run folder and, in the order of their names, what is in it."""
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in run_folder.iterdir())
    return [f"where to look: {run_folder}", *(f"  {name}" for name in names if not name.startswith("."))]


def _aps(row: EpochRow) -> str:
    return f"epoch {row.epoch}, box AP {row.box_ap:.4f}, mask AP {row.mask_ap:.4f}"


def _smallest_margin(row: EpochRow, targets: Sequence[float | int | None]) -> float:
    """Return by how much the AP that is furthest from its target is above it; a target of 0 does not count."""
    return min(ap - target for ap, target in zip((row.box_ap, row.mask_ap), targets, strict=True) if target)
