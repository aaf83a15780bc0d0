import itertools
import math
import re
import statistics
from dataclasses import replace

import msgspec
import pytest

from maskperf.errors import ConfigError
from maskperf.mlperf import plan as plan_module
from maskperf.mlperf.convergence import failing_share, forecast_epochs, forecast_series, quantile, reference_decay_epoch
from maskperf.mlperf.plan import PlanQuestion, fit_overheads, limits, make_plan
from maskperf.mlperf.published import published_systems


def ask(**changes):
    """Return a question in which the epochs of a run are known."""
    return PlanQuestion(**{"accelerators": 8, "images_per_second": 100.0, "batch_size": 96, "epochs": 14.0, **changes})


def mean_of(forecast):
    assert sum(share for _, share in forecast.levels) == pytest.approx(1)
    return sum(epochs * share for epochs, share in forecast.levels)


@pytest.mark.parametrize(
    ("batch_size", "mean"), [(2, 12.7), (8, 12.7), (64, 14.6), (96, 14.05), (128, 14.0), (256, 17.1), (272, 17.1)]
)
def test_epochs_at_a_reference_point_are_those_of_its_runs(batch_size, mean):
    forecast = forecast_epochs(batch_size, ())
    assert mean_of(forecast) == pytest.approx(mean)
    assert ("below batch 8 there is no reference point" in forecast.sentence) == (batch_size < 8)


@pytest.mark.parametrize(
    ("batch_size", "runs"),
    [(96, "74 runs"), (256, "15 runs")],  # 20 of the reference and 54; of ten with batch 256 five have its decays
)
def test_published_runs_of_the_same_schedule_count_too(batch_size, runs):
    assert runs in forecast_epochs(batch_size, published_systems()).sentence


@pytest.mark.parametrize(("batch_size", "low", "high"), [(20, 8, 48), (110, 96, 128), (192, 128, 256), (264, 256, 272)])
def test_epochs_between_two_reference_points_are_interpolated(batch_size, low, high):
    forecast = forecast_epochs(batch_size, ())
    weight = (batch_size - low) / (high - low)
    wanted = (1 - weight) * mean_of(forecast_epochs(low, ())) + weight * mean_of(forecast_epochs(high, ()))
    assert mean_of(forecast) == pytest.approx(wanted, abs=0.05)  # 20 levels stand for all runs
    assert f"batch {low} and batch {high}" in forecast.sentence


@pytest.mark.parametrize(("batch_size", "epoch"), [(8, 13.10), (96, 13.09), (128, 13.09), (256, 16.34), (272, 16.34)])
def test_last_decay_of_the_reference_points_is_after_the_published_epoch(batch_size, epoch):
    assert reference_decay_epoch(batch_size) == pytest.approx(epoch, abs=0.01)


def test_another_schedule_is_looked_up_or_moves_the_end():
    forecast = forecast_epochs(110, published_systems(), last_decay_step=16000)
    assert forecast.levels == ((14.0, 0.125), (15.0, 0.375), (16.0, 0.5))
    assert "8 published runs" in forecast.sentence and mean_of(forecast_epochs(110, published_systems())) < 14.5
    usual = forecast_epochs(128, ())
    later = forecast_epochs(128, (), last_decay_step=12000 + 3 * 917)
    assert mean_of(later) == pytest.approx(mean_of(usual) + 3) and "moved by 3.0" in later.sentence
    assert forecast_epochs(128, (), last_decay_step=8000).levels == usual.levels  # an earlier decay gains nothing


@pytest.mark.parametrize("failing", [0.0, 0.05, 0.4])
def test_score_of_five_is_that_of_all_series_counted_one_by_one(failing):
    levels = ((13.0, 0.2), (14.0, 0.5), (20.0, 0.3))
    outcomes = [*((epochs, share * (1 - failing)) for epochs, share in levels), (math.inf, failing)]
    total = valid = 0.0
    for series in itertools.product(outcomes, repeat=5):
        share = math.prod(part for _, part in series)
        middle = sorted(epochs for epochs, _ in series)[1:4]
        if math.inf not in middle:
            total += share * sum(middle) / 3
            valid += share
    epochs, void_share = forecast_series(levels, failing)
    assert epochs.expected == pytest.approx(total / valid)
    assert void_share == pytest.approx(1 - valid)
    assert void_share == pytest.approx(1 - (1 - failing) ** 5 - 5 * failing * (1 - failing) ** 4)
    assert 13 <= epochs.low < epochs.expected < epochs.high <= 20


