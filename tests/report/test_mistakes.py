"""Rows of the tables of errors: folded confusions keep every count, and pictures of runs meet by their titles."""

import msgspec
import pytest
from synthetic_contents import synthetic_analysis

from maskperf.report.mistakes import (
    category_scores,
    folded_confusions,
    most_confused,
    pictures_side_by_side,
    stat_rows,
    tide_rows,
)
from maskperf.schema import PictureEntry

# Indices 0 to 29 are categories, 30 is none; category 7 is confused most, then 20.
CONFUSIONS = (
    *((index, index, 10) for index in range(30)),
    *[(7, 8, 50), (20, 30, 30), (30, 20, 4), (3, 4, 2), (30, 1, 3), (9, 30, 1)],
)


def analysis_of(confusions, count=30):
    names = tuple(f"thing {index}" for index in range(count))
    return msgspec.structs.replace(synthetic_analysis(), categories=names, confusions=confusions)


@pytest.mark.parametrize("most", [1, 3, 12, 40])
def test_a_folded_table_keeps_every_count(most):
    table = folded_confusions(analysis_of(CONFUSIONS), most)
    assert sum(map(sum, table.counts)) == sum(count for _, _, count in CONFUSIONS)
    shown = min(most, 30)
    assert table.folded == 30 - shown and len(table.rows) == len(table.columns) == shown + (shown < 30) + 1
    sums = [sum(row) for row in table.shares]
    assert [share for share, row in zip(sums, table.counts, strict=True) if sum(row)] == pytest.approx(
        [1.0] * len(sums)
    )


def test_the_categories_with_most_errors_are_shown_in_their_order():
    table = folded_confusions(analysis_of(CONFUSIONS), 3)
    assert table.rows == ["thing 7", "thing 8", "thing 20", "all others", "no object"]
    assert table.columns[-1] == "missed"
    assert table.counts[0] == [10, 50, 0, 0, 0] and table.counts[2] == [0, 0, 10, 0, 30]
    assert table.counts[3:] == [[0, 0, 0, 272, 1], [0, 0, 4, 3, 0]]


def test_one_category_is_never_folded_alone():
    table = folded_confusions(analysis_of(((0, 1, 1),), count=4), 3)
    assert table.folded == 0 and len(table.rows) == 5


def test_pairs_are_sorted_and_none_is_no_category():
    assert most_confused(analysis_of(CONFUSIONS)) == [("thing 7", "thing 8", 50), ("thing 3", "thing 4", 2)]


def test_counts_of_a_category_stand_beside_its_ap():
    scores = category_scores({"thing 7": 0.5, "thing 20": None, "new": 0.1}, {"thing 7": 0.4}, analysis_of(CONFUSIONS))
    counts = [(row.objects, row.missed, row.confused, row.false) for row in scores]
    assert counts == [(60, 0, 50, 0), (40, 30, 0, 4), (None,) * 4]
    assert category_scores({"a": 0.5}, {}, None)[0].objects is None


def test_the_kind_that_costs_most_comes_first_and_none_is_left_out():
    rows = tide_rows(synthetic_analysis())
    costs = [row.largest for row in rows]
    assert len(rows) == 6 and costs == sorted(costs, reverse=True) and costs[0] > 0


def test_the_number_that_means_no_such_objects_is_none():
    assert stat_rows({"AP": 0.5, "AP of large": -1.0}, {"AP": -1.0}) == (("AP", 0.5, None), ("AP of large", None, None))


def test_pictures_of_runs_meet_by_their_titles():
    def run(*titles, kind="sample"):
        return [PictureEntry(kind=kind, title=title, caption="", jpeg_base64="/9j/") for title in titles]

    groups = pictures_side_by_side([run("a", "b"), run("b", "c"), run("b", kind="worst"), run("b", "a")])
    assert [[(index, entry.title) for index, entry in group] for group in groups] == [
        [(0, "a"), (3, "a")],
        [(0, "b"), (1, "b"), (3, "b")],
    ]
    assert pictures_side_by_side([run("a")]) == pictures_side_by_side([]) == []
