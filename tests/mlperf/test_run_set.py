import pytest
from made_up_logs import LEFT_OUT, write_logs
from official_checkers import run_in_process

from maskperf.mlperf import checkers
from maskperf.mlperf.run_set import check_log, is_closed_set, judge_set


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Returns a function that writes and checks logs."""
    monkeypatch.setattr(checkers, "_run", run_in_process)

    def write_and_check(runs, **common):
        return [check_log(path) for path in write_logs(tmp_path / "logs", runs, **common)]

    return write_and_check


def test_five_good_runs_have_a_score_and_a_comparison(checked):
    logs = checked(None)
    result = judge_set(logs)
    assert is_closed_set(logs) and result.reference.passed and result.scaling_factor == 1
    assert result.score == pytest.approx((19.4 + 19.5 + 19.6) / 3)


def test_the_factor_is_in_the_score(checked):
    result = judge_set(checked([{"epochs": epochs} for epochs in (12, 12, 13, 13, 13)], batch_size=8))
    assert result.scaling_factor == pytest.approx(12.75 / (38 / 3))
    assert result.score == pytest.approx(19.5 * result.scaling_factor)


def test_a_refused_run_counts_as_the_slowest_and_two_leave_no_score(checked):
    result = judge_set(checked([{"min_image_size": LEFT_OUT}, {}, {}, {}, {}]))
    assert result.score == pytest.approx((19.5 + 19.6 + 19.7) / 3)
    assert judge_set(checked([{"status": "aborted"}, {"min_image_size": LEFT_OUT}, {}, {}, {}])).score is None


@pytest.mark.parametrize(
    "runs",
    [
        [{}] * 4,
        [{"division": "open"}, {}, {}, {}, {}],
        [{"recipe": "demo"}, {}, {}, {}, {}],
        [{"batch_size": 128}, {}, {}, {}, {}],
        [{"global_batch_size": "96"}] * 5,
        [{"global_batch_size": LEFT_OUT}] * 5,
    ],
)
def test_what_is_not_one_closed_set_is_not_compared(checked, runs):
    assert judge_set(checked(runs)).reference is None
