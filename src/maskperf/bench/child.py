"""A process that prepares a benchmark once and measures it on request."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from maskperf import errors
from maskperf.bench.measure import Timing
from maskperf.errors import ConfigError

PEERS = Path(__file__).with_name("peers")
SOURCES = Path(__file__).resolve().parents[2]
LONGEST_ANSWER_SECONDS = 3600.0
SHOWN_LOG_BYTES = 4000
MISSING_PACKAGE = re.compile(r"ModuleNotFoundError: No module named '([^'.]+)")
PACKAGE_OF_MODULE = {"PIL": "pillow", "faster_coco_eval": "faster-coco-eval"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class MissingPackageError(ConfigError):
    """A package that the Python of a peer does not have."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the implementations or configurations that are compared, and the command of its process."""

    name: str
    command: tuple[str, ...]
    is_peer: bool = False
    has_processes: bool = False  # of its own, which end with it


def maskperf_side(name: str = "maskperf") -> Side:
    return Side(name=name, command=(sys.executable, "-m", "maskperf.bench.maskperf_side"))


def peer_side(name: str, script: str, python: str) -> Side:
    """Return a side that runs a script of bench/peers, with its name, in the Python that has the peer's packages."""
    return Side(name=name, command=(python, str(PEERS / script), name), is_peer=True)


def environment_of(threads: int, *, is_peer: bool = False) -> dict[str, str]:
    """Return the environment of a process; a peer must not find the packages of this Python."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    search_path = environment.pop("PYTHONPATH", "")
    if is_peer:
        environment.pop("PYTHONHOME", None)
    else:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCES), search_path]))
    return environment


@contextmanager
def start_child(side: Side, threads: int) -> Iterator["Child"]:
    """Let the process of a side live until the block ends. Errors: ConfigError where it cannot be started."""
    environment, group = environment_of(threads, is_peer=side.is_peer), 0 if side.has_processes else None
    ours, theirs = Pipe()
    with ours, TemporaryFile() as log:
        try:
            with theirs:
                process = subprocess.Popen(
                    side.command, stdin=theirs.fileno(), stdout=log, stderr=log, env=environment, process_group=group
                )
        except OSError as error:
            text = f"{side.command[0]}: cannot be started ({error.strerror})."
            raise ConfigError(f"{text} Fix: give the path of a Python with --peer-python.") from error
        with process:
            try:
                yield Child(side, process, ours, log)
            finally:
                if process.poll() is None:  # it has nothing to save; not waited for, so its number is still its own
                    kill = os.killpg if side.has_processes else os.kill
                    kill(process.pid, signal.SIGKILL)


class Child:
    """Requests to a side's process.

    Errors: ConfigError where it lacks a package, was killed or gives no answer; RuntimeError for a bug in it.
    """

    def __init__(self, side: Side, process: subprocess.Popen[bytes], connection: Connection, log: IO[bytes]):
        self._side, self._process, self._connection, self._log = side, process, connection, log

    def measure(self) -> Timing:
        return Timing(**self.ask("measure"))

    def ask(self, command: str, *arguments: object, seconds: float = LONGEST_ANSWER_SECONDS) -> Any:
        """Return what a command of `serve.Server` returns, within so many seconds."""
        try:
            self._connection.send((command, arguments))
            if not self._connection.poll(max(seconds, 0.0)):
                text = f"{self._side.name}: no answer within {seconds:.0f} s."
                raise ConfigError(f"{text} Fix: choose less work with --size or --images.")
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._early_end() from None
        if answer.get("module") == errors.__name__:  # the message of a UserError stays as it is
            raise ConfigError(answer["error"])
        if "error" in answer:
            raise self._error_of(answer["trace"])
        return answer["done"]

    def _early_end(self) -> Exception:
        """Return the error for a process that ended although it should not."""
        code = self._process.wait()
        if code < 0:
            text = f"{self._side.name}: its process was ended by signal {-code}."
            return ConfigError(f"{text} Fix: if memory ran out, choose less work with --size or --images.")
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - SHOWN_LOG_BYTES))
        return self._error_of(self._log.read().decode("utf-8", "replace"))

    def _error_of(self, trace: str) -> Exception:
        missing = MISSING_PACKAGE.search(trace)
        if missing and self._side.is_peer:
            package = PACKAGE_OF_MODULE.get(missing[1], missing[1])
            python = self._side.command[0]
            text = f"{python}: the package {package} of the peer {self._side.name} is missing."
            fix = f"Fix: {python} -m pip install {package} (in a virtual environment of its own)"
            return MissingPackageError(f"{text} {fix}, and name that Python with --peer-python.")
        return RuntimeError(f"{self._side.name} failed:\n{trace}")