def test_quantiles_and_failures_are_those_of_the_runs():
    levels = ((12.0, 0.05), (13.0, 0.9), (20.0, 0.05))
    assert [quantile(levels, share) for share in (0.05, 0.06, 0.95, 0.96)] == [12, 13, 13, 20]
    assert failing_share(published_systems()) == pytest.approx(6 / 115)


def with_synthetic_minutes(system, *, ratio, start_seconds, tail_seconds):
    """Return the system with runs that take exactly what a program with these overheads would take."""
    spare = max(0, system.accelerators - system.batch_size)
    rate = ratio * system.images_per_second
    runs = []
    for run in system.runs:
        evaluation = 5000 / (spare * rate) if spare else run.epochs * 5000 / (system.accelerators * rate)
        seconds = run.epochs * run.median_epoch_seconds + evaluation + start_seconds / system.nodes + tail_seconds
        runs.append(msgspec.structs.replace(run, minutes=seconds / 60))
    return msgspec.structs.replace(system, runs=tuple(runs))


def test_overheads_that_made_the_runs_are_found_again():
    truth = {"ratio": 1.7, "start_seconds": 50.0, "tail_seconds": 2.5}
    found = fit_overheads(tuple(with_synthetic_minutes(system, **truth) for system in published_systems()))
    assert found.images_evaluated_per_trained == pytest.approx(1.7)
    assert (found.start_node_seconds, found.tail_seconds) == (pytest.approx(50.0), pytest.approx(2.5))
    assert found.largest_error == pytest.approx(0, abs=1e-9)
    found = fit_overheads(published_systems())
    assert 1 < found.images_evaluated_per_trained < 4  # a forward pass, against forward and backward
    assert found.start_node_seconds > found.tail_seconds > 0 and 0 < found.largest_error < 0.03


def test_scores_of_published_systems_are_predicted_from_the_others():
    checks = plan_module.check_against_published()
    errors = [abs(check.error) for check in checks]
    assert statistics.median(errors) <= 0.05 and max(errors) <= 0.15
    # The ranges say 5 % to 95 %: at least nine of ten scores should be in theirs.
    assert sum(check.in_range for check in checks) >= 0.9 * 23
    assert [check.published_minutes for check in checks] == [system.score_minutes for system in published_systems()]


def test_nothing_but_the_rate_of_a_system_itself_enters_its_prediction(monkeypatch):
    before = plan_module.check_against_published()
    changed = list(published_systems())
    change = msgspec.structs.replace
    runs = tuple(change(run, minutes=3 * run.minutes, epochs=30, init_seconds=9000.0) for run in changed[11].runs)
    changed[11] = change(changed[11], runs=runs, score_minutes=1.0)
    monkeypatch.setattr(plan_module, "published_systems", lambda: tuple(changed))
    after = plan_module.check_against_published()
    assert after[11].predicted_minutes == before[11].predicted_minutes
    assert after[11].published_minutes == 1.0
    assert after[0].predicted_minutes != before[0].predicted_minutes  # but it is learnt from for the others


def test_minutes_are_what_the_parts_add_up_to():
    plan, overheads = make_plan(ask()), fit_overheads(published_systems())
    epoch_seconds = 1222 * 0.12 + 5000 / (8 * 100 * overheads.images_evaluated_per_trained)
    once_seconds = overheads.start_node_seconds + overheads.tail_seconds
    assert plan.steps_per_epoch == 1222 and plan.times.step_ms == pytest.approx(1000 * 96 / (8 * 100))
    assert plan.run_minutes.expected == pytest.approx((once_seconds + 14 * epoch_seconds) / 60)
    assert plan.score_minutes == plan.run_minutes  # every run takes 14 epochs
    assert plan.score_minutes.low < plan.score_minutes.expected < plan.score_minutes.high
    on_two_nodes = make_plan(ask(accelerators_per_node=4)).times
    assert on_two_nodes.start_seconds == pytest.approx(overheads.start_node_seconds / 2)


def test_all_reduce_costs_only_what_does_not_fit_behind_a_step():
    # A ring of 8 sends 7/8 of all gradients twice: 44,125,173 parameters of 4 bytes, over 1 GiB/s.
    ring_ms = 1000 * 2 * 7 / 8 * 44_125_173 * 4 / 2**30
    slow = make_plan(ask(interconnect_gib_per_second=1.0)).times
    assert slow.exchange_ms == pytest.approx(ring_ms)
    assert slow.exposed_exchange_ms == pytest.approx(ring_ms - 0.5 * 120)
    assert slow.step_ms == pytest.approx(120 + ring_ms - 60)
    fast = make_plan(ask(interconnect_gib_per_second=100.0)).times
    assert (fast.exposed_exchange_ms, fast.step_ms) == (0, pytest.approx(120))
    assert make_plan(ask()).times.exchange_ms is None
    assert make_plan(ask(accelerators=1, batch_size=8, interconnect_gib_per_second=1.0)).times.exchange_ms == 0


