import itertools
import math

import pytest

from maskperf.errors import ConfigError
from maskperf.mlperf.convergence import (
    EpochForecast,
    failing_share,
    forecast_epochs,
    forecast_series,
    reference_decay_epoch,
)
from maskperf.mlperf.published import published_systems


def mean_of(forecast):
    assert sum(share for _, share in forecast.levels) == pytest.approx(1)
    return sum(epochs * share for epochs, share in forecast.levels)


@pytest.mark.parametrize(
    ("batch_size", "mean"), [(8, 12.7), (64, 14.6), (96, 14.05), (128, 14.0), (256, 17.1), (272, 17.1)]
)
def test_epochs_at_a_reference_point_are_those_of_its_runs(batch_size, mean):
    assert mean_of(forecast_epochs(batch_size, ())) == pytest.approx(mean)


def test_published_runs_of_the_same_schedule_count_too():
    assert "74 runs" in forecast_epochs(96, published_systems()).sentence  # 20 of the reference, 54 published
    # Of the ten published with batch 256, five have the decays of the reference point.
    assert "15 runs" in forecast_epochs(256, published_systems()).sentence


@pytest.mark.parametrize("batch_size", [20, 110, 192, 264])
def test_epochs_between_two_reference_points_are_interpolated(batch_size):
    forecast = forecast_epochs(batch_size, ())
    batches = (8, 48, 64, 96, 128, 256, 272)
    low = max(batch for batch in batches if batch < batch_size)
    high = min(batch for batch in batches if batch > batch_size)
    weight = (batch_size - low) / (high - low)
    wanted = (1 - weight) * mean_of(forecast_epochs(low, ())) + weight * mean_of(forecast_epochs(high, ()))
    assert mean_of(forecast) == pytest.approx(wanted, abs=0.05)  # 20 levels stand for all runs
    assert f"batch {low} and batch {high}" in forecast.sentence


def test_epochs_below_the_smallest_reference_point_are_its_own_and_this_is_said():
    forecast = forecast_epochs(2, ())
    assert forecast.levels == forecast_epochs(8, ()).levels
    assert "below batch 8 there is no reference point" in forecast.sentence


def test_epochs_above_the_largest_reference_point_are_refused():
    with pytest.raises(ConfigError, match=r"no reference point above batch 272.*Fix"):
        forecast_epochs(273, published_systems())


@pytest.mark.parametrize(("batch_size", "epoch"), [(8, 13.10), (96, 13.09), (128, 13.09), (256, 16.34), (272, 16.34)])
def test_last_decay_of_the_reference_points_is_after_the_published_epoch(batch_size, epoch):
    assert reference_decay_epoch(batch_size) == pytest.approx(epoch, abs=0.01)


def test_own_schedule_is_looked_up_among_published_runs_with_about_the_same():
    forecast = forecast_epochs(110, published_systems(), last_decay_step=16000)
    assert forecast.levels == ((14.0, 0.125), (15.0, 0.375), (16.0, 0.5))
    assert "8 published runs" in forecast.sentence
    assert mean_of(forecast_epochs(110, published_systems())) < 14.5


def test_a_later_decay_that_nobody_published_moves_the_end_by_as_much():
    usual = forecast_epochs(128, ())
    later = forecast_epochs(128, (), last_decay_step=12000 + 3 * 917)
    assert mean_of(later) == pytest.approx(mean_of(usual) + 3)
    assert "moved by 3.0" in later.sentence


def test_an_earlier_decay_that_nobody_published_gains_nothing():
    earlier = forecast_epochs(128, (), last_decay_step=8000)
    assert earlier.levels == forecast_epochs(128, ()).levels
    assert "not moved" in earlier.sentence


@pytest.mark.parametrize("failing", [0.0, 0.05, 0.4])
def test_score_of_five_is_that_of_all_series_counted_one_by_one(failing):
    levels = ((13.0, 0.2), (14.0, 0.5), (20.0, 0.3))
    forecast = EpochForecast(levels=levels, sentence="")
    outcomes = [*((epochs, share * (1 - failing)) for epochs, share in levels), (math.inf, failing)]
    total = valid = 0.0
    for series in itertools.product(outcomes, repeat=5):
        share = math.prod(part for _, part in series)
        kept = sorted(epochs for epochs, _ in series)[1:4]
        if math.inf not in kept:
            total += share * sum(kept) / 3
            valid += share
    found = forecast_series(forecast, failing)
    assert found.mean_epochs == pytest.approx(total / valid)
    assert found.void_share == pytest.approx(1 - valid)
    assert found.void_share == pytest.approx(1 - (1 - failing) ** 5 - 5 * failing * (1 - failing) ** 4)
    assert 13 <= found.low_epochs < found.mean_epochs < found.high_epochs <= 20


def test_a_failure_makes_the_score_slower_because_it_takes_the_place_of_the_slowest_run():
    forecast = EpochForecast(levels=((14.0, 0.7), (16.0, 0.3)), sentence="")
    assert forecast_series(forecast, 0.2).mean_epochs > forecast_series(forecast, 0.0).mean_epochs


def test_a_series_that_always_fails_is_refused():
    with pytest.raises(ConfigError, match="below 1"):
        forecast_series(EpochForecast(levels=((14.0, 1.0),), sentence=""), 1.0)


def test_quantiles_are_those_of_the_runs():
    forecast = EpochForecast(levels=((12.0, 0.05), (13.0, 0.9), (20.0, 0.05)), sentence="")
    assert [forecast.quantile(share) for share in (0.05, 0.06, 0.95, 0.96)] == [12, 13, 13, 20]


def test_six_of_115_published_runs_failed():
    assert failing_share(published_systems()) == pytest.approx(6 / 115)
