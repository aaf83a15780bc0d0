"""Children that a signal ends, whoever started the tests.

A shell script lets what it starts with `&` ignore SIGINT and SIGQUIT, `nohup` lets it ignore SIGHUP, and children
inherit what is ignored: a Python among them never raises KeyboardInterrupt.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)


@contextmanager
def default_signals() -> Iterator[None]:
    """Children started inside the `with` block ignore none of SIGNALS; this process goes on ignoring what it did."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, _do_nothing)  # a new program starts with the default in place of a handler
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _do_nothing(number: int, frame: object) -> None:
    pass
