"""From the paths a user gives to single runs, and the score of five of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskperf.config import has_targets
from maskperf.mlperf.scoring import RUNS, reference_check, score_minutes
from maskperf.report.contents import EvaluationPoint, SeriesScore, Verdict
from maskperf.report.run_files import RUN_FILES, RunFiles, read_log_file, read_run_folder
from maskperf.report.verdict import has_coco_targets
from maskperf.schema import SERIES_FILE, Series, SeriesRun, file_error, read_json

RESULT_PATTERN = "result_*.txt"
FIX_PATH = (
    "Give a run folder, the folder of a series (with series.json), a log of the benchmark, or a folder of result_*.txt."
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one path stands for: one run, or the runs of a series in their order."""

    path: Path
    runs: tuple[RunFiles, ...]
    is_series: bool


def read_source(path: Path) -> Source:
    """Return the runs behind a path.

    Errors: DataError for a path that is no run, and for files that cannot be read.
    """
    if path.is_dir():
        if (path / SERIES_FILE).exists():
            return _read_series(path)
        if any((path / name).exists() for name in RUN_FILES):
            return Source(path=path, runs=(read_run_folder(path),), is_series=False)
        logs = sorted(path.glob(RESULT_PATTERN))
        if logs:
            return Source(path=path, runs=tuple(read_log_file(log) for log in logs), is_series=True)
        problem = "It holds no run: neither config.json, mlperf.log nor results.json, no series.json, no result_*.txt."
        raise file_error(path, problem, where="the folder", value="no known file", fix=FIX_PATH)
    if not path.exists():
        raise file_error(path, "There is no such file.", where="the path", value="missing", fix=FIX_PATH)
    return Source(path=path, runs=(read_log_file(path),), is_series=False)


def score_of(
    sources: Sequence[Source], judged: Sequence[tuple[RunFiles, Verdict, Sequence[EvaluationPoint]]]
) -> SeriesScore | None:
    """Return the score of a series, or of five single runs of one recipe and batch size; otherwise None.

    Runs without targets have none: there is no time to a target.
    """
    if not any(has_targets(*files.targets) for files, _, _ in judged):
        return None
    one_series = len(sources) == 1 and sources[0].is_series
    alike = {(files.recipe, files.batch_size, files.targets) for files, _, _ in judged}
    if not one_series and not (len(judged) == RUNS and len(alike) == 1):
        return None
    minutes = [verdict.minutes if _succeeded(files, verdict) else None for files, verdict, _ in judged]
    score = score_minutes(minutes)
    kept = _kept(minutes) if score is not None else (False,) * len(minutes)
    factor, convergence = _convergence(judged) if score is not None else (None, "")
    return SeriesScore(
        minutes=tuple(minutes),
        kept=kept,
        score_minutes=score,
        scaling_factor=factor,
        sentence=_sentence(minutes, score) + convergence,
    )


def _succeeded(files: RunFiles, verdict: Verdict) -> bool:
    return verdict.state == "reached" and files.counts


def _kept(minutes: Sequence[float | None]) -> tuple[bool, ...]:
    order = sorted(range(len(minutes)), key=lambda place: (minutes[place] is None, minutes[place] or 0.0))
    return tuple(place in order[1:-1] for place in range(len(minutes)))


def _sentence(minutes: Sequence[float | None], score: float | None) -> str:
    reached = sum(took is not None for took in minutes)
    if score is not None:
        return f"{reached} of {len(minutes)} runs reached the targets; the score is {score:.3f} minutes."
    if len(minutes) != RUNS:
        return f"No score: it takes {RUNS} runs, and there {'is' if len(minutes) == 1 else 'are'} {len(minutes)}."
    return f"No score: {RUNS - reached} of {RUNS} runs did not reach the targets, and at most one may."


def _convergence(
    judged: Sequence[tuple[RunFiles, Verdict, Sequence[EvaluationPoint]]],
) -> tuple[float | None, str]:
    """Return the scaling factor and what the test of the reference's epochs says; nothing for other data than COCO."""
    batch_sizes = {files.batch_size for files, _, _ in judged}
    batch_size = next(iter(batch_sizes))
    if not all(has_coco_targets(files) for files, _, _ in judged):
        return None, ""
    if len(batch_sizes) > 1 or batch_size is None:
        return None, " The epochs were not compared with the reference's: the batch sizes of the runs are not one."
    epochs = [points[-1].epoch if _succeeded(files, verdict) and points else None for files, verdict, points in judged]
    check = reference_check(batch_size, epochs)
    return (check.scaling_factor if check.passed else None), f" Epochs compared with the reference's: {check.sentence}"


def _read_series(folder: Path) -> Source:
    path = folder / SERIES_FILE
    record = read_json(path, Series)
    if not record.runs:
        raise file_error(path, "The series has no run.", where="runs", value="[]", fix=FIX_PATH)
    runs = []
    for entry in record.runs:
        files = (
            read_run_folder(folder / entry.folder) if (folder / entry.folder).is_dir() else _nothing_left(folder, entry)
        )
        if entry.status == "failed":
            note = f"Its series counts this run as failed: its command ended with exit code {entry.exit_code}."
            files = replace(files, counts=False, notes=(*files.notes, note))
        runs.append(files)
    return Source(path=folder, runs=tuple(runs), is_series=True)


def _nothing_left(folder: Path, entry: SeriesRun) -> RunFiles:
    note = f"The folder {entry.folder} is not there; nothing is known of this run but its place in series.json."
    return RunFiles(
        name=entry.folder,
        path=folder / entry.folder,
        is_folder=True,
        values={},
        system={},
        notes=(note,),
    )
