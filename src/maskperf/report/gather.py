"""Gathers the contents of a report from runs, series and logs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskperf.config import has_targets
from maskperf.mlperf.published import RankedSystem, band_for, place_among
from maskperf.mlperf.rules import RUNS, check_rules
from maskperf.mlperf.scoring import reference_check, score_minutes
from maskperf.recipes import OWN_DATA
from maskperf.report.contents import ReportContents, RunPage, SeriesScore
from maskperf.report.course import guard_events, loss_points, phases_of
from maskperf.report.mistakes import category_scores, stat_rows
from maskperf.report.sources import RunFiles, read_source
from maskperf.report.tables import median_speed, peak_memory, setting_pairs, system_pairs
from maskperf.report.verdict import cause_of, evaluation_points, make_verdict, run_notes
from maskperf.schema import LOG_FILE

OUTCOMES = {
    "done": "trained to the end without targets",
    "missed": "missed them",
    "aborted": "stopped before the end",
    "unfinished": "without an end on record",
}


@dataclass(frozen=True, kw_only=True)
class _Run:
    files: RunFiles
    page: RunPage

    @property
    def minutes(self) -> float | None:
        """Minutes to the targets; None where they were not reached."""
        return self.page.verdict.minutes if self.page.verdict.state == "reached" else None


def gather(runs: Sequence[Path], compared: Sequence[Path]) -> ReportContents:
    """Return the contents of a report on `runs`, with `compared` beside them.

    A path is a run folder (also of a run that was cut short), the folder of a series, a log of the benchmark, or a
    folder of result_*.txt. Nothing is written.
    Errors: DataError or ConfigError that names the file which is missing or cannot be read.
    """
    sources = [read_source(path) for path in (*runs, *compared)]
    gathered = _named([_gather_run(files) for found, _ in sources for files in found])
    count = sum(len(found) for found, _ in sources[: len(runs)])
    own, beside = gathered[:count], gathered[count:]
    score = _score_of(own, is_one_series=len(runs) == 1 and sources[0][1])
    places, places_note = _places(own, score)
    pages, first = tuple(run.page for run in own), own[0].files
    return ReportContents(
        title=_title(own),
        sentence=_sentence(pages, score),
        runs=pages,
        compared=tuple(run.page for run in beside),
        score=score,
        places=places,
        places_note=places_note,
        band=band_for(first.batch_size) if first.batch_size is not None and first.has_coco_targets else None,
    )


def _gather_run(files: RunFiles) -> _Run:
    notes: list[str] = []
    evaluations = evaluation_points(files, notes)
    verdict = make_verdict(files, evaluations)
    rules = () if files.config is None else tuple(check_rules(files.config, world=files.environment.processes or 1))
    phases = phases_of(files, notes)
    guard = guard_events(files, evaluations, reached=verdict.state == "reached")
    if verdict.state == "missed":
        verdict = replace(verdict, sentence=verdict.sentence + cause_of(guard))
    page = RunPage(
        name=files.path.name,
        recipe=files.recipe,
        notes=(*run_notes(files, verdict, rules), *notes, *files.notes),
        notices=files.results.notices,
        verdict=verdict,
        evaluations=evaluations,
        losses=loss_points(files),
        phases=phases,
        categories=category_scores(
            files.results.box_ap_per_category, files.results.mask_ap_per_category, files.analysis
        ),
        pictures=files.pictures,
        guard=guard,
        rules=rules,
        settings=setting_pairs(files),
        system=system_pairs(files),
        images_per_second=median_speed(files),
        peak_memory=peak_memory(files),
        stats=stat_rows(files.results.box_stats, files.results.mask_stats),
        analysis=files.analysis,
        is_closed=files.division == "closed",
    )
    return _Run(files=files, page=page)


def _named(runs: Sequence[_Run]) -> list[_Run]:
    """Return the runs with names that differ: those that share one get as many folders in front as needed."""
    paths = [run.files.path.resolve() for run in runs]
    named = []
    for run, path in zip(runs, paths, strict=True):
        alike = [other for other in paths if other != path and other.name == path.name]
        depth = 2 if path.name == LOG_FILE else 1
        while any(other.parts[-depth:] == path.parts[-depth:] for other in alike):
            depth += 1
        named.append(replace(run, page=replace(run.page, name="/".join(path.parts[-depth:]))))
    return named


def _title(runs: Sequence[_Run]) -> str:
    names = {run.page.recipe or run.files.submitter for run in runs} - {""}
    first = ", ".join(sorted(names)) or runs[0].page.name
    return f"Mask R-CNN: {first}" + (f", {len(runs)} runs" if len(runs) > 1 else "")


def _sentence(pages: Sequence[RunPage], score: SeriesScore | None) -> str:
    if len(pages) == 1:
        return pages[0].verdict.sentence
    states = [page.verdict.state for page in pages]
    first, text = "reached", "reached their targets"
    if "done" in states and "reached" not in states:
        first, text = "done", "trained to their end, without targets"
    others = [f"{states.count(state)} {text}" for state, text in OUTCOMES.items() if state in states and state != first]
    sentence = ", ".join([f"{states.count(first)} of {len(pages)} runs {text}", *others])
    if score is None or first == "done":
        return f"{sentence}."
    minutes = score.score_minutes
    return f"{sentence}: no score." if minutes is None else f"{sentence}: score {minutes:.2f} minutes."


def _score_of(runs: Sequence[_Run], *, is_one_series: bool) -> SeriesScore | None:
    """Return the score of a series, or of five single runs of one recipe and batch size; otherwise None.

    Runs without targets have none: there is no time to a target.
    """
    if not any(has_targets(*run.files.targets) for run in runs):
        return None
    alike = {(run.files.recipe, run.files.batch_size, run.files.targets) for run in runs}
    if not is_one_series and not (len(runs) == RUNS and len(alike) == 1):
        return None
    minutes = [run.minutes if run.files.counts else None for run in runs]
    score = score_minutes(minutes)
    if score is None:
        kept, factor, convergence = (False,) * len(minutes), None, ""
    else:
        order = sorted(range(len(minutes)), key=lambda index: (minutes[index] is None, minutes[index] or 0.0))
        kept = tuple(index in order[1:-1] for index in range(len(minutes)))
        factor, convergence = _convergence(runs)
    return SeriesScore(
        minutes=tuple(minutes),
        kept=kept,
        score_minutes=score,
        scaling_factor=factor,
        sentence=_score_sentence(minutes, score) + convergence,
    )


def _score_sentence(minutes: Sequence[float | None], score: float | None) -> str:
    reached = sum(took is not None for took in minutes)
    if score is not None:
        return f"{reached} of {len(minutes)} runs reached the targets; the score is {score:.3f} minutes."
    if len(minutes) != RUNS:
        return f"No score: it takes {RUNS} runs, and there {'is' if len(minutes) == 1 else 'are'} {len(minutes)}."
    return f"No score: {RUNS - reached} of {RUNS} runs did not reach the targets, and at most one may."


def _convergence(runs: Sequence[_Run]) -> tuple[float | None, str]:
    """Return the scaling factor and a sentence on the test of the reference's epochs; nothing for other targets."""
    if not all(run.files.has_coco_targets for run in runs):
        return None, ""
    batch_sizes = {run.files.batch_size for run in runs}
    batch_size = batch_sizes.pop()
    if batch_sizes or batch_size is None:
        return None, " The epochs were not compared with the reference's: the batch sizes of the runs are not one."
    epochs = [run.page.evaluations[-1].epoch if run.minutes is not None and run.files.counts else None for run in runs]
    check = reference_check(batch_size, epochs)
    return (check.scaling_factor if check.passed else None), f" Epochs compared with the reference's: {check.sentence}"


