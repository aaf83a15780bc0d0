"""Files written in a thread, so that training waits for no disk."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Does what it is given, one thing after the other, while the caller goes on."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="maskperf-writer")  # which starts with its first task
        self._under_way: deque[Future] = deque()

    def submit(self, write: Callable[[], object]) -> None:
        """Has `write` called after all that was submitted before.

        Errors: that of an earlier one which has failed by now.
        """
        while self._under_way and self._under_way[0].done():
            self._under_way.popleft().result()
        self._under_way.append(self._thread.submit(write))

    def wait(self) -> None:
        """Return when everything is written.

        Errors: that of the first one that failed.
        """
        while self._under_way:
            self._under_way.popleft().result()

    def close(self) -> None:
        """Return when everything is written or has failed; says nothing of failures, as another error is under way."""
        self._thread.shutdown(wait=True)
