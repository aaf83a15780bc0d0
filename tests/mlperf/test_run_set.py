import pytest
from synthetic_logs import LEFT_OUT, by_time, later, log_records, log_text, up_to, write_logs

from maskperf.mlperf import checkers
from maskperf.mlperf.run_set import check_log, set_result

BEHIND_A_HEAD = [*up_to(log_records(), "seed"), *later(log_records(), 4)]


@pytest.fixture
def checked(tmp_path):
    """Return a function that writes and checks logs."""
    return lambda runs, **common: [check_log(path) for path in write_logs(tmp_path / "logs", runs, **common)]


def test_a_refused_run_counts_as_the_slowest_and_two_leave_no_score(checked):
    result = set_result(checked([{"min_image_size": LEFT_OUT}, {}, {}, {}, {}]))
    assert result.score == pytest.approx((19.5 + 19.6 + 19.7) / 3)
    assert set_result(checked([{"status": "aborted"}, {"min_image_size": LEFT_OUT}, {}, {}, {}])).score is None


@pytest.mark.parametrize(
    "runs",
    [
        [{}] * 4,
        *([change, {}, {}, {}, {}] for change in ({"division": "open"}, {"recipe": "demo"}, {"batch_size": 128})),
        *([{"global_batch_size": size}] * 5 for size in ("96", LEFT_OUT)),
    ],
)
def test_what_is_not_one_closed_set_is_not_compared(checked, runs):
    assert set_result(checked(runs)).reference is None


@pytest.fixture
def check_records(log_of):
    """Return a function that checks a file of these records, or of this text, and the official verdict on it."""

    def write_and_check(content):
        path = log_of(content).path
        return check_log(path), checkers.check_compliance(path)

    return write_and_check


def test_of_two_runs_in_a_file_the_whole_one_is_evaluated_alone(check_records):
    second = later(log_records(opt_base_learning_rate=0.13, train_samples=118287), 40)
    log, official = check_records([*up_to(log_records(), "epoch_start", 2), *second])
    assert log.holds_several_runs and log.minutes is None
    assert log.compliance.accepted is official.accepted is False
    assert log.compliance.findings == () and log.compliance.num_not_shown == len(official.findings) > 20
    assert [finding.text.split(":")[0] for finding in log.traps.findings] == ["line 30"]
    ((lines, run),) = log.alone
    assert lines == "lines 30 to the end"
    line = 29 + len(up_to(second, "opt_base_learning_rate"))  # of the file
    assert [finding.explanation.split(": ")[0] for finding in run.compliance.findings] == [f"Line {line} of the file"]
    assert run.traps.accepted and run.traps.findings[0].text.startswith("line 51: train_samples is 118287")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (log_text(log_records()) + log_text(later(log_records(), 40)), ["lines 1 to 94", "lines 95 to the end"]),
        (log_text(up_to(log_records(), "epoch_start", 2))[:-40] + log_text(log_records()), ["lines 29 to the end"]),
        ("\n\n".join(log_text(BEHIND_A_HEAD).split("\n")), ["lines 17 to the end"]),
        (log_text(BEHIND_A_HEAD).replace("\n", "\r\n"), ["lines 9 to the end"]),
        (log_text([*log_records(), *up_to(log_records(), "seed")]), ["lines 1 to 94"]),
        (log_text(log_records())[:-1] + log_text(log_records()), []),  # two runs on line 94
        (log_text([*up_to(log_records(), "epoch_stop"), *up_to(log_records(), "epoch_stop", 2)]), []),
    ],
)
def test_each_whole_run_of_a_file_is_accepted_alone(check_records, text, lines):
    log, official = check_records(text)
    assert [name for name, _ in log.alone] == lines
    assert all(run.compliance.accepted and run.traps.accepted for _, run in log.alone)
    assert log.compliance.accepted is official.accepted


def test_of_mixed_runs_only_what_does_not_follow_from_it_is_shown(check_records):
    records = log_records(opt_base_learning_rate=0.13)
    log, official = check_records(by_time(records, later(records, 6)))
    assert log.alone == () and log.holds_several_runs and log.compliance.accepted is official.accepted is False
    assert {finding.text.split("'")[1] for finding in log.compliance.findings} == {"opt_base_learning_rate"}
    assert log.compliance.num_not_shown == len(official.findings) - len(log.compliance.findings)
    assert len(log.traps.findings) == 1 and "mixed" in log.traps.findings[0].text


def test_a_log_of_one_run_hides_nothing(check_records):
    log, official = check_records(log_records(opt_base_learning_rate=0.13))
    assert log.compliance == official and log.traps.num_not_shown == 0 and log.alone == ()
