"""Where a result stands among what others published, if the comparison makes sense."""

from collections.abc import Sequence

from maskperf.mlperf.published import band_for, place_among
from maskperf.report.contents import Band, BandPoint, Place, SeriesScore
from maskperf.report.run_files import RunFiles
from maskperf.report.verdict import has_coco_targets

# Files of a run, and whether it reached its targets after how many minutes (None: it did not).
Judged = tuple[RunFiles, float | None]


def place_result(runs: Sequence[Judged], score: SeriesScore | None) -> tuple[tuple[Place, ...], str]:
    """Return the published systems with this result among them, the fastest first, and a note on the comparison.

    The score of five runs is compared, or the time of the first run that reached its targets. Without either, and for
    other targets than those of COCO, there are no places and the note says why.
    """
    if not runs:
        return (), "There is no run to compare."
    if not all(has_coco_targets(files) for files, _ in runs):
        return (
            (),
            "No comparison with the published systems: the targets are not those of the benchmark (0.377, 0.339).",
        )
    files, minutes = next(((files, took) for files, took in runs if took is not None), (runs[0][0], None))
    if score is not None:
        minutes = score.score_minutes
        note = f"The score of {len(runs)} runs, as published ones are."
    else:
        note = "The time of one run, not the mean of the middle three of five, as the published ones are."
    if minutes is None:
        what = "the series has no score" if score is not None else "no run reached the targets"
        return (), f"No comparison with the published systems: {what}."
    if score is not None and score.scaling_factor is not None and score.scaling_factor != 1.0:
        minutes *= score.scaling_factor
        note += f" It is multiplied by the scaling factor {score.scaling_factor:.4f}."
    accelerators = files.accelerators
    if accelerators is None:
        note += " How many accelerators were used is not known, so there is no place per accelerator."
    return _ranked(files, minutes, accelerators), note


def _ranked(files: RunFiles, minutes: float, accelerators: int | None) -> tuple[Place, ...]:
    lines = place_among(
        minutes,
        accelerators or 0,
        name=_name(files),
        accelerator=files.accelerator_name,
        batch_size=files.batch_size,
    )
    return tuple(
        Place(
            name=line.name,
            accelerators=accelerators if line.is_this else line.accelerators,
            accelerator=line.accelerator,
            batch_size=line.batch_size,
            minutes=line.minutes,
            minutes_times_accelerators=(
                None if line.is_this and accelerators is None else line.minutes_times_accelerators
            ),
            is_this=line.is_this,
        )
        for line in lines
    )


def _name(files: RunFiles) -> str:
    if files.log is None or not (files.log.organization and files.log.platform):
        return files.name
    return f"{files.log.organization}: {files.log.platform}"


def published_band(files: RunFiles) -> Band | None:
    """Return what published runs of the nearest batch size had after each epoch; None for targets not COCO's."""
    if files.batch_size is None or not has_coco_targets(files):
        return None
    band = band_for(files.batch_size)
    points = tuple(
        BandPoint(
            epoch=entry.epoch,
            box_mean=entry.box_mean,
            box_deviation=entry.box_deviation,
            mask_mean=entry.mask_mean,
            mask_deviation=entry.mask_deviation,
            minutes_low=entry.minutes_low,
            minutes_high=entry.minutes_high,
            runs=entry.runs,
        )
        for entry in band.epochs
    )
    return Band(batch_size=band.batch_size, points=points, note=band.sentence)
