"""Ctrl-C, SIGTERM and SIGUSR1 while a run trains: the step under way is finished, then a checkpoint is written."""

import os
import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Inside the `with` block the first of the signals is kept in `number`; a second Ctrl-C raises at once.

    Signals that this process ignores, as after `nohup`, stay ignored. Outside of the main thread nothing is caught.
    """

    def __init__(self, *, speaks: bool):
        self.number = 0
        self._speaks = speaks
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned
        self._before.clear()

    def _catch(self, number: int, frame: object) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.number and self._speaks:
            name = signal.Signals(number).name
            text = (
                f"\n{name}: the step under way is finished, then a checkpoint is written; Ctrl-C twice ends at once\n"
            )
            os.write(2, text.encode())  # print is not for signal handlers
        if number == signal.SIGINT or not self.number:
            self.number = number
