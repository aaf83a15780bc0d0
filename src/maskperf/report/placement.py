"""The first lines of a report: state, time, and placement among the published results."""

from collections.abc import Sequence
from dataclasses import dataclass

from maskperf.mlperf.published import RankedSystem
from maskperf.report.contents import ReportContents
from maskperf.report.text import is_number

STATES_FROM_WORST = ("aborted", "unfinished", "missed", "done", "reached")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Place of this report among all systems listed, 1 is the best."""

    place: int
    place_per_accelerator: int | None
    systems: int  # this one included
    systems_per_accelerator: int  # those whose number of accelerators is known


def overall_state(contents: ReportContents) -> str:
    """Return the state of the report: of its score where there is one, or else the worst of its runs."""
    if contents.score is not None and is_number(contents.score.score_minutes):
        return "reached"
    states = [run.verdict.state for run in contents.runs]
    return next((state for state in STATES_FROM_WORST if state in states), states[0] if states else "unfinished")


def headline_minutes(contents: ReportContents) -> tuple[float | None, str]:
    """Return the minutes that count, and what they are; None for several runs without a score."""
    if contents.score is not None:
        return contents.score.score_minutes, f"score, minutes, of {len(contents.score.minutes)} runs"
    if len(contents.runs) == 1:
        verdict = contents.runs[0].verdict
        return verdict.minutes, "minutes to target" if verdict.state == "reached" else "minutes spent"
    return None, "no score"


def find_placement(places: Sequence[RankedSystem]) -> Placement | None:
    """Return the placement of the first entry that is this report; None where there is none."""
    own = next((place for place in places if place.is_this), None)
    if own is None:
        return None
    products = [product for place in places if is_number(product := place.minutes_times_accelerators)]
    product = own.minutes_times_accelerators
    return Placement(
        place=1 + sum(place.minutes < own.minutes for place in places),
        place_per_accelerator=1 + sum(other < product for other in products) if is_number(product) else None,
        systems=len(places),
        systems_per_accelerator=len(products),
    )


def placement_sentence(places: Sequence[RankedSystem]) -> str:
    """Return one sentence about `find_placement`, empty where there is none."""
    placement = find_placement(places)
    if placement is None:
        return ""
    text = f"Place {placement.place} of {placement.systems} by minutes"
    if placement.place_per_accelerator is not None:
        text += f", place {placement.place_per_accelerator} of {placement.systems_per_accelerator} per accelerator"
    return f"{text}, among the published v3.1 systems and this one."


def places_nearby(places: Sequence[RankedSystem], count: int) -> list[tuple[int, RankedSystem]]:
    """Return rank and entry of this report and of up to `count` before and after it; the first ones if it has none."""
    middle = next((index for index, place in enumerate(places) if place.is_this), count)
    ranked = list(enumerate(places, start=1))
    return ranked[max(0, middle - count) : middle + count + 1]
