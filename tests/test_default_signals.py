import signal
import subprocess
import sys

import pytest
from default_signals import SIGNALS, default_signals

ENDED_BY_ITSELF = 7


def end_of_a_child(number: signal.Signals) -> int:
    """Return the exit code of a program that sends itself a signal."""
    code = f"import os, sys; os.kill(os.getpid(), {int(number)}); sys.exit({ENDED_BY_ITSELF})"
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], stderr=subprocess.DEVNULL, check=False).returncode


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def ignored(request):
    """Return a signal that this process ignores, as a job in the background of a script does."""
    before = signal.signal(request.param, signal.SIG_IGN)
    yield request.param
    signal.signal(request.param, before)


def test_a_child_inherits_an_ignored_signal(ignored):
    assert end_of_a_child(ignored) == ENDED_BY_ITSELF


def test_a_child_started_with_default_signals_is_ended(ignored):
    with default_signals():
        assert end_of_a_child(ignored) == -ignored
    assert signal.getsignal(ignored) == signal.SIG_IGN


def test_a_handler_of_this_process_is_left_alone():
    def handler(number, frame):
        pass

    before = signal.signal(signal.SIGHUP, handler)
    with default_signals():
        assert signal.getsignal(signal.SIGHUP) is handler
    assert signal.signal(signal.SIGHUP, before) is handler
