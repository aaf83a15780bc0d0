"""`maskperf report RUN...`: writes a page about one run or several, also about published logs."""

import argparse
from pathlib import Path

from maskperf.cli.words import WordParser, asks_for_help, path_word, read_words, require_new_file
from maskperf.errors import EXIT_DONE, ConfigError
from maskperf.report.contents import Verdict

USAGE = "maskperf report RUN... [--compare RUN...] [--output FILE.html] [--overwrite]"
EXAMPLES = """A RUN is a run folder, the folder of a series, a log of the benchmark, or a folder of result_*.txt.

examples, to copy and paste:
  # the page of a run, written again into its folder
  maskperf report runs/demo-1
  # five runs and their score, beside a run of another day
  maskperf report runs/coco_batch_96-series --compare runs/coco_batch_96-1
  # a published log: result_0.report.html and result_0.report.md are written beside it
  maskperf report result_0.txt
  # two runs in one page, at a place of its own
  maskperf report runs/demo-1 runs/demo-2 --output both.html"""


PAGE_FILE = "report.html"


def report(arguments: list[str]) -> int:
    """Return the exit code: 0 where the page was written, whatever came of the runs."""
    parser = _make_parser()
    if not arguments or asks_for_help(arguments):
        print(parser.format_help(), end="")
        return EXIT_DONE
    choices = read_words(parser, arguments)
    runs, compared = [Path(word) for word in choices.runs], [Path(word) for word in choices.compare]
    page = _page_path(choices.output, runs[0])
    if page != runs[0] / PAGE_FILE and runs[0].exists():  # only a run's own report is written again unasked
        for path in (page, page.with_suffix(".md")):
            require_new_file(path, choices.overwrite, fix="Choose another place with --output, or add --overwrite.")
    return _write(runs, compared, page)


def _make_parser() -> WordParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = WordParser(
        "maskperf report", usage=USAGE, epilog=EXAMPLES, formatter_class=formatter, add_help=False, allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", metavar="RUN", type=path_word, nargs="+", help="what the page is about")
    add("--compare", metavar="RUN", type=path_word, nargs="+", default=[], help="drawn beside it, dashed")
    add(
        "--output",
        metavar="FILE.html",
        type=path_word,
        help="the page (default: report.html in the first RUN, or beside a log)",
    )
    add("--overwrite", action="store_true", help="write over files that exist")
    return parser


def _page_path(output: str | None, first: Path) -> Path:
    """Return where the page goes: into the folder of a run or series, beside a log or a folder of a package.

    Nothing is added inside a folder of result_*.txt: it may be a part of a submission.
    """
    if output is not None:
        if not output.endswith(".html"):
            raise ConfigError(f"--output {output}: the page is an HTML file. Fix: give a name that ends with .html.")
        return Path(output)
    if first.is_dir() and not any(first.glob("result_*.txt")):
        return first / PAGE_FILE
    if first.is_dir():
        return Path(f"{first.resolve().parent.name}.report.html")
    return first.with_name(f"{first.stem}.report.html")


def _write(runs: list[Path], compared: list[Path], page: Path) -> int:
    from maskperf.report.placement import placement_sentence
    from maskperf.report.write import write_report_to

    page, summary, contents = write_report_to(runs, compared, page)
    lines = [contents.title, contents.sentence]
    if len(contents.runs) > 1:
        lines += [f"  {run.name}: {run.verdict.sentence}" for run in contents.runs]
        lines += [contents.score.sentence] if contents.score is not None else []
    else:
        lines += [_ap_line(verdict) for verdict in [contents.runs[0].verdict] if verdict.box_ap is not None]
    lines += _note_lines({run.name: run.notes for run in contents.runs})
    lines += [line for line in (placement_sentence(contents.places), contents.places_note) if line]
    print("\n".join([*lines, f"written: {page}", f"written: {summary}"]))
    return EXIT_DONE


def _ap_line(verdict: Verdict) -> str:
    pairs = (("box AP", verdict.box_ap, verdict.box_target), ("mask AP", verdict.mask_ap, verdict.mask_target))
    texts = [f"{name} {ap:.4f}" + (f" (target {target:g})" if target is not None else "") for name, ap, target in pairs]
    return f"last evaluation: {', '.join(texts)}"


def _note_lines(notes_of_run: dict[str, tuple[str, ...]]) -> list[str]:
    """Return each note once, with the runs that it is about unless it is about all of them."""
    runs_of_note: dict[str, list[str]] = {}
    for name, notes in notes_of_run.items():
        for note in dict.fromkeys(notes):
            runs_of_note.setdefault(note, []).append(name)
    return [
        f"note: {note}" if len(names) == len(notes_of_run) else f"note ({', '.join(names)}): {note}"
        for note, names in runs_of_note.items()
    ]
