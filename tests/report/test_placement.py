"""The first lines of a report: state, the minutes that count, the placement among others; and texts of numbers."""

import math
from dataclasses import replace

import pytest
from synthetic_contents import PLACES, aborted, contents_of, five_runs_and_two_compared, one_run, synthetic_run

from maskperf.report.placement import headline_minutes, overall_state, placement_sentence, places_nearby, state_title
from maskperf.report.text import ap_text, count_text, minutes_text, percent_text, seconds_text, target_text


def test_the_state_says_how_many_runs_came_to_it_where_they_differ():
    fine = synthetic_run()
    missed = replace(fine, verdict=replace(fine.verdict, state="missed"))
    assert state_title(contents_of(fine)) == "Targets reached"
    assert state_title(contents_of(missed, fine, missed)) == "1 of 3 reached"
    assert state_title(contents_of(missed, missed)) == "Targets missed"


def test_the_state_is_that_of_the_score_or_the_worst_of_the_runs():
    assert overall_state(one_run()) == "reached"
    contents = five_runs_and_two_compared()
    contents = replace(contents, runs=(*contents.runs[:4], replace(aborted().runs[0], name="run_4")))
    assert overall_state(contents) == "reached"
    assert overall_state(replace(contents, score=None)) == "aborted"


def test_the_headline_is_the_score_or_the_time_of_the_one_run():
    assert headline_minutes(five_runs_and_two_compared())[0] == 19.277
    assert headline_minutes(one_run()) == (19.3, "minutes to target")
    assert headline_minutes(contents_of(synthetic_run(), synthetic_run()))[0] is None


@pytest.mark.parametrize(
    ("product", "sentence"),
    [
        (1.0, "Place 3 of 5 by minutes, place 1 of 5 per accelerator, among the published v3.1 systems and this one."),
        (None, "Place 3 of 5 by minutes, among the published v3.1 systems and this one."),
    ],
)
def test_places_are_counted_by_what_is_smaller(product, sentence):
    places = [replace(place, is_this=False) for place in PLACES[:5]]
    assert placement_sentence(places) == placement_sentence(()) == ""
    places[2] = replace(places[2], is_this=True, minutes_times_accelerators=product)
    assert placement_sentence(places) == sentence


def test_places_nearby_are_those_on_both_sides():
    ranks = [rank for rank, _ in places_nearby(PLACES, 2)]
    own = 1 + next(index for index, place in enumerate(PLACES) if place.is_this)
    assert ranks == [own - 2, own - 1, own, own + 1, own + 2]


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (minutes_text, {None: "\u2013", math.nan: "\u2013", 0.0942: "0.094", 19.277: "19.28", 12345.6: "12,345.6"}),
        (seconds_text, {8.246: "8.25 s", 59.96: "60.0 s", 187.2: "3 min 07 s", 3725.0: "1 h 02 min"}),
        (count_text, {17094: "17,094", 1482.3: "1,482", 9.876: "9.88"}),
        (target_text, {0: "none", 0.377: "0.377", 1: "1", 1e-3: "0.001", None: "\u2013"}),
        (lambda pair: ap_text(*pair), {(0.37699, 0.377): "0.37699", (0.377, 0.377): "0.3770"}),
        (lambda pair: ap_text(*pair), {(0.3769999999, 0.377): "0.3769999999"}),
        (lambda pair: percent_text(*pair), {(1.0, 0.0): "\u2013", (1.0, 8.0): "12.5 %"}),
    ],
)
def test_numbers_are_written_for_readers(write, texts):
    assert {number: write(number) for number in texts} == texts
