"""The report as a short Markdown text."""

import re
from collections.abc import Iterable, Sequence

from maskperf.report.contents import ReportContents, RunPage, SeriesScore
from maskperf.report.placement import find_placement, overall_state, placement_sentence, places_nearby
from maskperf.report.text import (
    STATE_TITLES,
    ap_text,
    cleaned,
    count_text,
    minutes_text,
    percent_text,
    seconds_text,
    target_text,
)

PLACES_ON_EACH_SIDE = 3
MOST_EVALUATIONS = 40
RUN_HEADER = ("Run", "Result", "Minutes", "Epochs", "Box AP", "Mask AP")
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
    contents = cleaned(contents)
    blocks = [f"# {escape(contents.title)}", *_verdict(contents), *_score(contents.score), *_places(contents)]
    for run in contents.runs:
        blocks += _run(run, several=len(contents.runs) > 1)
    if contents.compared:
        blocks += ["## Compared with", _table(RUN_HEADER, [_run_row(run) for run in contents.compared])]
    blocks.append(f"Written {escape(contents.written_at)}.")
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Return the text such that Markdown shows it as it is; it must be one line."""
    text = text.strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = INLINE_MARKS.sub(lambda found: "\\" + found.group(), text)
    # A number before a dot must not be escaped itself; its dot can be.
    return LINE_MARKS.sub(lambda found: found.group() + "\\" if found.group().isdigit() else "\\" + found.group(), text)


def _verdict(contents: ReportContents) -> list[str]:
    state = overall_state(contents)
    blocks = [f"**{escape(STATE_TITLES.get(state, state))}.** {escape(contents.sentence)}"]
    if len(contents.runs) > 1:
        blocks.append(_table(RUN_HEADER, [_run_row(run) for run in contents.runs]))
    return blocks


def _run_row(run: RunPage) -> tuple[str, ...]:
    verdict = run.verdict
    return (
        escape(run.name),
        escape(STATE_TITLES.get(verdict.state, verdict.state)),
        minutes_text(verdict.minutes),
        str(run.evaluations[-1].epoch) if run.evaluations else count_text(None),
        ap_text(verdict.box_ap, verdict.box_target),
        ap_text(verdict.mask_ap, verdict.mask_target),
    )


def _score(score: SeriesScore | None) -> list[str]:
    if score is None:
        return []
    minutes = "none" if score.score_minutes is None else f"**{minutes_text(score.score_minutes)} minutes**"
    rows = []
    for number, (taken, kept) in enumerate(zip(score.minutes, score.kept, strict=False), start=1):
        rows.append((str(number), minutes_text(taken), "missed" if taken is None else "counts" if kept else "left out"))
    return ["## Score", f"{minutes[:1].upper()}{minutes[1:]}. {escape(score.sentence)}",
            _table(("Run", "Minutes", "In the mean"), rows)]  # fmt: skip


def _places(contents: ReportContents) -> list[str]:
    if not contents.places:
        return ["## Published systems", escape(contents.places_note)] if contents.places_note else []
    rows = []
    for rank, place in places_nearby(contents.places, PLACES_ON_EACH_SIDE):
        name = f"**{escape(place.name)}** (this one)" if place.is_this else escape(place.name)
        accelerators = count_text(place.accelerators)
        rows.append((str(rank), name, f"{accelerators} x {escape(place.accelerator)}", minutes_text(place.minutes),
                     minutes_text(place.minutes_times_accelerators)))  # fmt: skip
    header = ("Place", "System", "Accelerators", "Minutes", "Minutes x accelerators")
    lines = [placement_sentence(contents.places), escape(contents.places_note)]
    hidden = len(contents.places) - len(rows)
    more = [f"{hidden} more systems are not shown."] if hidden and find_placement(contents.places) else []
    return ["## Among the published systems", " ".join(line for line in lines if line), _table(header, rows), *more]


def _run(run: RunPage, *, several: bool) -> list[str]:
    verdict = run.verdict
    blocks = [f"## {escape(run.name)}"]
    if several:
        blocks.append(escape(verdict.sentence))
    blocks += [_list(run.notes)] if run.notes else []
    blocks += ["Notices:", _list(run.notices)] if run.notices else []
    if run.evaluations:
        targets = f"Targets: box AP {target_text(verdict.box_target)}, mask AP {target_text(verdict.mask_target)}."
        shown = run.evaluations[-MOST_EVALUATIONS:]
        rows = [(str(point.epoch), minutes_text(point.minutes), ap_text(point.box_ap, verdict.box_target),
                 ap_text(point.mask_ap, verdict.mask_target)) for point in shown]  # fmt: skip
        blocks += [targets, _table(("Epoch", "Minutes", "Box AP", "Mask AP"), rows)]
        if len(shown) < len(run.evaluations):
            blocks.append(f"The first {len(run.evaluations) - len(shown)} evaluations are not shown.")
    else:
        blocks.append("No evaluation was recorded.")
    if run.phases:
        whole = sum(phase.seconds for phase in run.phases)
        parts = [(escape(phase.name), seconds_text(phase.seconds), percent_text(phase.seconds, whole))
                 for phase in run.phases]  # fmt: skip
        blocks.append(_table(("Where the time went", "Time", "Part"), [*parts, ("all", seconds_text(whole), "")]))
    broken = [row for row in run.rules if not row.kept]
    if run.rules:
        blocks.append(f"Rules: {len(run.rules) - len(broken)} of {len(run.rules)} kept.")
        blocks += [
            _list(f"{row.rule}: {row.field} is {row.value or 'empty'}, allowed: {row.allowed}" for row in broken)
        ] * bool(broken)
    if run.guard:
        blocks += ["Collapse guard:", _list(_guard_line(entry.step, entry.epoch, entry.text) for entry in run.guard)]
    return blocks


def _guard_line(step: int | None, epoch: int | None, text: str) -> str:
    where = [f"step {step}"] * (step is not None) + [f"epoch {epoch}"] * (epoch is not None)
    return f"{', '.join(where)}: {text}" if where else text


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells that are user text must be escaped."""
    lines = [header, ["---" if index == 0 else "---:" for index in range(len(header))], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
