import pytest

from maskperf.bench.measure import Timing, measure_in_turn, ratio_spread, spread_of


def test_the_spread_has_median_extremes_and_quartiles():
    spread = spread_of([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (spread.minimum, spread.first_quartile, spread.median) == (1.0, 2.0, 3.0)
    assert (spread.third_quartile, spread.maximum, spread.count) == (4.0, 5.0, 5)
    single = spread_of([7.0])
    assert {single.minimum, single.first_quartile, single.median, single.third_quartile, single.maximum} == {7.0}


def test_ratios_are_taken_pair_by_pair_and_not_of_medians():
    # A machine that becomes ten times slower half way: the medians lie, the pairs do not.
    assert ratio_spread([1.0, 1.0, 10.0, 10.0], [2.0, 2.0, 20.0, 20.0]).minimum == 2.0
    assert ratio_spread([1.0, 10.0, 1.0], [2.0, 20.0, 4.0]).median == 2.0
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratio_spread([1.0, 1.0], [1.0])


def test_sides_are_measured_in_turn():
    order = []

    def side(name):
        def measure():
            order.append(name)
            return Timing(wall_seconds=float(len(order)), cpu_seconds=0.5)

        return measure

    timings = measure_in_turn({"maskperf": side("maskperf"), "peer": side("peer")}, 3)
    assert order == ["maskperf", "peer"] * 3
    assert [timing.by("wall") for timing in timings["peer"]] == [2, 4, 6]
    assert timings["maskperf"][0].by("cpu") == 0.5
