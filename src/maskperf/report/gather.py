"""Collects what a report shows from runs, series and logs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskperf.report.contents import GuardEntry, ReportContents, RunPage, SeriesScore
from maskperf.report.guard_record import guard_entries
from maskperf.report.losses import loss_points
from maskperf.report.phases import phases_of
from maskperf.report.places import place_result, published_band
from maskperf.report.run_files import RunFiles
from maskperf.report.run_tables import (
    category_scores,
    median_speed,
    peak_memory,
    rule_rows,
    setting_pairs,
    system_pairs,
)
from maskperf.report.series import read_source, score_of
from maskperf.report.verdict import evaluation_points, make_verdict, run_notes
from maskperf.schema import LOG_FILE


@dataclass(frozen=True, kw_only=True)
class _Gathered:
    files: RunFiles
    page: RunPage


def gather(runs: Sequence[Path], compared: Sequence[Path]) -> ReportContents:
    """Return what a report on `runs` shows, with `compared` beside them.

    A path is a run folder (one of a run that was cut short too), the folder of a series, a log of the benchmark, or a
    folder of result_*.txt. Nothing is written.
    Errors: DataError or ConfigError that names the file which is missing or cannot be read.
    """
    sources = [read_source(path) for path in runs]
    others = [read_source(path) for path in compared]
    gathered = _named([_gather_run(files) for source in (*sources, *others) for files in source.runs])
    count = sum(len(source.runs) for source in sources)
    own, beside = gathered[:count], gathered[count:]
    score = score_of(sources, [(run.files, run.page.verdict, run.page.evaluations) for run in own])
    judged = [(run.files, run.page.verdict.minutes if run.page.verdict.state == "reached" else None) for run in own]
    places, places_note = place_result(judged, score)
    pages = tuple(run.page for run in own)
    return ReportContents(
        title=_title(own),
        sentence=_sentence(pages, score),
        runs=pages,
        compared=tuple(run.page for run in beside),
        score=score,
        places=places,
        places_note=places_note,
        band=published_band(own[0].files) if own else None,
        written_at=time.strftime("%Y-%m-%d %H:%M:%S %z"),
    )


def _gather_run(files: RunFiles) -> _Gathered:
    notes: list[str] = []
    evaluations = evaluation_points(files, notes)
    verdict = make_verdict(files, evaluations)
    rules = rule_rows(files)
    phases = phases_of(files, notes)
    guard = guard_entries(files, evaluations, reached=verdict.state == "reached")
    if verdict.state == "missed":
        verdict = replace(verdict, sentence=verdict.sentence + _cause(guard))
    page = RunPage(
        name=files.name,
        path=str(files.path),
        recipe=files.recipe,
        notes=(*run_notes(files, verdict, rules), *notes, *files.notes),
        notices=() if files.results is None else tuple(files.results.notices),
        verdict=verdict,
        evaluations=evaluations,
        losses=loss_points(files),
        phases=phases,
        categories=category_scores(files),
        pictures=files.pictures,
        guard=guard,
        rules=rules,
        settings=setting_pairs(files),
        system=system_pairs(files),
        images_per_second=median_speed(files),
        peak_memory=peak_memory(files),
    )
    return _Gathered(files=files, page=page)


def _cause(guard: Sequence[GuardEntry]) -> str:
    """Return a sentence about the first collapse or plateau, empty where there is none."""
    found = next((entry for entry in guard if entry.kind in ("collapse", "plateau")), None)
    if found is None:
        return ""
    if found.kind == "plateau":
        return " The AP stood still." if found.epoch is None else f" The AP stood still, as of epoch {found.epoch}."
    where = f"step {found.step}" if found.step is not None else f"epoch {found.epoch}"
    return f" The training collapsed at {where}."


def _named(runs: Sequence[_Gathered]) -> list[_Gathered]:
    """Return the runs with names that differ: those that share one get as many folders in front as it takes."""
    paths = [run.files.path.resolve() for run in runs]
    named = []
    for run, path in zip(runs, paths, strict=True):
        alike = [other for other in paths if other != path and other.name == path.name]
        depth = 2 if path.name == LOG_FILE else 1
        while any(other.parts[-depth:] == path.parts[-depth:] for other in alike):
            depth += 1
        name = "/".join(path.parts[-depth:])
        named.append(_Gathered(files=run.files, page=replace(run.page, name=name)))
    return named


def _title(runs: Sequence[_Gathered]) -> str:
    names = {run.page.recipe or _submitter(run.files) for run in runs} - {""}
    first = ", ".join(sorted(names)) or runs[0].page.name
    return f"Mask R-CNN: {first}" + (f", {len(runs)} runs" if len(runs) > 1 else "")


def _submitter(files: RunFiles) -> str:
    """Return who ran it on what; empty where no log says so."""
    if files.log is None:
        return ""
    return ": ".join(text for text in (files.log.organization, files.log.platform) if text)


def _sentence(pages: Sequence[RunPage], score: SeriesScore | None) -> str:
    if len(pages) == 1:
        return pages[0].verdict.sentence
    reached = sum(page.verdict.state == "reached" for page in pages)
    done = sum(page.verdict.state == "done" for page in pages)
    if done and not reached:
        return f"{done} of {len(pages)} runs trained to their end, without targets."
    sentence = f"{reached} of {len(pages)} runs reached their targets"
    if score is None:
        return f"{sentence}."
    return (
        f"{sentence}: no score."
        if score.score_minutes is None
        else f"{sentence}: score {score.score_minutes:.2f} minutes."
    )
