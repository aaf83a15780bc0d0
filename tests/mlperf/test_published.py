import pytest

from maskperf.mlperf.published import band_for, place_among, published_systems
from maskperf.recipes import reference_points


def test_every_system_has_five_runs_and_six_of_them_all_failed():
    systems = published_systems()
    runs = [run for system in systems for run in system.runs]
    assert len(systems) == len({system.name for system in systems}) == 23
    assert {len(system.runs) for system in systems} == {5}
    assert sum(run.reached for run in runs) == 109
    assert sum(run.collapsed for run in runs) == 5  # the sixth failure stayed just below its target
    assert not any(run.collapsed and run.reached for run in runs)


@pytest.mark.parametrize("system", published_systems(), ids=lambda system: system.system)
def test_runs_that_reached_meet_both_targets_at_their_last_evaluation_and_at_no_other(system):
    for run in system.runs:
        met = [entry.epoch for entry in run.evaluations if entry.box_ap >= 0.377 and entry.mask_ap >= 0.339]
        assert met == ([run.epochs] if run.reached else [])


def test_systems_are_of_the_kinds_that_the_results_table_shows():
    systems = published_systems()
    assert {system.accelerators for system in systems} == {4, 8, 10, 64, 384}
    assert {system.batch_size for system in systems} == {48, 88, 96, 110, 256}
    largest = max(systems, key=lambda system: system.accelerators)
    assert (largest.submitter, largest.nodes, largest.score_minutes) == ("NVIDIA", 48, 1.466)
    assert largest.decay_steps == (5625, 7500) and largest.training_devices == 256
    assert largest.images_per_second == pytest.approx(94, abs=0.1)
    decay_steps = reference_points()[96].decay_steps
    assert all(system.decay_steps == decay_steps for system in systems if system.batch_size in (88, 96, 110))


def test_rate_leaves_failed_runs_out():
    system = next(system for system in published_systems() if system.system == "eos_ngc23.04_pytorch")
    assert system.epoch_seconds == pytest.approx(78.5535)  # not the 67.559 of its collapsed run
    assert system.images_per_second == pytest.approx(186.6, abs=0.05)


# Epoch: box AP, its deviation, mask AP. Computed from the result logs with another program.
GOLDEN_BAND_96 = {
    1: (0.169, 0.008, 0.171),
    4: (0.270, 0.005, 0.258),
    9: (0.300, 0.004, 0.284),
    10: (0.354, 0.002, 0.324),
    12: (0.372, 0.001, 0.339),
    14: (0.3782, 0.0010, 0.3428),
}


def test_band_has_the_golden_curve_of_batch_96():
    band = band_for(96)
    by_epoch = {entry.epoch: entry for entry in band.epochs}
    assert band.batch_size == 96 and band.sentence.startswith("54 published runs")
    for epoch, (box, deviation, mask) in GOLDEN_BAND_96.items():
        digits = 4 if epoch == 14 else 3
        found = by_epoch[epoch]
        assert (round(found.box_mean, digits), round(found.mask_mean, digits)) == (box, mask)
        assert round(found.box_deviation, digits) == deviation
    assert (by_epoch[13].runs, by_epoch[14].runs, by_epoch[22].runs) == (54, 53, 1)


def test_band_gives_the_minutes_of_the_fastest_and_slowest_run():
    minutes = [entry.minutes_low for entry in band_for(96).epochs]
    assert minutes[0] == pytest.approx(19.161 / 14) and minutes == sorted(minutes)


@pytest.mark.parametrize(
    ("batch_size", "runs", "collapsed"),
    [(110, 8, "2 more collapsed"), (88, 14, "1 more collapsed"), (48, 25, "")],  # 88: the run on a plateau stays in
)
def test_band_leaves_collapsed_runs_out_and_says_so(batch_size, runs, collapsed):
    band = band_for(batch_size)
    assert band.sentence.startswith(f"{runs} published runs") and collapsed in band.sentence
    assert bool(collapsed) == ("collapsed" in band.sentence)
    assert min(entry.box_mean for entry in band.epochs[5:]) > 0.2


@pytest.mark.parametrize(("asked", "found"), [(8, 48), (68, 48), (70, 88), (103, 96), (128, 110), (272, 256)])
def test_band_of_a_batch_size_that_nobody_published_is_that_of_the_nearest_and_says_so(asked, found):
    band = band_for(asked)
    assert band.batch_size == found
    assert f"nothing was published with batch {asked}" in band.sentence
    assert "nothing was published" not in band_for(found).sentence


def test_own_score_stands_where_its_minutes_put_it():
    places = place_among(19.2, 8, name="own", accelerator="GPU", batch_size=96)
    minutes = [place.minutes for place in places]
    assert minutes == sorted(minutes) and len(places) == 24
    assert [place.name for place in places if place.is_this] == ["own"] == [places[3].name]
    assert places[3].minutes_times_accelerators == pytest.approx(153.6)
    assert places[0].name == "NVIDIA: eos_n48_ngc23.04_pytorch"
    assert places[0].minutes_times_accelerators == pytest.approx(1.466 * 384)
    tied = place_among(1.466, 2)
    assert [place.is_this for place in tied[:2]] == [False, True]  # a tie leaves the published system in front
