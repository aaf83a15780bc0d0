"""Writes the report of runs: the page, and the short text beside it."""

from collections.abc import Sequence
from pathlib import Path

from maskperf.files import write_text
from maskperf.report.contents import ReportContents
from maskperf.report.gather import gather
from maskperf.report.page import write_page
from maskperf.report.summary import markdown_summary

PAGE_FILE = "report.html"


def write_report(run_folder: Path) -> tuple[Path, Path]:
    """Return report.html and report.md of a run or of a series, written into its folder over older ones.

    Errors: DataError or ConfigError for a file of the run that cannot be read; StorageError for one not written.
    """
    page, summary, _ = write_report_to([run_folder], [], run_folder / PAGE_FILE)
    return page, summary


def write_report_to(runs: Sequence[Path], compared: Sequence[Path], page: Path) -> tuple[Path, Path, ReportContents]:
    """Return the page, the text beside it (the same name with .md), and what both show."""
    contents = gather(runs, compared)
    summary = page.with_suffix(".md")
    write_page(contents, page)
    write_text(summary, markdown_summary(contents))
    return page, summary, contents
