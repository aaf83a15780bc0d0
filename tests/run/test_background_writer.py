import threading

import pytest

from maskperf.run.session import BackgroundWriter


def fail():
    raise OSError("no space left")


def test_what_is_submitted_is_done_in_order_while_the_caller_goes_on():
    writer, may_begin, done = BackgroundWriter(), threading.Event(), []
    writer.submit(lambda: may_begin.wait(100))
    for number in range(20):
        writer.submit(lambda number=number: done.append((number, threading.current_thread().name)))
    assert done == []
    may_begin.set()
    writer.wait()
    assert done == [(number, "maskperf-writer_0") for number in range(20)]


def test_a_failure_reaches_the_next_caller_and_closing_waits_in_silence():
    writer, done = BackgroundWriter(), []
    writer.submit(fail)
    with pytest.raises(OSError, match="no space left"):
        writer.wait()
    writer.submit(fail)
    writer.submit(lambda: done.append(1))
    writer._pending[-1].result()
    with pytest.raises(OSError, match="no space left"):
        writer.submit(lambda: done.append(2))
    writer.submit(fail)
    writer.submit(lambda: done.append(3))
    writer.close()
    assert done == [1, 3]
    BackgroundWriter().close()  # never used
