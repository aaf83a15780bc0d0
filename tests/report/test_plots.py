"""The numbers of the plots: gaps, the published band, targets, and text that is safe in a script element."""

import re
from dataclasses import replace

import msgspec
import pytest
from synthetic_contents import (
    aborted,
    contents_of,
    five_runs_and_two_compared,
    one_run,
    synthetic_analysis,
    synthetic_run,
)

from maskperf.mlperf.published import BandEpoch, PublishedBand
from maskperf.report.plots import plot_data, plot_text


def test_numbers_that_are_not_finite_make_gaps():
    run = plot_data(aborted())["runs"][0]
    assert run["box_ap"][-1] is None and run["mask_ap"][-1] == 0.0
    assert run["total"][-1] is None and run["total"][0] > 0
    assert [event["step"] for event in run["guard"]] == [5880, 5913]


def with_losses(run, change):
    losses = (msgspec.structs.replace(p, total=change(i, p.total)) for i, p in enumerate(run.losses))
    return replace(run, losses=tuple(losses))


def test_a_run_that_diverged_does_not_flatten_the_others():
    fine = synthetic_run()
    lost = with_losses(synthetic_run("lost", 1), lambda index, total: total * 1.2 ** max(0, index - 100))
    plot = next(plot for plot in plot_data(contents_of(fine, lost, fine))["plots"] if plot["key"] == "total")
    typical = sorted(point.total for point in fine.losses)
    assert typical[225] < plot["top"] < 5 * typical[225]
    beyond, largest = re.search(
        "; ([0-9]+) points lie above it, up to ([0-9.e+]+)[.] A double click", plot["note"]
    ).groups()
    assert int(beyond) > 100 and float(largest) > 1e10


@pytest.mark.parametrize("change", [lambda index, total: total, lambda index, total: 3 * total, lambda *_: 0.0])
def test_losses_that_can_be_read_together_are_all_shown(change):
    plots = plot_data(contents_of(synthetic_run(), with_losses(synthetic_run("b", 1), change)))["plots"]
    assert not any("top" in plot or "note" in plot for plot in plots)


def test_the_curves_of_an_analysis_are_plots_over_recall_and_score():
    data = plot_data(contents_of(synthetic_run(analysis=synthetic_analysis()), synthetic_run("old", 1)))
    run, old = data["runs"]
    assert run["precision_box_50"][50] == 0.5 == run["recall"][50] and old["precision_box_50"] == []
    assert run["accuracy_mask"] == [None, 0.6] and run["score_mask"] == [None, 0.7]
    assert [plot["key"] for plot in data["plots"]][-2:] == ["accuracy_box", "accuracy_mask"]


def test_a_plot_without_any_number_is_left_out():
    run = synthetic_run()
    unknown = dict.fromkeys(("memory_gib", "rpn_box", "classification", "box"))
    run = replace(run, losses=tuple(msgspec.structs.replace(point, **unknown) for point in run.losses))
    keys = [plot["key"] for plot in plot_data(contents_of(run))["plots"]]
    assert keys == ["box_ap", "mask_ap", "total", "objectness", "mask", "learning_rate", "images_per_second"]


def test_compared_runs_come_after_the_runs_and_are_marked():
    runs = plot_data(five_runs_and_two_compared())["runs"]
    assert [run["compared"] for run in runs] == [False] * 5 + [True] * 2


@pytest.mark.parametrize(
    ("targets", "lines"),
    [
        ([(0.377, 0.339), (0.5, 0.339)], [None, 0.339]),  # drawn only where all runs have the same
        ([(0.377, 0.0)], [0.377, None]),
        ([(0.0, 0.0)], [None, None]),
    ],
)
def test_a_target_that_all_runs_have_gets_a_line(targets, lines):
    run = synthetic_run()
    verdicts = [replace(run.verdict, box_target=box, mask_target=mask) for box, mask in targets]
    plots = plot_data(contents_of(*(replace(run, verdict=verdict) for verdict in verdicts)))["plots"]
    assert [plot["target"] for plot in plots if plot["key"] in ("box_ap", "mask_ap")] == lines


def test_the_band_goes_from_the_fastest_and_best_around_to_the_slowest_and_worst():
    point = BandEpoch(epoch=1, box_mean=0.2, box_deviation=0.1, mask_mean=0.3, mask_deviation=0.2, minutes_low=4.0,
                      minutes_high=6.0, runs=3)  # fmt: skip
    second = replace(point, epoch=2, box_mean=0.4, minutes_low=8.0, minutes_high=9.0)
    band = plot_data(replace(one_run(), band=PublishedBand(batch_size=8, epochs=(point, second), sentence="")))["band"]
    epochs, minutes = band["box_ap"]["epochs"], band["box_ap"]["minutes"]
    assert epochs["x"] == [1, 2, 2, 1] and epochs["y"] == [0.3, 0.5, 0.3, 0.1]
    assert epochs["middle_y"] == [0.2, 0.4]
    assert minutes["x"] == [4.0, 8.0, 9.0, 6.0] and minutes["y"] == [0.3, 0.5, 0.3, 0.1] and minutes["middle_x"] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<b>", "&lt;b&gt;"), ("a & b", "a &amp; b"), ("&lt;", "&amp;lt;"), ("$x$", "&#36;x&#36;"), ("run_0", "run_0")]
    + [("first-" + "x" * 200 + "-last", "first-xxxxxxxx...xxxxxxxxxx-last")],
)
def test_a_label_has_no_markup_for_plotly_and_both_its_ends(text, expected):
    assert plot_text(text) == expected
