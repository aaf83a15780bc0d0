"""The report as a short Markdown text."""

import html
import re

from maskperf.files import printable
from maskperf.report.contents import ReportContents
from maskperf.report.placement import overall_state, placement_sentence, places_nearby
from maskperf.report.text import STATE_TITLES, templates

PLACES_ON_EACH_SIDE = 3
MOST_EVALUATIONS = 40
# Characters that begin or end something within a line of Markdown or HTML.
INLINE_MARKS = re.compile(
    r"[\\`*\[\]{}|~$^#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|!(?=\[)|:(?=//)|(?<=www)\.|(?<=WWW)\.|@"
)
# What would make a list, heading, rule or quotation of a line that begins with it.
LINE_MARKS = re.compile(r"^(?:[-+=]|\d+(?=[.)]))")


def markdown_summary(contents: ReportContents) -> str:
    """Return verdict, score, evaluations, time account, places nearby and the guard's record, as Markdown.

    Text that came from files and names is escaped: it can make no markup, link or table cell of its own.
    """
    values = {
        "contents": contents,
        "state": overall_state(contents),
        "state_titles": STATE_TITLES,
        "placement": placement_sentence(contents.places),
        "places_nearby": places_nearby(contents.places, PLACES_ON_EACH_SIDE),
        "most_evaluations": MOST_EVALUATIONS,
    }
    return templates(md=escape).get_template("summary.md").render(values) + "\n"


def escape(text: str) -> str:
    """Return the text on one line, such that Markdown shows it as it is."""
    text = html.escape(printable(text).strip(), quote=False)
    text = INLINE_MARKS.sub(lambda found: "\\" + found.group(), text)
    # A number before a dot must not be escaped itself; its dot can be.
    return LINE_MARKS.sub(lambda found: found.group() + "\\" if found.group().isdigit() else "\\" + found.group(), text)
