"""A process that prepares a benchmark once and measures it whenever it is asked."""

import json
import os
import re
import select
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import BinaryIO

from maskperf import errors
from maskperf.bench.measure import Timing
from maskperf.errors import ConfigError

PEERS = Path(__file__).with_name("peers")
LONGEST_ANSWER_SECONDS = 3600.0
SHOWN_LOG_BYTES = 4000
MISSING_PACKAGE = re.compile(r"ModuleNotFoundError: No module named '([^'.]+)")
PACKAGE_OF_MODULE = {"PIL": "pillow", "faster_coco_eval": "faster-coco-eval"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class MissingPackageError(ConfigError):
    """A package that the Python of a side does not have."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of those that are compared, and how its process is started."""

    name: str
    command: tuple[str, ...]
    is_ours: bool


def our_side(name: str = "maskperf") -> Side:
    """Return this program, in a process of its own."""
    return Side(name=name, command=(sys.executable, "-m", "maskperf.bench.ours"), is_ours=True)


def peer_side(name: str, script: str, python: str) -> Side:
    """Return a peer: a script of this package, run by the Python that has the peer's packages."""
    return Side(name=name, command=(python, str(PEERS / script)), is_ours=False)


class Child:
    """A side's process; use it in a `with` statement.

    Errors: ConfigError where it cannot be started, lacks a package or was killed; RuntimeError for a bug in it.
    """

    def __init__(self, side: Side, threads: int):
        self.side = side
        self._threads = threads
        self._resources = ExitStack()
        self._buffer = b""

    def prepare(self, benchmark: str, inputs: dict) -> dict:
        """Return facts about the work that is now ready to be measured."""
        return self._ask({"command": "prepare", "benchmark": benchmark, "inputs": inputs})

    def warm_up(self) -> dict:
        """Return what the first call found, its seconds, and how many calls one measurement will have."""
        return self._ask({"command": "warm_up"})

    def measure(self) -> Timing:
        return Timing(**self._ask({"command": "measure"}))

    def memory(self) -> dict:
        """Return the peak since `prepare` ended and what was held then, in GiB; None where unknown."""
        return self._ask({"command": "memory"})

    def __enter__(self) -> "Child":
        with ExitStack() as opened:
            self._log = opened.enter_context(TemporaryFile())
            self._process = opened.enter_context(_start(self.side, self._threads, self._log))
            self._resources = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # there is nothing that it would have to save
        self._resources.close()

    def _ask(self, request: dict) -> dict:
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._end_of_child() from None
        answer = json.loads(self._read_line())
        if answer.get("module") == errors.__name__:  # what the user can fix keeps its words
            raise ConfigError(answer["error"])
        if "error" in answer:
            raise _error_of(self.side, answer["trace"])
        return answer["done"]

    def _read_line(self) -> bytes:
        deadline = time.monotonic() + LONGEST_ANSWER_SECONDS
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                text = f"{self.side.name}: no answer within {LONGEST_ANSWER_SECONDS:.0f} s."
                raise ConfigError(f"{text} Fix: choose less work with --size or --images.")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise self._end_of_child()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _end_of_child(self) -> Exception:
        """Return the error for a process that has ended although it should not."""
        code = self._process.wait()
        if code < 0:
            text = f"{self.side.name}: its process was ended by signal {-code}."
            return ConfigError(f"{text} Fix: if memory ran out, choose less work with --size or --images.")
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - SHOWN_LOG_BYTES))
        return _error_of(self.side, self._log.read().decode("utf-8", "replace"))


def _start(side: Side, threads: int, log: BinaryIO) -> subprocess.Popen:
    """Return the process; what it prints goes to `log`, its answers do not."""
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(side.command, stdin=pipe, stdout=pipe, stderr=log, env=_environment(side, threads))
    except OSError as error:
        text = f"{side.command[0]}: cannot be started ({error.strerror})."
        raise ConfigError(f"{text} Fix: give the path of a Python with --peer-python.") from error


def _environment(side: Side, threads: int) -> dict[str, str]:
    """Return the environment of a child: a peer must not find the packages of this Python."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if side.is_ours:
        package = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment


def _error_of(side: Side, trace: str) -> Exception:
    missing = MISSING_PACKAGE.search(trace)
    if missing and not side.is_ours:
        package = PACKAGE_OF_MODULE.get(missing[1], missing[1])
        python = side.command[0]
        text = f"{python}: the package {package} of the peer {side.name} is missing."
        fix = f"Fix: {python} -m pip install {package} (in a virtual environment of its own)"
        return MissingPackageError(f"{text} {fix}, and name that Python with --peer-python.")
    return RuntimeError(f"{side.name} failed:\n{trace}")
