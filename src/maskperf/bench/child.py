"""A process that prepares a benchmark once and measures it on request."""

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
    is_peer: bool


def maskperf_side(name: str = "maskperf") -> Side:
    return Side(name=name, command=(sys.executable, "-m", "maskperf.bench.maskperf_side"), is_peer=False)


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


class Child:
    """A side's process, as a context manager.

    Errors: ConfigError where it cannot be started, lacks a package or was killed; RuntimeError for a bug in it.
    """

    def __init__(self, side: Side, threads: int):
        self.side = side
        self._threads = threads
        self._resources = ExitStack()
        self._buffer = b""

    def prepare(self, benchmark: str, inputs: dict) -> dict:
        """Return facts about the work, which is then ready to be measured."""
        return self._ask("prepare", benchmark=benchmark, inputs=inputs)

    def warm_up(self) -> dict:
        """Return what the first call found, its seconds, and the number of calls of one measurement."""
        return self._ask("warm_up")

    def measure(self) -> Timing:
        return Timing(**self._ask("measure"))

    def memory(self) -> dict:
        """Return in GiB the peak since `prepare` ended and the memory in use then; None where unknown."""
        return self._ask("memory")

    def __enter__(self) -> "Child":
        with ExitStack() as opened:
            self._log = opened.enter_context(TemporaryFile())
            self._process = opened.enter_context(self._start())
            self._resources = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it has nothing to save
        self._resources.close()

    def _start(self) -> subprocess.Popen:
        command, pipe = self.side.command, subprocess.PIPE
        environment = environment_of(self._threads, is_peer=self.side.is_peer)
        try:
            return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, env=environment)
        except OSError as error:
            text = f"{command[0]}: cannot be started ({error.strerror})."
            raise ConfigError(f"{text} Fix: give the path of a Python with --peer-python.") from error

    def _ask(self, command: str, **arguments: object) -> dict:
        stdin = self._process.stdin
        assert stdin is not None  # a pipe, as below
        try:
            stdin.write(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._early_end() from None
        answer = json.loads(self._read_line())
        if answer.get("module") == errors.__name__:  # the message of a UserError stays as it is
            raise ConfigError(answer["error"])
        if "error" in answer:
            raise self._error_of(answer["trace"])
        return answer["done"]

    def _read_line(self) -> bytes:
        stdout, deadline = self._process.stdout, time.monotonic() + LONGEST_ANSWER_SECONDS
        assert stdout is not None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                text = f"{self.side.name}: no answer within {LONGEST_ANSWER_SECONDS:.0f} s."
                raise ConfigError(f"{text} Fix: choose less work with --size or --images.")
            data = os.read(stdout.fileno(), 1 << 16)
            if not data:
                raise self._early_end()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _early_end(self) -> Exception:
        """Return the error for a process that ended although it should not."""
        code = self._process.wait()
        if code < 0:
            text = f"{self.side.name}: its process was ended by signal {-code}."
            return ConfigError(f"{text} Fix: if memory ran out, choose less work with --size or --images.")
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - SHOWN_LOG_BYTES))
        return self._error_of(self._log.read().decode("utf-8", "replace"))

    def _error_of(self, trace: str) -> Exception:
        missing = MISSING_PACKAGE.search(trace)
        if missing and self.side.is_peer:
            package = PACKAGE_OF_MODULE.get(missing[1], missing[1])
            python = self.side.command[0]
            text = f"{python}: the package {package} of the peer {self.side.name} is missing."
            fix = f"Fix: {python} -m pip install {package} (in a virtual environment of its own)"
            return MissingPackageError(f"{text} {fix}, and name that Python with --peer-python.")
        return RuntimeError(f"{self.side.name} failed:\n{trace}")