def test_devices_without_an_image_evaluate_beside_the_others_and_once_at_the_end():
    plan, tail_seconds = make_plan(ask(accelerators=128)), make_plan(ask()).times.tail_seconds
    times = plan.times
    assert (plan.training_devices, plan.images_per_device) == (96, 1)
    assert times.evaluation_is_beside and times.evaluation_seconds == 0
    last_seconds = 5000 / (32 * times.evaluation_images_per_second)
    assert times.tail_seconds == pytest.approx(tail_seconds + last_seconds)
    # Two devices need longer for 5,000 images than the others for an epoch, so training waits.
    times = make_plan(ask(accelerators=98)).times
    beside_seconds = 5000 / (2 * times.evaluation_images_per_second)
    assert times.evaluation_is_beside == (beside_seconds - times.epoch_seconds < 5000 / (98 * 100))
    alone = make_plan(ask(accelerators=97)).times
    assert not alone.evaluation_is_beside and alone.tail_seconds == tail_seconds
    assert alone.evaluation_seconds == pytest.approx(5000 / (97 * alone.evaluation_images_per_second))


@pytest.mark.parametrize(
    ("accelerators", "sizes"),
    [
        *((1, (8,)), (2, (8,)), (4, (8, 48)), (8, (8, 48, 64, 96)), (10, (120,)), (16, (48, 64, 96, 128))),
        *((64, (64, 128, 256)), (200, (200,)), (256, (256,)), (272, (272,)), (273, (272,)), (1024, (272,))),
    ],
)
def test_batch_size_is_a_reference_point_that_the_devices_can_share(accelerators, sizes):
    assert plan_module.batch_sizes(accelerators) == sizes
    chosen = make_plan(PlanQuestion(accelerators=accelerators, images_per_second=100.0)).batch_size
    assert chosen == sizes[-1] <= 12 * accelerators


@pytest.mark.parametrize(
    ("devices", "batch_size", "match"),
    [(7, 96, "--batch-size 96.*7 devices.*91 or 98"), (512, 512, r"no reference point above batch 272.*--epochs")],
)
def test_batches_that_cannot_be_used_are_refused(devices, batch_size, match):
    with pytest.raises(ConfigError, match=match):
        make_plan(PlanQuestion(accelerators=devices, images_per_second=100.0, batch_size=batch_size))


SPARE = "no reference point above batch 272.*752 of 1024 would only evaluate or be idle: 6 can evaluate.*746 have"
ONE, MORE, ONCE = "^1 in the batch for each device", "14 are enough up to batch 128", "start and end: "


@pytest.mark.parametrize(
    ("changes", "times", "named"),
    [
        ({"accelerators": 512, "batch_size": 512}, {}, ["the rules ask for your own", ONE, MORE, ONCE]),
        # 5,000 images in the 4.6 s of an epoch, 195 images/s each: six devices
        ({"accelerators": 1024, "batch_size": None, "images_per_second": 94.0}, {}, [SPARE, ONE, MORE, ONCE]),
        ({"interconnect_gib_per_second": 0.5}, {}, ["all-reduce: "]),
        ({"accelerators": 96}, {"evaluation_seconds": 1.0}, [ONE, "evaluation: training stands still", ONCE]),
        ({}, {}, []),
    ],
)
def test_limits_name_what_takes_the_time(changes, times, named):
    plan = make_plan(ask(**changes))
    *found, last = limits(replace(plan, times=replace(plan.times, **times)))
    assert last.startswith("training steps: ")
    assert all(re.search(name, text) for name, text in zip(named, found, strict=True)), found


def test_limits_name_a_batch_size_that_would_be_faster_at_the_same_rate():
    plan, other = (make_plan(ask(images_per_second=186.0, batch_size=size, epochs=None)) for size in (96, 8))
    assert any("batch 8 would score" in sentence for sentence in limits(plan, (other,)))
    assert not any("would score" in sentence for sentence in limits(other, (plan,)))


def test_assumptions_name_what_was_given_and_what_was_fitted():
    question = ask(interconnect_gib_per_second=2.0)
    text = "\n".join(plan_module.assumptions(question, make_plan(question)))
    assert text.count("fitted to the published runs") == 3
    assert "given with --epochs" in text and "2 GiB/s" in text
