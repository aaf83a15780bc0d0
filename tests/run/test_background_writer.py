import threading

import pytest

from maskperf.run.session import BackgroundWriter


def test_what_is_submitted_is_done_in_order_while_the_caller_goes_on():
    writer, may_begin, done = BackgroundWriter(), threading.Event(), []
    writer.submit(lambda: may_begin.wait(100))
    for number in range(20):
        writer.submit(lambda number=number: done.append((number, threading.current_thread().name)))
    assert done == []
    may_begin.set()
    writer.wait()
    assert [number for number, _ in done] == list(range(20))
    assert {name for _, name in done} == {"maskperf-writer_0"}


def _fail():
    raise OSError("no space left")


def test_a_failure_reaches_the_next_caller():
    writer, done = BackgroundWriter(), []
    writer.submit(_fail)
    with pytest.raises(OSError, match="no space left"):
        writer.wait()
    writer.submit(_fail)
    writer.submit(lambda: done.append(1))
    writer._pending[-1].result()
    with pytest.raises(OSError, match="no space left"):
        writer.submit(lambda: done.append(2))
    writer.wait()
    assert done == [1]


def test_closing_waits_and_a_writer_that_was_never_used_can_be_closed():
    writer, done = BackgroundWriter(), []
    writer.submit(lambda: done.append(1))
    writer.submit(_fail)
    writer.close()
    assert done == [1]
    BackgroundWriter().close()
