"""Runs of one recipe after another, each in a process of its own, and the score of five of them."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_RULE, EXIT_TARGET_MISSED, EXIT_USAGE
from maskperf.files import pretty_json, write_text
from maskperf.mlperf.rules import RUNS
from maskperf.mlperf.scoring import score_minutes
from maskperf.overrides import path_as_argument
from maskperf.run.console import make_console, make_table
from maskperf.run.run_folder import create_run_folder
from maskperf.schema import CONFIG_FILE, RESULTS_FILE, SERIES_FILE, Results, Series, SeriesRun, read_json

COLUMNS = ("run", "status", "exit code", "epochs", "minutes", "seed")
ENDED_WELL = ("success", "done")
SECONDS_TO_END_ALONE = 5.0  # a child that Ctrl-C of a terminal has reached as well as us
SECONDS_TO_END = ((signal.SIGINT, 30.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))


def run_series(recipe: str, arguments: Sequence[str], *, runs: int, run_dir: str = "") -> int:
    """Return the exit code of the series: 0 where there is a score, or where all runs ended well.

    Each run is `maskperf run <recipe> <arguments> run_dir=...` in a fresh Python, into its own folder. A failed run
    is counted, and the next goes on; but a mistake that stops the first run would stop them all, so its exit code is
    that of the series. `series.json` is renewed after every run.

    Errors: StorageError where the folder of the series cannot be made or is not empty.
    """
    folder = create_run_folder(run_dir, Path(recipe).stem, "-series")  # of a recipe file, its name
    print(f"series of {runs} runs in {folder}", flush=True)
    found: list[SeriesRun] = []
    _write(folder, recipe, found, runs)
    with _ended_by_sigterm():
        for number in range(runs):
            name = f"run_{number}"
            print(f"\nrun {number + 1} of {runs}: {folder / name}", flush=True)
            run_dir = f"run_dir={path_as_argument(folder / name)}"
            code = run_child([sys.executable, "-m", "maskperf", "run", recipe, *arguments, run_dir])
            found.append(read_run(folder / name, code))
            _write(folder, recipe, found, runs)
            if number == 0 and code in (EXIT_USAGE, EXIT_DATA, EXIT_RULE):
                print(f"the series ends here: the other runs would meet the same ({folder / SERIES_FILE})", flush=True)
                return code
    _show(found, folder, runs)
    is_done = _score(found) is not None or all(run.status in ENDED_WELL for run in found)
    return EXIT_DONE if is_done else EXIT_TARGET_MISSED


def run_child(command: list[str]) -> int:
    """Return the exit code of a command that writes to our own output; 128 and the signal's number for a killed one.

    However we are stopped meanwhile, the child is ended first.
    """
    child = subprocess.Popen(command)
    try:
        code = child.wait()  # without a limit: nobody knows how long a run takes
    except BaseException as reason:
        _end(child, was_interrupted=isinstance(reason, KeyboardInterrupt))
        raise
    return code if code >= 0 else 128 - code


def read_run(folder: Path, exit_code: int) -> SeriesRun:
    """Return what is known of a run from its exit code and its folder."""
    results, config = read_json(folder / RESULTS_FILE, Results), read_json(folder / CONFIG_FILE, dict)
    status = results.status if results else "failed"
    if status in ENDED_WELL and exit_code != EXIT_DONE:
        status = "failed"  # it came to its end and fell over afterwards
    return SeriesRun(
        folder=folder.name,
        exit_code=exit_code,
        status=status,
        minutes=results.seconds / 60 if results else None,
        epochs=results.epochs if results else None,
        seed=config.get("seed") if config else None,
    )


def series_sentence(found: Sequence[SeriesRun], runs: int) -> str:
    """Return the outcome of the runs so far."""
    done = sum(run.status == "done" for run in found)
    if done:
        return f"{done} of {runs} runs trained to their end; without targets there is no score."
    succeeded = sum(run.status == "success" for run in found)
    if len(found) < runs:
        return f"{len(found)} of {runs} runs are done, {succeeded} of them met their targets."
    text = f"{succeeded} of {runs} runs met their targets"
    if runs != RUNS:
        return f"{text}; a score needs {RUNS} runs."
    score = _score(found)
    if score is None:
        return f"{text}; there is no score, at most one run may fail."
    failed = "; the failed run counts as the slowest" if succeeded < runs else ""
    return f"{text}{failed}; score {score:.3f} minutes, the mean without the fastest and the slowest."


def _score(found: Sequence[SeriesRun]) -> float | None:
    return score_minutes([run.minutes if run.status == "success" else None for run in found])


def _write(folder: Path, recipe: str, found: Sequence[SeriesRun], runs: int) -> None:
    series = Series(
        recipe=recipe, runs=tuple(found), score_minutes=_score(found), sentence=series_sentence(found, runs)
    )
    write_text(folder / SERIES_FILE, pretty_json(series))


def _show(found: Sequence[SeriesRun], folder: Path, runs: int) -> None:
    console = make_console()
    table = make_table(console, COLUMNS)
    for run in found:
        minutes = "-" if run.minutes is None else f"{run.minutes:.3f}"
        status = "targets missed" if run.exit_code == EXIT_TARGET_MISSED else run.status
        cells = (run.folder, status, _text(run.exit_code), _text(run.epochs), minutes, _text(run.seed))
        table.add_row(*cells, style=None if run.status in ENDED_WELL else "red")
    console.print()
    console.print(table)
    console.print(series_sentence(found, runs), soft_wrap=True)
    console.print(f"where to look: {folder / SERIES_FILE}", soft_wrap=True)


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def _end(child: subprocess.Popen, *, was_interrupted: bool) -> None:
    """End a child, each time less kindly; `was_interrupted` if Ctrl-C of a terminal may have reached it already.

    A second SIGINT would break off its tidying up, so such a child is first left some time.
    """
    signals = [(None, SECONDS_TO_END_ALONE)] if was_interrupted else []
    try:
        for sent, seconds in (*signals, *SECONDS_TO_END):
            if sent is not None:
                child.send_signal(sent)
            with suppress(subprocess.TimeoutExpired):
                child.wait(seconds)
                return
    finally:
        if child.poll() is None:  # a second Ctrl-C came meanwhile
            child.kill()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, which would end Python on the spot, leave through the `finally` clauses: no child goes on alone."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before: Callable | int | None = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
