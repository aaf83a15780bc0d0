"""How verdicts look on the screen."""

from collections.abc import Iterable, Sequence

from maskperf.mlperf.findings import Finding, Verdict
from maskperf.mlperf.rules import RUNS
from maskperf.mlperf.run_set import CheckedLog, SetResult
from maskperf.mlperf.traps import meanings

HEADINGS = ("log", "compliance", "own checks", "status", "minutes", "epochs", "box AP", "mask AP", "seed")
SHOWN_CHARACTERS = 160
NOT_FOR_READERS = "current context"  # from here on the checker prints its own variables


def log_table(logs: Sequence[CheckedLog]) -> list[str]:
    """Return the lines of a table with one row for each log."""
    rows = [HEADINGS]
    for entry in logs:
        log = entry.log
        rows.append(
            (
                str(log.path),
                entry.compliance.label,
                entry.traps.label,
                *_outcome(entry),
                ", ".join(map(str, log.seeds)) or "-",
            )
        )
    return columns(rows)


def _outcome(entry: CheckedLog) -> tuple[str, ...]:
    """Return status, minutes, epochs and both APs of a log; a file of several runs has none of its own."""
    if entry.holds_several_runs:
        return ("several runs", "-", "-", "-", "-")
    log = entry.log
    last = log.evaluations[-1] if log.evaluations else None
    return (
        log.status,
        _number(log.run_seconds and log.run_seconds / 60, 3),
        _number(entry.last_epoch, 0),
        _number(last and last.box_ap, 4),
        _number(last and last.mask_ap, 4),
    )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of texts as lines with aligned columns."""
    widths = [max(len(_plain(row[place])) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(_plain(text).ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def meaning_lines(logs: Sequence[CheckedLog]) -> list[str]:
    """Return what has to be said about the nature of logs, each thing once, with the logs where it is not all."""
    logs_of: dict[str, list[str]] = {}
    for entry in logs:
        for text in meanings(entry.log):
            logs_of.setdefault(text, []).append(str(entry.log.path))
    return [text if len(paths) == len(logs) else f"{', '.join(paths)}: {text}" for text, paths in logs_of.items()]


def log_details(entry: CheckedLog) -> list[str]:
    """Return the lines of every finding about one log; nothing where there is none."""
    lines = [line for verdict in (entry.compliance, entry.traps) for line in verdict_lines(verdict)]
    for run in entry.alone:
        verdicts = (run.compliance, run.traps)
        words = ", ".join(f"{verdict.checker} {verdict.label}" for verdict in verdicts)
        lines.append(f"  {run.lines} alone: {words}")
        lines += [line for verdict in verdicts for finding in verdict.findings for line in finding_lines(finding)]
    return [f"{entry.log.path}:", *lines] if lines else []


def verdict_lines(verdict: Verdict) -> list[str]:
    """Return the lines of every finding of a verdict; nothing where there is none."""
    lines = [line for finding in verdict.findings for line in finding_lines(finding)]
    if verdict.num_not_shown:
        count = f"{verdict.num_not_shown} finding{'s' if verdict.num_not_shown > 1 else ''}"
        lines.append(f"    {count} about the whole file not shown: it holds more than one run")
    return [f"  {verdict.checker}: {verdict.label}", *lines] if lines else []


def finding_lines(finding: Finding) -> list[str]:
    """Return a finding in the checker's words, then in ours; one that is not known is shown whole."""
    text = finding.text
    if finding.explanation:
        text = text.partition(NOT_FOR_READERS)[0].rstrip()
    shown = [_shorten(line) if finding.explanation else _plain(line) for line in text.splitlines()]
    lines = [
        f"    {'-' if finding.refuses else 'note:'} {shown[0] if shown else ''}",
        *(f"      {line}" for line in shown[1:]),
    ]
    if not finding.explanation:
        return [*lines, "      means: not known to maskperf; these are the checker's own words"]
    return [*lines, f"      means: {_plain(finding.explanation)}", f"      fix:  {_plain(finding.fix)}"]


def parts_table(verdicts: Iterable[Verdict]) -> list[str]:
    """Return one line for each part of the package checker, with its findings below."""
    verdicts = list(verdicts)
    lines = [f"  {line}" for line in columns([(verdict.checker, verdict.label) for verdict in verdicts])]
    for verdict, line in zip(verdicts, lines.copy(), strict=True):
        place = lines.index(line)
        lines[place + 1 : place + 1] = verdict_lines(verdict)[1:]
    return lines


def set_lines(logs: Sequence[CheckedLog], result: SetResult, *, accepted: bool) -> list[str]:
    """Return what logs are worth together: the comparison with the reference, and the score."""
    if len(logs) != RUNS:
        return [f"  {len(logs)} logs: {RUNS} are needed for a score and for the comparison with the reference."]
    lines = []
    if result.reference is None:
        lines.append(
            "  no comparison with the reference: it is for closed runs with one batch size and the targets of COCO."
        )
    else:
        lines.append(f"  epochs of the reference: {result.reference.sentence}")
        if result.reference_v3_1 is not None and result.reference_v3_1.passed != result.reference.passed:
            lines.append(f"  as the tool of round v3.1 judged: {result.reference_v3_1.sentence}")
    lost = [entry for entry in logs if entry.minutes is None]
    if lost:
        lines.append(f"  without a time that counts: {', '.join(str(entry.log.path) for entry in lost)}")
    if result.score is None:
        return [*lines, "  score: none; more than one of the five runs does not count"]
    times = ", ".join(_number(entry.minutes, 3) for entry in logs)
    name = "score" if accepted else "score, if nothing had been refused"
    factor = f", times {result.scaling_factor:.4f}" if result.scaling_factor != 1 else ""
    return [*lines, f"  {name}: {result.score:.3f} minutes (mean of the middle three of {times}{factor})"]


def _number(value: int | float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _plain(text: str) -> str:
    """Return text that cannot move the cursor or change colours: logs are written by others."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _shorten(text: str) -> str:
    plain = _plain(text)
    return plain if len(plain) <= SHOWN_CHARACTERS else plain[: SHOWN_CHARACTERS - 3] + "..."
