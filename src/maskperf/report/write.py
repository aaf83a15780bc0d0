"""Writes the report of runs: the page, and the short text beside it."""

from collections.abc import Sequence
from pathlib import Path

from maskperf.files import write_text
from maskperf.report.contents import ReportContents
from maskperf.report.gather import gather
from maskperf.report.page import page_text
from maskperf.report.summary import markdown_summary


def write_report(runs: Sequence[Path], compared: Sequence[Path], page: Path) -> tuple[Path, ReportContents]:
    """Write the page, and the text beside it (the same name with .md); return the file of the text and what both show.

    Errors: DataError or ConfigError for a file of a run that cannot be read; StorageError for one not written.
    """
    contents = gather(runs, compared)
    summary = page.with_suffix(".md")
    write_text(page, page_text(contents))
    write_text(summary, markdown_summary(contents))
    return summary, contents
