"""`maskperf report RUN...`: writes a page about one run or several, also about published logs."""

import argparse
from pathlib import Path
from typing import Any

from maskperf.cli.arguments import CommandParser, require_existing, require_new_file
from maskperf.errors import EXIT_DONE, ConfigError

USAGE = "RUN... [--compare RUN...] [--output FILE.html] [--overwrite]"
EXAMPLES = """A RUN is a run folder, the folder of a series, a log of the benchmark, or a folder of result_*.txt.

examples, to copy and paste:
  # the page of a run, written again into its folder
  maskperf report runs/demo-1
  # five runs and their score, beside a run of another day
  maskperf report runs/coco_batch_96-series --compare runs/coco_batch_96-1
  # a published log: result_0.report.html and result_0.report.md are written beside it
  maskperf report result_0.txt
  # two runs in one page, in a file of its own
  maskperf report runs/demo-1 runs/demo-2 --output both.html"""
PAGE_FILE = "report.html"


def add_options(parser: CommandParser) -> None:
    parser.add_path("runs", "RUN", "what the page is about", nargs="+")
    parser.add_path("--compare", "RUN", "drawn beside it, dashed", nargs="+", default=[])
    parser.add_path("--output", "FILE.html", "the page (default: report.html in the first RUN, or beside a log)")
    parser.add_argument("--overwrite", action="store_true", help="write over files that exist")


def report(options: argparse.Namespace) -> int:
    """Write the page and its summary; the exit code is 0 whatever came of the runs."""
    first = options.runs[0]
    page = options.output or _default_page(first)
    if page.suffix != ".html":
        raise ConfigError(f"--output {page}: the page is an HTML file. Fix: give a name that ends with .html.")
    require_existing("RUN", [*options.runs, *options.compare])
    if page != first / PAGE_FILE and first.exists():  # only a run's own report is written again unasked
        for path in (page, page.with_suffix(".md")):
            require_new_file(path, overwrite=options.overwrite)

    from maskperf.report.write import write_report

    summary, contents = write_report(options.runs, options.compare, page)
    print("\n".join([*_summary_lines(contents), f"written: {page}", f"written: {summary}"]))
    return EXIT_DONE


def _default_page(first: Path) -> Path:
    """Return a page in the folder of a run or series, beside a log, or in this folder for a folder of result_*.txt.

    Nothing is added inside a folder of result_*.txt: it may be a part of a submission.
    """
    if not first.is_dir():
        return first.with_name(f"{first.stem}.report.html")
    if any(first.glob("result_*.txt")):
        return Path(f"{first.resolve().parent.name}.report.html")
    return first / PAGE_FILE


def _summary_lines(contents: Any) -> list[str]:
    from maskperf.report.placement import placement_sentence, runs_of_notes

    lines = [contents.title, contents.sentence]
    if len(contents.runs) > 1:
        lines += [f"  {run.name}: {run.verdict.sentence}" for run in contents.runs]
        lines += [contents.score.sentence] if contents.score is not None else []
    elif contents.runs[0].verdict.box_ap is not None:
        verdict = contents.runs[0].verdict
        pairs = (("box AP", verdict.box_ap, verdict.box_target), ("mask AP", verdict.mask_ap, verdict.mask_target))
        texts = [f"{name} {ap:.4f}" + (f" (target {target:g})" if target else "") for name, ap, target in pairs]
        lines.append(f"last evaluation: {', '.join(texts)}")
    for note, names in runs_of_notes(contents.runs, "notes").items():
        lines.append(f"note: {note}" if len(names) == len(contents.runs) else f"note ({', '.join(names)}): {note}")
    return [*lines, *filter(None, (placement_sentence(contents.places), contents.places_note))]