def _places(runs: Sequence[_Run], score: SeriesScore | None) -> tuple[tuple[RankedSystem, ...], str]:
    """Return the published systems with this result among them, the fastest first, and a note on the comparison.

    The score of five runs is compared, or the time of the first run that reached its targets. Without either, and for
    other targets than those of COCO, there are no places and the note says why; on own data nobody asks.
    """
    if all(run.files.recipe == OWN_DATA for run in runs):
        return (), ""
    refused = "No comparison with the published systems:"
    if not all(run.files.has_coco_targets for run in runs):
        return (), f"{refused} the targets are not those of the benchmark (0.377, 0.339)."
    chosen = next((run for run in runs if run.minutes is not None), runs[0])
    minutes = chosen.minutes if score is None else score.score_minutes
    if minutes is None:
        return (), f"{refused} {'no run reached the targets' if score is None else 'the series has no score'}."
    note = "The time of one run, not the mean of the middle three of five, as the published ones are."
    if score is not None:
        note = f"The score of {len(runs)} runs, as published ones are."
        if score.scaling_factor not in (None, 1.0):
            minutes *= score.scaling_factor
            note += f" It is multiplied by the scaling factor {score.scaling_factor:.4f}."
    files, log = chosen.files, chosen.files.log
    if files.accelerators is None:
        note += " How many accelerators were used is not known, so there is no place per accelerator."
    is_named = log is not None and log.organization and log.platform
    places = place_among(
        minutes,
        files.accelerators,
        name=files.submitter if is_named else files.path.resolve().name,
        accelerator=files.accelerator_name,
        batch_size=files.batch_size,
    )
    return places, note
