"""The first lines of a report: state, time, and placement among the published results."""

from collections.abc import Sequence

from maskperf.mlperf.published import RankedSystem
from maskperf.report.contents import ReportContents, RunPage
from maskperf.report.text import STATE_TITLES, is_number


def overall_state(contents: ReportContents) -> str:
    """Return the state of the report: of its score where there is one, or else the worst of its runs."""
    if contents.score is not None and is_number(contents.score.score_minutes):
        return "reached"
    states = [run.verdict.state for run in contents.runs]
    return min(states, key=list(STATE_TITLES).index)


def state_title(contents: ReportContents) -> str:
    """Return the state in words: how many runs came to it, where they differ."""
    if not contents.has_training:
        return "Evaluated"
    states = [run.verdict.state for run in contents.runs]
    state = overall_state(contents)
    if len(set(states)) <= 1 or state == "reached":
        return STATE_TITLES[state]
    best = max(states, key=list(STATE_TITLES).index)
    return f"{states.count(best)} of {len(states)} {best}"


def headline_minutes(contents: ReportContents) -> tuple[float | None, str]:
    """Return the minutes that count, and what they are; None for several runs without a score."""
    if contents.score is not None:
        return contents.score.score_minutes, f"score, minutes, of {len(contents.score.minutes)} runs"
    if len(contents.runs) == 1:
        verdict = contents.runs[0].verdict
        return verdict.minutes, "minutes to target" if verdict.state == "reached" else "minutes spent"
    return None, "no score"


def runs_of_notes(runs: Sequence[RunPage], field: str) -> dict[str, list[str]]:
    """Return each of the `notes` (or `notices`) of the runs once, with the names of the runs it belongs to."""
    names: dict[str, list[str]] = {}
    for run in runs:
        for note in dict.fromkeys(getattr(run, field)):
            names.setdefault(note, []).append(run.name)
    return names


def placement_sentence(places: Sequence[RankedSystem]) -> str:
    """Return a sentence about the places, 1 is the best, of the entry that is this report; empty without one."""
    own = next((place for place in places if place.is_this), None)
    if own is None:
        return ""
    text = f"Place {1 + sum(place.minutes < own.minutes for place in places)} of {len(places)} by minutes"
    products = [product for place in places if is_number(product := place.minutes_times_accelerators)]
    if is_number(own_product := own.minutes_times_accelerators):
        rank = 1 + sum(product < own_product for product in products)
        text += f", place {rank} of {len(products)} per accelerator"
    return f"{text}, among the published v3.1 systems and this one."


def places_nearby(places: Sequence[RankedSystem], count: int) -> list[tuple[int, RankedSystem]]:
    """Return rank and entry of this report and of up to `count` before and after it; the first ones if it has none."""
    middle = next((index for index, place in enumerate(places) if place.is_this), count)
    ranked = list(enumerate(places, start=1))
    return ranked[max(0, middle - count) : middle + count + 1]
