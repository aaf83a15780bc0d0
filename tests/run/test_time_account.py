import time

import pytest

from maskperf.run.time_account import OTHER, PHASES, TimeAccount


def test_phases_and_the_rest_sum_to_the_whole():
    account = TimeAccount()
    account.start()
    with account.measure("evaluation"):
        time.sleep(0.02)
    account.add("forward", 0.001)
    account.add("forward", 0.002)
    time.sleep(0.01)
    account.stop()
    phases = account.phases()
    assert sum(phases.values()) == pytest.approx(account.total_seconds(), rel=1e-9)
    assert phases["forward"] == pytest.approx(0.003)
    assert phases["evaluation"] >= 0.02 and phases[OTHER] > 0
    assert list(phases) == [phase for phase in PHASES if phase in phases]


def test_the_clock_stops_once():
    account = TimeAccount()
    assert account.total_seconds() == 0.0
    account.start()
    account.stop()
    stopped = account.total_seconds()
    time.sleep(0.01)
    account.stop()
    assert account.total_seconds() == stopped


def test_time_is_counted_when_the_phase_fails():
    account = TimeAccount()
    account.start()
    with pytest.raises(KeyError), account.measure("saving"):
        time.sleep(0.01)
        raise KeyError
    assert account.phases()["saving"] >= 0.01


def test_an_unknown_phase_is_refused():
    with pytest.raises(ValueError, match="lunch"):
        TimeAccount().add("lunch", 1.0)
