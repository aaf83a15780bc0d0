from dataclasses import replace

import pytest

from maskperf.mlperf.overheads import epoch_seconds_of, fit_overheads, training_devices, training_rate_of
from maskperf.mlperf.published import published_systems


def with_synthetic_minutes(system, *, ratio, start_seconds, tail_seconds):
    """Return the system with runs that take exactly what a program with these overheads would take."""
    spare = max(0, system.accelerators - system.batch_size)
    rate = ratio * training_rate_of(system)
    runs = []
    for run in system.runs:
        evaluation = 5000 / (spare * rate) if spare else run.epochs * 5000 / (system.accelerators * rate)
        once = start_seconds / system.nodes + tail_seconds
        runs.append(replace(run, minutes=(run.epochs * run.median_epoch_seconds + evaluation + once) / 60))
    return replace(system, runs=tuple(runs))


def test_overheads_that_made_the_runs_are_found_again():
    truth = {"ratio": 1.7, "start_seconds": 50.0, "tail_seconds": 2.5}
    found = fit_overheads([with_synthetic_minutes(system, **truth) for system in published_systems()])
    assert found.images_evaluated_per_trained == pytest.approx(1.7)
    assert found.start_node_seconds == pytest.approx(50.0)
    assert found.tail_seconds == pytest.approx(2.5)
    assert found.largest_error == pytest.approx(0, abs=1e-9)


def test_fit_to_the_published_runs_makes_sense():
    found = fit_overheads(published_systems())
    assert 1 < found.images_evaluated_per_trained < 4  # a forward pass, against forward and backward
    assert found.start_node_seconds > found.tail_seconds > 0
    assert 0 < found.largest_error < 0.03


def test_rate_is_that_of_devices_that_train_and_leaves_failed_runs_out():
    system = next(system for system in published_systems() if system.system == "eos_ngc23.04_pytorch")
    assert epoch_seconds_of(system) == pytest.approx(78.5535)  # not the 67.559 of its collapsed run
    assert training_rate_of(system) == pytest.approx(186.6, abs=0.05)
    largest = max(published_systems(), key=lambda system: system.accelerators)
    assert training_rate_of(largest) == pytest.approx(94, abs=0.1)  # 256 of 384 devices train


def test_no_more_devices_train_than_there_are_images():
    assert [training_devices(number, 96) for number in (8, 96, 100)] == [8, 96, 96]
