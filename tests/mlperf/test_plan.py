import statistics
from dataclasses import replace

import pytest

from maskperf.errors import ConfigError
from maskperf.mlperf import plan as plan_module
from maskperf.mlperf.plan import PlanQuestion, batch_sizes, check_against_published, choose_batch_size, make_plan
from maskperf.mlperf.plan_limits import assumptions, limits
from maskperf.mlperf.published import published_systems


def all_given(**changes):
    """Return a question in which nothing is left to be learnt from others."""
    given = {
        "accelerators": 8,
        "images_per_second": 100.0,
        "batch_size": 96,
        "evaluation_images_per_second": 250.0,
        "start_seconds": 10.0,
        "tail_seconds": 3.0,
        "init_seconds": 60.0,
        "epochs": 14.0,
        "failing_share": 0.0,
    }
    return PlanQuestion(**{**given, **changes})


def test_scores_of_published_systems_are_predicted_from_the_others():
    checks = check_against_published()
    errors = [abs(check.error) for check in checks]
    assert len(errors) == 23
    assert statistics.median(errors) <= 0.05
    assert max(errors) <= 0.15
    # The ranges say 5 % to 95 %: at least nine of ten scores should be in theirs.
    assert sum(check.in_range for check in checks) >= 0.9 * 23
    assert [check.published_minutes for check in checks] == [system.score_minutes for system in published_systems()]


def test_nothing_but_the_rate_of_a_system_itself_enters_its_prediction(monkeypatch):
    before = check_against_published()
    changed_index = 11
    system = published_systems()[changed_index]
    runs = tuple(replace(run, minutes=3 * run.minutes, epochs=30, init_seconds=9000.0) for run in system.runs)
    changed = list(published_systems())
    changed[changed_index] = replace(system, runs=runs, score_minutes=1.0, learning_rate=9.0)
    monkeypatch.setattr(plan_module, "published_systems", lambda: tuple(changed))
    after = check_against_published()
    assert after[changed_index].predicted_minutes == before[changed_index].predicted_minutes
    assert after[changed_index].published_minutes == 1.0
    assert after[0].predicted_minutes != before[0].predicted_minutes  # but it is learnt from for the others


def test_minutes_are_what_the_parts_add_up_to():
    plan = make_plan(all_given())
    step_seconds = 96 / (8 * 100)
    epoch_seconds = 1222 * step_seconds + 5000 / (8 * 250)
    assert plan.steps_per_epoch == 1222
    assert plan.times.step_ms == pytest.approx(1000 * step_seconds)
    assert plan.run_minutes.expected == pytest.approx((10 + 3 + 14 * epoch_seconds) / 60)
    assert plan.score_minutes == plan.run_minutes  # every run takes 14 epochs
    assert plan.void_share == 0
    assert plan.score_minutes.low < plan.score_minutes.expected < plan.score_minutes.high


@pytest.mark.parametrize(
    ("changes", "more_seconds"),
    [
        ({"scoring_seconds": 4.0}, 14 * 4.0),
        ({"init_seconds": 1800.0}, 0),  # the closed division does not time half an hour
        ({"init_seconds": 1830.0}, 30),
        ({"start_seconds": 15.0}, 5),
        ({"epochs": 15.0}, 1222 * 0.12 + 2.5),
    ],
)
def test_a_longer_part_lengthens_the_run_by_as_much(changes, more_seconds):
    before, after = make_plan(all_given()).run_minutes.expected, make_plan(all_given(**changes)).run_minutes.expected
    assert 60 * (after - before) == pytest.approx(more_seconds, abs=1e-6)


def test_all_reduce_costs_only_what_does_not_fit_behind_a_step():
    # A ring of 8 sends 7/8 of all gradients twice: 44,125,173 parameters of 4 bytes, over 1 GiB/s.
    ring_ms = 1000 * 2 * 7 / 8 * 44_125_173 * 4 / 2**30
    slow = make_plan(all_given(interconnect_gib_per_second=1.0)).times
    assert slow.exchange_ms == pytest.approx(ring_ms)
    assert slow.exposed_exchange_ms == pytest.approx(ring_ms - 0.5 * 120)
    assert slow.step_ms == pytest.approx(120 + ring_ms - 60)
    unhidden = make_plan(all_given(interconnect_gib_per_second=1.0, overlap_share=0.0, gradient_bytes=2)).times
    assert unhidden.step_ms == pytest.approx(120 + ring_ms / 2)
    fast = make_plan(all_given(interconnect_gib_per_second=100.0)).times
    assert (fast.exposed_exchange_ms, fast.step_ms) == (0, pytest.approx(120))
    assert make_plan(all_given()).times.exchange_ms is None
    alone = make_plan(all_given(accelerators=1, batch_size=8, interconnect_gib_per_second=1.0))
    assert alone.times.exchange_ms == 0


