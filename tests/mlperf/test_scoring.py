import itertools

import pytest
from hypothesis import given, strategies
from mlperf_logging.rcp_checker import rcp_checker

from maskperf.mlperf.published import published_systems
from maskperf.mlperf.scoring import reference_check, reference_for, score_minutes

PUBLISHED_SIZES = (8, 48, 64, 88, 96, 110, 128, 256, 272)
BETWEEN_AND_OUTSIDE = (4, 7, 16, 32, 112, 129, 144, 192, 271, 273, 512)


@pytest.fixture(scope="module")
def official():
    return rcp_checker.RCP_Checker("training", "3.1.0", "maskrcnn", False)


def _official_answer(checker, monkeypatch, batch_size, epochs):
    """Return (passed, factor) of the official tool for runs with these numbers of epochs."""
    lost = epochs.count(None)
    found = None if lost > 1 else [1e9 if epoch is None else epoch for epoch in epochs]
    monkeypatch.setattr(rcp_checker, "get_submission_epochs", lambda *_: (batch_size, found, "maskrcnn"))
    monkeypatch.setattr(rcp_checker, "RCP_Checker", lambda *_: checker)
    passed, _, factor = rcp_checker.check_directory("x", "training", "3.1.0", False, False, rcp_pass="pruned_rcps")
    return passed, factor


@pytest.mark.parametrize("batch_size", [*PUBLISHED_SIZES, *BETWEEN_AND_OUTSIDE])
def test_the_comparison_with_the_reference_is_that_of_the_official_tool(official, monkeypatch, batch_size):
    seen = set()
    for epochs in itertools.combinations_with_replacement([12, 13, 14, 16, 17, None], 5):
        found = reference_check(batch_size, epochs)
        passed, factor = _official_answer(official, monkeypatch, batch_size, list(epochs))
        assert (found.passed, found.scaling_factor) == (passed, pytest.approx(factor, abs=1e-4)), epochs
        seen.add(found.passed)
    assert seen == ({True, False} if batch_size <= 272 else {False})


@pytest.mark.parametrize(
    ("batch_size", "mean", "v3_1", "today"),
    [
        (8, 12.75, 12.2126, 12.1813),
        (16, 12.8333, 12.3556, 12.3277),
        (48, 13.1667, 12.8254, 12.8055),
        (96, 13.6667, 13.5302, 13.5222),
        (128, 14.0, 14.0, 14.0),
        (192, 15.3889, 15.2151, 15.1060),
        (272, 17.125, 16.7146, 16.4567),
    ],
)
def test_the_fewest_epochs_that_pass_in_both_versions_of_the_tool(batch_size, mean, v3_1, today):
    # Numbers of both tools, which search to 1e-4.
    new, old = (reference_for(batch_size, as_in_v3_1=is_old) for is_old in (False, True))
    assert new["RCP Mean"] == old["RCP Mean"] == pytest.approx(mean, abs=1e-4)
    assert new["Min Epochs"] == pytest.approx(today, abs=2e-4)
    assert old["Min Epochs"] == pytest.approx(v3_1, abs=2e-4)


@pytest.mark.parametrize(
    ("batch_size", "epochs", "passed"),
    [(96, (13, 13, 14, 14, 14), True), (128, (13, 13, 14, 14, 14), False), (4, (13,) * 5, True), (4, (12,) * 5, False)],
)
def test_sets_that_the_package_checker_of_v3_1_decided(batch_size, epochs, passed):
    assert reference_check(batch_size, epochs, as_in_v3_1=True).passed is passed


@pytest.mark.parametrize(
    ("batch_size", "epochs", "factor", "text"),
    [
        (96, [14, 14, 13, 14, 13], 1, "passed: 13.667"),
        (8, [13, 13, 12, 12, 13], 12.75 / (38 / 3), "multiplied by 1.0066"),
        (128, [13] * 5, 14 / 13, "Too few epochs"),
        (96, [14, None, 14, 14, None], 1, "2 of 5 runs failed"),
        (300, [14] * 5, 1, "above 272"),
        (96, [14] * 4, 1, "4 are there"),
    ],
)
def test_the_sentence_has_what_was_compared_and_what_follows(batch_size, epochs, factor, text):
    check = reference_check(batch_size, epochs)
    assert text in check.sentence and check.scaling_factor == pytest.approx(factor)


@pytest.mark.parametrize(
    ("minutes", "score"),
    [([5, 1, 3, 2, 4], 3), ([5, None, 3, 2, 4], 4), ([5, None, 3, None, 4], None), ([5] * 4, None)],
)
def test_the_score_drops_the_fastest_and_the_slowest(minutes, score):
    assert score_minutes(minutes) == score


@given(strategies.permutations([19.1, 20.5, 18.3, 40.0, None]))
def test_the_order_of_the_runs_does_not_matter(minutes):
    assert score_minutes(minutes) == pytest.approx((19.1 + 20.5 + 40.0) / 3)


def test_published_scores_are_found_again():
    # Times and scores were published with three decimals, so a mean of three may be off by one in the last.
    for system in published_systems():
        minutes = [run.minutes if run.reached else None for run in system.runs]
        assert score_minutes(minutes) == pytest.approx(system.score_minutes, abs=1.01e-3), system.name
