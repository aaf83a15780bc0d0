import pytest

from maskperf.bench.plan import Plan
from maskperf.bench.startup import measure_startup
from maskperf.errors import ConfigError
from maskperf.recipes import demo

TINY = (
    *("data.generate_images=8,2", "data.short_side=64", "data.long_side=96"),
    *("optimizer.batch_size=2", "system.device=cpu"),
)


@pytest.fixture
def plan(tmp_path):
    return Plan(config=demo(), cache=tmp_path, repeats=1)


@pytest.mark.slow
def test_help_is_quicker_than_the_first_step_and_needs_no_torch(plan, tmp_path):
    results = measure_startup(plan, tmp_path, recipe="demo", pairs=list(TINY))
    assert [result.case for result in results] == ["help", "first step of demo"]
    shown, first_step = (result.sides[0] for result in results)
    assert 0 < shown.timings[0].cpu_seconds < first_step.timings[0].cpu_seconds
    assert shown.seconds.median < first_step.seconds.median
    assert 0.1 < first_step.peak_gib < 4
    assert (tmp_path / "run_1" / "metrics.jsonl").is_file()
    facts = first_step.facts
    assert all(seconds >= 0 for seconds in facts["seconds_of"].values())
    wall = first_step.timings[0].wall_seconds
    assert 0.5 * wall < sum(facts["seconds_of"].values()) < wall + 0.1
    assert facts["seconds_before_step"] < wall - facts["seconds_of"]["the step itself"] + 0.1
    assert facts["first_run_seconds_before_step"] > 0


def test_a_run_that_ends_before_its_first_step_is_an_error_with_its_output(plan, tmp_path):
    with pytest.raises(ConfigError, match="no first step(.*\n)+.*optimizer.batch_size"):
        measure_startup(plan, tmp_path, recipe="demo", pairs=["optimizer.batch_size=0"])