def test_devices_without_an_image_evaluate_beside_the_others_and_once_at_the_end():
    plan = make_plan(all_given(accelerators=128, batch_size=96, images_per_second=50.0))
    assert (plan.training_devices, plan.images_per_device) == (96, 1)
    assert plan.times.evaluation_is_beside
    assert plan.times.evaluation_seconds == 0
    assert plan.times.tail_seconds == pytest.approx(3 + 5000 / (32 * 250))


def test_one_device_without_an_image_is_too_slow_to_evaluate_alone():
    plan = make_plan(all_given(accelerators=97, batch_size=96, images_per_second=1000.0))
    assert not plan.times.evaluation_is_beside
    assert plan.times.evaluation_seconds == pytest.approx(5000 / (97 * 250))
    assert plan.times.tail_seconds == 3


def test_evaluation_beside_training_that_cannot_keep_up_makes_training_wait():
    # An epoch takes 1222 * 10 ms, 5000 images on two devices 12.3 s, and the scores another 3 s.
    plan = make_plan(all_given(accelerators=98, batch_size=96, evaluation_images_per_second=203.0, scoring_seconds=3.0))
    assert plan.times.evaluation_is_beside
    assert plan.times.evaluation_seconds == pytest.approx(5000 / (2 * 203) + 3 - 12.22)


@pytest.mark.parametrize(
    ("accelerators", "sizes"),
    [
        (1, (8,)),
        (2, (8,)),
        (4, (8, 48)),
        (8, (8, 48, 64, 96)),
        (10, (120,)),
        (16, (48, 64, 96, 128)),
        (64, (64, 128, 256)),
        (200, (200,)),
        (256, (256,)),
        (272, (272,)),
        (273, (272,)),
        (1024, (272,)),
    ],
)
def test_batch_size_is_a_reference_point_that_the_devices_can_share(accelerators, sizes):
    assert batch_sizes(accelerators, 12) == sizes
    chosen = choose_batch_size(accelerators, 12)
    assert chosen == batch_sizes(accelerators, 12)[-1]
    assert chosen <= 12 * accelerators
    assert make_plan(PlanQuestion(accelerators=accelerators, images_per_second=100.0)).batch_size == chosen


def test_more_room_on_a_device_allows_a_larger_batch():
    assert choose_batch_size(8, 12) == 96
    assert choose_batch_size(8, 16) == 128
    assert choose_batch_size(8, 34) == 272


def test_a_batch_that_cannot_be_shared_is_refused_with_those_that_can():
    with pytest.raises(ConfigError, match="--batch-size 96.*7 devices.*91 or 98"):
        make_plan(PlanQuestion(accelerators=7, images_per_second=100.0, batch_size=96))


def test_a_batch_without_reference_point_needs_the_epochs():
    question = PlanQuestion(accelerators=512, images_per_second=94.0, batch_size=512)
    with pytest.raises(ConfigError, match="--epochs"):
        make_plan(question)
    plan = make_plan(replace(question, epochs=20.0))
    assert plan.epochs.expected == 20
    assert any("the rules ask for your own" in sentence for sentence in limits(plan))


def test_limits_of_1024_devices_name_those_that_have_nothing_to_do():
    plan = make_plan(PlanQuestion(accelerators=1024, images_per_second=94.0))
    first = limits(plan)[0]
    assert "no reference point above batch 272" in first
    assert "752 of 1024 would only evaluate or be idle" in first
    # 5,000 images in the 4.6 s of an epoch, 195 images/s each: six devices.
    assert "6 can evaluate while the others train, and 746 have nothing to do" in first
    fewer = make_plan(PlanQuestion(accelerators=278, images_per_second=94.0))
    assert plan.times.epoch_seconds == fewer.times.epoch_seconds


def test_limits_name_what_takes_the_time():
    plan = make_plan(all_given(interconnect_gib_per_second=0.5, scoring_seconds=30.0, init_seconds=3600.0))
    text = "\n".join(limits(plan))
    for words in ("all-reduce: ", "evaluation: training stands still", "1800 s beyond", "training steps: "):
        assert words in text
    assert "start and end" not in text  # 13 s of more than an hour
    assert "images per device" not in text
    assert "reference point" not in text


def test_limits_name_a_batch_size_that_would_be_faster_at_the_same_rate():
    plan, other = (make_plan(PlanQuestion(accelerators=8, images_per_second=186.0, batch_size=b)) for b in (96, 8))
    assert other.score_minutes.expected < plan.score_minutes.expected
    assert any("batch 8 would score" in sentence for sentence in limits(plan, (other,)))
    assert not any("would score" in sentence for sentence in limits(other, (plan,)))


def test_assumptions_say_what_was_given_and_what_was_fitted():
    question = PlanQuestion(accelerators=8, images_per_second=186.0)
    fitted, given = assumptions(question, make_plan(question)), assumptions(all_given(), make_plan(all_given()))
    assert sum("fitted to the published runs" in sentence for sentence in fitted) == 3
    assert not any("fitted" in sentence for sentence in given)
    assert any("250 images/s per device (given" in sentence for sentence in given)
