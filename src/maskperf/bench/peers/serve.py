"""Answers the commands of `maskperf bench` over stdin and stdout, one JSON object a line; used by both sides.

Plain Python that imports nothing of maskperf: it also runs in the Python of a peer.

A benchmark is a function from its inputs to (work, facts): `work` is called to be measured and may return a dict of
what it found, `facts` is a dict of what is worth telling. With `first_seconds` among the facts the work was done once
already, and took that long; with `warm_up_calls` it is done so often before anything is measured.
"""

import gc
import json
import os
import resource
import sys
import time
import traceback

SHORTEST_SECONDS = 0.02  # quicker work is done several times in one measurement
MOST_CALLS = 10_000
GIB = 2**30
CLEAR_REFS = "/proc/self/clear_refs"


def serve(benchmarks, *, synchronize=None, device_peak_bytes=None):
    """Answer requests until its input ends.

    `synchronize` waits for the device, `device_peak_bytes` tells the most memory taken there; None without one.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries that print must not disturb the answers
    server = Server(benchmarks, synchronize or (lambda: None), device_peak_bytes or (lambda: None))
    for line in sys.stdin:
        try:
            answer = {"done": server.answer(json.loads(line))}
        except Exception as error:  # told to the other end, which decides
            answer = {"error": str(error), "module": type(error).__module__, "trace": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Server:
    """What one process has prepared."""

    def __init__(self, benchmarks, synchronize, device_peak_bytes):
        self.benchmarks = benchmarks
        self.synchronize = synchronize
        self.device_peak_bytes = device_peak_bytes
        self.work = None
        self.calls = 1
        self.first_seconds = None
        self.warm_up_calls = 1
        self.before_bytes = None

    def answer(self, request):
        """Return the answer to one request, ready for JSON."""
        command = request["command"]
        if command == "prepare":
            return self._prepare(request["benchmark"], request["inputs"])
        if command == "warm_up":
            return self._warm_up()
        if command == "measure":
            return self._measure()
        if command == "memory":
            return self._memory()
        raise ValueError(f"unknown command {command!r}")

    def _prepare(self, benchmark, inputs):
        self.work, facts = self.benchmarks[benchmark](inputs)
        self.first_seconds = facts.get("first_seconds")
        self.warm_up_calls = facts.get("warm_up_calls", 1)
        gc.collect()
        self.before_bytes = memory_bytes("VmRSS") if reset_peak() else None
        return facts

    def _warm_up(self):
        """Does the work once or more, and from its time decides how often one measurement does it."""
        found, seconds = {}, self.first_seconds
        if seconds is None:
            for _ in range(self.warm_up_calls):
                found, seconds = self._time_one()
        if seconds < SHORTEST_SECONDS:  # the first call may have set things up
            found, seconds = self._time_one()
        self.calls = min(max(1, round(SHORTEST_SECONDS / max(seconds, 1e-9))), MOST_CALLS)
        return {"seconds": seconds, "calls": self.calls, **(found or {})}

    def _time_one(self):
        start = time.perf_counter()
        found = self.work()
        self.synchronize()
        return found, time.perf_counter() - start

    def _measure(self):
        gc.collect()
        self.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.calls):
            self.work()
        self.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall_seconds": wall / self.calls, "cpu_seconds": cpu / self.calls}

    def _memory(self):
        """Return the peak of this process since `prepare` ended, or since its start where Linux cannot tell."""
        device = self.device_peak_bytes()
        return {
            "peak_gib": peak_bytes() / GIB,
            "before_gib": None if self.before_bytes is None else self.before_bytes / GIB,
            "device_peak_gib": None if device is None else device / GIB,
        }


def peak_bytes():
    """Return the most memory this process has held.

    Trap: ru_maxrss of a process that was just started counts the memory of its parent; Linux's VmHWM does not.
    """
    return memory_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_bytes(field):
    """Return a field of /proc/self/status in bytes, or None where there is no such file."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def reset_peak():
    """Return whether the peak of this process now starts anew from what it holds."""
    try:
        with open(CLEAR_REFS, "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True
