"""The first lines of a report: state, the minutes that count, the placement among others; and texts of numbers."""

from dataclasses import replace

import pytest
from synthetic_contents import (
    aborted,
    contents_of,
    five_runs_and_two_compared,
    one_run,
    synthetic_places,
    synthetic_run,
)

from maskperf.report.placement import find_placement, headline_minutes, overall_state, placement_sentence, places_nearby
from maskperf.report.text import UNKNOWN, ap_text, count_text, minutes_text, percent_text, seconds_text, target_text


def test_the_worst_state_is_that_of_the_report():
    good, bad = synthetic_run(), aborted().runs[0]
    assert overall_state(contents_of(good)) == "reached"
    assert overall_state(contents_of(good, bad)) == "aborted"


def test_a_score_counts_more_than_a_run_that_failed():
    contents = five_runs_and_two_compared()
    runs = (*contents.runs[:4], replace(aborted().runs[0], name="run_4"))
    assert overall_state(replace(contents, runs=runs)) == "reached"
    assert overall_state(replace(contents, runs=runs, score=None)) == "aborted"


def test_the_headline_is_the_score_or_the_time_of_the_one_run():
    assert headline_minutes(five_runs_and_two_compared())[0] == 19.277
    assert headline_minutes(one_run()) == (19.3, "minutes to target")
    assert headline_minutes(contents_of(synthetic_run(), synthetic_run()))[0] is None


def test_places_are_counted_by_what_is_smaller():
    places = synthetic_places()[:5]
    own = replace(places[2], is_this=True, minutes_times_accelerators=1.0)
    placement = find_placement((*places[:2], own, *places[3:]))
    assert (placement.place, placement.systems) == (3, 5)
    assert (placement.place_per_accelerator, placement.systems_per_accelerator) == (1, 5)


def test_without_a_number_of_accelerators_there_is_one_place():
    places = synthetic_places()[:3]
    own = replace(places[0], is_this=True, minutes_times_accelerators=None)
    assert placement_sentence((own, *places[1:])).startswith("Place 1 of 3 by minutes, among the published")
    assert placement_sentence(places) == "" and find_placement(()) is None


def test_places_nearby_are_those_on_both_sides():
    places = synthetic_places()
    ranks = [rank for rank, _ in places_nearby(places, 2)]
    own = 1 + next(index for index, place in enumerate(places) if place.is_this)
    assert ranks == [own - 2, own - 1, own, own + 1, own + 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (minutes_text(None), "\u2013"),
        (minutes_text(float("nan")), "\u2013"),
        (minutes_text(0.0942), "0.094"),
        (minutes_text(19.277), "19.28"),
        (minutes_text(12345.6), "12,345.6"),
        (seconds_text(8.246), "8.25 s"),
        (seconds_text(59.96), "60.0 s"),
        (seconds_text(187.2), "3 min 07 s"),
        (seconds_text(3725.0), "1 h 02 min"),
        (ap_text(0.37699, 0.377), "0.37699"),
        (ap_text(0.377, 0.377), "0.3770"),
        (ap_text(0.3769999999, 0.377), "0.3769999999"),
        (percent_text(1.0, 0.0), "\u2013"),
        (percent_text(1.0, 8.0), "12.5 %"),
        (count_text(17094), "17,094"),
        (count_text(1482.3), "1,482"),
        (count_text(9.876), "9.88"),
        (target_text(0), "none"),
        (target_text(0.0), "none"),
        (target_text(0.377), "0.377"),
        (target_text(1), "1"),
        (target_text(1e-3), "0.001"),
        (target_text(None), UNKNOWN),
    ],
)
def test_numbers_are_written_for_readers(text, expected):
    assert text == expected
