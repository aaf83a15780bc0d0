"""Answers the requests of `maskperf bench`, which come through the pipe that is stdin; used by both sides.

Plain Python that imports nothing of maskperf: it also runs in the Python of a peer.

A benchmark is a function from its inputs to (work, facts): `work` is called to be measured and may return a dict of
what it found, `facts` is a dict to report. With `first_seconds` among the facts the work was done once already, and
took that long; with `warm_up_calls` it is done that many times before anything is measured.
"""

import gc
import resource
import sys
import time
import traceback
from multiprocessing.connection import Connection

SHORTEST_SECONDS = 0.02  # quicker work is done several times in one measurement
MOST_CALLS = 10_000
GIB = 2**30
CLEAR_REFS = "/proc/self/clear_refs"


def serve(benchmarks, cuda=None):
    """Answer requests until the other end is closed; `cuda` is torch.cuda where there is a GPU."""
    connection, server = Connection(sys.stdin.fileno()), Server(benchmarks, cuda)
    while True:
        try:
            command, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            answer = {"done": getattr(server, command)(*arguments)}
        except Exception as error:  # sent to the other end, which decides
            answer = {"error": str(error), "module": type(error).__module__, "trace": traceback.format_exc()}
        connection.send(answer)


class Server:
    """What one process has prepared."""

    def __init__(self, benchmarks, cuda):
        self.benchmarks = benchmarks
        self.cuda = cuda
        self.before_bytes = None

    def prepare(self, benchmark, inputs):
        """Return facts about the work, which is then ready to be measured."""
        self.work, facts = self.benchmarks[benchmark](inputs)
        self.first_seconds = facts.get("first_seconds")
        self.warm_up_calls = facts.get("warm_up_calls", 1)
        gc.collect()
        self.before_bytes = memory_bytes("VmRSS") if reset_peak() else None
        return facts

    def warm_up(self):
        """Do the work once or more, and decide from its time how many calls one measurement has."""
        found, seconds = {}, self.first_seconds
        if seconds is None:
            for _ in range(self.warm_up_calls):
                found, seconds = self._time_one()
        if seconds < SHORTEST_SECONDS:  # the first call may have set things up
            found, seconds = self._time_one()
        self.calls = min(max(1, round(SHORTEST_SECONDS / max(seconds, 1e-9))), MOST_CALLS)
        return {"seconds": seconds, "calls": self.calls, **(found if isinstance(found, dict) else {})}

    def measure(self):
        gc.collect()
        self._synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.calls):
            self.work()
        self._synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall_seconds": wall / self.calls, "cpu_seconds": cpu / self.calls}

    def call(self):
        """Return what the work returns, for work that is no benchmark but gives one result after another."""
        return self.work()

    def memory(self):
        """Return the peak of this process since `prepare` ended, or since its start where Linux cannot reset it."""
        before = self.before_bytes
        return {
            "peak_gib": peak_bytes() / GIB,
            "before_gib": None if before is None else before / GIB,
            "device_peak_gib": self.cuda.max_memory_allocated() / GIB if self.cuda else None,
        }

    def _time_one(self):
        start = time.perf_counter()
        found = self.work()
        self._synchronize()
        return found, time.perf_counter() - start

    def _synchronize(self):
        if self.cuda:
            self.cuda.synchronize()


def peak_bytes():
    """Return the peak memory of this process.

    Trap: ru_maxrss of a process that was just started counts the memory of its parent; Linux's VmHWM does not.
    """
    return memory_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_bytes(field, process="self"):
    """Return a field of /proc/PROCESS/status in bytes, or None where there is no such file."""
    try:
        with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as status:
            lines = [line for line in status if line.startswith(field + ":")]
    except OSError:
        return None
    return int(lines[0].split()[1]) * 1024 if lines else None


def reset_peak():
    """Reset the peak to the memory in use; return whether the system can."""
    try:
        with open(CLEAR_REFS, "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True
